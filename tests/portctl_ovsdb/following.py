"""Runs the whole of declarative port control (monitor and reconciler) beside a test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path

from portctl_file.recording import RecordingController
from vio4wd.config.model import StaticVf
from vio4wd.portctl.ovsdb.monitor import OvsdbMonitor
from vio4wd.portctl.reconcile import Reconciler
from vio4wd.portctl.resolver import DeviceResolver
from vio4wd.portctl.static import apply_static_vfs
from vio4wd.tasks import Backoff, supervised

QUICK = Backoff(first_s=0.05, most_s=0.3)


class Following:
    """A monitor and a reconciler at work on relays in memory. All of it is ended with ``stop``."""

    def __init__(
        self, socket: Path | None, sysfs: Path = Path("/nonexistent"), static: Iterable[StaticVf] = ()
    ) -> None:
        self.controller = RecordingController()
        self.reconciler = Reconciler(self.controller, backoff=QUICK, audit_interval_s=0.3)
        self.static(static)
        self.tasks = [asyncio.create_task(supervised("reconciler", self.reconciler.run, backoff=QUICK))]
        if socket is not None:
            monitor = OvsdbMonitor(str(socket), self.reconciler, DeviceResolver(sysfs))
            self.tasks.append(asyncio.create_task(supervised("OVSDB monitor", monitor.run, backoff=QUICK)))

    def static(self, static: Iterable[StaticVf]) -> None:
        """Change the static VFs."""
        apply_static_vfs(self.reconciler, static)

    async def stop(self) -> None:
        """Cancel everything and wait for it."""
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            with suppress(asyncio.CancelledError):
                await task


def follow(
    socket: Path | None,
    test: Callable[[Following], Awaitable[None]],
    *,
    sysfs: Path = Path("/nonexistent"),
    static: Iterable[StaticVf] = (),
    limit_s: float = 60,
) -> None:
    """Run a test beside declarative port control."""

    async def main() -> None:
        following = Following(socket, sysfs, static)
        try:
            async with asyncio.timeout(limit_s):
                await test(following)
            assert not any(task.done() for task in following.tasks)
        finally:
            await following.stop()

    asyncio.run(main())
