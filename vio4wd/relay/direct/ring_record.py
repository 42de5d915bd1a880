"""The record from which compiled code works one ring of a guest, in the shared lane table beside the lane's own record.

Positions are as in VHOST_USER_SET_VRING_BASE: for split rings the free-running 16-bit index, for packed rings the slot
with the wrap counter in bit 15. The engine uses buffers in order and gives each back in the burst that took it, so one
position stands for the available side and for the used side.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_REGIONS = 16
"""Memory regions of a guest; rte_vhost takes 8."""

RING = np.dtype(
    [
        # what the session has negotiated; written while the lane is quiescent
        ("descriptors", "i8"),  # host addresses of the ring's three parts
        ("available", "i8"),  # packed: driver event suppression
        ("used", "i8"),  # packed: device event suppression
        ("size", "i8"),
        ("call_fd", "i8"),  # -1: the guest polls
        ("packed", "i8"),
        ("mergeable", "i8"),  # VIRTIO_NET_F_MRG_RXBUF
        ("event_index", "i8"),  # VIRTIO_RING_F_EVENT_IDX
        ("guest_offloads", "i8"),  # headers from the guest may ask for checksums or segmentation
        ("header_bytes", "i8"),  # of the virtio-net header: 10 or 12
        ("longest", "i8"),  # bytes of the longest frame that the VF may be given
        # where the engine is
        ("position", "i8"),  # next buffer to use
        ("published", "i8"),  # what the guest has been told: ``position`` but within a burst
        ("untold", "i8"),  # packed: slots from there to ``position``; more than the ring has, if the guest keeps pace
        ("limit", "i8"),  # split: end of what the guest is known to offer
        ("announced", "i8"),  # 1 once the guest was notified or found not to want it, since the ring was loaded
        ("moved", "i8"),  # bytes of the packets that were just delivered or collected
        ("unsynced", "i8"),  # buffers used since rte_vhost last noted where it is
        ("polls", "i8"),  # polls of a ring from the guest, until rte_vhost gets its turn
        # the region that the last buffers were in, and all of them
        ("region_guest", "i8"),
        ("region_bytes", "i8"),
        ("region_host", "i8"),
        ("regions", "i8"),
        ("rule", "i8"),  # RingRule that the guest broke, 0: none
        ("reported", "i8"),  # 1 + packets moved before the last fault that was told, 0: none since the guest came
        ("head", "i8"),  # the descriptor or index where it did
        # for whoever takes over when this process dies: see SavedPosition
        ("known", "i8"),  # 1: the three that follow say where the ring is
        ("saving", "i8"),
        ("saved", "i8"),
        ("one_by_one", "i8"),
        ("loaded", "i8"),  # 1 while the engine works this ring: the fields above are the truth
        # what it did
        ("simple_pkts", "u8"),
        ("general_pkts", "u8"),
        ("handed_bursts", "u8"),
        ("walked", "i8"),  # descriptors read outside the common shape
        ("guest_addresses", "i8", (MAX_REGIONS,)),
        ("region_sizes", "i8", (MAX_REGIONS,)),
        ("host_addresses", "i8", (MAX_REGIONS,)),
    ],
    align=True,
)

RING_OFFSETS: dict[str, int] = {name: RING.fields[name][1] for name in RING.names or ()}  # type: ignore[index]
"""Field -> offset in bytes from the ring record's address."""


def own_packets(rings: Any) -> int:
    """Packets that the direct engine itself has moved in a ring, or in several (one record or an array of them)."""
    return int(np.sum(rings["simple_pkts"]) + np.sum(rings["general_pkts"]))


class RingRule(enum.IntEnum):
    """Rules that every ring must keep. A lane whose ring breaks one rests until the guest resets it."""

    KEPT = 0
    AVAILABLE_INDEX = 1
    HEAD = 2
    NEXT = 3
    CHAIN_LENGTH = 4
    ADDRESS = 5
    DIRECTION = 6
    INDIRECT_ADDRESS = 7
    INDIRECT_LENGTH = 8
    INDIRECT_FLAGS = 9
    TOO_SHORT = 10
    TOO_LONG = 11


RULE_TEXTS = {
    RingRule.AVAILABLE_INDEX: "the available index is more than the ring's size ahead",
    RingRule.HEAD: "the available ring names a descriptor that is not in the ring",
    RingRule.NEXT: "a chain goes on at a descriptor that is not in its table",
    RingRule.CHAIN_LENGTH: "a chain is longer than its table, or has more pieces than are taken",
    RingRule.ADDRESS: "a descriptor is outside the guest's memory",
    RingRule.DIRECTION: "a descriptor is readable where it must be writable, or the other way round",
    RingRule.INDIRECT_ADDRESS: "an indirect table is outside the guest's memory",
    RingRule.INDIRECT_LENGTH: "an indirect table is empty, not made of whole descriptors, or longer than is taken",
    RingRule.INDIRECT_FLAGS: "an indirect table is named by a descriptor with other flags, or by another table",
    RingRule.TOO_SHORT: "a buffer has no room for the packet's header, or nothing behind it",
    RingRule.TOO_LONG: "a packet is longer than any that the guest may send",
}
"""What a fault event says."""


@dataclass(frozen=True)
class SavedPosition:
    """Where the engine was in a ring when its process died.

    ``position`` is certain where it equals ``following``. Else the process died while it gave back what lies between
    the two: one buffer, of any number of descriptors, or ``one_by_one`` several of one descriptor each. The ring goes
    on behind those of which the guest can see it.
    """

    position: int
    following: int
    one_by_one: bool = False


def saved_positions(rings: np.ndarray[Any, Any]) -> dict[int, SavedPosition]:
    """What is known of these rings (records, by number) whose process has died.

    Left out are rings that rte_vhost had, and those whose buffers for one packet were just being given back together.
    """
    known = np.flatnonzero(rings["known"])
    return {
        int(i): SavedPosition(int(rings["saved"][i]), int(rings["saving"][i]), bool(rings["one_by_one"][i]))
        for i in known
    }
