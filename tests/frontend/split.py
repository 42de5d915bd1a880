"""The driver side of a split virtqueue (VIRTIO 1.2, section 2.7)."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from frontend.memory import GuestMemory

F_NEXT, F_WRITE, F_INDIRECT = 1, 2, 4
_DESCRIPTOR = struct.Struct("<QIHH")


@dataclass(frozen=True)
class Buffer:
    """Guest memory that a descriptor describes; ``writable`` for the device."""

    guest: int
    size: int
    writable: bool = False


class SplitRing:
    """One split ring with its kick and call eventfds. All addresses kept here are guest addresses."""

    def __init__(self, memory: GuestMemory, size: int = 256, *, region: int = 0, start: int = 0) -> None:
        self.memory = memory
        self.size = size
        self.descriptors = memory.alloc(16 * size, 16, region)
        self.available = memory.alloc(6 + 2 * size, 2, region)
        self.used = memory.alloc(6 + 8 * size, 4, region)
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.next_available = start
        self.next_used = start
        self.free = list(range(size))
        self._chains: dict[int, list[int]] = {}
        memory.write_u16(self.available + 2, start)
        memory.write_u16(self.used + 2, start)

    def set_descriptor(self, index: int, guest: int, size: int, flags: int = 0, next_index: int = 0) -> None:
        """Write one descriptor as given, right or wrong."""
        self.memory.write(self.descriptors + 16 * index, _DESCRIPTOR.pack(guest, size, flags, next_index))

    def offer(self, head: int) -> None:
        """Put a head into the available ring; the device sees it after ``publish``."""
        self.memory.write_u16(self.available + 4 + 2 * (self.next_available % self.size), head)
        self.next_available = (self.next_available + 1) & 0xFFFF

    def publish(self) -> None:
        """Let the device see what was offered."""
        self.memory.write_u16(self.available + 2, self.next_available)

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def add(self, buffers: Sequence[Buffer], table: int | None = None) -> int:
        """Offer a chain of buffers; ``table``: guest address of room for an indirect table. Answers the head."""
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
        """Chains that the device gave back: head and bytes written, oldest first."""
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
        """Ask for a call when used->idx passes ``index`` (event index negotiated)."""
        self.memory.write_u16(self.available + 4 + 2 * self.size, index)

    def calls(self) -> int:
        """Calls since this was asked last."""
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        for fd in (self.kick_fd, self.call_fd):
            if fd >= 0:
                os.close(fd)
        self.kick_fd = self.call_fd = -1
