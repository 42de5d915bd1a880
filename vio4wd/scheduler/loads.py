"""What the load balancer decides on: the load of each relay, from a stats response, and the NUMA nodes of CPUs."""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from vio4wd.config.host import parse_cpu_list
from vio4wd.portctl.proto.virtioforwarder_pb2 import StatsResponse
from vio4wd.relay.interface import RelayCpus
from vio4wd.scheduler.balance import RelayLoad

_NODES = Path("/sys/devices/system/node")

_RelayState = StatsResponse.RelayState


class Unit(enum.Enum):
    """What loads are given in: shares of a CPU, or packets per second where the daemon measures no shares.

    ``quiet`` is a load of the busiest CPU below which balance does not matter.
    """

    CPU = "CPU", 0.05
    PPS = "packets/s", 10_000.0

    def __init__(self, unit: str, quiet: float) -> None:
        self.unit = unit
        self.quiet = quiet

    def text(self, load: float) -> str:
        """A load as people read it."""
        return f"{load * 100:.0f} %" if self is Unit.CPU else f"{load / 1e6:.3f} Mpps"


@dataclass(frozen=True)
class Measurement:
    """The loads of all relays that worker CPUs serve, in one unit."""

    relays: tuple[RelayLoad, ...]
    unit: Unit


@dataclass(frozen=True)
class _Direction:
    """CPU, share of it and packet rate of one direction. None: nothing serves it, or shares are not measured."""

    cpu: int | None
    share: float | None
    pps: float


def measurement(response: StatsResponse, workers: Collection[int]) -> Measurement:
    """Read the loads from a stats response. Relays that a CPU outside ``workers`` serves are left out.

    Loads are shares of a CPU if every direction has one, and packet rates else.
    """
    found = [(relay, *_directions(relay)) for relay in response.relay]
    served = [
        (relay, there, back)
        for relay, there, back in found
        if (there.cpu is not None or back.cpu is not None) and {there.cpu, back.cpu} - {None} <= set(workers)
    ]
    shares = all(way.cpu is None or way.share is not None for _, *ways in served for way in ways)
    unit = Unit.CPU if shares else Unit.PPS
    return Measurement(tuple(_relay_load(relay, there, back, unit) for relay, there, back in served), unit)


def _directions(relay: _RelayState) -> tuple[_Direction, _Direction]:
    there, back = relay.vf_to_vm, relay.vm_to_vf
    return (
        _Direction(relay.cpu.vf_to_vm if relay.cpu.HasField("vf_to_vm") else None, _share(there.work),
                   there.pkt_rate_rx_from_vf),
        _Direction(relay.cpu.vm_to_vf if relay.cpu.HasField("vm_to_vf") else None, _share(back.work),
                   back.pkt_rate_rx_from_vm),
    )  # fmt: skip


def _share(work: _RelayState.Work) -> float | None:
    return work.load if work.HasField("load") else None


def _relay_load(relay: _RelayState, there: _Direction, back: _Direction, unit: Unit) -> RelayLoad:
    first = there.cpu if there.cpu is not None else back.cpu
    second = back.cpu if back.cpu is not None else there.cpu
    assert first is not None and second is not None
    return RelayLoad(relay.id, RelayCpus(first, second), _load(there, unit), _load(back, unit), relay.socket_id)


def _load(way: _Direction, unit: Unit) -> float:
    value = way.share if unit is Unit.CPU else way.pps
    return value if way.cpu is not None and value is not None and math.isfinite(value) and value > 0 else 0.0


def cpu_nodes(directory: Path = _NODES) -> dict[int, int]:
    """The NUMA node of each CPU (``node<N>/cpulist`` of sysfs); empty where the kernel knows no nodes."""
    return {cpu: node for node, cpus in _nodes(directory) for cpu in cpus}


def _nodes(directory: Path) -> Iterator[tuple[int, frozenset[int]]]:
    for path in sorted(directory.glob("node[0-9]*")):
        yield int(path.name.removeprefix("node")), parse_cpu_list((path / "cpulist").read_text(encoding="ascii"))
