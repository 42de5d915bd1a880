"""Where a ring is to go on after its back end has died, read from the ring's own memory.

Guest memory is read through its file with pread, never mapped: a front end that truncates the file then gives an
error here, not a SIGBUS. Layouts: VIRTIO 1.2, sections 2.7 (split) and 2.8 (packed).
"""

from __future__ import annotations

import os

from vio4wd.errors import ForwarderError
from vio4wd.relay.direct.ring_record import SavedPosition
from vio4wd.vhostuser.record import Ring, SessionRecord

_USED_INDEX_OFFSET = 2
_DESCRIPTOR_BYTES = 16
_FLAG_AVAIL = 1 << 7
_FLAG_USED = 1 << 15
_WRAP_BIT = 1 << 15
_MOST_RUNS = 4
"""A packed ring without chains has at most: next lap's available, used, available, not yet available."""


class UnknownRingBase(ForwarderError):
    """A session that cannot be taken over, because nobody knows where one of its rings was."""


def ring_base(record: SessionRecord, index: int, saved: SavedPosition | None) -> int:
    """The number for SET_VRING_BASE at which a running ring goes on.

    A split ring's ``used->idx`` is exact for back ends that use buffers in order: what was not given back is done
    again. ``saved`` (from the dead back end's shared memory) counts where the ring's own memory tells less: for packed
    rings, and for split ones that cannot be read.

    Raises:
        UnknownRingBase: neither source knows it.
    """
    ring = record.rings[index]
    if record.packed:
        position = _packed_position(record, index, ring, saved) if saved else _packed_guess(record, index, ring)
        return position | position << 16  # available and used side
    try:
        return _used_index(record, index, ring)
    except UnknownRingBase:
        if saved is None or saved.position != saved.following:
            raise
        return saved.position


def _used_index(record: SessionRecord, index: int, ring: Ring) -> int:
    if ring.address is None:
        raise UnknownRingBase(f"ring {index} was started without an address")
    return int.from_bytes(_read(record, index, ring.address.used + _USED_INDEX_OFFSET, 2), "little")


def _read(record: SessionRecord, index: int, address: int, size: int) -> bytes:
    for region, fd in record.regions:
        if region.user <= address and address + size <= region.user + region.size:
            try:
                data = os.pread(fd, size, region.offset + address - region.user)
            except OSError as error:
                raise UnknownRingBase(f"ring {index}: guest memory cannot be read: {error.strerror}") from error
            if len(data) != size:
                raise UnknownRingBase(f"ring {index}: its memory's file was truncated")
            return data
    raise UnknownRingBase(f"ring {index}: address {address:#x} is in no memory region")


def _packed_position(record: SessionRecord, index: int, ring: Ring, saved: SavedPosition) -> int:
    """Where a packed ring goes on: at the first buffer from the saved position on that the guest cannot see as used."""
    if saved.position == saved.following:
        return saved.position
    if ring.address is None or ring.size is None:
        raise UnknownRingBase(f"ring {index} was started without an address or size")
    position = saved.position
    for _ in range(ring.size if saved.one_by_one else 1):
        slot, wrap = position & ~_WRAP_BIT, bool(position & _WRAP_BIT)
        data = _read(record, index, ring.address.descriptors + slot * _DESCRIPTOR_BYTES, _DESCRIPTOR_BYTES)
        if _bits(data) == (wrap, not wrap):
            return position
        position = position + 1 if slot + 1 < ring.size else (position & _WRAP_BIT) ^ _WRAP_BIT
        if position == saved.following:
            break
    return saved.following


def _packed_guess(record: SessionRecord, index: int, ring: Ring) -> int:
    """Deduce a packed ring's position from its descriptors.

    Exactly one position must explain all descriptors, under the rule that used buffers are one descriptor long
    (longer ones leave descriptors behind that look available).
    """
    if ring.address is None or ring.size is None:
        raise UnknownRingBase(f"ring {index} was started without an address or size")
    data = _read(record, index, ring.address.descriptors, ring.size * _DESCRIPTOR_BYTES)
    descriptors = [data[i : i + _DESCRIPTOR_BYTES] for i in range(0, len(data), _DESCRIPTOR_BYTES)]
    bits = [_bits(descriptor) for descriptor in descriptors]
    runs = [i for i in range(len(bits)) if i == 0 or bits[i] != bits[i - 1]]
    found = [(at, wrap) for at in runs[:_MOST_RUNS] for wrap in (False, True) if _explains(bits, at, wrap)]
    if len(runs) > _MOST_RUNS or len(found) != 1 or _is_tail_of_chain(descriptors, bits, found[0][0]):
        raise UnknownRingBase(f"ring {index}: the position of a packed ring cannot be told from its descriptors")
    position, wrap = found[0]
    return position | (_WRAP_BIT if wrap else 0)


def _bits(descriptor: bytes) -> tuple[bool, bool]:
    flags = int.from_bytes(descriptor[14:16], "little")
    return bool(flags & _FLAG_AVAIL), bool(flags & _FLAG_USED)


def _explains(bits: list[tuple[bool, bool]], at: int, wrap: bool) -> bool:
    """Whether ``bits`` (avail, used) are those of a ring that goes on at position ``at`` with this wrap counter."""
    size = len(bits)
    end = at
    while end < size and bits[end] == (wrap, not wrap):
        end += 1
    next_lap = 0
    if end == size:
        while next_lap < at and bits[next_lap] == (not wrap, wrap):
            next_lap += 1
    done = all(bits[i] == (wrap, wrap) for i in range(next_lap, at))
    return done and all(bits[i] == (not wrap, not wrap) for i in range(end, size))


def _is_tail_of_chain(descriptors: list[bytes], bits: list[tuple[bool, bool]], at: int) -> bool:
    """Whether the first available descriptor may be the rest of the used buffer before it: they have the same id."""
    used_before = bits[at - 1][0] == bits[at - 1][1]
    is_available = bits[at][0] != bits[at][1]
    return (
        is_available
        and used_before
        and any(descriptors[at - 1])
        and descriptors[at - 1][12:14] == descriptors[at][12:14]
    )
