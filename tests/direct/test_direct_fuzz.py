from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from fuzz import disturb, fuzz
from rig import Rig

from vio4wd.relay.lanes import BURST

PACKED, VERSION_1 = 1 << 34, 1 << 32
SMALL, LARGE = 16, 64
"""Sizes of rings: less than a burst, so that the guest is asked at each poll, and more."""

ROUNDS = 100_000
MANY_ROUNDS = 1_250_000
"""For each direction, kind and size of ring: 10 million in all."""


def prepare(rig: Callable[..., Rig], direction: int, packed: bool, size: int) -> tuple[Rig, tuple[int, ...]]:
    features = VERSION_1 | (PACKED if packed else 0)
    sizes = (1 << 16, 4096, 8192)
    rig_ = rig(direction, features=features, size=size, region_sizes=sizes, buffers=128, position=1 << 15)
    lane, view = rig_.lane.ctypes.data, rig_.lane["view"].ctypes.data
    return rig_, (rig_.core.ctypes.data, lane, view, rig_.pool.cache.ctypes.data, rig_.queue.ctypes.data)


@pytest.mark.parametrize("rounds", [ROUNDS, pytest.param(MANY_ROUNDS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", [0, 1])
def test_random_rings(rig: Callable[..., Rig], direction: int, packed: bool, size: int, rounds: int) -> None:
    rig_, addresses = prepare(rig, direction, packed, size)
    seed = np.array([0x9E3779B97F4A7C15 + rounds + direction + 2 * packed + size], np.uint64)
    done, moved, refused, cached = fuzz(*addresses, rounds, seed)
    assert done == rounds, f"round {done}, direction {direction}, packed {packed}, size {size}"
    assert moved > rounds // 20
    assert refused > rounds // 20
    for way in ("simple_pkts", "general_pkts", "handed_bursts"):
        assert rig_.view[way] > rounds // 500, way
    assert rounds // 100 < rig_.calls() < moved, "some of the bursts are such that the guest wants to hear of"
    if not packed and size > BURST:
        assert cached > rounds // 200
    else:
        assert cached == 0


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", [0, 1])
def test_random_rings_that_change_meanwhile(rig: Callable[..., Rig], direction: int, packed: bool, size: int) -> None:
    rig_, addresses = prepare(rig, direction, packed, size)
    stop = np.zeros(1, np.uint16)
    seeds = np.array([[1 + direction], [77 + packed + size]], np.uint64)
    other = threading.Thread(target=disturb, args=(addresses[2], stop.ctypes.data, 2 - 2 * direction, seeds[0]))
    other.start()
    try:
        done, moved, refused, _ = fuzz(*addresses, ROUNDS, seeds[1])
    finally:
        stop[0] = 1
        other.join()
    assert done == ROUNDS, f"round {done}, direction {direction}, packed {packed}, size {size}"
    assert moved
    assert refused
    assert rig_.calls()
