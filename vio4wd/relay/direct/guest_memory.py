"""The only ways in which the direct engine reads guest memory, and those in which it writes packets there.

A guest can change its memory at any moment, also between two reads. So everything that is decided upon is fetched once,
by ``fetch`` functions, into locals; the compiler cannot repeat these loads. Packet data is copied and never looked at.
Addresses of the guest are turned into our own by ``translate``, which answers how far one may go from there; the first
passes of ``split`` and ``packed`` do so by themselves, in the region where ``translate`` last found something. What is
given back to the guest, used entries and used descriptors, those two modules write.
"""

from __future__ import annotations

from typing import Any

from numba import types

from vio4wd.relay.direct.ring_record import RingRule
from vio4wd.relay.native import compiled, load64, loader, store16, store32, store64, storer, vector_copier

fetch16 = loader(16, once=True)
"""``fetch16(address)``: one 16-bit field, once."""

fetch16_acquire = loader(16, acquire=True)
"""``fetch16_acquire(address)``: an index of the guest; what the guest wrote before it is seen after it."""

fetch32 = loader(32, once=True)
"""``fetch32(address)``: one 32-bit field, once."""

fetch64 = loader(64, once=True)
"""``fetch64(address)``: half a descriptor, once."""

fetch64_acquire = loader(64, acquire=True)
"""``fetch64_acquire(address)``: the half of a packed descriptor that has its flags."""

_ADDRESS, _CHAIN_LENGTH = int(RingRule.ADDRESS), int(RingRule.CHAIN_LENGTH)

VECTOR_BYTES = 32
CACHE_LINE = 64

# A piece of a buffer: host address and length, 8 bytes each.
PIECE_BYTES = 16
MAX_PIECES = 256
"""Pieces of the buffers for one packet; as many as rte_vhost takes."""


_copy32 = vector_copier(VECTOR_BYTES)
_copy128 = vector_copier(VECTOR_BYTES, 4)
_load8, _store8 = loader(8), storer(8)


@compiled
def _copy_short(destination: int, source: int, length: int) -> None:
    """Copy fewer than 32 bytes, exactly."""
    for i in range(length >> 3):
        store64(destination + 8 * i, load64(source + 8 * i))
    for i in range(length & ~7, length):
        _store8(destination + i, _load8(source + i))


@compiled
def _copy_any(destination: int, source: int, length: int) -> None:
    if length < VECTOR_BYTES:
        _copy_short(destination, source, length)
        return
    done = types.intp(0)
    while done + 4 * VECTOR_BYTES <= length:
        _copy128(destination + done, source + done)
        done += 4 * VECTOR_BYTES
    while done + VECTOR_BYTES <= length:
        _copy32(destination + done, source + done)
        done += VECTOR_BYTES
    if done < length:
        _copy32(destination + length - VECTOR_BYTES, source + length - VECTOR_BYTES)


@compiled
def copy(destination: int, source: int, length: int) -> None:
    """Copy exactly ``length`` bytes between our own memory and a piece of the guest's.

    The last vector overlaps what is copied already, so that nothing beyond either end is touched. Small frames are
    copied without a call and without a loop.
    """
    if VECTOR_BYTES <= length <= 2 * VECTOR_BYTES:
        _copy32(destination, source)
        _copy32(destination + length - VECTOR_BYTES, source + length - VECTOR_BYTES)
    else:
        _copy_any(destination, source, length)


@compiled
def write_plain_header(destination: int, header: int) -> None:
    """Write the header of a packet in one buffer that asks for nothing, unless it is there already.

    A guest that uses its buffers again finds there what we wrote last time. If that stays, neither CPU takes the line
    from the other: with 64-byte frames that is a tenth of the packet rate.
    """
    if fetch64(destination):
        store64(destination, 0)
    if header == 12:
        if fetch32(destination + 8) != 1 << 16:
            store32(destination + 8, 1 << 16)
    elif fetch16(destination + 8):
        store16(destination + 8, 0)


@compiled
def translate(ring: Any, guest: int) -> Any:
    """Find a guest physical address; answers (host address, bytes from there to the region's end), (0, 0) if nowhere.

    Arithmetic is modulo 2**64, and regions end below 2**63: an offset that fits in a region is the true one.
    """
    offset = guest - ring.region_guest
    if 0 <= offset < ring.region_bytes:
        return ring.region_host + offset, ring.region_bytes - offset
    for i in range(ring.regions):
        offset = guest - ring.guest_addresses[i]
        if 0 <= offset < ring.region_sizes[i]:
            ring.region_guest = ring.guest_addresses[i]
            ring.region_bytes = ring.region_sizes[i]
            ring.region_host = ring.host_addresses[i]
            return ring.region_host + offset, ring.region_bytes - offset
    return 0, 0


@compiled
def add_pieces(ring: Any, guest: int, length: int, pieces: int, count: int) -> Any:
    """Add a descriptor's memory to the ``count`` pieces at ``pieces``; answers their new count, or minus a RingRule.

    A descriptor that runs from one region into an adjacent one becomes two pieces.
    """
    while length > 0:
        host, room = translate(ring, guest)
        if room == 0:
            return -_ADDRESS
        if count == MAX_PIECES:
            return -_CHAIN_LENGTH
        part = min(length, room)
        store64(pieces + PIECE_BYTES * count, host)
        store64(pieces + PIECE_BYTES * count + 8, part)
        count += 1
        guest += part
        length -= part
    return count


@compiled
def copy_from_pieces(pieces: int, count: int, skip: int, destination: int, length: int) -> None:
    """Copy ``length`` bytes, ``skip`` bytes into the pieces, to our own memory. They must have that many."""
    for i in range(count):
        if length <= 0:
            return
        size = load64(pieces + PIECE_BYTES * i + 8)
        if skip < size:
            part = min(size - skip, length)
            copy(destination, load64(pieces + PIECE_BYTES * i) + skip, part)
            destination += part
            length -= part
            skip = 0
        else:
            skip -= size


@compiled
def copy_to_pieces(pieces: int, count: int, skip: int, source: int, length: int) -> None:
    """Copy ``length`` bytes of our own memory to ``skip`` bytes into the pieces, which must have the room."""
    for i in range(count):
        if length <= 0:
            return
        size = load64(pieces + PIECE_BYTES * i + 8)
        if skip < size:
            part = min(size - skip, length)
            copy(load64(pieces + PIECE_BYTES * i) + skip, source, part)
            source += part
            length -= part
            skip = 0
        else:
            skip -= size
