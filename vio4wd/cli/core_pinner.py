"""virtioforwarder_core_pinner.py: pin relays to worker CPUs, and show which CPUs serve which relay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from vio4wd.cli import tool
from vio4wd.cli.client import ClientKeys, NoAnswerError, ask
from vio4wd.cli.stats import fetch
from vio4wd.config.cpus import parse_pin
from vio4wd.errors import ConfigError
from vio4wd.portctl.proto.virtioforwarder_pb2 import CoreSchedRequest, CoreSchedResponse, RelayCPU, StatsResponse


def read_pin(text: str) -> RelayCPU:
    """Read ``RN:Ci[,Cj]`` as the configuration file has it.

    Raises:
        click.BadParameter: it is not written so, there is no such relay, or a CPU number is beyond any machine's.
    """
    try:
        relay, cpus = parse_pin(text)
        return RelayCPU(relay_number=relay, vf2virtio_cpu=cpus.vf_to_vm, virtio2vf_cpu=cpus.vm_to_vf)
    except (ConfigError, ValueError) as error:
        raise click.BadParameter(f"{error}: must be RN:Ci or RN:Ci,Cj as in 1:2,3") from error


def _read_pins(_context: click.Context, _option: click.Parameter, values: Sequence[str]) -> Sequence[RelayCPU]:
    return [read_pin(value) for value in values]


@click.command(context_settings=tool.CONTEXT)
@tool.endpoint_options("stats", "sched")
@click.option("--print-core-map", is_flag=True, help="Print which CPUs serve which relay (also without any option).")
@click.option(
    "--virtio-cpu",
    "pins",
    multiple=True,
    callback=_read_pins,
    metavar="RN:Ci[,Cj]",
    help="Serve relay RN on CPU Ci from VF to virtio and on Cj (or Ci) from virtio to VF; repeat.",
)
@tool.curve_options
def command(
    stats_ep: str,
    sched_ep: str,
    print_core_map: bool,
    pins: Sequence[RelayCPU],
    curve_server_key: Path | None,
    curve_client_key: Path | None,
) -> None:
    """Pin relays of a running virtio-forwarder to worker CPUs.

    The daemon must run with VIO4WD_CORE_SCHED_ENABLE=true. A load balancer may move relays again.
    """
    keys = tool.curve_keys(curve_server_key, curve_client_key)
    if pins:
        pin(sched_ep, pins, keys)
        for entry in pins:
            click.echo(_line(entry.relay_number, entry.vf2virtio_cpu, entry.virtio2vf_cpu))
    if print_core_map or not pins:
        for line in map_lines(fetch(stats_ep, include_inactive=True, delay_ms=0, keys=keys)):
            click.echo(line)


def pin(endpoint: str, pins: Sequence[RelayCPU], keys: ClientKeys | None, stop_fd: int | None = None) -> None:
    """Have the daemon move relays, all or none. Raises NoAnswerError where it does not; otherwise as ``ask``."""
    request = CoreSchedRequest(op=CoreSchedRequest.UPDATE, relay_cpu_map=pins)
    response = ask(endpoint, request, CoreSchedResponse, keys=keys, stop_fd=stop_fd)
    if response.status != CoreSchedResponse.OK:
        text = response.error_text or "the pins were refused"
        raise NoAnswerError(f"{text} (error {response.error_code} from {response.error_code_source})")


def map_lines(response: StatsResponse) -> Iterator[str]:
    """One line for each relay that a CPU serves in either direction."""
    for relay in response.relay:
        if relay.HasField("cpu"):
            there = relay.cpu.vf_to_vm if relay.cpu.HasField("vf_to_vm") else "none"
            back = relay.cpu.vm_to_vf if relay.cpu.HasField("vm_to_vf") else "none"
            yield _line(relay.id, there, back)


def _line(relay: int, vf_to_virtio: int | str, virtio_to_vf: int | str) -> str:
    return f"relay {relay}: VF-to-virtio CPU {vf_to_virtio}, virtio-to-VF CPU {virtio_to_vf}"


def main() -> int:
    """Run the tool; answers its exit status."""
    return tool.run(command)
