"""A thread that does one piece of work after another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class WorkThread(ThreadPoolExecutor):
    """An executor of one thread that logs what its work raises: nobody has to look at the futures."""

    def __init__(self, name: str) -> None:
        super().__init__(1, name)
        self._name = name

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have the thread call a function, after all that was submitted before."""
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._report)
        return future

    def _report(self, future: Future[T]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            log.error("work of thread %s failed: %r", self._name, error, exc_info=error)
