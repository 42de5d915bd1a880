"""The relay loop: compiled Python that EAL runs on each of its pinned lcore threads. No interpreter, no GIL, no lock.

Each round walks the lanes in the lcore's list. Control threads change lanes and lists by the quiescence rule: write the
request, wait until ``epoch`` has passed twice, then free what was in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
from numba import types

from vio4wd.dpdk_ffi.compiled import compile_function
from vio4wd.relay import library_engine
from vio4wd.relay.blame import LANE_OF_NOTE
from vio4wd.relay.direct import engine as direct_engine
from vio4wd.relay.lanes import BURST, LANE_RECORD_OFFSETS, LANE_STRIDE, RING_OFFSET, Engine, LaneMode
from vio4wd.relay.lcore_record import LCORE
from vio4wd.relay.native import load32, load32_acquire, load64, native, read_tsc, store64, thread_id
from vio4wd.relay.records import core_at, lane_at, ring_at

IDLE_STEP_US = 1000
"""Sleep of an lcore none of whose lanes is ready to forward."""

PULSE_ROUNDS = 8
"""Rounds from one pulse of an idle lane to the next, a power of two. With the longest sleep (10 ms) this is 80 ms, and
a bond in mode 802.3ad wants to be called every 100 ms (rte_eth_bond_8023ad.h)."""

MEASURED_ROUNDS = 16
"""One round in so many, a power of two, is measured and counts for all: to read the counter in every round costs 1.5 %
of a saturated lcore. Which one is spread by ``is_measured``."""

_GOLDEN = 0x9E3779B9  # 2**32 by the golden ratio

LONG_WALK = 2 * BURST
"""Descriptors of one poll that make it work, though it moved nothing: a guest may have us walk chains in vain."""

SPINS_BEFORE_SLEEP = 256
"""Rounds that moved nothing before an lcore that may sleep begins to."""

_sleep = native(types.int32, types.uint32)

_MODE = LANE_RECORD_OFFSETS["mode"]
_STOP = LCORE.fields["stop"][1]  # type: ignore[index]
_LIST = LCORE.fields["list"][1]  # type: ignore[index]
_OFF, _FORWARD, _DRAIN = int(LaneMode.OFF), int(LaneMode.FORWARD), int(LaneMode.DRAIN)
_DIRECT = int(Engine.DIRECT)


@numba.njit(inline="always", error_model="numpy")
def is_measured(epoch: int) -> Any:
    """Whether this round is one of those measured.

    They are not every 16th: a guest that has us work in every other round, as one does that waits for each burst while
    the lcore sleeps in between, would always or never be measured.
    """
    return ((types.int64(epoch) * _GOLDEN) >> 16) & 0xFFFF < 0x10000 // MEASURED_ROUNDS


@numba.njit(inline="always", error_model="numpy")
def _poll_lanes(core: Any, lane_list: int) -> Any:
    """One round over the list; answers (packets moved, lanes ready to forward)."""
    moved = 0
    ready = 0
    measured = is_measured(core.epoch)
    begin = read_tsc() if measured else types.uint64(0)
    for i in range(load32(lane_list)):
        address = core.lanes + load32(lane_list + 4 + 4 * i) * LANE_STRIDE
        mode = load32_acquire(address + _MODE)
        if mode == _OFF:
            continue
        store64(core.note + LANE_OF_NOTE, address)
        lane = lane_at(address)
        walked = ring_at(address + RING_OFFSET).walked if measured else types.intp(0)
        if mode == _FORWARD:
            ready += 1
            if lane.engine == _DIRECT:
                count = direct_engine.forward(core, lane, address)
            else:
                count = library_engine.forward(core, lane, address)
        elif mode == _DRAIN:
            count = library_engine.drain(core, lane, address)
        else:
            count = library_engine.flush(core, lane, address)
        if count:
            moved += count
        elif lane.pulse and core.epoch & (PULSE_ROUNDS - 1) == 0:
            library_engine.pulse(lane)
        if measured:
            now = read_tsc()
            if count or ring_at(address + RING_OFFSET).walked - walked >= LONG_WALK:
                lane.cycles += types.uint64(MEASURED_ROUNDS) * (now - begin)
            begin = now
    store64(core.note + LANE_OF_NOTE, 0)
    return moved, ready


@numba.njit(error_model="numpy")
def _rest(core: Any, ready: int, idle: int) -> None:
    """Sleep after a round that moved nothing: fixed steps with no lane ready, else growing ones up to the limit."""
    if ready == 0:
        _sleep(core.sleep, types.uint32(IDLE_STEP_US))
    elif core.idle_sleep_max_us > 0 and idle > SPINS_BEFORE_SLEEP:
        core.sleep_us = min(max(core.sleep_us * 2, 1), core.idle_sleep_max_us)
        _sleep(core.sleep, types.uint32(core.sleep_us))


def _loop(address: int) -> int:
    core = core_at(address)
    store64(core.note, thread_id())
    idle = 0
    while load32_acquire(address + _STOP) == 0:
        core.epoch += 1
        moved, ready = _poll_lanes(core, load64(address + _LIST))
        if moved:
            idle = 0
            core.sleep_us = 0
        else:
            idle += 1
            _rest(core, ready, idle)
    return 0


@dataclass(frozen=True)
class CompiledLoop:
    """The loop, which runs for as long as this object lives; ``address`` is an ``lcore_function_t``."""

    address: int
    parts: tuple[Any, ...]


def compile_loop(*, cached: bool) -> CompiledLoop:
    """Compile the loop, or load it from the folder of compiled code."""
    parts = [part.compile(cached=cached) for part in direct_engine.PARTS]
    loop = compile_function(types.int32(types.intp), _loop, cached=cached)
    return CompiledLoop(loop.address, (loop, *parts))
