"""Split rings: the common shape, one descriptor for a packet, a burst at a time. Compiled by numba.

Two passes: read and check descriptors and prefetch what they name, then copy. The first packet of another shape ends
the burst; ``general`` takes it. VIRTIO 1.2, section 2.7.
"""

from __future__ import annotations

from typing import Any

from numba import types

from vio4wd.relay.direct.buffers import cache_of, stocked
from vio4wd.relay.direct.chains import DESC_BYTES, DESC_SHAPE, DESC_WRITE
from vio4wd.relay.direct.guest_memory import CACHE_LINE, fetch16, fetch16_acquire, fetch64
from vio4wd.relay.direct.notify import notify_split
from vio4wd.relay.direct.ring_record import RING_OFFSETS, RingRule
from vio4wd.relay.direct.simple import STEP, copy_from_guest, copy_to_guest, plan_space
from vio4wd.relay.lanes import BURST
from vio4wd.relay.mbuf import (
    BUF_ADDR,
    BUF_LEN,
    CACHE_LENGTH,
    CACHE_OBJECTS,
    DATA_OFF,
    HEADROOM,
    NB_SEGS,
    OL_FLAGS,
    OL_TX_WORK,
    PKT_LEN,
)
from vio4wd.relay.native import (
    Part,
    compiled,
    load16,
    load32,
    load64,
    prefetch,
    prefetch_to_write,
    store16_release,
    store32,
    store64,
    store64_release,
)
from vio4wd.relay.records import core_at, ring_at

RING_ENTRIES = 4
"""Offset of the entries of the available and the used ring; their index is at 2."""
INDEX = 2
USED_BYTES = 8

_SAVED = RING_OFFSETS["saved"]
_AVAILABLE_INDEX = int(RingRule.AVAILABLE_INDEX)
intp = types.intp


@compiled
def offered(ring: Any) -> Any:
    """How many buffers the guest offers, up to ``limit``. Answers minus a RingRule when it cannot be.

    The guest is asked only when fewer are known than a burst takes: its index is in a line that it often writes.
    """
    count = (ring.limit - ring.position) & 0xFFFF
    if BURST <= count <= ring.size:
        return count
    ring.limit = fetch16_acquire(ring.available + INDEX)
    count = (ring.limit - ring.position) & 0xFFFF
    return count if count <= ring.size else -_AVAILABLE_INDEX


@compiled
def expect(ring: Any) -> None:
    """Prefetch the descriptors of the buffers for the next burst, as far as they are known."""
    count = min((ring.limit - ring.position) & 0xFFFF, BURST)
    mask, position = ring.size - 1, ring.position
    entries, table = ring.available + RING_ENTRIES, ring.descriptors
    for i in range(0, count, 4):
        prefetch(table + DESC_BYTES * (fetch16(entries + 2 * ((position + i) & mask)) & mask))


@compiled
def use(ring: Any, head: int, length: int) -> None:
    """Give the next buffer back, ``length`` bytes written; the guest sees it when the burst is published."""
    slot = ring.position & (ring.size - 1)
    store64(ring.used + RING_ENTRIES + USED_BYTES * slot, head | length << 32)
    ring.position = (ring.position + 1) & 0xFFFF


@compiled
def _use_burst(ring: Any, elements: int, count: int) -> None:
    """Give back the next ``count`` buffers; at ``elements``, STEP bytes apart, their elements of the used ring."""
    mask, position, used = ring.size - 1, ring.position, ring.used + RING_ENTRIES
    for i in range(count):
        store64(used + USED_BYTES * ((position + i) & mask), load64(elements + STEP * i))
    ring.position = (position + count) & 0xFFFF


def _publish(core_address: int, address: int) -> Any:
    """Tell the guest what was used since the last time."""
    core, ring = core_at(core_address), ring_at(address)
    before, position = ring.published, ring.position
    ring.saving = position
    store16_release(ring.used + INDEX, position)
    store64_release(address + _SAVED, position)
    ring.published = position
    notify_split(core, ring, before, position)
    return 0


