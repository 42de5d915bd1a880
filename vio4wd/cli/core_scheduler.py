"""virtioforwarder_core_scheduler.py: the load balancer, which moves relays between CPUs as their load changes."""

from __future__ import annotations

import enum
import logging
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from vio4wd.cli import tool
from vio4wd.cli.client import ClientKeys, NoAnswerError, StoppedError, ask, connect, sockets
from vio4wd.cli.core_pinner import pin
from vio4wd.cli.stats import fetch
from vio4wd.config import DEFAULT_PATH, Config, Host, load
from vio4wd.config.keys import KEYS
from vio4wd.config.kinds import BadValueError, Reading
from vio4wd.daemon import logs
from vio4wd.errors import ConfigError, ProtocolError
from vio4wd.notify import ServiceNotifier
from vio4wd.portctl.endpoint import CORE_SCHED_EP, STATS_EP
from vio4wd.portctl.proto.virtioforwarder_pb2 import CoreSchedRequest, CoreSchedResponse, RelayCPU, StatsResponse
from vio4wd.relay.interface import RelayCpus
from vio4wd.scheduler.balance import balance, cpu_loads
from vio4wd.scheduler.loads import Measurement, cpu_nodes, measurement
from vio4wd.stats.rates import MAX_DELAY_MS

log = logging.getLogger("core_scheduler")

