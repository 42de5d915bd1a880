"""Lanes: one record per direction of one queue pair of one relay, in memory that the supervisor and its workers share.

A lane is what is polled, counted, measured and moved between CPUs. The supervisor makes the table (a memfd), so
counters outlive a worker. Only the worker that carries a relay writes its lanes: control fields from its control
threads, the rest from the lcore that polls the lane.
"""

from __future__ import annotations

import enum
import hashlib
import mmap
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from vio4wd.relay.direct.ring_record import RING
from vio4wd.relay.interface import RELAYS, DirectionCounters, LaneBursts

QUEUE_PAIRS = 32
"""Queue pairs of one relay."""

BURST = 32
"""Packets that one poll of a lane moves at the most."""


class Direction(enum.IntEnum):
    """Directions of a relay; also the lane's place in its pair."""

    VF_TO_VM = 0
    VM_TO_VF = 1


class LaneMode(enum.IntEnum):
    """What the loop does with a lane.

    DRAIN: the far side is absent, so read, count as dropped, and free. FLUSH: the lane is about to be switched off, so
    drop what it holds and read no more.
    """

    OFF = 0
    FORWARD = 1
    DRAIN = 2
    FLUSH = 3


class Engine(enum.IntEnum):
    """Who works the guest's ring of a lane that forwards."""

    LIBRARY = 0
    DIRECT = 1


COUNTERS = (
    "received_pkts",
    "received_bytes",
    "sent_pkts",
    "sent_bytes",
    "queue_full_pkts",
    "queue_full_bytes",
    "not_connected_pkts",
    "not_connected_bytes",
    "too_long_pkts",
    "too_long_bytes",
    "cycles",
    "direct_bursts",
    "library_bursts",
)

LANE = np.dtype(
    [
        # written by the worker's control threads while the lane is quiescent (mode: at any time)
        ("mode", "i4"),
        ("direction", "i4"),
        ("vid", "i4"),  # rte_vhost's number of the guest
        ("ring", "i4"),  # vring index in the guest
        ("burst_function", "i8"),  # eth_rx_burst_t or eth_tx_burst_t of the VF
        ("burst_queue", "i8"),  # its first argument
        ("mempool", "i8"),  # struct rte_mempool * for packets from the guest
        ("longest", "i8"),  # bytes of the longest frame that the VF may be given
        ("descriptors", "i8"),  # where a packed ring of the guest lies
        ("packed", "i4"),  # the guest's rings are packed
        ("mergeable", "i4"),  # VIRTIO_NET_F_MRG_RXBUF
        ("ring_size", "i4"),
        ("engine", "i4"),
        ("fatal", "i4"),  # 1: a worker died while it worked this lane; the supervisor takes it back
        ("refusals", "i4"),  # polls in a row that moved nothing of what is held
        (
            "pulse",
            "i4",
        ),  # call burst_function without packets, too, now and then: the VF has packets of its own to send
        # packets taken from the near side that the far side has not taken yet
        ("held_head", "i4"),
        ("held_count", "i4"),
        ("held_bytes", "i8"),
        ("held", "u8", (BURST,)),
        *[(name, "u8") for name in COUNTERS],
    ],
    align=True,
)

_CACHE_LINE = 64
RING_OFFSET = -(-LANE.itemsize // _CACHE_LINE) * _CACHE_LINE
"""Bytes from a lane to the record of its ring, field ``view`` of the table, which the direct engine uses."""

LANE_STRIDE = RING_OFFSET + -(-RING.itemsize // _CACHE_LINE) * _CACHE_LINE
"""Bytes from one lane to the next: whole cache lines, so that lanes on two CPUs share none."""

LANE_RECORD_OFFSETS: dict[str, int] = {name: LANE.fields[name][1] for name in LANE.names or ()}  # type: ignore[index]
"""Field -> offset in bytes from the lane's address."""

LANE_PADDED = np.dtype(
    {
        "names": [*LANE_RECORD_OFFSETS, "view"],
        "formats": [*(LANE[name] for name in LANE_RECORD_OFFSETS), RING],
        "offsets": [*LANE_RECORD_OFFSETS.values(), RING_OFFSET],
        "itemsize": LANE_STRIDE,
    }
)
"""A lane with its ring and the padding up to the next one."""

LANES = RELAYS * QUEUE_PAIRS * 2
TABLE_BYTES = LANES * LANE_STRIDE

TABLE_LAYOUT = hashlib.sha256(f"{LANES} {QUEUE_PAIRS} {LANE_PADDED}".encode()).hexdigest()[:16]
"""Tells whether two processes mean the same by a table: a digest of its records."""


def lane_index(relay: int, queue_pair: int, direction: Direction) -> int:
    """The place of a lane in the table."""
    return (relay * QUEUE_PAIRS + queue_pair) * 2 + direction


def relay_lanes(relay: int) -> range:
    """The places of all lanes of a relay."""
    return range(relay * QUEUE_PAIRS * 2, (relay + 1) * QUEUE_PAIRS * 2)


class LaneTable:
    """The shared table, mapped. Pages that no lane has touched cost no memory."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, TABLE_BYTES)
        self.lanes: npt.NDArray[Any] = np.frombuffer(self._map, dtype=LANE_PADDED)
        self.fd = fd

    @classmethod
    def create(cls) -> LaneTable:
        """Make an empty table in a new memfd."""
        fd = os.memfd_create("vio4wd-lanes", os.MFD_CLOEXEC)
        os.ftruncate(fd, TABLE_BYTES)
        return cls(fd)

    @property
    def address(self) -> int:
        """Where this process has the table mapped."""
        return int(self.lanes.ctypes.data)

    def of(self, relay: int, direction: Direction) -> npt.NDArray[Any]:
        """The lanes of one direction of a relay, by queue pair; a view."""
        first = lane_index(relay, 0, direction)
        return self.lanes[first : first + 2 * QUEUE_PAIRS : 2]

    def died_of(self, relay: int) -> bool:
        """Whether a worker died while it worked this relay's lanes, since this was asked last."""
        fatal = self.lanes["fatal"][relay_lanes(relay).start : relay_lanes(relay).stop]
        died = bool(fatal.any())
        if died:
            fatal[:] = 0
        return died

    def counters(self, relay: int, direction: Direction) -> DirectionCounters:
        """The counters of one direction, summed over its queue pairs."""
        lanes = self.of(relay, direction)
        direct, library = lanes["direct_bursts"], lanes["library_bursts"]
        used = np.flatnonzero(direct | library)
        bursts = tuple(LaneBursts(int(pair), int(direct[pair]), int(library[pair])) for pair in used)
        return DirectionCounters(**{name: int(lanes[name].sum()) for name in COUNTERS}, lanes=bursts)
