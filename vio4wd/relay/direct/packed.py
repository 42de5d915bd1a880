"""Packed rings: the common shape, one descriptor for a packet, a burst at a time. Compiled by numba.

As for split rings; here the ring itself says what is available, descriptor by descriptor. Used descriptors are written
in order, and the positions before and after a burst are saved: where a ring was when its process died can then be told.
VIRTIO 1.2, section 2.8.
"""

from __future__ import annotations

from typing import Any

from numba import types

from vio4wd.relay.direct.buffers import cache_of, stocked
from vio4wd.relay.direct.chains import DESC_AVAIL, DESC_BYTES, DESC_SHAPE, DESC_USED, DESC_WRITE
from vio4wd.relay.direct.guest_memory import CACHE_LINE, fetch64, fetch64_acquire
from vio4wd.relay.direct.notify import notify_packed
from vio4wd.relay.direct.ring_record import RING_OFFSETS
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
    store32,
    store64,
    store64_release,
)
from vio4wd.relay.records import core_at, ring_at

WRAP = 1 << 15
"""The wrap counter in a position."""

_USED_FLAGS = (DESC_AVAIL | DESC_USED) << 48
_USED_FLAGS_SIGNED = _USED_FLAGS - (1 << 64)
_WRITE_FLAG = DESC_WRITE << 48
_SAVED, _SAVING, _KNOWN = RING_OFFSETS["saved"], RING_OFFSETS["saving"], RING_OFFSETS["known"]
intp = types.intp


@compiled
def is_available(word: int, wrap: int) -> Any:
    """Whether a descriptor with this second word is available to the device; ``wrap`` is WRAP or 0."""
    flags = (word >> 48) & 0xFFFF
    available, used = flags & DESC_AVAIL, flags & DESC_USED
    return (available != 0) == (wrap != 0) and (used != 0) != (wrap != 0)


@compiled
def advanced(ring: Any, position: int, slots: int) -> Any:
    """The position ``slots`` (at most the ring's size) further on."""
    slot = (position & ~WRAP) + slots
    if slot >= ring.size:
        return (slot - ring.size) | ((position & WRAP) ^ WRAP)
    return slot | (position & WRAP)


@compiled
def offered(ring: Any) -> Any:
    """Whether the guest offers a buffer: 0, or as many as a burst may take (each is looked at when it is its turn)."""
    slot, wrap = ring.position & ~WRAP, ring.position & WRAP
    word = fetch64_acquire(ring.descriptors + DESC_BYTES * slot + 8)
    return BURST if is_available(word, wrap) else 0


@compiled
def _used_word(buffer: int, length: int) -> Any:
    """The second half of a used descriptor, but for the two flags that depend on the lap."""
    return length | buffer << 32 | (_WRITE_FLAG if length else 0)


@compiled
def _put(ring: Any, position: int, word: int) -> None:
    if position & WRAP:
        word |= _USED_FLAGS_SIGNED
    store64_release(ring.descriptors + DESC_BYTES * (position & ~WRAP) + 8, word)


@compiled
def use(ring: Any, address: int, buffer: int, length: int, slots: int) -> None:
    """Give the buffer at the position back: its id, bytes written, slots that it took. ``address`` is the record's."""
    after = advanced(ring, ring.position, slots)
    ring.one_by_one = 0
    store64_release(address + _SAVING, after)
    _put(ring, ring.position, _used_word(buffer, length))
    store64_release(address + _SAVED, after)
    ring.position = after
    ring.untold += slots


@compiled
def _use_burst(ring: Any, address: int, words: int, count: int) -> None:
    """Give back the next ``count`` buffers, of one descriptor each; at ``words``, STEP bytes apart, what they become.

    One after the other with nothing in between, hence not by ``_put``: the guest looks at these lines all the time, and
    each time that it gets one back costs us as much as the packets of this line.
    """
    position = ring.position
    after = advanced(ring, position, count)
    ring.one_by_one = 1
    store64_release(address + _SAVING, after)
    lap = intp(_USED_FLAGS_SIGNED) if position & WRAP else intp(0)
    word_at = ring.descriptors + DESC_BYTES * (position & ~WRAP) + 8
    end, ring_bytes = ring.descriptors + DESC_BYTES * ring.size, DESC_BYTES * ring.size
    for i in range(count):
        store64_release(word_at, load64(words + STEP * i) | lap)
        word_at += DESC_BYTES
        if word_at >= end:
            word_at -= ring_bytes
            lap ^= intp(_USED_FLAGS_SIGNED)
    store64_release(address + _SAVED, after)
    ring.position = after
    ring.untold += count