MEASURED_SHARE = 0.8
"""The part of the poll interval that loads are measured over."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Settings:
    """What the balancer is told. ``nodes`` are the NUMA nodes of CPUs where relays must stay on theirs, else None."""

    stats_ep: str
    sched_ep: str
    sensitivity: float
    poll_interval_s: float
    nodes: Mapping[int, int] | None
    keys: ClientKeys | None


class Condition(enum.Enum):
    """How the balancer gets on with the daemon; each change is logged."""

    STARTING = "starting"
    AWAY = "no daemon answers"
    NO_CORE_SCHED = "the daemon has no core_sched service"
    NO_STATS = "the daemon has no stats service"
    REFUSED = "moves are refused"
    BALANCING = "balancing"


class StopSignals:
    """SIGTERM and SIGINT as a descriptor, ``fd``, that is readable once one of them has come."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    @property
    def fd(self) -> int:
        """The descriptor to wait for."""
        return self._reader.fileno()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a signal; answers whether one has come."""
        return bool(select.select([self._reader], [], [], max(0.0, timeout_s))[0])


class Balancer:
    """Asks the daemon for loads again and again, and has it move relays. Goes on whatever the daemon does."""

    def __init__(self, settings: Settings, stop: StopSignals, notifier: ServiceNotifier) -> None:
        self._settings = settings
        self._stop = stop
        self._notifier = notifier
        self._condition = Condition.STARTING

    def run(self) -> None:
        """Balance until a signal comes."""
        self._notifier.ready(self._condition.value)
        with suppress(StoppedError):
            while True:
                begun = time.monotonic()
                self._notifier.status(self._poll())
                if self._stop.wait(begun + self._settings.poll_interval_s - time.monotonic()):
                    break
        self._notifier.stopping()
        log.info("stopped")

    def _poll(self) -> str:
        """Look once and move what should move; answers what was done."""
        settings = self._settings
        try:
            workers = self._workers()
        except (NoAnswerError, ProtocolError) as error:
            return self._enter(*self._without_core_sched(error))
        delay_ms = min(MAX_DELAY_MS, round(settings.poll_interval_s * MEASURED_SHARE * 1000))
        try:
            measured = measurement(self._stats(delay_ms), workers)
        except (NoAnswerError, ProtocolError) as error:
            return self._enter(Condition.NO_STATS, f"{error} Loads are known only with VIRTIOFWD_ZMQ_STATS_EP")
        moves = self._decide(measured, workers)
        try:
            if moves:
                self._move(moves)
        except (NoAnswerError, ProtocolError) as error:
            return self._enter(Condition.REFUSED, f"{_count(moves)} not moved: {error}")
        self._enter(Condition.BALANCING, f"virtio-forwarder answers; worker CPUs: {', '.join(map(str, workers))}")
        return self._done(measured, workers, moves)

    def _workers(self) -> tuple[int, ...]:
        settings = self._settings
        request = CoreSchedRequest(op=CoreSchedRequest.GET_EAL_CORES)
        response = ask(settings.sched_ep, request, CoreSchedResponse, keys=settings.keys, stop_fd=self._stop.fd)
        if response.status != CoreSchedResponse.OK or not response.eal_cores:
            raise NoAnswerError(f"{settings.sched_ep}: names no worker CPUs")
        return tuple(response.eal_cores)

    def _stats(self, delay_ms: int) -> StatsResponse:
        settings = self._settings
        return fetch(
            settings.stats_ep, include_inactive=True, delay_ms=delay_ms, keys=settings.keys, stop_fd=self._stop.fd
        )

    def _without_core_sched(self, error: Exception) -> tuple[Condition, str]:
        """Why core_sched does not answer: it is off if the daemon's statistics do."""
        try:
            self._stats(0)
        except (NoAnswerError, ProtocolError):
            return Condition.AWAY, str(error)
        return Condition.NO_CORE_SCHED, (
            f"virtio-forwarder runs, but moves no relays at {self._settings.sched_ep}: "
            "VIO4WD_CORE_SCHED_ENABLE=true must be set in its configuration, and the daemon restarted"
        )

    def _decide(self, measured: Measurement, workers: tuple[int, ...]) -> dict[int, RelayCpus]:
        loads = cpu_loads(measured.relays, workers)
        log.debug("loads: %s", ", ".join(f"CPU {cpu} {measured.unit.text(load)}" for cpu, load in loads.items()))
        if max(loads.values()) < measured.unit.quiet:
            return {}
        settings = self._settings
        return balance(measured.relays, workers, sensitivity=settings.sensitivity, cpu_nodes=settings.nodes)

    def _move(self, moves: Mapping[int, RelayCpus]) -> None:
        pins = [
            RelayCPU(relay_number=relay, vf2virtio_cpu=cpus.vf_to_vm, virtio2vf_cpu=cpus.vm_to_vf)
            for relay, cpus in moves.items()
        ]
        pin(self._settings.sched_ep, pins, self._settings.keys, stop_fd=self._stop.fd)

    def _done(self, measured: Measurement, workers: tuple[int, ...], moves: Mapping[int, RelayCpus]) -> str:
        loads = cpu_loads(measured.relays, workers)
        busiest = max(loads, key=lambda cpu: loads[cpu])
        text = f"busiest CPU {busiest} at {measured.unit.text(loads[busiest])}, {_count(moves)} moved"
        if moves:
            log.info("%s: %s", text, "; ".join(f"relay {relay} to {_cpus(cpus)}" for relay, cpus in moves.items()))
        return text

    def _enter(self, condition: Condition, text: str) -> str:
        """Note how things are, and log it once; answers the text."""
        if condition is not self._condition:
            self._condition = condition
            level = logging.INFO if condition is Condition.BALANCING else logging.WARNING
            log.log(level, "%s", text)
        return text


def _count(moves: Mapping[int, RelayCpus]) -> str:
    return f"{len(moves) or 'no'} relay{'s' * (len(moves) > 1)}"


def _cpus(cpus: RelayCpus) -> str:
    if cpus.vf_to_vm == cpus.vm_to_vf:
        return f"CPU {cpus.vf_to_vm}"
    return f"CPU {cpus.vf_to_vm} (from the VF) and {cpus.vm_to_vf} (from the VM)"


