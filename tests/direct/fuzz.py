"""Random rings against the engine, all in compiled code: fill a small ring with plausible rubbish, poll, clean up."""

from __future__ import annotations

from typing import Any

import numba
from numba import types
from stand_ins import FREED

from vio4wd.relay import mbuf
from vio4wd.relay.direct import engine
from vio4wd.relay.lanes import BURST, LANE_RECORD_OFFSETS
from vio4wd.relay.native import load16, load32, load64, store16, store32, store64
from vio4wd.relay.records import core_at, lane_at, ring_at

intp, u64 = types.intp, types.uint64
FILLED = 16
"""Descriptors, and entries of a split ring, that are written anew for each random ring: the next ones."""

POLLS = 2
"""Polls of each random ring: the second goes on with what the first has learnt, if the ring has kept the rules."""

_HELD = LANE_RECORD_OFFSETS["held"]
_FREED = FREED.ctypes.data
_REARM = mbuf.FRESH_REARM_SIGNED
_compiled: Any = numba.njit(error_model="numpy", nogil=True)


@_compiled
def _random(state: Any) -> Any:
    """xorshift64: the next 64 random bits, as intp."""
    x = state[0]
    x ^= x << u64(13)
    x ^= x >> u64(7)
    x ^= x << u64(17)
    state[0] = x
    return intp(x)


@_compiled
def _below(state: Any, limit: int) -> Any:
    return (_random(state) >> 13 & 0x7FFFFFFF) % limit


@_compiled
def _address(state: Any, ring: Any) -> Any:
    """A guest address: mostly in memory, often at an edge of it, sometimes anywhere."""
    kind, region = _below(state, 8), _below(state, ring.regions)
    start, size = ring.guest_addresses[region], ring.region_sizes[region]
    if kind < 5:
        return start + _below(state, size)
    if kind == 5:
        return start + size - _below(state, 100)
    if kind == 6:
        return start - _below(state, 100)
    return _random(state)


@_compiled
def _length(state: Any) -> Any:
    kind = _below(state, 8)
    if kind < 4:
        return _below(state, 200)
    if kind == 4:
        return _below(state, 16)
    if kind == 5:
        return _below(state, 70000)
    if kind == 6:
        return 16 * _below(state, 8)
    return _random(state) & 0xFFFFFFFF


@_compiled
def _flags(state: Any, packed: int, writable: int) -> Any:
    kind = _below(state, 16)
    if kind < 8:
        flags = writable
    elif kind < 12:
        flags = writable | 1
    elif kind < 14:
        flags = 4
    else:
        flags = _random(state) & 7
    if packed:
        flags |= 0x80 if kind % 8 else _random(state) & 0x8080
    return flags


@_compiled
def _descriptor(state: Any, ring: Any, table: int, entries: int, writable: int) -> None:
    """Rubbish for one descriptor at the host address ``table``."""
    following = _below(state, entries) if _below(state, 16) else _random(state) & 0xFFFF
    flags = _flags(state, ring.packed, writable)
    tail = following | flags << 16 if ring.packed else flags | following << 16
    store64(table, _address(state, ring))
    store64(table + 8, _length(state) | tail << 32)


@_compiled
def _head(state: Any, ring: Any, slot: int) -> None:
    """A descriptor's number for a slot of the available ring."""
    head = _below(state, ring.size) if _below(state, 32) else _random(state)
    store16(ring.available + 4 + 2 * (slot & (ring.size - 1)), head)


@_compiled
def _wish(state: Any, ring: Any) -> None:
    """What the guest wants to hear of: mostly about where the ring is, sometimes anything."""
    near = ring.position + _below(state, 8) if _below(state, 8) else _random(state)
    if ring.packed:
        # 2, at a descriptor, more often than the rest
        store32(ring.available, near & 0xFFFF | (2 if _below(state, 2) else _random(state) & 0xFFFF) << 16)
    else:
        store16(ring.available, _random(state) & 1)
        store16(ring.available + 4 + 2 * ring.size, near)


@_compiled
def _available_index(state: Any, ring: Any) -> None:
    ahead = _below(state, ring.size + 1) if _below(state, 32) else _random(state)
    store16(ring.available + 2, ring.position + ahead)


@_compiled
def _fill(state: Any, ring: Any, writable: int) -> None:
    """Rubbish for the ring, and for some indirect tables that it may name.

    Of a large ring only some descriptors and what comes next are new: there is rubbish in the others already.
    """
    first = ring.position & (ring.size - 1)
    for i in range(FILLED):
        _descriptor(state, ring, ring.descriptors + 16 * ((first + i) & (ring.size - 1)), ring.size, writable)
    if not ring.packed:
        for i in range(FILLED):
            _head(state, ring, first + i)
        _available_index(state, ring)
    _wish(state, ring)
    table = _below(state, ring.size)
    where = ring.host_addresses[0] + ring.region_sizes[0] - 4096
    store64(ring.descriptors + 16 * table, ring.guest_addresses[0] + ring.region_sizes[0] - 4096)
    for i in range(4):
        _descriptor(state, ring, where + 16 * i, 4, writable)


