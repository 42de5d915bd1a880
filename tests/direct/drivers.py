"""Driver sides of split and packed rings, on a rig's memory."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from rig import Rig

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
WRAP = 1 << 15


@dataclass(frozen=True)
class Piece:
    """Guest memory of one descriptor."""

    guest: int
    size: int
    writable: bool = False


class SplitDriver:
    """Adds buffers and takes them back. ``position`` is the free-running index at which the ring starts."""

    def __init__(self, rig: Rig, position: int = 0) -> None:
        self.rig = rig
        self.next_available = self.next_used = position
        self.free = list(range(rig.size))
        self.held: dict[int, tuple[list[int], list[Piece]]] = {}

    def descriptor(self, table: int, index: int, guest: int, size: int, flags: int, following: int) -> None:
        """Write one descriptor of a table at a host address."""
        ctypes.memmove(table + 16 * index, struct.pack("<QIHH", guest & (1 << 64) - 1, size, flags, following), 16)

    def add(self, pieces: Sequence[Piece], *, indirect: bool = False) -> int:
        """Make a buffer available; answers its head."""
        if indirect:
            table = self.rig.allocate(16 * len(pieces), 16)
            self._chain(self.rig.host(table), list(range(len(pieces))), pieces)
            indexes = [self.free.pop(0)]
            self.descriptor(self.rig.desc, indexes[0], table, 16 * len(pieces), INDIRECT, 0)
        else:
            indexes = [self.free.pop(0) for _ in pieces]
            self._chain(self.rig.desc, indexes, pieces)
        self.held[indexes[0]] = (indexes, list(pieces))
        self.make_available(indexes[0])
        return indexes[0]

    def _chain(self, table: int, indexes: list[int], pieces: Sequence[Piece]) -> None:
        for i, piece in enumerate(pieces):
            last = i + 1 == len(pieces)
            flags = (0 if last else NEXT) | (WRITE if piece.writable else 0)
            self.descriptor(table, indexes[i], piece.guest, piece.size, flags, 0 if last else indexes[i + 1])

    def make_available(self, head: int) -> None:
        """Put a head into the available ring, whatever it is."""
        self.rig.pool.put(self.rig.avail + 4 + 2 * (self.next_available % self.rig.size), "u2", head)
        self.next_available = (self.next_available + 1) & 0xFFFF
        self.rig.pool.put(self.rig.avail + 2, "u2", self.next_available)

    def set_no_interrupt(self, off: bool) -> None:
        """The available ring's flag against notifications."""
        self.rig.pool.put(self.rig.avail, "u2", int(off))

    def set_event(self, index: int) -> None:
        """used_event: notify when the used buffer of this index is there."""
        self.rig.pool.put(self.rig.avail + 4 + 2 * self.rig.size, "u2", index & 0xFFFF)

    def used(self) -> list[tuple[int, int]]:
        """Take back what was used: head and bytes written."""
        index = self.rig.pool.get(self.rig.used + 2, "u2")
        entries = []
        while self.next_used != index:
            at = self.rig.used + 4 + 8 * (self.next_used % self.rig.size)
            head, length = struct.unpack("<II", ctypes.string_at(at, 8))
            entries.append((head, length))
            self.free += self.held[head][0]
            self.next_used = (self.next_used + 1) & 0xFFFF
        return entries

    def contents(self, head: int, length: int) -> bytes:
        """The bytes that were written to a buffer."""
        data = b"".join(self.rig.read(piece.guest, piece.size) for piece in self.held[head][1])
        return data[:length]


class PackedDriver:
    """The same for packed rings. ``position`` has the wrap counter in bit 15."""

    def __init__(self, rig: Rig, position: int = WRAP) -> None:
        self.rig = rig
        self.slot = self.used_slot = position & ~WRAP
        self.wrap = self.used_wrap = bool(position & WRAP)
        self.next_id = 0
        self.room = rig.size
        self.held: dict[int, tuple[int, list[Piece]]] = {}

    def add(self, pieces: Sequence[Piece], *, indirect: bool = False) -> int:
        """Make a buffer available; answers its id."""
        identity = self.next_id
        while identity in self.held:
            identity = (identity + 1) % self.rig.size
        self.next_id = (identity + 1) % self.rig.size
        entries = [(piece.guest, piece.size, WRITE if piece.writable else 0) for piece in pieces]
        if indirect:
            table = self.rig.allocate(16 * len(pieces), 16)
            for i, (guest, size, flags) in enumerate(entries):
                self.rig.write(table + 16 * i, struct.pack("<QIHH", guest, size, 0, flags))
            entries = [(table, 16 * len(pieces), INDIRECT)]
        self.held[identity] = (len(entries), list(pieces))
        self.write(entries, identity)
        return identity

    def write(self, entries: Sequence[tuple[int, int, int]], identity: int) -> None:
        """Write descriptors (address, length, flags), the first one's flags last, as a driver does."""
        slots = []
        for i, (guest, size, flags) in enumerate(entries):
            flags |= (NEXT if i + 1 < len(entries) else 0) | (AVAIL if self.wrap else USED)
            slots.append((self.slot, struct.pack("<QIHH", guest & (1 << 64) - 1, size, identity, flags)))
            self._forward()
        for slot, raw in reversed(slots):
            ctypes.memmove(self.rig.desc + 16 * slot, raw, 16)
        self.room -= len(entries)

    def _forward(self) -> None:
        self.slot += 1
        if self.slot == self.rig.size:
            self.slot, self.wrap = 0, not self.wrap

    def set_event(self, flags: int, off_wrap: int = 0) -> None:
        """The driver's event suppression: 0 all, 1 none, 2 at a descriptor."""
        self.rig.pool.put(self.rig.avail, "u2", off_wrap)
        self.rig.pool.put(self.rig.avail + 2, "u2", flags)

    def used(self) -> list[tuple[int, int]]:
        """Take back what was used: id and bytes written."""
        entries = []
        while True:
            raw = ctypes.string_at(self.rig.desc + 16 * self.used_slot, 16)
            _, length, identity, flags = struct.unpack("<QIHH", raw)
            if bool(flags & AVAIL) != self.used_wrap or bool(flags & USED) != self.used_wrap or not self.held:
                return entries
            assert bool(flags & WRITE) == bool(length)
            slots, pieces = self.held.pop(identity)
            self.taken = pieces
            entries.append((identity, length))
            self.room += slots
            self.used_slot += slots
            if self.used_slot >= self.rig.size:
                self.used_slot, self.used_wrap = self.used_slot - self.rig.size, not self.used_wrap
