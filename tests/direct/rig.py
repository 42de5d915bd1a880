"""A guest, a VF and packet buffers in plain memory, around one lane of the direct engine. No DPDK is involved.

Guest memory lies between pages that nobody may touch, so that a stray access is a crash and not a wrong answer.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import types
from stand_ins import (
    FREED,
    LIBRARY,
    QUEUE_LENGTH,
    QUEUE_WORDS,
    dequeue,
    enqueue,
    free_bulk,
    get_base,
    no_more,
    receive,
    send,
    set_base,
    vring_call,
)

from vio4wd.dpdk_ffi.vhost import Region, VringInfo
from vio4wd.relay import mbuf
from vio4wd.relay.direct import engine
from vio4wd.relay.direct.ring_record import RingRule
from vio4wd.relay.direct.rings import load_ring
from vio4wd.relay.lanes import LANE_PADDED, Engine, LaneMode
from vio4wd.relay.lcore_record import LCORE
from vio4wd.relay.records import core_at, lane_at

intp = types.intp
_PROT_NONE = 0
PAGE = mmap.PAGESIZE
DATA_ROOM = 2048
LONGEST = 65550
"""Bytes of the longest frame that the VF takes."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class GuardedMemory:
    """Anonymous memory with an untouchable page on either side."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // PAGE) * PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._base = _libc.mmap(None, self.size + 2 * PAGE, _PROT_NONE, flags, -1, 0)
        self.address = self._base + PAGE
        assert _libc.mprotect(self.address, self.size, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        self.bytes: npt.NDArray[np.uint8] = np.ctypeslib.as_array(
            (ctypes.c_uint8 * self.size).from_address(self.address)
        )

    def free(self) -> None:
        assert _libc.munmap(self._base, self.size + 2 * PAGE) == 0


_parts = [part.compile(cached=False) for part in engine.PARTS]


@numba.njit(intp(intp, intp), error_model="numpy", nogil=True)
def step(core: int, lane: int) -> Any:
    """One poll of a lane, both records by their addresses."""
    return engine.forward(core_at(core), lane_at(lane), lane)


class Pool:
    """A mempool of one lcore's cache, in plain memory."""

    def __init__(self, count: int, data_room: int = DATA_ROOM) -> None:
        self.count, self.data_room = count, data_room
        self.pool = np.zeros(192, np.uint8)
        self.cache = np.zeros(mbuf.CACHE_BYTES, np.uint8)
        self.stride = 128 + mbuf.HEADROOM + data_room
        self.memory = GuardedMemory(count * self.stride + 64)
        self.address = self.pool.ctypes.data
        cache = self.cache.ctypes.data
        self.put(self.address + mbuf.POOL_CACHE_SIZE, "u4", 256)
        self.put(self.address + mbuf.POOL_LOCAL_CACHE, "u8", cache)
        self.put(cache + mbuf.CACHE_FLUSH_THRESHOLD, "u4", 512)
        for i in range(count):
            buffer = self.memory.address + i * self.stride
            self.put(buffer + mbuf.BUF_ADDR, "u8", buffer + 128)
            self.put(buffer + mbuf.BUF_LEN, "u2", mbuf.HEADROOM + data_room)
            self.put(buffer + mbuf.POOL, "u8", self.address)
            self._rearm(buffer)
            self.put(cache + mbuf.CACHE_OBJECTS + 8 * i, "u8", buffer)
        self.put(cache + mbuf.CACHE_LENGTH, "u4", count)

    @staticmethod
    def put(address: int, kind: str, value: int) -> None:
        ctypes.memmove(address, np.array([value], kind).tobytes(), np.dtype(kind).itemsize)

    @staticmethod
    def get(address: int, kind: str) -> int:
        return int(np.frombuffer(ctypes.string_at(address, np.dtype(kind).itemsize), kind)[0])

    def _rearm(self, buffer: int) -> None:
        self.put(buffer + mbuf.REARM, "u8", mbuf.FRESH_REARM)
        self.put(buffer + mbuf.OL_FLAGS, "u8", 0)
        self.put(buffer + mbuf.NEXT, "u8", 0)

    @property
    def available(self) -> int:
        return self.get(self.cache.ctypes.data + mbuf.CACHE_LENGTH, "u4")

    def take(self) -> int:
        length = self.available - 1
        assert length >= 0
        self.put(self.cache.ctypes.data + mbuf.CACHE_LENGTH, "u4", length)
        return self.get(self.cache.ctypes.data + mbuf.CACHE_OBJECTS + 8 * length, "u8")

    def give(self, packet: int) -> None:
        """Free a packet, all segments."""
        while packet:
            following = self.get(packet + mbuf.NEXT, "u8")
            self._rearm(packet)
            length = self.available
            self.put(self.cache.ctypes.data + mbuf.CACHE_OBJECTS + 8 * length, "u8", packet)
            self.put(self.cache.ctypes.data + mbuf.CACHE_LENGTH, "u4", length + 1)
            packet = following

    def packet(self, segments: Sequence[bytes], ol_flags: int = 0) -> int:
        """Make a packet of these segments."""
        buffers = [self.take() for _ in segments]
        for i, data in enumerate(segments):
            buffer = buffers[i]
            ctypes.memmove(self.get(buffer, "u8") + mbuf.HEADROOM, data, len(data))
            self.put(buffer + mbuf.DATA_LEN, "u2", len(data))
            self.put(buffer + mbuf.NEXT, "u8", buffers[i + 1] if i + 1 < len(buffers) else 0)
        self.put(buffers[0] + mbuf.PKT_LEN, "u4", sum(map(len, segments)))
        self.put(buffers[0] + mbuf.NB_SEGS, "u2", len(segments))
        self.put(buffers[0] + mbuf.OL_FLAGS, "u8", ol_flags)
        return buffers[0]

    def data(self, packet: int) -> bytes:
        """A packet's bytes; its fields are checked."""
        length, segments = self.get(packet + mbuf.PKT_LEN, "u4"), self.get(packet + mbuf.NB_SEGS, "u2")
        assert self.get(packet + mbuf.REFCNT, "u2") == 1
        parts = []
        for _ in range(segments):
            start = self.get(packet, "u8") + self.get(packet + mbuf.DATA_OFF, "u2")
            parts.append(ctypes.string_at(start, self.get(packet + mbuf.DATA_LEN, "u2")))
            packet = self.get(packet + mbuf.NEXT, "u8")
        assert packet == 0
        assert length == sum(map(len, parts))
        return b"".join(parts)


