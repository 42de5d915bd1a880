"""Background tasks that must outlive their own errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backoff:
    """Waits between attempts, in seconds: ``first_s``, then ``factor`` times the last, never above ``most_s``."""

    first_s: float = 0.2
    most_s: float = 10.0
    factor: float = 2.0

    def delay_s(self, failures: int) -> float:
        """The wait after this many failures in a row, counted from 1."""
        # The exponent is bounded because a float overflows at about 2**1024 and this may run for months.
        return min(self.most_s, self.first_s * self.factor ** min(failures - 1, 64))


async def supervised(
    name: str,
    function: Callable[[], Awaitable[object]],
    *,
    backoff: Backoff | None = None,
    healthy_s: float = 30.0,
) -> None:
    """Await ``function()``, and start it again after an exception, which is logged with its traceback.

    Ends when the function returns, or when this task is cancelled. The wait before a restart grows with each
    failure, and starts over once the function has run for ``healthy_s``.

    Args:
        name: what the log calls the task, such as ``OVSDB monitor``.
        function: starts one run; called anew for each restart.
        backoff: waits between restarts; 0.2 s doubling up to 10 s unless given.
        healthy_s: a run of at least this length forgets earlier failures.
    """
    waits = backoff or Backoff()
    loop = asyncio.get_running_loop()
    failures = 0
    while True:
        started = loop.time()
        try:
            await function()
            return
        except asyncio.CancelledError:
            if _being_cancelled():
                raise
            reason = "was cancelled from within"
            log.exception("%s: something that it waited for was cancelled", name)
        except Exception as error:
            reason = f"failed: {error!r}"
            log.exception("%s: unexpected error", name)
        failures = 1 if loop.time() - started >= healthy_s else failures + 1
        delay_s = waits.delay_s(failures)
        log.error("%s %s; it starts again in %.1f s", name, reason, delay_s)
        await asyncio.sleep(delay_s)


def _being_cancelled() -> bool:
    """Whether the running task itself is to end, as opposed to having awaited something cancelled."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
