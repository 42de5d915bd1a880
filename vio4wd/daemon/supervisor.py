"""The supervisor: brings up workers, sockets and services in order, waits, and takes them down again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vio4wd import __version__
from vio4wd.config import changes
from vio4wd.config.model import Config
from vio4wd.daemon import logs
from vio4wd.daemon.control import start_background, start_port_control
from vio4wd.daemon.features import disabled_features
from vio4wd.daemon.host import (
    PidFile,
    check_hugepages,
    huge_directory,
    prepare_socket_directory,
    private_directory,
    raise_descriptor_limit,
    run_directory,
)
from vio4wd.daemon.relays import Relays
from vio4wd.daemon.services import start_services
from vio4wd.errors import ForwarderError
from vio4wd.notify import ServiceNotifier
from vio4wd.portctl.reconcile import Reconciler
from vio4wd.portctl.static import apply_static_vfs
from vio4wd.relay.interface import RELAYS
from vio4wd.relay.lanes import LaneTable
from vio4wd.relay.placement import Placement
from vio4wd.relay.ports import JUMBO_MTU, STANDARD_MTU
from vio4wd.relay.worker_options import WorkerOptions
from vio4wd.relay.workers import Workers
from vio4wd.vhostuser.broker import Broker
from vio4wd.vhostuser.endpoint import Endpoint, SocketMode

log = logging.getLogger(__name__)

STATUS_INTERVAL_S = 5.0

SESSIONS_LIMIT_S = 0.1
"""How long workers that are to be stopped have to forget their guests' sessions in good order."""


@dataclass(frozen=True)
class _Core:
    """The parts that everything else stands on."""

    relays: Relays
    workers: Workers
    broker: Broker


