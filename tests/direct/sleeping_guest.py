"""A guest on another CPU, compiled, that sleeps when it has nothing to do: it arms, looks again, and waits for a call.

It offers a few buffers and waits until all are used, over and over. A VF without an end gives and takes packets.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numba
from numba import cfunc, types
from rig import step

from vio4wd.relay import mbuf
from vio4wd.relay.direct.guest_memory import fetch16_acquire
from vio4wd.relay.native import (
    fence,
    load32,
    load64,
    load64_acquire,
    native,
    store16,
    store16_release,
    store32,
    store64,
    store64_release,
)
from vio4wd.relay.records import ring_at

intp = types.intp
BUFFER_BYTES = 80
PATIENCE_MS, MORE_PATIENCE_MS = 200, 5000
"""Wait for a call, and, when buffers were used without one, how much longer: the lane may have been interrupted."""

_POLLIN = 1
_NO_INTERRUPT = 1
_AVAIL, _USED, _WRAP = 1 << 7, 1 << 15, 1 << 15
_DISABLE, _AT_DESCRIPTOR = 1, 2
_compiled: Any = numba.njit(error_model="numpy", nogil=True)

_libc = ctypes.CDLL(None)
_POLL = ctypes.cast(_libc.poll, ctypes.c_void_p).value
_EVENTFD_READ = ctypes.cast(_libc.eventfd_read, ctypes.c_void_p).value
# int poll(struct pollfd *, nfds_t, int timeout_ms); int eventfd_read(int fd, eventfd_t *)
_poll = native(types.int32, types.intp, types.uint64, types.int32)
_eventfd_read = native(types.int32, types.int32, types.intp)


@cfunc(types.uint16(intp, intp, types.uint16))
def give(cache: Any, packets: Any, count: Any) -> Any:
    """eth_rx_burst_t of a VF whose queue is a mempool's cache: as many packets as one wants."""
    length, count = load32(cache + mbuf.CACHE_LENGTH), intp(count)
    for i in range(count):
        packet = load64(cache + mbuf.CACHE_OBJECTS + 8 * (length - 1 - i))
        store64(packet + mbuf.PACKET_TYPE, (BUFFER_BYTES - 20) << 32)
        store32(packet + mbuf.DATA_LEN, BUFFER_BYTES - 20)
        store64(packets + 8 * i, packet)
    store32(cache + mbuf.CACHE_LENGTH, length - count)
    return count


@cfunc(types.uint16(intp, intp, types.uint16))
def take(cache: Any, packets: Any, count: Any) -> Any:
    """eth_tx_burst_t of that VF: what it sends is free at once."""
    length, count = load32(cache + mbuf.CACHE_LENGTH), intp(count)
    for i in range(count):
        store64(cache + mbuf.CACHE_OBJECTS + 8 * (length + i), load64(packets + 8 * i))
    store32(cache + mbuf.CACHE_LENGTH, length + count)
    return count


@_compiled
def _next_random(state: int) -> Any:
    return (state * 1103515245 + 12345) & 0x7FFFFFFF


@_compiled
def _dawdle(state: int, somewhere: int) -> None:
    """Up to a few hundred loads: so that arming meets publishing at all their steps."""
    for _ in range((state >> 9) % 300):
        load64_acquire(somewhere)


@_compiled
def _called(pollfd: int, timeout_ms: int) -> Any:
    """Sleep until there is a call. At ``pollfd``: struct pollfd, then room for the event counter."""
    store16(pollfd + 4, _POLLIN)
    store16(pollfd + 6, 0)
    if _poll(_POLL, pollfd, types.uint64(1), types.int32(timeout_ms)) == 0:
        return False
    _eventfd_read(_EVENTFD_READ, types.int32(load32(pollfd)), pollfd + 8)
    return True


@numba.njit(intp(intp, intp, intp, intp), error_model="numpy", nogil=True)
def split_guest(view: Any, guest: Any, flags: Any, pollfd: Any) -> Any:
    """Play so many rounds (in the word behind ``pollfd``'s); answers how many, fewer if a call did not come.

    ``view`` is the address of the engine's ring record, ``guest`` that of a buffer, ``flags`` its descriptors'.
    """
    ring, rounds, state, index = ring_at(view), load64(pollfd + 16), intp(1), intp(0)
    for i in range(ring.size):
        store64(ring.descriptors + 16 * i, guest)
        store64(ring.descriptors + 16 * i + 8, BUFFER_BYTES | flags << 32)
        store16(ring.available + 4 + 2 * i, i)
    used, event = ring.used + 2, ring.available + 4 + 2 * ring.size
    for done in range(rounds):
        state = _next_random(state)
        index = (index + 1 + (state >> 16) % 4) & 0xFFFF
        store16_release(ring.available + 2, index)
        while True:
            if not ring.event_index:
                store16_release(ring.available, _NO_INTERRUPT)
            seen = fetch16_acquire(used)
            if seen == index:
                break
            _dawdle(state, pollfd)
            if ring.event_index:
                store16_release(event, seen)
            else:
                store16_release(ring.available, 0)
            fence()
            if fetch16_acquire(used) != seen or _called(pollfd, PATIENCE_MS):
                continue
            if ring.rule or (fetch16_acquire(used) != seen and not _called(pollfd, MORE_PATIENCE_MS)):
                return done
    return rounds


@_compiled
def _is_used(ring: Any, position: int) -> Any:
    flags = load64_acquire(ring.descriptors + 16 * (position & ~_WRAP) + 8) >> 48
    wrap = position & _WRAP != 0
    return (flags & _AVAIL != 0) == wrap and (flags & _USED != 0) == wrap


@_compiled
def _after(ring: Any, position: int) -> Any:
    slot = (position & ~_WRAP) + 1
    return slot | position & _WRAP if slot < ring.size else position & _WRAP ^ _WRAP


@numba.njit(intp(intp, intp, intp, intp), error_model="numpy", nogil=True)
def packed_guest(view: Any, guest: Any, flags: Any, pollfd: Any) -> Any:
    """The same for a packed ring."""
    ring, rounds, state = ring_at(view), load64(pollfd + 16), intp(1)
    offered, seen = intp(_WRAP), intp(_WRAP)
    for done in range(rounds):
        state = _next_random(state)
        for _ in range(1 + (state >> 16) % 4):
            descriptor = ring.descriptors + 16 * (offered & ~_WRAP)
            available = flags | (_AVAIL if offered & _WRAP else _USED)
            store64(descriptor, guest)
            store64_release(descriptor + 8, BUFFER_BYTES | (offered & ~_WRAP) << 32 | available << 48)
            offered = _after(ring, offered)
        while True:
            store16_release(ring.available + 2, _DISABLE)
            while seen != offered and _is_used(ring, seen):
                seen = _after(ring, seen)
            if seen == offered:
                break
            _dawdle(state, pollfd)
            if ring.event_index:
                store16_release(ring.available, seen)
                store16_release(ring.available + 2, _AT_DESCRIPTOR)
            else:
                store16_release(ring.available + 2, 0)
            fence()
            if _is_used(ring, seen) or _called(pollfd, PATIENCE_MS):
                continue
            if ring.rule or (_is_used(ring, seen) and not _called(pollfd, MORE_PATIENCE_MS)):
                return done
    return rounds


@numba.njit(intp(intp, intp, intp), error_model="numpy", nogil=True)
def poll_lane(core: Any, lane: Any, stop: Any) -> Any:
    """Poll a lane until the word at ``stop`` is set; answers how often."""
    polls = intp(0)
    while fetch16_acquire(stop) == 0:
        step(core, lane)
        polls += 1
    return polls
