"""What the daemon may ask of relays: the controller that port control drives, the snapshots that stats read.

Static configuration, ZeroMQ, OVSDB and the command file are front ends of ``RelayController`` and hold no state of
their own.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vio4wd.devices import Attachment

RELAYS = 64
"""Relays of one daemon, numbered from 0."""


class VfState(enum.Enum):
    """State of the VF side of a relay, as the stats service names it."""

    UNINIT = "DPDK_UNINIT"
    ADDED = "DPDK_ADDED"
    READY = "DPDK_READY"
    REMOVING1 = "DPDK_REMOVING1"
    REMOVING2 = "DPDK_REMOVING2"


class VirtioState(enum.Enum):
    """State of the VM side of a relay, as the stats service names it."""

    UNINIT = "VIRTIO_UNINIT"
    READY = "VIRTIO_READY"
    REMOVING1 = "VIRTIO_REMOVING1"
    REMOVING2 = "VIRTIO_REMOVING2"


@dataclass(frozen=True)
class LaneBursts:
    """How many bursts of one queue pair's lane the direct engine and the library engine have moved."""

    queue_pair: int
    direct: int
    library: int


@dataclass(frozen=True)
class DirectionCounters:
    """Counters of one direction of a relay, summed over its queue pairs. They never go back.

    ``received`` is what came from the near side (VF for vf_to_vm, VM for vm_to_vf), ``sent`` what the far side took.
    ``too_long`` are frames of the VM that no VF of this MTU may be given.
    ``cycles`` are TSC cycles of polls that moved packets, estimated from one round in 16. ``lanes`` has the lanes that
    have moved any, by queue pair.
    """

    received_pkts: int = 0
    received_bytes: int = 0
    sent_pkts: int = 0
    sent_bytes: int = 0
    queue_full_pkts: int = 0
    queue_full_bytes: int = 0
    not_connected_pkts: int = 0
    not_connected_bytes: int = 0
    too_long_pkts: int = 0
    too_long_bytes: int = 0
    cycles: int = 0
    direct_bursts: int = 0
    library_bursts: int = 0
    lanes: tuple[LaneBursts, ...] = ()


@dataclass(frozen=True)
class RelaySnapshot:
    """One relay at one moment. CPU numbers are Linux's; ``numa_node`` is 0 where it is unknown.

    ``vf_cpu`` serves VF-to-VM, ``virtio_cpu`` VM-to-VF; None while the direction is inactive. ``fault`` says why a
    desired VF or socket is not being served, and is None while all is well.
    """

    relay: int
    vf_state: VfState
    virtio_state: VirtioState
    attachment: Attachment | None
    socket_path: str | None
    vf_cpu: int | None
    virtio_cpu: int | None
    numa_node: int
    vf_to_vm: DirectionCounters
    vm_to_vf: DirectionCounters
    fault: str | None = None

    @property
    def active(self) -> bool:
        """Packets can cross the relay: both sides are ready."""
        return self.vf_state is VfState.READY and self.virtio_state is VirtioState.READY


@dataclass(frozen=True)
class RelayCpus:
    """The worker CPUs of one relay: ``vf_to_vm`` and ``vm_to_vf`` directions."""

    vf_to_vm: int
    vm_to_vf: int


class RelayController(Protocol):
    """Changes relays. State changes are serialized per relay; each completes or leaves things as they were.

    Every method that changes something raises RequestError (code and source as port control clients know them).
    With ``conditional`` a request that would change nothing succeeds; without it that is an error. With ``patience_s``
    a request that cannot begin within that time is refused, instead of carried out when nobody waits any more.
    """

    async def add_vf(
        self, relay: int, device: Attachment, *, conditional: bool = True, patience_s: float | None = None
    ) -> None:
        """Put a VF, a virtual device or a bond on a relay."""

    async def remove_vf(
        self,
        relay: int,
        device: Attachment | str | None,
        *,
        conditional: bool = True,
        patience_s: float | None = None,
    ) -> None:
        """Take the VF or bond off a relay; ``device`` (a str names a bond) must match what is there unless None."""

    async def add_socket(
        self, path: Path, device: Attachment, *, conditional: bool = True, patience_s: float | None = None
    ) -> int:
        """Register a vhost-user socket with a device on the lowest free relay; answers the relay's number."""

    async def remove_socket(
        self,
        path: Path | None,
        device: Attachment | str | None,
        *,
        conditional: bool = True,
        patience_s: float | None = None,
    ) -> None:
        """Take a socket and its device away, found by path, by device (a str names a bond), or by both."""

    def query_device(self, path: Path) -> Attachment | None:
        """The device behind a vhost-user socket, None where the socket has none."""

    async def set_cpus(self, cpus: Mapping[int, RelayCpus]) -> None:
        """Move relays to worker CPUs; all are checked before the first is moved."""

    def worker_cpus(self) -> Sequence[int]:
        """The worker CPU numbers, ascending."""

    def relay_cpus(self) -> Mapping[int, RelayCpus]:
        """The CPUs that serve each relay that has any direction assigned."""

    def snapshot(self) -> Sequence[RelaySnapshot]:
        """All relays, by number."""
