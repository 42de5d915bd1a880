"""Whether the guest wants to hear of used buffers, and telling it. Compiled by numba.

VIRTIO 1.2, sections 2.7.7 and 2.7.8 (split rings), 2.8.10 (packed rings). The full barrier stands between the store
that publishes and the load of what the guest wants: the guest does the two the other way round, so that one of both
sees the other.
"""

from __future__ import annotations

from typing import Any

from numba import types

from vio4wd.relay.direct.guest_memory import fetch16, fetch16_acquire
from vio4wd.relay.native import compiled, fence, native

_NO_INTERRUPT = 1  # flags of the split available ring
_SPLIT_EVENT = 4  # offset of used_event behind the available ring's entries of two bytes
_PACKED_DISABLE, _PACKED_AT_DESCRIPTOR = 1, 2  # flags of the packed driver event suppression
_WRAP = 1 << 15

# int eventfd_write(int fd, eventfd_t value)
_eventfd_write = native(types.int32, types.int32, types.uint64)


@compiled
def _passed(event: int, before: int, now: int) -> Any:
    """Whether the position ``event`` is among those from ``before`` up to, not including, ``now``; modulo 2**16."""
    return ((now - event - 1) & 0xFFFF) < ((now - before) & 0xFFFF)


@compiled
def _call(core: Any, ring: Any) -> None:
    _eventfd_write(core.eventfd_write, ring.call_fd, types.uint64(1))


@compiled
def notify_split(core: Any, ring: Any, before: int, now: int) -> None:
    """Call the guest if it wants to know of the buffers from index ``before`` to ``now``."""
    if ring.call_fd < 0:
        return
    fence()
    if ring.event_index:
        wanted = not ring.announced or _passed(fetch16(ring.available + _SPLIT_EVENT + 2 * ring.size), before, now)
    else:
        wanted = not fetch16(ring.available) & _NO_INTERRUPT
    ring.announced = 1
    if wanted:
        _call(core, ring)


@compiled
def notify_packed(core: Any, ring: Any, before: int, now: int, slots: int) -> None:
    """The same for a packed ring; positions with the wrap counter in bit 15, and how many slots lie between them.

    A guest that offers its buffers again at once lets a burst go more than once round a small ring: then no position is
    left out.
    """
    if ring.call_fd < 0:
        return
    fence()
    flags = fetch16_acquire(ring.available + 2)  # before where, which the guest writes first
    if ring.event_index and flags == _PACKED_AT_DESCRIPTOR and ring.announced and slots <= ring.size:
        wanted = _passed_packed(ring, fetch16(ring.available), before, now)
    else:
        wanted = flags != _PACKED_DISABLE
    ring.announced = 1
    if wanted:
        _call(core, ring)


@compiled
def _passed_packed(ring: Any, event: int, before: int, now: int) -> Any:
    old, new, at = before & ~_WRAP, now & ~_WRAP, event & ~_WRAP
    if new <= old:
        old -= ring.size
    if (now ^ event) & _WRAP:
        at -= ring.size
    return _passed(at, old, new)