@compiled
def _plan_delivery(ring: Any, packets: int, count: int, plan: int) -> Any:
    """First pass towards the guest; answers for how many packets the plan (host address, used element) is made."""
    mask, position, size = ring.size - 1, ring.position, ring.size
    entries, table = ring.available + RING_ENTRIES, ring.descriptors
    region_guest, region_bytes, region_host = ring.region_guest, ring.region_bytes, ring.region_host
    header = ring.header_bytes
    for i in range(count):
        packet = load64(packets + 8 * i)
        head = fetch16(entries + 2 * ((position + i) & mask))
        if head >= size:
            return i
        offset = fetch64(table + DESC_BYTES * head) - region_guest
        rest = fetch64(table + DESC_BYTES * head + 8)
        length = rest & 0xFFFFFFFF
        if (rest >> 32) & DESC_SHAPE != DESC_WRITE or offset < 0 or length > region_bytes - offset:
            return i
        # The header's line is only read, as a rule, if the data begin in another.
        prefetch(region_host + offset)
        prefetch_to_write(region_host + offset + header)
        prefetch_to_write(region_host + offset + CACHE_LINE)
        if length < load32(packet + PKT_LEN) + header:
            return i
        if load16(packet + NB_SEGS) != 1 or load64(packet + OL_FLAGS) & OL_TX_WORK:
            return i
        prefetch(load64(packet + BUF_ADDR) + load16(packet + DATA_OFF))
        store64(plan + STEP * i, region_host + offset)
        store64(plan + STEP * i + 8, head | (load32(packet + PKT_LEN) + header) << 32)
    return count


def _deliver(address: int, packets: int, count: int) -> Any:
    """Put packets into the guest's next buffers while both are simple; answers how many, their bytes in ``moved``."""
    ring = ring_at(address)
    plan = plan_space()
    count = _plan_delivery(ring, packets, count, plan)
    ring.moved = copy_to_guest(packets, plan, count, ring.header_bytes)
    _use_burst(ring, plan + 8, count)
    return count


@compiled
def _plan_collection(ring: Any, buffers: int, count: int, room: int, plan: int) -> Any:
    """First pass from the guest; answers for how many packets the plan (host address, length and head) is made.

    ``buffers`` is the address of the topmost buffer of the cache, ``room`` how much data one takes.
    """
    mask, position, size = ring.size - 1, ring.position, ring.size
    entries, table = ring.available + RING_ENTRIES, ring.descriptors
    region_guest, region_bytes, region_host = ring.region_guest, ring.region_bytes, ring.region_host
    header = ring.header_bytes
    for i in range(count):
        head = fetch16(entries + 2 * ((position + i) & mask))
        if head >= size:
            return i
        offset = fetch64(table + DESC_BYTES * head) - region_guest
        rest = fetch64(table + DESC_BYTES * head + 8)
        length = rest & 0xFFFFFFFF
        if (rest >> 32) & DESC_SHAPE or offset < 0 or length > region_bytes - offset:
            return i
        if length <= header or length - header > room:
            return i
        # Not the header's line, if that is another: the guest's CPU has it, and it is read only for agreed offloads.
        prefetch(region_host + offset + header)
        prefetch(region_host + offset + header + CACHE_LINE)
        prefetch(load64(buffers - 8 * i))
        store64(plan + STEP * i, region_host + offset)
        store64(plan + STEP * i + 8, length | head << 32)
    return count


def _collect(core_address: int, address: int, pool: int, packets: int, count: int) -> Any:
    """Take up to ``count`` simple packets from the guest's buffers; answers how many, their bytes in ``moved``."""
    core, ring = core_at(core_address), ring_at(address)
    cache = cache_of(core, pool)
    ring.moved = 0
    have = stocked(core, pool, cache, count)
    if have == 0:
        return 0
    top = cache + CACHE_OBJECTS + 8 * (have - 1)
    plan = plan_space()
    room = min(load16(load64(top) + BUF_LEN) - HEADROOM, ring.longest)
    count = _plan_collection(ring, top, min(count, have), room, plan)
    count, ring.moved = copy_from_guest(ring, top, packets, plan, count)
    for i in range(count):
        store64(plan + STEP * i + 8, load64(plan + STEP * i + 8) >> 32)
    _use_burst(ring, plan + 8, count)
    store32(cache + CACHE_LENGTH, have - count)
    return count


DELIVER = Part("vio4wd_split_deliver", _deliver, 3)
COLLECT = Part("vio4wd_split_collect", _collect, 5)
PUBLISH = Part("vio4wd_split_publish", _publish, 2)
