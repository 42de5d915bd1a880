from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from fuzz import SIZE, disturb, fuzz
from rig import Rig

PACKED, VERSION_1 = 1 << 34, 1 << 32
ROUNDS = 100_000
MANY_ROUNDS = 2_500_000
"""For each direction and kind of ring: 10 million in all."""


def prepare(rig: Callable[..., Rig], direction: int, packed: bool) -> tuple[Rig, tuple[int, ...]]:
    features = VERSION_1 | (PACKED if packed else 0)
    sizes = (1 << 16, 4096, 8192)
    rig_ = rig(direction, features=features, size=SIZE, region_sizes=sizes, buffers=128, position=1 << 15, call=False)
    lane, view = rig_.lane.ctypes.data, rig_.lane["view"].ctypes.data
    return rig_, (rig_.core.ctypes.data, lane, view, rig_.pool.cache.ctypes.data, rig_.queue.ctypes.data)


@pytest.mark.parametrize("rounds", [ROUNDS, pytest.param(MANY_ROUNDS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", [0, 1])
def test_random_rings(rig: Callable[..., Rig], direction: int, packed: bool, rounds: int) -> None:
    _, addresses = prepare(rig, direction, packed)
    seed = np.array([0x9E3779B97F4A7C15 + rounds + direction + 2 * packed], np.uint64)
    done, moved, refused = fuzz(*addresses, rounds, seed)
    assert done == rounds, f"round {done}, direction {direction}, packed {packed}"
    assert moved > rounds // 20
    assert refused > rounds // 20


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", [0, 1])
def test_random_rings_that_change_meanwhile(rig: Callable[..., Rig], direction: int, packed: bool) -> None:
    _, addresses = prepare(rig, direction, packed)
    stop = np.zeros(1, np.uint16)
    seeds = np.array([[1 + direction], [77 + packed]], np.uint64)
    other = threading.Thread(target=disturb, args=(addresses[2], stop.ctypes.data, 2 - 2 * direction, seeds[0]))
    other.start()
    try:
        done, moved, refused = fuzz(*addresses, ROUNDS, seeds[1])
    finally:
        stop[0] = 1
        other.join()
    assert done == ROUNDS, f"round {done}, direction {direction}, packed {packed}"
    assert moved
    assert refused
