"""Chains of descriptors turned into lists of checked pieces, for every shape of buffer. Compiled by numba.

VIRTIO 1.2, sections 2.7.5 (split descriptors) and 2.8.1 to 2.8.7 (packed ones). Descriptors that are read, or copied
with their table, are counted in ``walked``: what a packet and a burst may cost is bounded by it.
"""

from __future__ import annotations

from typing import Any

from numba import types

from vio4wd.relay.direct.guest_memory import (
    MAX_PIECES,
    PIECE_BYTES,
    add_pieces,
    copy_from_pieces,
    fetch64,
    translate,
)
from vio4wd.relay.direct.ring_record import RingRule
from vio4wd.relay.native import compiled, stack_space

DESC_BYTES = 16
DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
DESC_SHAPE = DESC_NEXT | DESC_WRITE | DESC_INDIRECT
DESC_AVAIL, DESC_USED = 1 << 7, 1 << 15
"""Flags of descriptors; the last two of packed ones."""

MAX_STEPS = MAX_PIECES
"""Descriptors of one chain; also bounds those of length 0, which give no piece."""

intp = types.intp
_table = stack_space(MAX_STEPS * DESC_BYTES)
_table_pieces = stack_space(MAX_PIECES * PIECE_BYTES)
_HEAD, _NEXT, _LENGTH = int(RingRule.HEAD), int(RingRule.NEXT), int(RingRule.CHAIN_LENGTH)
_DIRECTION = int(RingRule.DIRECTION)
_TABLE_ADDRESS = int(RingRule.INDIRECT_ADDRESS)
_TABLE_LENGTH = int(RingRule.INDIRECT_LENGTH)
_TABLE_FLAGS = int(RingRule.INDIRECT_FLAGS)


@compiled
def find_table(ring: Any, guest: int, length: int, table: int, pieces: int) -> Any:
    """Find an indirect table; answers (host address, descriptors), or (minus a rule, 0).

    One that runs from one region into the next is copied to ``table``, which has room for MAX_STEPS descriptors, with
    the help of ``pieces``.
    """
    if length == 0 or length & (DESC_BYTES - 1):
        return -_TABLE_LENGTH, 0
    host, room = translate(ring, guest)
    if room == 0:
        return -_TABLE_ADDRESS, 0
    if room < length:
        if length > MAX_STEPS * DESC_BYTES:
            return -_TABLE_LENGTH, 0
        count = add_pieces(ring, guest, length, pieces, intp(0))
        if count < 0:
            return -_TABLE_ADDRESS, 0
        copy_from_pieces(pieces, count, intp(0), table, length)
        ring.walked += length // DESC_BYTES
        host = table
    return host, length // DESC_BYTES


@compiled
def walk_split(ring: Any, head: int, pieces: int, count: int, writable: int) -> Any:
    """Add the buffer that starts at descriptor ``head`` to the ``count`` pieces.

    ``writable`` is DESC_WRITE for buffers that the guest receives into, else 0. Answers (pieces, bytes of this buffer,
    descriptors of the ring that it takes), or (minus a rule, the descriptor, 0).
    """
    table, entries, index, total, own = ring.descriptors, ring.size, head, intp(0), intp(0)
    for step in range(MAX_STEPS):
        ring.walked += 1
        if index >= entries:
            return -(_HEAD if step == 0 else _NEXT), index, 0
        if table == ring.descriptors:
            own += 1
        guest, rest = fetch64(table + DESC_BYTES * index), fetch64(table + DESC_BYTES * index + 8)
        length, flags = rest & 0xFFFFFFFF, (rest >> 32) & 0xFFFF
        if flags & DESC_INDIRECT:
            if step or flags & DESC_NEXT:
                return -_TABLE_FLAGS, index, 0
            table, entries = find_table(ring, guest, length, _table(), _table_pieces())
            if table < 0:
                return table, index, 0
            index = 0
            continue
        if flags & DESC_WRITE != writable:
            return -_DIRECTION, index, 0
        count = add_pieces(ring, guest, length, pieces, count)
        if count < 0:
            return count, index, 0
        total += length
        if not flags & DESC_NEXT:
            return count, total, own
        index = (rest >> 48) & 0xFFFF
    return -_LENGTH, head, 0


@compiled
def _walk_packed_table(ring: Any, guest: int, length: int, pieces: int, count: int, writable: int) -> Any:
    """Add the descriptors of a packed ring's indirect table; answers (pieces, bytes), or (minus a rule, 0)."""
    table, entries = find_table(ring, guest, length, _table(), _table_pieces())
    if table < 0:
        return table, 0
    if entries > MAX_STEPS:
        return -_LENGTH, 0
    total = intp(0)
    ring.walked += entries
    for i in range(entries):
        start, rest = fetch64(table + DESC_BYTES * i), fetch64(table + DESC_BYTES * i + 8)
        flags = (rest >> 48) & 0xFFFF
        if flags & DESC_INDIRECT:
            return -_TABLE_FLAGS, 0
        if flags & DESC_WRITE != writable:
            return -_DIRECTION, 0
        count = add_pieces(ring, start, rest & 0xFFFFFFFF, pieces, count)
        if count < 0:
            return count, 0
        total += rest & 0xFFFFFFFF
    return count, total


@compiled
def walk_packed(ring: Any, slot: int, pieces: int, count: int, writable: int) -> Any:
    """Add the available buffer that starts at ``slot`` to the ``count`` pieces.

    Answers (pieces, bytes of this buffer, slots that it takes, buffer id), or (minus a rule, slot, 0, 0).
    """
    total, index = intp(0), slot
    for step in range(min(MAX_STEPS, ring.size)):
        ring.walked += 1
        descriptor = ring.descriptors + DESC_BYTES * index
        rest = fetch64(descriptor + 8)
        guest = fetch64(descriptor)
        length, flags, buffer = rest & 0xFFFFFFFF, (rest >> 48) & 0xFFFF, (rest >> 32) & 0xFFFF
        if flags & DESC_INDIRECT:
            if step or flags & DESC_NEXT:
                return -_TABLE_FLAGS, index, 0, 0
            count, total = _walk_packed_table(ring, guest, length, pieces, count, writable)
            return count, total, 1, buffer
        if flags & DESC_WRITE != writable:
            return -_DIRECTION, index, 0, 0
        count = add_pieces(ring, guest, length, pieces, count)
        if count < 0:
            return count, index, 0, 0
        total += length
        if not flags & DESC_NEXT:
            return count, total, step + 1, buffer
        index = index + 1 if index + 1 < ring.size else 0
    return -_LENGTH, slot, 0, 0
