"""One packet of any shape: chains, indirect tables, several buffers, several segments. Compiled by numba."""

from __future__ import annotations

from typing import Any

from numba import types

from vio4wd.relay.direct import packed, split
from vio4wd.relay.direct.buffers import cache_of, chain_up, fill_in, stocked
from vio4wd.relay.direct.chains import DESC_BYTES, DESC_WRITE, walk_packed, walk_split
from vio4wd.relay.direct.guest_memory import (
    MAX_PIECES,
    PIECE_BYTES,
    copy_from_pieces,
    copy_to_pieces,
    fetch16,
    fetch64_acquire,
)
from vio4wd.relay.direct.ring_record import RingRule
from vio4wd.relay.mbuf import (
    BUF_ADDR,
    BUF_LEN,
    CACHE_LENGTH,
    CACHE_OBJECTS,
    DATA_LEN,
    DATA_OFF,
    HEADROOM,
    NB_SEGS,
    NEXT,
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
    stack_space,
    store16,
    store32,
    store64,
)
from vio4wd.relay.records import core_at, ring_at

DONE = 1
NOTHING = 0
"""Try again later: the guest has offered too little, or there are no packet buffers."""
CANNOT = 2
"""The packet fits in no buffer that this ring can have."""
HAND_OVER = 1000
"""Minus this, in place of minus a rule: nothing is wrong, but the library engine must do it."""
DROPPED = 1001
"""Minus this, in place of minus a rule: the guest's packet is longer than the VF may be given, its buffer was used."""

MAX_BUFFERS = 256
"""Buffers of the guest that one packet may take."""

MAX_DESCRIPTORS = 512
"""Descriptors walked for one packet after which no further buffer is looked at; the guest may offer one long chain many
times. Twice as many as the pieces that a packet may have."""

MAX_PACKET_BYTES = 65550
"""Longest packet of a guest: VIRTIO 1.2, section 5.1.6.3.1, for what segmentation offloads need."""

MAX_SEGMENTS = 128

_TOO_SHORT, _TOO_LONG, _CHAIN_LENGTH = int(RingRule.TOO_SHORT), int(RingRule.TOO_LONG), int(RingRule.CHAIN_LENGTH)
intp = types.intp
_pieces = stack_space(MAX_PIECES * PIECE_BYTES)
_used = stack_space(MAX_BUFFERS * 24)
_header = stack_space(16)


@compiled
def _next_buffer(ring: Any, position: int, pieces: int, count: int, writable: int) -> Any:
    """Walk the buffer at a position; answers as ``walk_packed``, or (pieces, 0, 0, 0) if none is offered."""
    if ring.packed:
        slot = position & ~packed.WRAP
        word = fetch64_acquire(ring.descriptors + DESC_BYTES * slot + 8)
        if not packed.is_available(word, position & packed.WRAP):
            return count, 0, 0, 0
        return walk_packed(ring, slot, pieces, count, writable)
    if position == ring.limit:
        return count, 0, 0, 0
    head = fetch16(ring.available + split.RING_ENTRIES + 2 * (position & (ring.size - 1)))
    count, total, slots = walk_split(ring, head, pieces, count, writable)
    return count, total, slots, head


@compiled
def _use(ring: Any, address: int, buffer: int, length: int, slots: int) -> None:
    if ring.packed:
        packed.use(ring, address, buffer, length, slots)
    else:
        split.use(ring, buffer, length)


@compiled
def _use_all(ring: Any, address: int, used: int, buffers: int, length: int) -> None:
    """Give back the buffers of one packet, described as by ``_reserve``, into which ``length`` bytes were written."""
    if ring.packed and buffers > 1:
        packed.use_together(ring, address, used, buffers, length)
        return
    for i in range(buffers):
        part = min(length, load64(used + 24 * i + 8))
        _use(ring, address, load64(used + 24 * i), part, load64(used + 24 * i + 16))
        length -= part


@compiled
def _after(ring: Any, position: int, slots: int) -> Any:
    return packed.advanced(ring, position, slots) if ring.packed else (position + 1) & 0xFFFF


@compiled
def _reserve(ring: Any, needed: int, pieces: int, used: int) -> Any:
    """Find buffers of the guest for ``needed`` bytes, without using them.

    Answers (DONE, pieces, buffers), (NOTHING or CANNOT, 0, 0), or (minus a rule, where, 0). At ``used``:
    id, bytes and slots of each buffer, 8 bytes each.
    """
    position, count, room, taken = ring.position, intp(0), intp(0), intp(0)
    most = ring.walked + MAX_DESCRIPTORS
    for buffers in range(MAX_BUFFERS):
        if ring.walked >= most:
            return CANNOT, 0, 0
        count, size, slots, buffer = _next_buffer(ring, position, pieces, count, intp(DESC_WRITE))
        if count == -_CHAIN_LENGTH and buffers:
            return CANNOT, 0, 0
        if count < 0:
            return count, size, 0
        if slots == 0:
            return (CANNOT if taken >= ring.size else NOTHING), 0, 0
        if size < ring.header_bytes:
            return -_TOO_SHORT, buffer, 0
        store64(used + 24 * buffers, buffer)
        store64(used + 24 * buffers + 8, size)
        store64(used + 24 * buffers + 16, slots)
        room += size
        taken += slots
        if room >= needed:
            return DONE, count, buffers + 1
        if not ring.mergeable:
            return CANNOT, 0, 0
        if taken >= ring.size:
            return CANNOT, 0, 0
        position = _after(ring, position, slots)
    return CANNOT, 0, 0


