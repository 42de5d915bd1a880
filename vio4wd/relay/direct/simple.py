"""Copying for the common shape, one descriptor for a packet: the second pass over a burst, the same for all rings.

The first pass has made a plan, 16 bytes for a packet: the host address of the guest's buffer, and a word of which only
``copy_from_guest`` knows something: the buffer's length is in its lower half. Compiled by numba.
"""

from __future__ import annotations

from typing import Any

from numba import types

from vio4wd.relay.direct.buffers import fill_in
from vio4wd.relay.direct.guest_memory import copy, fetch16, write_plain_header
from vio4wd.relay.lanes import BURST
from vio4wd.relay.mbuf import BUF_ADDR, DATA_OFF, HEADROOM, PKT_LEN
from vio4wd.relay.native import compiled, load16, load32, load64, stack_space, store64

STEP = 16
"""Bytes of the plan for one packet."""

plan_space = stack_space(BURST * STEP)
"""``plan_space()``: room for the plan of a burst, on the stack of the calling function."""


@compiled
def copy_to_guest(packets: int, plan: int, count: int, header: int) -> Any:
    """Fill the guest's buffers with headers and packets; answers the bytes of the packets."""
    total = types.intp(0)
    for i in range(count):
        packet = load64(packets + 8 * i)
        length = load32(packet + PKT_LEN)
        destination = load64(plan + STEP * i)
        write_plain_header(destination, header)
        copy(destination + header, load64(packet + BUF_ADDR) + load16(packet + DATA_OFF), length)
        total += length
    return total


@compiled
def copy_from_guest(ring: Any, buffers: int, packets: int, plan: int, count: int) -> Any:
    """Make packets of the guest's buffers, until one asks for offloads; answers (packets, their bytes).

    ``buffers`` is the address of the topmost of the buffers to use, which are taken downwards.
    """
    header, offloads, total = ring.header_bytes, ring.guest_offloads, types.intp(0)
    for i in range(count):
        source = load64(plan + STEP * i)
        if offloads and fetch16(source):
            return i, total
        length = (load64(plan + STEP * i + 8) & 0xFFFFFFFF) - header
        buffer = load64(buffers - 8 * i)
        copy(load64(buffer + BUF_ADDR) + HEADROOM, source + header, length)
        fill_in(buffer, length)
        store64(packets + 8 * i, buffer)
        total += length
    return count, total
