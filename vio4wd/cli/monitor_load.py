"""virtioforwarder_monitor_load.py: bars of the load of worker CPUs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count as forever
from pathlib import Path

import click

from vio4wd.cli import tool
from vio4wd.cli.client import ClientKeys, NoAnswerError, ask
from vio4wd.cli.stats import fetch
from vio4wd.portctl.proto.virtioforwarder_pb2 import CoreSchedRequest, CoreSchedResponse, StatsResponse
from vio4wd.stats.rates import MAX_DELAY_MS

BAR_WIDTH = 50
_SCHED_TIMEOUT_S = 0.5
_CLEAR_SCREEN = "\033[H\033[J"


@dataclass(frozen=True)
class CpuLoad:
    """What one worker CPU does: its load (0 to 1, None where the daemon does not say), packets/s, directions served."""

    cpu: int
    load: float | None
    pps: float
    directions: int


@click.command(context_settings=tool.CONTEXT)
@tool.endpoint_options("stats", "sched")
@click.option(
    "--poll-interval",
    type=click.FloatRange(0.05, MAX_DELAY_MS / 1000),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Seconds between updates, which the load is measured over.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N updates.")
@tool.curve_options
def command(
    stats_ep: str,
    sched_ep: str,
    poll_interval: float,
    count: int | None,
    curve_server_key: Path | None,
    curve_client_key: Path | None,
) -> None:
    """Show the load of the worker CPUs of a running virtio-forwarder until Ctrl-C."""
    keys = tool.curve_keys(curve_server_key, curve_client_key)
    before = _CLEAR_SCREEN if sys.stdout.isatty() else ""
    # An exception from a signal handler in the middle of ZeroMQ's cleaning up can leave it waiting for ever.
    signal.signal(signal.SIGINT, lambda *_: os._exit(tool.EXIT_OK))
    workers = worker_cpus(sched_ep, keys)
    for _ in range(count) if count else forever():
        response = fetch(stats_ep, include_inactive=True, delay_ms=round(poll_interval * 1000), keys=keys)
        lines = bars(cpu_loads(response, workers))
        click.echo(before + "\n".join(lines))


def worker_cpus(endpoint: str, keys: ClientKeys | None) -> tuple[int, ...]:
    """The worker CPUs, none where the core_sched service is off."""
    request = CoreSchedRequest(op=CoreSchedRequest.GET_EAL_CORES)
    try:
        response = ask(endpoint, request, CoreSchedResponse, timeout_s=_SCHED_TIMEOUT_S, keys=keys)
    except NoAnswerError:
        return ()
    return tuple(response.eal_cores)


def cpu_loads(response: StatsResponse, workers: Iterable[int]) -> list[CpuLoad]:
    """Loads by CPU number: of ``workers`` and of CPUs that serve a relay."""
    totals = {cpu: CpuLoad(cpu, 0.0, 0.0, 0) for cpu in workers}
    for cpu, load, pps in _directions(response):
        total = totals.get(cpu, CpuLoad(cpu, 0.0, 0.0, 0))
        summed = None if load is None or total.load is None else total.load + load
        totals[cpu] = CpuLoad(cpu, summed, total.pps + pps, total.directions + 1)
    return [totals[cpu] for cpu in sorted(totals)]


def bars(loads: Iterable[CpuLoad]) -> Iterator[str]:
    """One line for each CPU. Where no load is known the bar compares packet rates with the busiest CPU's."""
    loads = list(loads)
    if not loads:
        yield "no worker CPU serves a relay"
    busiest = max((load.pps for load in loads), default=0.0) or 1.0
    for load in loads:
        share = load.pps / busiest if load.load is None else min(1.0, load.load)
        percent = "   -" if load.load is None else f"{share:4.0%}"
        bar = "#" * round(share * BAR_WIDTH)
        yield f"CPU {load.cpu:3} [{bar:<{BAR_WIDTH}}] {percent} {load.pps / 1e6:8.3f} Mpps {load.directions} directions"


def _directions(response: StatsResponse) -> Iterator[tuple[int, float | None, float]]:
    """CPU, load and packets received per second of each direction that a CPU serves."""
    for relay in response.relay:
        if relay.cpu.HasField("vf_to_vm"):
            yield relay.cpu.vf_to_vm, _load(relay.vf_to_vm.work), relay.vf_to_vm.pkt_rate_rx_from_vf
        if relay.cpu.HasField("vm_to_vf"):
            yield relay.cpu.vm_to_vf, _load(relay.vm_to_vf.work), relay.vm_to_vf.pkt_rate_rx_from_vm


def _load(work: StatsResponse.RelayState.Work) -> float | None:
    return work.load if work.HasField("load") else None


def main() -> int:
    """Run the tool; answers its exit status."""
    return tool.run(command)
