"""The library engine: lanes worked through rte_vhost_enqueue_burst and rte_vhost_dequeue_burst. Compiled by numba.

Complete for every kind of ring that rte_vhost knows, and the reference for any other engine. Nothing here waits or
locks. Packets are dropped only when the far side is absent (drain) or can never take them (oversize).
"""

from __future__ import annotations

from typing import Any

import numba
from numba import types

from vio4wd.relay.direct.guest_memory import fetch16
from vio4wd.relay.dpdk_calls import (
    ethdev_burst,
    free_bulk,
    vhost_avail_entries,
    vhost_dequeue,
    vhost_enqueue,
    vhost_get_vring_base,
)
from vio4wd.relay.lanes import BURST, LANE_RECORD_OFFSETS
from vio4wd.relay.mbuf import PKT_LEN
from vio4wd.relay.native import load16, load32, load64, loader, stack_space, store64

HELD = LANE_RECORD_OFFSETS["held"]

_DESCRIPTOR_BYTES, _DESCRIPTOR_FLAGS = 16, 14  # of a packed ring's descriptor: its size, where its flags are
_WRAP = 1 << 15

REFUSALS_BEFORE_OVERSIZE = 64
"""Polls in a row that a ring must refuse a packet before the engine asks whether it could ever fit."""

_bases = stack_space(4)

_load_length = loader(32, once=True)
"""For loops over lengths: from plain loads the compiler makes gathers, which take two to six times as long."""


@numba.njit(inline="always", error_model="numpy")
def packet_bytes(packets: int, count: int) -> Any:
    """Sum of the packet lengths of ``count`` mbufs whose pointers lie at the address ``packets``."""
    total = 0
    for i in range(count):
        total += _load_length(load64(packets + 8 * i) + PKT_LEN)
    return total


@numba.njit(error_model="numpy")
def count_too_long(lane: Any, size: int) -> None:
    """Count a packet of the guest that was dropped because the VF could not take it."""
    lane.received_pkts += 1
    lane.received_bytes += size
    lane.too_long_pkts += 1
    lane.too_long_bytes += size


@numba.njit(error_model="numpy")
def _drop_too_long(core: Any, lane: Any, packets: int, count: int) -> Any:
    kept = 0
    for i in range(count):
        packet = load64(packets + 8 * i)
        size = load32(packet + PKT_LEN)
        if size <= lane.longest:
            store64(packets + 8 * kept, packet)
            kept += 1
        else:
            count_too_long(lane, size)
            free_bulk(core.free_bulk, packets + 8 * i, types.uint32(1))
    return kept


@numba.njit(inline="always", error_model="numpy")
def fitting(core: Any, lane: Any, packets: int, count: int) -> Any:
    """Drop what the guest sent in excess of the VF's longest frame; answers how many packets are left, and their bytes.

    Lengths are looked at once: a second pass costs 1 % of a saturated lcore.
    """
    total, most = types.intp(0), types.intp(0)
    for i in range(count):
        size = _load_length(load64(packets + 8 * i) + PKT_LEN)
        total += size
        most = max(most, size)
    if most > lane.longest:
        count = _drop_too_long(core, lane, packets, count)
        total = packet_bytes(packets, count)
    return count, total


@numba.njit(inline="always", error_model="numpy")
def _receive(core: Any, lane: Any, packets: int) -> Any:
    """Read a burst from the near side into the empty hold of the lane; answers how many packets."""
    if lane.direction == 0:
        count = types.intp(ethdev_burst(lane.burst_function, lane.burst_queue, packets, types.uint16(BURST)))
        size = packet_bytes(packets, count)
    else:
        got = types.intp(
            vhost_dequeue(core.dequeue, lane.vid, types.uint16(lane.ring), lane.mempool, packets, types.uint16(BURST))
        )
        count, size = fitting(core, lane, packets, got)
    if count:
        lane.received_pkts += count
        lane.received_bytes += size
        lane.held_head = 0
        lane.held_count = count
        lane.held_bytes = size
    return count


@numba.njit(inline="always", error_model="numpy")
def _release(lane: Any, packets: int, count: int) -> Any:
    """Take the first ``count`` packets out of the hold; answers their bytes.

    They may be freed already, so their bytes are what the rest does not account for.
    """
    left = lane.held_count - count
    size = lane.held_bytes
    if left:
        size -= packet_bytes(packets + 8 * (lane.held_head + count), left)
    lane.held_head += count
    lane.held_count = left
    lane.held_bytes -= size
    return size