@compiled
def use_together(ring: Any, address: int, used: int, buffers: int, length: int) -> None:
    """Give back the buffers of one packet of ``length`` bytes: the guest must not see the first before the others.

    At ``used``: id, bytes and slots of each buffer, 8 bytes each. If the process dies in here the position is lost.
    """
    ring.known = 0
    position = ring.position
    first_word = _used_word(load64(used), min(length, load64(used + 8)))
    for i in range(buffers):
        part = min(length, load64(used + 24 * i + 8))
        if i:
            _put(ring, position, _used_word(load64(used + 24 * i), part))
        slots = load64(used + 24 * i + 16)
        position = advanced(ring, position, slots)
        ring.untold += slots
        length -= part
    _put(ring, ring.position, first_word)
    ring.saved = ring.saving = ring.position = position
    store64_release(address + _KNOWN, 1)


def _publish(core_address: int, address: int) -> Any:
    """Notify the guest of what was used since the last time."""
    core, ring = core_at(core_address), ring_at(address)
    before, position, slots = ring.published, ring.position, ring.untold
    ring.published = position
    ring.untold = 0
    notify_packed(core, ring, before, position, slots)
    return 0


@compiled
def _plan_delivery(ring: Any, packets: int, count: int, plan: int) -> Any:
    """First pass towards the guest; answers for how many packets the plan (host address, used descriptor) is made."""
    position, table = ring.position, ring.descriptors
    region_guest, region_bytes, region_host = ring.region_guest, ring.region_bytes, ring.region_host
    header = ring.header_bytes
    for i in range(count):
        packet = load64(packets + 8 * i)
        descriptor = table + DESC_BYTES * (position & ~WRAP)
        rest = fetch64_acquire(descriptor + 8)
        if not is_available(rest, position & WRAP):
            return i
        offset, length = fetch64(descriptor) - region_guest, rest & 0xFFFFFFFF
        if (rest >> 48) & DESC_SHAPE != DESC_WRITE or offset < 0 or length > region_bytes - offset:
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
        store64(plan + STEP * i + 8, _used_word((rest >> 32) & 0xFFFF, load32(packet + PKT_LEN) + header))
        position = advanced(ring, position, intp(1))
    return count


def _deliver(address: int, packets: int, count: int) -> Any:
    """Put packets into the guest's next buffers while both are simple; answers how many, their bytes in ``moved``."""
    ring = ring_at(address)
    plan = plan_space()
    count = _plan_delivery(ring, packets, min(count, ring.size), plan)
    ring.moved = copy_to_guest(packets, plan, count, ring.header_bytes)
    _use_burst(ring, address, plan + 8, count)
    return count


@compiled
def _plan_collection(ring: Any, buffers: int, count: int, room: int, plan: int) -> Any:
    """First pass from the guest; answers for how many packets the plan (host address, id and length) is made.

    ``buffers`` is the address of the topmost buffer of the cache, ``room`` how much data one takes.
    """
    position, table = ring.position, ring.descriptors
    region_guest, region_bytes, region_host = ring.region_guest, ring.region_bytes, ring.region_host
    header = ring.header_bytes
    for i in range(count):
        descriptor = table + DESC_BYTES * (position & ~WRAP)
        rest = fetch64_acquire(descriptor + 8)
        if not is_available(rest, position & WRAP):
            return i
        offset, length = fetch64(descriptor) - region_guest, rest & 0xFFFFFFFF
        if (rest >> 48) & DESC_SHAPE or offset < 0 or length > region_bytes - offset:
            return i
        if length <= header or length - header > room:
            return i
        # Not the header's line, if that is another: the guest's CPU has it, and it is read only for agreed offloads.
        prefetch(region_host + offset + header)
        prefetch(region_host + offset + header + CACHE_LINE)
        prefetch(load64(buffers - 8 * i))
        store64(plan + STEP * i, region_host + offset)
        store64(plan + STEP * i + 8, rest)
        position = advanced(ring, position, intp(1))
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
    count = _plan_collection(ring, top, min(count, have, ring.size), room, plan)
    count, ring.moved = copy_from_guest(ring, top, packets, plan, count)
    for i in range(count):
        store64(plan + STEP * i + 8, _used_word((load64(plan + STEP * i + 8) >> 32) & 0xFFFF, intp(0)))
    _use_burst(ring, address, plan + 8, count)
    store32(cache + CACHE_LENGTH, have - count)
    return count


DELIVER = Part("vio4wd_packed_deliver", _deliver, 3)
COLLECT = Part("vio4wd_packed_collect", _collect, 5)
PUBLISH = Part("vio4wd_packed_publish", _publish, 2)
