"""Guest memory: regions of memfds (or hugetlbfs files), with guest and user addresses that differ."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field

MIB = 1 << 20
GUEST_BASE = 0x4000_0000
USER_BASE = 0x7F00_0000_0000
HUGE_PAGE = 2 * MIB


@dataclass
class GuestRegion:
    """One region; ``offset`` is where it starts in its file, ``used`` how much of it has been handed out.

    ``words`` is its map as 16-bit words, each read and written at once: struct.pack_into clears before it writes,
    and "<H" goes byte by byte, so that the device would see indexes that never were.
    """

    guest: int
    user: int
    size: int
    offset: int
    fd: int
    map: mmap.mmap
    words: memoryview
    used: int = 0

    def __contains__(self, guest: int) -> bool:
        return self.guest <= guest < self.guest + self.size

    def close(self) -> None:
        self.words.release()
        self.map.close()
        os.close(self.fd)


@dataclass
class GuestMemory:
    """Memory of ``count`` regions of ``size`` bytes each, with a hole of guest addresses between them.

    ``offset``: bytes in front of each region in its file. ``huge``: on 2 MiB pages.
    """

    size: int = 4 * MIB
    count: int = 1
    offset: int = 0
    huge: bool = False
    regions: list[GuestRegion] = field(default_factory=list)

    def __post_init__(self) -> None:
        for i in range(self.count):
            self.add_region(GUEST_BASE + i * (self.size + 16 * MIB), USER_BASE + i * (self.size + 64 * MIB))

    def add_region(self, guest: int, user: int) -> GuestRegion:
        flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB if self.huge else 0)
        fd = os.memfd_create("guest", flags)
        os.ftruncate(fd, self.offset + self.size)
        mapped = mmap.mmap(fd, self.offset + self.size)
        region = GuestRegion(guest, user, self.size, self.offset, fd, mapped, memoryview(mapped).cast("H"))
        self.regions.append(region)
        return region

    def alloc(self, size: int, align: int = 64, region: int = 0) -> int:
        """Hand out ``size`` bytes of a region; answers their guest address."""
        at = self.regions[region]
        start = -(-at.used // align) * align
        if start + size > at.size:
            raise MemoryError(f"guest region {region} is full")
        at.used = start + size
        return at.guest + start

    def find(self, guest: int) -> tuple[GuestRegion, int]:
        """The region of a guest address and the position in its map."""
        for region in self.regions:
            if guest in region:
                return region, guest - region.guest + region.offset
        raise KeyError(f"guest address {guest:#x}")

    def user(self, guest: int) -> int:
        """The user address of a guest address, as ring addresses are given."""
        region, position = self.find(guest)
        return region.user + position - region.offset

    def read(self, guest: int, size: int) -> bytes:
        region, position = self.find(guest)
        return region.map[position : position + size]

    def write(self, guest: int, data: bytes) -> None:
        region, position = self.find(guest)
        region.map[position : position + len(data)] = data

    def read_u16(self, guest: int) -> int:
        region, position = self.find(guest)
        return int(region.words[position // 2])

    def write_u16(self, guest: int, value: int) -> None:
        region, position = self.find(guest)
        region.words[position // 2] = value & 0xFFFF

    def close(self) -> None:
        for region in self.regions:
            region.close()
        self.regions.clear()