@numba.njit(error_model="numpy")
def _offered_packed(core: Any, lane: Any, needed: int) -> Any:
    """Whether a packed ring has so many descriptors for the device: the last of them says so (VIRTIO 1.2, 2.8.1)."""
    bases = _bases()
    vhost_get_vring_base(core.get_vring_base, lane.vid, types.uint16(lane.ring), bases, bases + 2)
    position = load16(bases)
    slot, wrap = (position & ~_WRAP) + needed - 1, position >> 15
    if slot >= lane.ring_size:
        slot, wrap = slot - lane.ring_size, wrap ^ 1
    flags = fetch16(lane.descriptors + _DESCRIPTOR_BYTES * slot + _DESCRIPTOR_FLAGS)
    return (flags >> 7 & 1) == wrap and (flags >> 15 & 1) != wrap


@numba.njit(error_model="numpy")
def _offered(core: Any, lane: Any, needed: int) -> Any:
    if lane.packed:
        return _offered_packed(core, lane, needed)
    return vhost_avail_entries(core.available, lane.vid, types.uint16(lane.ring)) >= needed


@numba.njit(inline="always", error_model="numpy")
def _send(core: Any, lane: Any, packets: int) -> Any:
    """Offer the hold to the far side; answers how many packets it took."""
    first = packets + 8 * lane.held_head
    held = types.uint16(lane.held_count)
    if lane.direction == 0:
        count = vhost_enqueue(core.enqueue, lane.vid, types.uint16(lane.ring), first, held)
        if count:
            size = _release(lane, packets, count)
            free_bulk(core.free_bulk, first, types.uint32(count))
    else:
        count = ethdev_burst(lane.burst_function, lane.burst_queue, first, held)
        if count:
            size = _release(lane, packets, count)
    if count:
        lane.sent_pkts += count
        lane.sent_bytes += size
    return count


@numba.njit(error_model="numpy")
def _drop_oversize(core: Any, lane: Any, packets: int) -> Any:
    """Drop the first held packet if the guest's ring, as full of buffers as it can be, still refuses it."""
    if not _offered(core, lane, types.intp(lane.ring_size) if lane.mergeable else types.intp(1)):
        return 0
    sent = _send(core, lane, packets)  # the buffers may have come since it was refused
    if sent:
        return types.intp(sent)
    first = packets + 8 * lane.held_head
    free_bulk(core.free_bulk, first, types.uint32(1))
    size = _release(lane, packets, 1)
    lane.queue_full_pkts += 1
    lane.queue_full_bytes += size
    return 1


@numba.njit(error_model="numpy")
def forward(core: Any, lane: Any, address: int) -> Any:
    """Move one burst from the near side to the far side; answers how many packets moved.

    ``core`` is the lcore's record, ``lane`` the lane's, ``address`` where the lane lies.
    """
    packets = address + HELD
    moved = 0
    if lane.held_count == 0:
        moved = _receive(core, lane, packets)
        if moved == 0:
            return 0
    lane.library_bursts += 1
    sent = _send(core, lane, packets)
    if sent:
        lane.refusals = 0
    elif lane.direction == 0:
        lane.refusals += 1
        if lane.refusals >= REFUSALS_BEFORE_OVERSIZE:
            lane.refusals = 0
            sent = _drop_oversize(core, lane, packets)
    return moved + sent


@numba.njit(error_model="numpy")
def pulse(lane: Any) -> None:
    """Call the burst function without packets: a bond then sends what its own protocol has to say."""
    ethdev_burst(lane.burst_function, lane.burst_queue, 0, types.uint16(0))


@numba.njit(error_model="numpy")
def flush(core: Any, lane: Any, address: int) -> Any:
    """Drop what the lane holds, since the far side is absent; answers how many packets."""
    packets = address + HELD
    count = lane.held_count
    if count:
        free_bulk(core.free_bulk, packets + 8 * lane.held_head, types.uint32(count))
        lane.not_connected_pkts += count
        lane.not_connected_bytes += _release(lane, packets, count)
    return count


@numba.njit(error_model="numpy")
def drain(core: Any, lane: Any, address: int) -> Any:
    """Drop what the lane holds or, if nothing, what the near side offers; answers how many packets."""
    if lane.held_count == 0:
        _receive(core, lane, address + HELD)
    return flush(core, lane, address)
