"""Port control: static VFs, and the one run-time source of requests that the configuration chooses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

from vio4wd.config.model import Config, PortControl
from vio4wd.daemon.relays import Relays
from vio4wd.portctl.command_file import CommandFile
from vio4wd.portctl.commands import CommandRunner
from vio4wd.portctl.ovsdb.monitor import OvsdbMonitor
from vio4wd.portctl.reconcile import Reconciler
from vio4wd.portctl.resolver import DeviceResolver
from vio4wd.portctl.static import apply_static_vfs
from vio4wd.tasks import supervised

log = logging.getLogger(__name__)


async def start_port_control(config: Config, relays: Relays, stack: AsyncExitStack) -> Reconciler:
    """Apply static VFs and start the chosen source; ZeroMQ's is started with the other services.

    Answers the reconciler, for static VFs that a reload changes. ``stack`` stops everything.
    """
    reconciler = Reconciler(relays)
    relays.reserved = lambda: reconciler.claimed_relays
    apply_static_vfs(reconciler, config.static_vfs)
    start_background("reconciler", reconciler.run, stack)
    source = config.port_control
    if source is PortControl.OVSDB:
        monitor = OvsdbMonitor(str(config.ovsdb_socket), reconciler, DeviceResolver())
        start_background("OVSDB monitor", monitor.run, stack)
    elif source is PortControl.COMMAND_FILE:
        runner = CommandRunner(relays, DeviceResolver(), lambda: reconciler.claimed_relays)
        command_file = CommandFile(config.command_file, runner)
        start_background("command file", command_file.run, stack)
    others = [other.value for other in PortControl if other not in (source, PortControl.NONE)]
    log.info("port control by %s; not by %s", source.value, " or ".join(others))
    return reconciler


def start_background(name: str, function: Callable[[], Awaitable[object]], stack: AsyncExitStack) -> None:
    """Run a supervised task until ``stack`` is closed."""
    task = asyncio.get_running_loop().create_task(supervised(name, function), name=name)

    async def end() -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)
