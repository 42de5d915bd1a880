"""The direct engine: lanes whose ring is worked by compiled Python, without rte_vhost. Compiled by numba.

What it does not know it hands to rte_vhost burst by burst, exchanging the exact ring position. A ring that breaks a
rule is not touched any more, until it is loaded again; the rule's number is left in its record.
"""

from __future__ import annotations

from typing import Any

from numba import types

from vio4wd.relay.direct import general, packed, split
from vio4wd.relay.direct.buffers import give
from vio4wd.relay.direct.ring_record import RING_OFFSETS
from vio4wd.relay.dpdk_calls import (
    ethdev_burst,
    vhost_dequeue,
    vhost_enqueue,
    vhost_get_vring_base,
    vhost_set_vring_base,
    vhost_vring_call,
)
from vio4wd.relay.lanes import BURST, LANE_RECORD_OFFSETS, RING_OFFSET
from vio4wd.relay.library_engine import count_too_long, fitting, packet_bytes
from vio4wd.relay.mbuf import PKT_LEN
from vio4wd.relay.native import Part, compiled, load16, load32, load64, stack_space, store64_release
from vio4wd.relay.records import core_at, lane_at, ring_at

HELD = LANE_RECORD_OFFSETS["held"]

POLLS_BEFORE_LIBRARY = 8192
"""Polls of a ring from the guest after which rte_vhost gets it, once it is empty: it may have a packet of its own.

That one (RARP) tells switches where a guest is that has moved; a guest that never ceases to send tells them by itself.
A microsecond that the lcore slept counts as a poll.
"""

MAX_UNSYNCED = 1 << 14
"""Buffers of a split ring after which rte_vhost's idea of what it last told the guest may mislead it: it counts modulo
2**16. For packed rings it counts modulo the ring's size, so there a single one may."""

BURST_DESCRIPTORS = 1024
"""Descriptors outside the common shape after which a burst ends with the packet whose turn it is: so other lanes get
theirs, whatever a guest writes. A full burst of jumbo frames in mergeable buffers needs a quarter of them."""

intp = types.intp
_KNOWN = RING_OFFSETS["known"]
_DONE, _NOTHING, _CANNOT = general.DONE, general.NOTHING, general.CANNOT
_HAND_OVER, _DROPPED = general.HAND_OVER, general.DROPPED

_bases = stack_space(4)

_deliver_split, _collect_split, _publish_split = split.DELIVER.call, split.COLLECT.call, split.PUBLISH.call
_deliver_packed, _collect_packed, _publish_packed = packed.DELIVER.call, packed.COLLECT.call, packed.PUBLISH.call
_deliver_any, _collect_any = general.DELIVER.call, general.COLLECT.call


@compiled
def _publish(core: Any, ring: Any, ring_address: int) -> None:
    if ring.packed:
        if ring.untold:
            ring.unsynced = MAX_UNSYNCED
            _publish_packed(core.own_address, ring_address)
    elif ring.position != ring.published:
        ring.unsynced += (ring.position - ring.published) & 0xFFFF
        _publish_split(core.own_address, ring_address)
        split.expect(ring)


@compiled
def _offered(ring: Any) -> Any:
    return packed.offered(ring) if ring.packed else split.offered(ring)


@compiled
def _to_library(core: Any, lane: Any, ring: Any, ring_address: int) -> None:
    """Let rte_vhost know where the ring is."""
    _publish(core, ring, ring_address)
    ring.known = 0
    base = types.uint16(ring.position)
    vhost_set_vring_base(core.set_vring_base, lane.vid, types.uint16(lane.ring), base, base)
    if ring.unsynced >= MAX_UNSYNCED:
        vhost_vring_call(core.vring_call, lane.vid, types.uint16(lane.ring))
    ring.unsynced = 0
    ring.handed_bursts += 1


@compiled
def _from_library(core: Any, lane: Any, ring: Any, ring_address: int) -> None:
    """Go on from where rte_vhost is."""
    bases = _bases()
    vhost_get_vring_base(core.get_vring_base, lane.vid, types.uint16(lane.ring), bases, bases + 2)
    ring.position = load16(bases)
    ring.published = ring.position
    ring.saved = ring.position
    ring.saving = ring.position
    store64_release(ring_address + _KNOWN, 1)