class Rig:
    """One lane, its lcore record, a VF queue, a pool, and guest memory.

    ``region_sizes`` makes one region for each; guest addresses are adjacent from ``guest_base``, our own are not.
    The ring's parts are laid at the start of the first region.
    """

    GUEST_BASE = 0x40000000

    def __init__(
        self,
        direction: int,
        size: int = 256,
        features: int = 0,
        region_sizes: Sequence[int] = (1 << 20,),
        buffers: int = 256,
        position: int = 0,
        call: bool = True,
    ) -> None:
        self.packed = bool(features >> 34 & 1)
        self.pool = Pool(buffers)
        self.memories = [GuardedMemory(length) for length in region_sizes]
        self.regions = self._regions()
        self.size = size
        host = self.memories[0].address
        self.desc, self.avail = host, host + 16 * size
        self.used = (self.avail + (4 if self.packed else 6 + 2 * size) + 15) & ~15
        end = self.used + (4 if self.packed else 6 + 8 * size)
        self.free = ((end + 63) & ~63) - host + self.GUEST_BASE
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK) if call else -1
        self.features = features
        self.queue = np.zeros(QUEUE_WORDS, np.int64)
        self.queue[2] = 32
        self.lane = np.zeros(1, LANE_PADDED)
        self.core = np.zeros(1, LCORE)
        self.note = np.zeros(2, np.int64)
        self.operations = np.zeros(64 + 128, np.uint8)
        Pool.put(self.operations.ctypes.data + mbuf.OPS_FIRST + mbuf.OPS_DEQUEUE, "u8", no_more.address)
        self._fill_core()
        self._fill_lane(direction)
        FREED[0] = 0
        LIBRARY[:] = 0
        if not self.packed:
            Pool.put(self.used + 2, "u2", position & 0xFFFF)
            Pool.put(self.avail + 2, "u2", position & 0xFFFF)
        self.load(position)

    def _regions(self) -> list[Region]:
        regions, guest = [], self.GUEST_BASE
        for memory in self.memories:
            regions.append(Region(guest, guest, memory.address, memory.size, memory.address, memory.size, -1))
            guest += memory.size
        return regions

    def _fill_core(self) -> None:
        functions: dict[str, int] = {
            "free_bulk": free_bulk.address,
            "set_vring_base": set_base.address,
            "get_vring_base": get_base.address,
            "enqueue": enqueue.address,
            "dequeue": dequeue.address,
            "vring_call": vring_call.address,
            "eventfd_write": ctypes.cast(_libc.eventfd_write, ctypes.c_void_p).value or 0,
            "mempool_operations": self.operations.ctypes.data,
            "own_address": self.core.ctypes.data,
            "note": self.note.ctypes.data,
        }
        for name, address in functions.items():
            self.core[name] = address

    def _fill_lane(self, direction: int) -> None:
        values = {
            "mode": LaneMode.FORWARD,
            "engine": Engine.DIRECT,
            "direction": direction,
            "burst_function": (receive if direction == 0 else send).address,
            "burst_queue": self.queue.ctypes.data,
            "mempool": self.pool.address,
            "longest": LONGEST,
        }
        for name, value in values.items():
            self.lane[name] = value

    def turn(self, direction: int) -> None:
        """Let the lane go the other way, on the ring as it is."""
        self.lane["direction"] = direction
        self.lane["burst_function"] = (receive if direction == 0 else send).address

    def load(self, position: int) -> None:
        """Load the ring into the engine."""
        vring = VringInfo(self.desc, self.avail, self.used, self.size, self.call_fd, -1, 0)
        assert (
            load_ring(self.lane["view"][0], vring, self.regions, self.features, (position, position), LONGEST) is None
        )

    @property
    def view(self) -> Any:
        return self.lane["view"][0]

    def step(self) -> int:
        """Poll the lane once."""
        return int(step(self.core.ctypes.data, self.lane.ctypes.data))

    def counter(self, name: str) -> int:
        return int(self.lane[name][0])

    @property
    def rule(self) -> RingRule:
        return RingRule(int(self.view["rule"]))

    def _region(self, guest: int) -> Region:
        for region in self.regions:
            if 0 <= guest - region.guest_phys_addr < region.size:
                return region
        raise ValueError(hex(guest))

    def host(self, guest: int) -> int:
        region = self._region(guest)
        return region.host_user_addr + guest - region.guest_phys_addr

    def write(self, guest: int, data: bytes) -> None:
        """Write guest memory, across regions."""
        for at, host, part in self._spans(guest, len(data)):
            ctypes.memmove(host, data[at : at + part], part)

    def read(self, guest: int, length: int) -> bytes:
        """Read guest memory, across regions."""
        return b"".join(ctypes.string_at(host, part) for _, host, part in self._spans(guest, length))

    def _spans(self, guest: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Where guest memory is: bytes before, host address and bytes of each part, regions being adjacent."""
        done = 0
        while done < length:
            region = self._region(guest + done)
            offset = guest + done - region.guest_phys_addr
            part = min(length - done, region.size - offset)
            yield done, region.host_user_addr + offset, part
            done += part

    def contents(self) -> npt.NDArray[np.uint8]:
        """A copy of all guest memory, by guest addresses from GUEST_BASE."""
        return np.concatenate([memory.bytes for memory in self.memories])

    def fill_free(self, byte: int) -> None:
        """Set all guest memory that nothing uses yet, so that it can be told from what the engine writes."""
        for region, memory in zip(self.regions, self.memories, strict=True):
            memory.bytes[max(0, self.free - region.guest_phys_addr) :] = byte

    def allocate(self, length: int, align: int = 1) -> int:
        """Guest memory that nothing else uses."""
        start = (self.free + align - 1) & -align
        self.free = start + length
        return start

    def offer(self, *packets: int) -> None:
        """Have the VF receive packets."""
        for packet in packets:
            self.queue[4 + int(self.queue[1]) % QUEUE_LENGTH] = packet
            self.queue[1] += 1

    def sent(self) -> list[bytes]:
        """What the VF was given to send, freed."""
        packets = [int(self.queue[4 + i % QUEUE_LENGTH]) for i in range(int(self.queue[0]), int(self.queue[1]))]
        self.queue[0] = self.queue[1]
        contents = [self.pool.data(packet) for packet in packets]
        for packet in packets:
            self.pool.give(packet)
        return contents

    def calls(self) -> int:
        """Notifications since the last time."""
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    def settle(self) -> None:
        """Take back what the engine freed through DPDK's function."""
        for packet in FREED[1 : 1 + int(FREED[0])]:
            self.pool.give(int(packet))
        FREED[0] = 0

    def close(self) -> None:
        """Check that no buffer is lost, and release everything."""
        self.settle()
        waiting = [int(self.queue[4 + i % QUEUE_LENGTH]) for i in range(int(self.queue[0]), int(self.queue[1]))]
        first = self.counter("held_head")
        waiting += [int(packet) for packet in self.lane["held"][0][first : first + self.counter("held_count")]]
        for packet in waiting:
            self.pool.give(packet)
        assert self.pool.available == self.pool.count
        if self.call_fd >= 0:
            os.close(self.call_fd)
        for memory in self.memories:
            memory.free()
        self.pool.memory.free()
