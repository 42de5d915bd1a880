"""The driver side of a packed virtqueue (VIRTIO 1.2, section 2.8)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from frontend.memory import GuestMemory
from frontend.ring import F_INDIRECT, F_NEXT, F_WRITE, Buffer, Ring

WRAP = 1 << 15
"""The wrap counter in a position; the rest is a slot."""

_AVAIL, _USED = 1 << 7, 1 << 15
_BODY = struct.Struct("<QIH")
_TABLE_ENTRY = struct.Struct("<QIHH")
_ALWAYS, _NEVER, _AT_DESCRIPTOR = 0, 1, 2


class PackedRing(Ring):
    """One packed ring. ``available`` and ``used`` are the event suppression areas of driver and device."""

    def __init__(self, memory: GuestMemory, size: int = 256, *, region: int = 0, start: int = WRAP) -> None:
        super().__init__(memory, size, (16 * size, 4, 4), region)
        self.device_flags = self.used + 2
        self._chains: dict[int, list[int]] = {}
        self._unpublished: list[tuple[int, int]] = []
        self.begin_at(start)

    def begin_at(self, position: int) -> None:
        self.next_available = self.next_used = position

    def _after(self, position: int, slots: int) -> int:
        slot = (position & ~WRAP) + slots
        return slot - self.size | (position & WRAP) ^ WRAP if slot >= self.size else slot | position & WRAP

    def add(self, buffers: Sequence[Buffer], table: int | None = None) -> int:
        direct = [(buffer, F_WRITE if buffer.writable else 0) for buffer in buffers]
        if table is not None:
            for i, (buffer, flags) in enumerate(direct):
                self.memory.write(table + 16 * i, _TABLE_ENTRY.pack(buffer.guest, buffer.size, 0, flags))
            direct = [(Buffer(table, 16 * len(buffers)), F_INDIRECT)]
        chain = [self.free.pop(0) for _ in direct]
        self._chains[chain[0]] = chain
        for i, (buffer, flags) in enumerate(direct):
            flags |= F_NEXT if i + 1 < len(direct) else 0
            flags |= _AVAIL if self.next_available & WRAP else _USED
            slot = self.descriptors + 16 * (self.next_available & ~WRAP)
            self.memory.write(slot, _BODY.pack(buffer.guest, buffer.size, chain[0]))
            self._unpublished.append((slot + 14, flags))
            self.next_available = self._after(self.next_available, 1)
        return chain[0]

    def publish(self) -> None:
        """The device sees all at once: it looks at the first one first, whose flags are written last."""
        for address, flags in reversed(self._unpublished):
            self.memory.write_u16(address, flags)
        self._unpublished.clear()

    def _used_chains(self) -> Iterator[tuple[int, int, int]]:
        """What the device gave back and was not taken yet: number, bytes written, position behind it."""
        position, waiting = self.next_used, len(self._chains)
        while waiting:
            slot = self.descriptors + 16 * (position & ~WRAP)
            flags = self.memory.read_u16(slot + 14)
            if not bool(flags & _AVAIL) == bool(flags & _USED) == bool(position & WRAP):
                return
            written, identity = struct.unpack("<IH", self.memory.read(slot + 8, 6))
            position = self._after(position, len(self._chains[identity]))
            waiting -= 1
            yield identity, written, position

    def used_index(self) -> int:
        return [self.next_used, *(position for _, _, position in self._used_chains())][-1]

    def take_used(self, most: int = 1 << 16) -> list[tuple[int, int]]:
        done = []
        for identity, written, position in self._used_chains():
            if len(done) == most:
                break
            done.append((identity, written))
            self.next_used = position
        for identity, _ in done:
            self.free.extend(self._chains.pop(identity))
        return done

    def wants_calls(self, wanted: bool) -> None:
        self.memory.write_u16(self.available + 2, _ALWAYS if wanted else _NEVER)

    def set_used_event(self, index: int) -> None:
        self.memory.write_u16(self.available, index)
        self.memory.write_u16(self.available + 2, _AT_DESCRIPTOR)