@compiled
def _library_deliver(core: Any, lane: Any, ring: Any, ring_address: int, packets: int, count: int) -> Any:
    _to_library(core, lane, ring, ring_address)
    taken = vhost_enqueue(core.enqueue, lane.vid, types.uint16(lane.ring), packets, types.uint16(count))
    _from_library(core, lane, ring, ring_address)
    lane.library_bursts += 1
    return intp(taken)


@compiled
def _library_collect(core: Any, lane: Any, ring: Any, ring_address: int, packets: int, count: int) -> Any:
    _to_library(core, lane, ring, ring_address)
    got = vhost_dequeue(core.dequeue, lane.vid, types.uint16(lane.ring), lane.mempool, packets, types.uint16(count))
    _from_library(core, lane, ring, ring_address)
    lane.library_bursts += got != 0
    return fitting(core, lane, packets, intp(got))


@compiled
def _deliver_simple(ring: Any, ring_address: int, packets: int, count: int) -> Any:
    if ring.packed:
        return _deliver_packed(ring_address, packets, count)
    return _deliver_split(ring_address, packets, min(count, (ring.limit - ring.position) & 0xFFFF))


@compiled
def _deliver(core: Any, lane: Any, ring: Any, ring_address: int, packets: int, count: int) -> Any:
    """Offer packets to the guest and count them; answers (packets done with: sent or dropped, their bytes)."""
    done, size, dropped, dropped_size = intp(0), intp(0), intp(0), intp(0)
    most = ring.walked + BURST_DESCRIPTORS
    while True:
        taken = _deliver_simple(ring, ring_address, packets + 8 * done, count - done)
        done += taken
        size += ring.moved
        ring.simple_pkts += taken
        if done == count:
            break
        packet = load64(packets + 8 * done)
        length = load32(packet + PKT_LEN)
        outcome = _deliver_any(ring_address, packet)
        if outcome == _DONE:
            ring.general_pkts += 1
        elif outcome == _CANNOT:
            dropped += 1
            dropped_size += length
        elif outcome == -_HAND_OVER:
            taken = _library_deliver(core, lane, ring, ring_address, packets + 8 * done, count - done)
            size += packet_bytes(packets + 8 * done, taken)
            done += taken
            break
        else:
            if outcome == _NOTHING:
                ring.limit = ring.position  # what is known does not do: ask the guest again
            else:
                ring.rule = -outcome
            break
        done += 1
        size += length
        if done == count or ring.walked >= most:
            break
    _publish(core, ring, ring_address)
    lane.sent_pkts += done - dropped
    lane.sent_bytes += size - dropped_size
    lane.queue_full_pkts += dropped
    lane.queue_full_bytes += dropped_size
    return done, size


@compiled
def _own_packets(ring: Any) -> Any:
    """Packets that the engine itself has moved."""
    return ring.simple_pkts + ring.general_pkts


def _vf_to_vm(core_address: int, address: int) -> Any:
    core, lane, packets = core_at(core_address), lane_at(address), address + HELD
    ring_address = address + RING_OFFSET
    ring = ring_at(ring_address)
    if ring.rule:
        return 0
    room = _offered(ring)
    if room <= 0:
        if room < 0:
            ring.rule = -room
        return 0
    received, head, count = intp(0), intp(lane.held_head), intp(lane.held_count)
    if count == 0:
        # For a full burst, though less may fit: vector drivers give nothing to those who ask for a few.
        received = intp(ethdev_burst(lane.burst_function, lane.burst_queue, packets, types.uint16(BURST)))
        if received == 0:
            return 0
        head, count = intp(0), received
    before = _own_packets(ring)
    done, size = _deliver(core, lane, ring, ring_address, packets + 8 * head, count)
    lane.direct_bursts += _own_packets(ring) != before
    left = count - done
    left_size = packet_bytes(packets + 8 * (head + done), left) if left else 0
    give(core, lane.mempool, packets + 8 * head, done)
    if received:
        lane.received_pkts += received
        lane.received_bytes += size + left_size
    lane.held_head = head + done
    lane.held_count = left
    lane.held_bytes = left_size
    return received + done


@compiled
def _collect_simple(core: Any, lane: Any, ring: Any, ring_address: int, packets: int, count: int) -> Any:
    if ring.packed:
        return _collect_packed(core.own_address, ring_address, lane.mempool, packets, count)
    offered = (ring.limit - ring.position) & 0xFFFF
    return _collect_split(core.own_address, ring_address, lane.mempool, packets, min(count, offered))