class Supervisor:
    """One run of the daemon.

    ``reload`` reads the configuration again (it raises ConfigError), ``ready`` is called once when all is up.
    """

    def __init__(self, config: Config, reload: Callable[[], Config], ready: Callable[[], None]) -> None:
        self._config = config
        self._reload = reload
        self._ready = ready
        self._notify = ServiceNotifier.from_environment()
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()

    async def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, stop. A signal during the start ends it there.

        Raises:
            StartupError: the daemon cannot run here; nothing is left behind.
        """
        loop = asyncio.get_running_loop()
        for number, event in ((signal.SIGTERM, self._stop), (signal.SIGINT, self._stop), (signal.SIGHUP, self._hangup)):
            loop.add_signal_handler(number, event.set)
        _warn(self._config)
        async with AsyncExitStack() as stack:
            stack.enter_context(self._notify)
            try:
                if await self._completed(self._start(stack)):
                    await self._stop.wait()
                log.info("stopping")
            finally:
                self._notify.stopping()

    async def _completed(self, start: Coroutine[None, None, None]) -> bool:
        """Await start-up, which may take minutes; False where the daemon was told to stop and it was cancelled."""
        starting = asyncio.create_task(start)
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        starting.cancel()
        try:
            await starting
        except asyncio.CancelledError:
            return False
        return True

    async def _start(self, stack: AsyncExitStack) -> None:
        core = await self._start_core(stack)
        await self._open_sockets(core)
        await start_services(self._config, core.relays, core.workers, stack)
        reconciler = await start_port_control(self._config, core.relays, stack)
        start_background("reload", lambda: self._reload_on_hangup(core, reconciler), stack)
        start_background("status", lambda: self._report_status(core), stack)
        cpus = ", ".join(map(str, core.relays.worker_cpus()))
        log.info("READY: virtio-forwarder %s on CPUs %s", __version__, cpus)
        self._notify.ready(f"relays on CPUs {cpus}")
        self._ready()
        core.workers.prepare_spare()

    async def _start_core(self, stack: AsyncExitStack) -> _Core:
        config = self._config
        raise_descriptor_limit()
        pid_file = PidFile(config.pid_file)
        stack.callback(pid_file.remove)
        prepare_socket_directory(config)
        check_hugepages()
        table = LaneTable.create()
        relays = Relays(
            table,
            Placement(config.worker_cpus, config.cpu_pins),
            self._endpoint,
            dynamic_sockets=config.dynamic_sockets,
        )
        private = stack.enter_context(private_directory(run_directory()))
        broker = Broker(relays.carrier, private, on_change=relays.carrier.front_end_changed)
        workers = Workers(self._worker_options, table, relays.carrier)
        relays.connect(workers, broker)
        stack.push_async_callback(_stop_core, broker, workers)
        stack.push_async_callback(relays.carrier.close)
        await workers.start()
        return _Core(relays, workers, broker)

    async def _open_sockets(self, core: _Core) -> None:
        """Open every relay's socket, unless sockets come with port control."""
        if self._config.dynamic_sockets:
            return
        for relay in range(RELAYS):
            await core.relays.open_socket(relay, self._config.socket_path(relay))

    async def _report_status(self, core: _Core) -> None:
        while True:
            active = sum(snapshot.active for snapshot in core.relays.snapshot())
            self._notify.status(f"{active} of {RELAYS} relays active, {len(core.workers.slots)} worker processes")
            await asyncio.sleep(STATUS_INTERVAL_S)

    async def _reload_on_hangup(self, core: _Core, reconciler: Reconciler) -> None:
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._notify.reloading()
            try:
                await self._apply(self._reload(), core, reconciler)
            except ForwarderError as error:
                log.error("the configuration is not reloaded: %s", error)
            finally:
                self._notify.ready()

    async def _apply(self, new: Config, core: _Core, reconciler: Reconciler) -> None:
        """Take over what can change while the daemon runs, one thing whether or not another fails, and say what cannot.

        What fails is not tried again by the next reload: workers that start later have it from the configuration.
        """
        found = changes(self._config, new)
        self._config = replace(self._config, log_level=new.log_level, cpu_pins=new.cpu_pins, static_vfs=new.static_vfs)
        if found.log_level is not None:
            logs.set_level(found.log_level)
        _warn(new)
        with _reloading("log level"):
            if found.log_level is not None:
                await core.workers.set_log_level(logs.LEVELS[found.log_level])
        with _reloading("CPU pins"):
            if found.cpu_pins_changed:
                await core.relays.set_pins(new.cpu_pins)
        with _reloading("static VFs"):
            apply_static_vfs(reconciler, new.static_vfs)
        if found.not_reloadable:
            log.warning("these changes need a restart: %s", ", ".join(found.not_reloadable))
        log.info("configuration reloaded: %s", "changes applied" if found else "nothing has changed")

    def _endpoint(self, path: Path) -> Endpoint:
        mode = SocketMode.CLIENT if self._config.vhost_client else SocketMode.SERVER
        return Endpoint(path, mode, self._config.socket_owner, self._config.socket_group)

    def _worker_options(self, name: str) -> WorkerOptions:
        config = self._config
        directory = huge_directory(config.huge_dir)
        return WorkerOptions(
            name=f"{name}-{os.getpid()}",
            main_cpu=config.master_cpu,
            worker_cpus=config.worker_cpus,
            huge_dir=str(directory or ""),
            mtu=JUMBO_MTU if config.jumbo else STANDARD_MTU,
            log_level=logs.LEVELS[config.log_level],
            idle_sleep_max_us=config.idle_sleep_max_us,
            disabled_features=disabled_features(config),
            ring_engine=config.ring_engine.value,
            vfio_vf_token=config.vfio_vf_token or "",
        )


def _warn(config: Config) -> None:
    """Log what the configuration has that is better said than found out."""
    for warning in config.warnings:
        log.warning("%s", warning)


@contextmanager
def _reloading(what: str) -> Iterator[None]:
    """Log what goes wrong with one part of a reload; the others go on."""
    try:
        yield
    except ForwarderError as error:
        log.error("%s: not everywhere as in the configuration: %s", what, error)
    except Exception:
        log.exception("%s: not as in the configuration", what)


async def _stop_core(broker: Broker, workers: Workers) -> None:
    """Cut front ends off, then end the workers; one that hangs is not waited for to forget its sessions first."""
    closing = asyncio.create_task(broker.shutdown())
    await asyncio.wait({closing}, timeout=SESSIONS_LIMIT_S)
    await workers.stop()
    await closing
