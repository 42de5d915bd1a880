"""The driver side of a split virtqueue (VIRTIO 1.2, section 2.7)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from frontend.memory import GuestMemory
from frontend.ring import F_INDIRECT, F_NEXT, F_WRITE, Buffer, Ring

_DESCRIPTOR = struct.Struct("<QIHH")


class SplitRing(Ring):
    """One split ring; buffers are known by the heads of their chains."""

    def __init__(self, memory: GuestMemory, size: int = 256, *, region: int = 0, start: int = 0) -> None:
        super().__init__(memory, size, (16 * size, 6 + 2 * size, 6 + 8 * size), region)
        self.device_flags = self.used
        self._chains: dict[int, list[int]] = {}
        self.begin_at(start)

    def begin_at(self, position: int) -> None:
        self.next_available = self.next_used = position
        self.memory.write_u16(self.available + 2, position)
        self.memory.write_u16(self.used + 2, position)

    def set_descriptor(self, index: int, guest: int, size: int, flags: int = 0, next_index: int = 0) -> None:
        """Write one descriptor as given, right or wrong."""
        self.memory.write(self.descriptors + 16 * index, _DESCRIPTOR.pack(guest, size, flags, next_index))

    def offer(self, head: int) -> None:
        """Put a head into the available ring; the device sees it after ``publish``."""
        self.memory.write_u16(self.available + 4 + 2 * (self.next_available % self.size), head)
        self.next_available = (self.next_available + 1) & 0xFFFF

    def publish(self) -> None:
        self.memory.write_u16(self.available + 2, self.next_available)

    def add(self, buffers: Sequence[Buffer], table: int | None = None) -> int:
        direct = [Buffer(table, 16 * len(buffers))] if table is not None else list(buffers)
        if table is not None:
            for i, buffer in enumerate(buffers):
                flags = (F_WRITE if buffer.writable else 0) | (F_NEXT if i + 1 < len(buffers) else 0)
                self.memory.write(table + 16 * i, _DESCRIPTOR.pack(buffer.guest, buffer.size, flags, i + 1))
        chain = [self.free.pop(0) for _ in direct]
        for i, (index, buffer) in enumerate(zip(chain, direct, strict=True)):
            more = i + 1 < len(chain)
            flags = (F_NEXT if more else 0) | (F_WRITE if buffer.writable else 0)
            flags |= F_INDIRECT if table is not None else 0
            self.set_descriptor(index, buffer.guest, buffer.size, flags, chain[i + 1] if more else 0)
        self._chains[chain[0]] = chain
        self.offer(chain[0])
        return chain[0]

    def used_index(self) -> int:
        return self.memory.read_u16(self.used + 2)

    def take_used(self, most: int = 1 << 16) -> list[tuple[int, int]]:
        done = []
        index = self.used_index()
        while self.next_used != index and len(done) < most:
            entry = self.used + 4 + 8 * (self.next_used % self.size)
            head, written = struct.unpack("<II", self.memory.read(entry, 8))
            done.append((head, written))
            self.free.extend(self._chains.pop(head, []))
            self.next_used = (self.next_used + 1) & 0xFFFF
        return done

    def wants_calls(self, wanted: bool) -> None:
        """Set or clear VRING_AVAIL_F_NO_INTERRUPT."""
        self.memory.write_u16(self.available, 0 if wanted else 1)

    def set_used_event(self, index: int) -> None:
        self.memory.write_u16(self.available + 4 + 2 * self.size, index)