def _key_option(name: str, key: str, metavar: str, text: str = "", default: str = "") -> Callable[[F], F]:
    """An option for a key of the configuration, checked as the key's values are."""
    spec = KEYS[key]

    def check(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
        if value is not None:
            try:
                spec.kind.read(Reading((value,), False, Host(frozenset()), lambda _warning: None))
            except BadValueError as error:
                raise click.BadParameter(f"{value!r} {error}; allowed: {spec.kind.allowed}") from error
        return value

    description = f"{text or spec.description} [{key}, default: {default or spec.default}]"
    return click.option(name, callback=check, metavar=metavar, help=description)


@click.command(context_settings=tool.CONTEXT)
@_key_option("--stats-ep", "VIRTIOFWD_ZMQ_STATS_EP", "ENDPOINT", "The stats service.", STATS_EP)
@_key_option("--sched-ep", "VIRTIOFWD_ZMQ_CORE_SCHED_EP", "ENDPOINT", "The core_sched service.", CORE_SCHED_EP)
@_key_option("--sensitivity", "VIO4WD_CORE_SCHED_SENSITIVITY", "FRACTION")
@_key_option("--poll-interval", "VIO4WD_CORE_SCHED_POLL_INTERVAL", "S", "Seconds from one look to the next.")
@_key_option("--loglevel", "VIO4WD_CORE_SCHED_LOG_LEVEL", "N", "How much to log: 3 errors to 7 all.")
@click.option(
    "--global-numa-opt",
    is_flag=True,
    help=f"{KEYS['VIO4WD_CORE_SCHED_GLOBAL_NUMA_OPT'].description} [VIO4WD_CORE_SCHED_GLOBAL_NUMA_OPT, default: off]",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Configuration file that says what options do not. [default: {DEFAULT_PATH}, where it is there]",
)
@tool.curve_options
def command(
    stats_ep: str | None,
    sched_ep: str | None,
    sensitivity: str | None,
    poll_interval: str | None,
    loglevel: str | None,
    global_numa_opt: bool,
    config_path: Path | None,
    curve_server_key: Path | None,
    curve_client_key: Path | None,
) -> None:
    """Move relays of a running virtio-forwarder to other worker CPUs as their load changes, until stopped.

    The daemon must run with VIO4WD_CORE_SCHED_ENABLE=true, and may start later. Pins of relays are overruled. Both
    directions of a relay stay on one CPU unless parting them gains enough by itself. Nothing moves while the busiest
    CPU has hardly anything to do (below 5 %).
    """
    keys = tool.curve_keys(curve_server_key, curve_client_key)
    given = {
        "VIO4WD_CORE_SCHED_SENSITIVITY": sensitivity,
        "VIO4WD_CORE_SCHED_POLL_INTERVAL": poll_interval,
        "VIO4WD_CORE_SCHED_LOG_LEVEL": loglevel,
        "VIO4WD_CORE_SCHED_GLOBAL_NUMA_OPT": "true" if global_numa_opt else None,
    }
    path = config_path or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    config = load(path, {key: value for key, value in given.items() if value is not None})
    settings = _settings(config, stats_ep, sched_ep, keys)
    logs.configure(config.scheduler_log_level, syslog=False)
    stop = StopSignals()
    with ServiceNotifier.from_environment() as notifier:
        Balancer(settings, stop, notifier).run()


def _settings(config: Config, stats_ep: str | None, sched_ep: str | None, keys: ClientKeys | None) -> Settings:
    """Settings from the configuration, and endpoints from the command line where they are given.

    Raises:
        ConfigError, NoAnswerError: an endpoint or a key can never be used.
    """
    settings = Settings(
        stats_ep=stats_ep or _reachable(config.zmq_stats_ep or STATS_EP),
        sched_ep=sched_ep or _reachable(config.zmq_core_sched_ep or CORE_SCHED_EP),
        sensitivity=config.scheduler_sensitivity,
        poll_interval_s=config.scheduler_poll_interval_s,
        nodes=None if config.scheduler_global_numa else cpu_nodes(),
        keys=keys,
    )
    for endpoint in (settings.stats_ep, settings.sched_ep):
        if endpoint.startswith("tcp://") and keys is None:
            raise ConfigError(f"{endpoint}: tcp:// needs --curve-server-key and --curve-client-key")
        with sockets() as context:
            connect(context, endpoint, 0, keys)
    return settings


def _reachable(endpoint: str) -> str:
    """Where to connect to a service that listens on ``endpoint``: one on all addresses is on this machine's own too."""
    return endpoint.replace("tcp://*:", "tcp://127.0.0.1:")


def main() -> int:
    """Run the tool; answers its exit status."""
    return tool.run(command)