@compiled
def _collect(core: Any, lane: Any, ring: Any, ring_address: int, packets: int) -> Any:
    """Take up to a burst of packets from the guest; answers (packets, their bytes)."""
    count, size, dropped = intp(0), intp(0), intp(0)
    most = ring.walked + BURST_DESCRIPTORS
    while True:
        taken = _collect_simple(core, lane, ring, ring_address, packets + 8 * count, intp(BURST) - count)
        count += taken
        size += ring.moved
        ring.simple_pkts += taken
        if count == BURST:
            break
        outcome = _collect_any(core.own_address, ring_address, lane.mempool, packets + 8 * count)
        if outcome > 0:
            ring.general_pkts += 1
            count += 1
            size += outcome
            if count == BURST or ring.walked >= most:
                break
            continue
        if outcome == -_DROPPED:
            count_too_long(lane, ring.moved)
            dropped += 1
            if dropped == BURST or ring.walked >= most:
                break
            continue
        if outcome == -_HAND_OVER:
            taken, octets = _library_collect(core, lane, ring, ring_address, packets + 8 * count, intp(BURST) - count)
            size += octets
            count += taken
        elif outcome != _NOTHING:
            ring.rule = -outcome
        break
    _publish(core, ring, ring_address)
    return count, size


@compiled
def _receive(core: Any, lane: Any, ring: Any, ring_address: int, packets: int) -> Any:
    """Fill the empty hold of the lane from the guest; answers how many packets."""
    ring.polls += 1 + core.sleep_us
    offered = _offered(ring)
    if offered < 0:
        ring.rule = -offered
        return 0
    if offered:
        before = _own_packets(ring)
        count, size = _collect(core, lane, ring, ring_address, packets)
        lane.direct_bursts += _own_packets(ring) != before
    elif ring.polls >= POLLS_BEFORE_LIBRARY:
        ring.polls = 0
        count, size = _library_collect(core, lane, ring, ring_address, packets, intp(BURST))
    else:
        return 0
    lane.received_pkts += count
    lane.received_bytes += size
    lane.held_head = 0
    lane.held_count = count
    lane.held_bytes = size
    return count


def _vm_to_vf(core_address: int, address: int) -> Any:
    core, lane, packets = core_at(core_address), lane_at(address), address + HELD
    ring_address = address + RING_OFFSET
    ring = ring_at(ring_address)
    if ring.rule:
        return 0
    received = intp(0)
    if lane.held_count == 0:
        received = _receive(core, lane, ring, ring_address, packets)
        if received == 0:
            return 0
    head, count, size = intp(lane.held_head), intp(lane.held_count), lane.held_bytes
    sent = intp(ethdev_burst(lane.burst_function, lane.burst_queue, packets + 8 * head, types.uint16(count)))
    left = count - sent
    left_size = packet_bytes(packets + 8 * (head + sent), left) if left else 0
    lane.sent_pkts += sent
    lane.sent_bytes += size - left_size
    lane.held_head = head + sent
    lane.held_count = left
    lane.held_bytes = left_size
    return received + sent


_VF_TO_VM = Part("vio4wd_direct_vf_to_vm", _vf_to_vm, 2)
_VM_TO_VF = Part("vio4wd_direct_vm_to_vf", _vm_to_vf, 2)
_vf_to_vm_call, _vm_to_vf_call = _VF_TO_VM.call, _VM_TO_VF.call

PARTS = (
    split.DELIVER,
    split.COLLECT,
    split.PUBLISH,
    packed.DELIVER,
    packed.COLLECT,
    packed.PUBLISH,
    general.DELIVER,
    general.COLLECT,
    _VF_TO_VM,
    _VM_TO_VF,
)
"""What the engine consists of; to be compiled in this order, before whatever calls ``forward``."""


@compiled
def forward(core: Any, lane: Any, address: int) -> Any:
    """Move one burst from the near side to the far side; answers how many packets moved.

    ``core`` is the lcore's record, ``lane`` the lane's, ``address`` where the lane lies. The lane's ring is loaded.
    """
    if lane.direction == 0:
        return _vf_to_vm_call(core.own_address, address)
    return _vm_to_vf_call(core.own_address, address)
