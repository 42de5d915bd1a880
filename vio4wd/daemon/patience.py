"""How long a request waits to begin, where somebody waits for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vio4wd.errors import WorkerError


class Patience:
    """The time that one request may spend on all its waits together, before its work begins; None is without end.

    Whoever asked gives up some time later: what begins then would be done although it was taken to have failed.
    """

    def __init__(self, what: str, seconds: float | None = None) -> None:
        self._what = what
        self._seconds = seconds
        self._until = None if seconds is None else asyncio.get_running_loop().time() + seconds

    def check(self) -> None:
        """Call before the work begins.

        Raises:
            WorkerError: it is too late for that.
        """
        if self._until is not None and asyncio.get_running_loop().time() > self._until:
            raise self._lost

    @asynccontextmanager
    async def turn(self, lock: asyncio.Lock) -> AsyncIterator[None]:
        """Hold a lock.

        Raises:
            WorkerError: others have held it for too long.
        """
        try:
            async with asyncio.timeout_at(self._until):
                await lock.acquire()
        except TimeoutError:
            raise self._lost from None
        try:
            self.check()
            yield
        finally:
            lock.release()

    @property
    def _lost(self) -> WorkerError:
        return WorkerError(
            f"{self._what}: nothing has changed, since other changes or the start of a worker process took longer than"
            f" {self._seconds:g} s; try again"
        )
