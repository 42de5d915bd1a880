"""A broker in an event loop of its own thread, for tests whose front ends block."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vio4wd.vhostuser import Broker, Endpoint, Options, SocketMode
from vio4wd.vhostuser.backend import BackEnd

T = TypeVar("T")


def wait_until(condition: Callable[[], object], what: str, seconds: float = 5.0) -> None:
    """Wait for something that is bound to come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.002)


class StoppableBackEnd(BackEnd, Protocol):
    async def stop(self) -> None:
        """End all that is attached."""


class BrokerThread:
    """Runs a Broker; ``call`` runs a coroutine in its loop, ``do`` a plain function."""

    def __init__(
        self,
        back_end: StoppableBackEnd,
        directory: Path,
        options: Options | None = None,
        on_change: Callable[[int], None] | None = None,
    ) -> None:
        self.changes: list[int] = []
        self.directory = directory
        self.back_end = back_end
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        on_change = on_change or self.changes.append
        self.broker = Broker(back_end, directory / "private", options=options, on_change=on_change)

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 20) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def do(self, function: Callable[..., T], *arguments: Any) -> T:
        async def call() -> T:
            return function(*arguments)

        return self.call(call())

    def open(self, relay: int = 0, mode: SocketMode = SocketMode.SERVER, **more: Any) -> Path:
        path = self.directory / f"vm{relay}.sock"
        self.call(self.broker.open(relay, Endpoint(path, mode, **more)))
        return path

    def started(self, relay: int = 0) -> tuple[int, ...]:
        view = self.do(self.broker.session, relay)
        return view.rings_started if view else ()

    def stop(self) -> None:
        try:
            self.call(self.broker.shutdown())
            self.call(self.back_end.stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()