@compiled
def _write_packet(ring: Any, packet: int, pieces: int, count: int, buffers: int) -> None:
    header = _header()
    store64(header, 0)
    store32(header + 8, buffers << 16)
    copy_to_pieces(pieces, count, intp(0), header, ring.header_bytes)
    done, left = ring.header_bytes, load32(packet + PKT_LEN)
    while left > 0 and packet != 0:
        part = min(left, load16(packet + DATA_LEN))
        copy_to_pieces(pieces, count, done, load64(packet + BUF_ADDR) + load16(packet + DATA_OFF), part)
        done += part
        left -= part
        packet = load64(packet + NEXT)


def _deliver(address: int, packet: int) -> Any:
    """Put one packet into the guest's next buffers; answers DONE, NOTHING, CANNOT, or minus a rule or HAND_OVER.

    A packet that asks for checksum or segmentation work is handed over, if it has room at all.
    """
    ring = ring_at(address)
    needed = load32(packet + PKT_LEN) + ring.header_bytes
    pieces, used = _pieces(), _used()
    outcome, count, buffers = _reserve(ring, needed, pieces, used)
    if outcome != DONE:
        ring.head = count
        return outcome
    if load64(packet + OL_FLAGS) & OL_TX_WORK:
        return -HAND_OVER
    _write_packet(ring, packet, pieces, count, buffers)
    _use_all(ring, address, used, buffers, needed)
    return DONE


@compiled
def _read_packet(core: Any, pool: int, pieces: int, count: int, skip: int, length: int) -> Any:
    """Copy ``length`` bytes into a new packet of as many segments as it takes; answers its address, 0: no buffers."""
    cache = cache_of(core, pool)
    if stocked(core, pool, cache, intp(1)) == 0:
        return 0
    top = load64(cache + CACHE_OBJECTS + 8 * (load32(cache + CACHE_LENGTH) - 1))
    room = load16(top + BUF_LEN) - HEADROOM
    segments = (length + room - 1) // room
    if segments > MAX_SEGMENTS:
        return 0
    have = stocked(core, pool, cache, segments)
    if have < segments:
        return 0
    first, last = intp(0), intp(0)
    for i in range(segments):
        buffer = load64(cache + CACHE_OBJECTS + 8 * (have - 1 - i))
        part = min(room, length - room * i)
        copy_from_pieces(pieces, count, skip + room * i, load64(buffer + BUF_ADDR) + HEADROOM, part)
        fill_in(buffer, part)
        if last:
            chain_up(last, buffer)
        else:
            first = buffer
        last = buffer
    store32(cache + CACHE_LENGTH, have - segments)
    store32(first + PKT_LEN, length)
    store16(first + NB_SEGS, segments)
    return first


def _collect(core_address: int, address: int, pool: int, packets: int) -> Any:
    """Take one packet from the guest's next buffer and put its pointer at ``packets``.

    Answers its bytes, NOTHING, or minus a rule, HAND_OVER or DROPPED (its bytes are in ``moved`` then).
    """
    core, ring = core_at(core_address), ring_at(address)
    pieces = _pieces()
    count, total, slots, buffer = _next_buffer(ring, ring.position, pieces, intp(0), intp(0))
    if count < 0:
        ring.head = total
        return count
    if slots == 0:
        return NOTHING
    length = total - ring.header_bytes
    if length <= 0 or length > MAX_PACKET_BYTES:
        ring.head = buffer
        return -_TOO_SHORT if length <= 0 else -_TOO_LONG
    if length > ring.longest:
        ring.moved = length
        _use(ring, address, buffer, intp(0), slots)
        return -DROPPED
    if ring.guest_offloads:
        header = _header()
        copy_from_pieces(pieces, count, intp(0), header, intp(2))
        if load16(header):
            return -HAND_OVER
    packet = _read_packet(core, pool, pieces, count, ring.header_bytes, length)
    if packet == 0:
        return NOTHING
    store64(packets, packet)
    _use(ring, address, buffer, intp(0), slots)
    return length


DELIVER = Part("vio4wd_general_deliver", _deliver, 2)
COLLECT = Part("vio4wd_general_collect", _collect, 4)