@_compiled
def _give(cache: int, packet: int) -> Any:
    """Free all segments of a packet; answers how many."""
    count = intp(0)
    while packet != 0:
        following = load64(packet + mbuf.NEXT)
        store64(packet + mbuf.REARM, _REARM)
        store64(packet + mbuf.NEXT, 0)
        length = load32(cache + mbuf.CACHE_LENGTH)
        store64(cache + mbuf.CACHE_OBJECTS + 8 * length, packet)
        store32(cache + mbuf.CACHE_LENGTH, length + 1)
        packet = following
        count += 1
    return count


@_compiled
def _offer(state: Any, cache: int, queue: int) -> None:
    """Let the VF have some packets of one or two segments, most of which fit in a buffer of the usual random length."""
    for _ in range(_below(state, 6)):
        length = load32(cache + mbuf.CACHE_LENGTH) - 1
        packet = load64(cache + mbuf.CACHE_OBJECTS + 8 * length)
        size = 1 + _below(state, 100 if _below(state, 4) else 1600)
        store64(packet + mbuf.OL_FLAGS, 0 if _below(state, 16) else 1 << 52)
        store32(packet + mbuf.PKT_LEN, size)
        store16(packet + mbuf.DATA_LEN, size)
        if _below(state, 8) == 0 and size > 1:
            length -= 1
            second = load64(cache + mbuf.CACHE_OBJECTS + 8 * length)
            store16(packet + mbuf.DATA_LEN, size // 2)
            store16(second + mbuf.DATA_LEN, size - size // 2)
            store64(packet + mbuf.NEXT, second)
            store16(packet + mbuf.NB_SEGS, 2)
        store32(cache + mbuf.CACHE_LENGTH, length)
        end = load64(queue + 8)
        store64(queue + 32 + 8 * (end % 4096), packet)
        store64(queue + 8, end + 1)


@_compiled
def _clean_up(lane: Any, address: int, cache: int, queue: int) -> None:
    """Take back all packets: queued at the VF, held by the lane, freed through DPDK's function."""
    for i in range(load64(queue), load64(queue + 8)):
        _give(cache, load64(queue + 32 + 8 * (i % 4096)))
    store64(queue, load64(queue + 8))
    for i in range(lane.held_count):
        _give(cache, load64(address + _HELD + 8 * (lane.held_head + i)))
    lane.held_count = 0
    lane.held_bytes = 0
    for i in range(load64(_FREED)):
        _give(cache, load64(_FREED + 8 + 8 * i))
    store64(_FREED, 0)


@_compiled
def _reset(state: Any, ring: Any, lane: Any) -> None:
    """A guest that resets its ring, somewhere, with other features."""
    ring.rule = 0
    ring.packed = ring.packed
    ring.mergeable = _below(state, 2)
    ring.event_index = _below(state, 2)
    ring.guest_offloads = _below(state, 2)
    ring.header_bytes = 12 if ring.mergeable or _below(state, 2) else 10
    position = _below(state, ring.size) | _below(state, 2) << 15 if ring.packed else _random(state) & 0xFFFF
    ring.position = position
    ring.published = position
    ring.limit = position
    ring.announced = _below(state, 2)  # 1 as if it had been here for a while: only then event fields are read


@_compiled
def _cached(ring: Any) -> Any:
    """Whether the next poll of a split ring will not look at the available index."""
    return not ring.packed and ring.rule == 0 and BURST <= (ring.limit - ring.position) & 0xFFFF <= ring.size


@numba.njit(types.UniTuple(intp, 4)(intp, intp, intp, intp, intp, intp, u64[:]), error_model="numpy", nogil=True)
def fuzz(core: Any, address: Any, view: Any, cache: Any, queue: Any, rounds: Any, state: Any) -> Any:
    """Poll so many random rings; answers (rounds done, packets moved, rings refused, polls that asked for no index).

    Fewer rounds than asked for: at that one buffers were lost or came twice, or the record is impossible.
    """
    lane, ring = lane_at(address), ring_at(view)
    buffers, moved, refused, cached = load32(cache + mbuf.CACHE_LENGTH), intp(0), intp(0), intp(0)
    writable = 2 if lane.direction == 0 else 0
    for i in range(rounds):
        _reset(state, ring, lane)
        _fill(state, ring, writable)
        for _ in range(POLLS):
            if lane.direction == 0:
                _offer(state, cache, queue)
            cached += _cached(ring)
            moved += engine.forward(core_at(core), lane, address)
        refused += ring.rule != 0
        if ring.rule < 0 or ring.rule > 11:
            return i, moved, refused, cached
        if lane.held_count < 0 or lane.held_bytes < 0 or ring.position != ring.published:
            return i, moved, refused, cached
        _clean_up(lane, address, cache, queue)
        if load32(cache + mbuf.CACHE_LENGTH) != buffers:
            return i, moved, refused, cached
    return intp(rounds), moved, refused, cached


@numba.njit(types.void(intp, intp, intp, u64[:]), error_model="numpy", nogil=True)
def disturb(view: Any, stop: Any, writable: Any, state: Any) -> None:
    """Rewrite all that is a guest's at random until the word at ``stop`` is set: a guest on another CPU."""
    ring = ring_at(view)
    while load16(stop) == 0:
        _descriptor(state, ring, ring.descriptors + 16 * _below(state, ring.size), ring.size, writable)
        if not ring.packed:
            _head(state, ring, _below(state, ring.size))
            _available_index(state, ring)
        _wish(state, ring)
        _descriptor(state, ring, ring.host_addresses[0] + ring.region_sizes[0] - 4096, 4, writable)
