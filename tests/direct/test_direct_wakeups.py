"""A guest that sleeps is always woken: its arming and looking again races with our publishing and looking."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from drivers import WRAP, WRITE
from rig import Rig
from sleeping_guest import give, packed_guest, poll_lane, split_guest, take

VERSION_1, EVENT_INDEX, PACKED = 1 << 32, 1 << 29, 1 << 34
TO_VM, TO_VF = 0, 1
ROUNDS = 300_000
"""Without the barrier between publishing and looking some of them end without a call, for split rings."""


@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
@pytest.mark.parametrize(
    "features",
    [
        pytest.param(VERSION_1, id="split, flags"),
        pytest.param(VERSION_1 | EVENT_INDEX, id="split, event index"),
        pytest.param(VERSION_1 | PACKED, id="packed, flags"),
        pytest.param(VERSION_1 | PACKED | EVENT_INDEX, id="packed, at a descriptor"),
    ],
)
def test_a_guest_that_sleeps_is_woken(rig: Callable[..., Rig], features: int, direction: int) -> None:
    packed = bool(features & PACKED)
    rig_ = rig(direction, size=64, features=features, position=WRAP if packed else 0)
    rig_.lane["burst_function"] = (take if direction == TO_VF else give).address
    rig_.lane["burst_queue"] = rig_.pool.cache.ctypes.data
    pollfd = np.array([rig_.call_fd, 0, 0, 0, ROUNDS, 0], np.int32)
    stop = np.zeros(1, np.uint16)
    lane = threading.Thread(target=poll_lane, args=(rig_.core.ctypes.data, rig_.lane.ctypes.data, stop.ctypes.data))
    guest = packed_guest if packed else split_guest
    buffer, flags = rig_.allocate(128), WRITE if direction == TO_VM else 0
    lane.start()
    try:
        done = guest(rig_.lane["view"].ctypes.data, buffer, flags, pollfd.ctypes.data)
    finally:
        stop[0] = 1
        lane.join()
    assert not rig_.rule
    assert done == ROUNDS, f"after {done} rounds nobody woke it"
    assert rig_.counter("sent_pkts") > ROUNDS
