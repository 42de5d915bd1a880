"""What the driver sides of both kinds of virtqueue share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from frontend.memory import GuestMemory

F_NEXT, F_WRITE, F_INDIRECT = 1, 2, 4

NO_KICKS = 1
"""What a device that wants no kicks writes: VIRTQ_USED_F_NO_NOTIFY, and for packed rings RING_EVENT_FLAGS_DISABLE."""


@dataclass(frozen=True)
class Buffer:
    """Guest memory that a descriptor describes; ``writable`` for the device."""

    guest: int
    size: int
    writable: bool = False


class Ring:
    """A ring's three parts in guest memory, with its kick and call eventfds. All addresses kept are guest addresses.

    ``free`` has one item for each descriptor that is not in use. ``device_flags`` is the address of the 16 bits in
    which the device says whether it wants kicks.
    """

    device_flags: int

    def __init__(self, memory: GuestMemory, size: int, parts: tuple[int, int, int], region: int) -> None:
        self.memory = memory
        self.size = size
        self.descriptors = memory.alloc(parts[0], 16, region)
        self.available = memory.alloc(parts[1], 4, region)
        self.used = memory.alloc(parts[2], 4, region)
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.free = list(range(size))

    def begin_at(self, position: int) -> None:
        """Have the ring, of which nothing is used yet, begin at a position (as in SET_VRING_BASE)."""
        raise NotImplementedError

    def add(self, buffers: Sequence[Buffer], table: int | None = None) -> int:
        """Offer a chain of buffers, seen by the device after ``publish``; answers the number that it comes back with.

        ``table`` is the guest address of room for an indirect table.
        """
        raise NotImplementedError

    def publish(self) -> None:
        """Let the device see what was offered."""
        raise NotImplementedError

    def used_index(self) -> int:
        """Position up to which the device has given buffers back."""
        raise NotImplementedError

    def take_used(self, most: int = 1 << 16) -> list[tuple[int, int]]:
        """Chains that the device gave back: number and bytes written, oldest first."""
        raise NotImplementedError

    def wants_calls(self, wanted: bool) -> None:
        """Ask to be called for all used buffers, or for none (split rings with an event index do not heed this)."""
        raise NotImplementedError

    def set_used_event(self, index: int) -> None:
        """Ask for a call when the device gives back the buffer at a position (event index negotiated)."""
        raise NotImplementedError

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

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
