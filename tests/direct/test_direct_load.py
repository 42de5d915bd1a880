"""What counts as work of an lcore: what moves packets, and what a guest makes it walk in vain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from drivers import Piece, SplitDriver
from numba import types
from rig import Rig

from vio4wd.relay.loop import LONG_WALK, _poll_lanes, is_measured
from vio4wd.relay.records import core_at

VERSION_1, MERGEABLE = 1 << 32, 1 << 15
TO_VM = 0
intp = types.intp

MEASURED = next(epoch for epoch in range(1, 1000) if is_measured(epoch))
UNMEASURED = next(epoch for epoch in range(1, 1000) if not is_measured(epoch))
"""Rounds of the two kinds."""


@pytest.fixture(scope="module")
def poll_lanes() -> Any:
    """``poll_lanes(core, list)``, compiled: one round of the loop; answers how many packets moved."""

    @numba.njit(intp(intp, intp), error_model="numpy")
    def one_round(core: Any, lane_list: Any) -> Any:
        return _poll_lanes(core_at(core), lane_list)[0]

    return one_round


@pytest.mark.parametrize(
    ("pieces", "length", "epoch", "charged"),
    [
        pytest.param(LONG_WALK, 100, MEASURED, True, id="long walks in vain"),
        pytest.param(LONG_WALK, 100, UNMEASURED, False, id="in a round that is not measured"),
        pytest.param(LONG_WALK - 1, 100, MEASURED, False, id="a guest that offers too little for a while"),
        pytest.param(LONG_WALK, LONG_WALK - 12, MEASURED, True, id="a packet"),
    ],
)
def test_what_is_charged(
    rig: Callable[..., Rig], poll_lanes: Any, pieces: int, length: int, epoch: int, charged: bool
) -> None:
    """The guest offers one buffer of so many pieces of a byte; a packet that is longer waits for another one."""
    rig_ = rig(TO_VM, features=VERSION_1 | MERGEABLE)
    SplitDriver(rig_).add([Piece(rig_.allocate(1), 1, writable=True) for _ in range(pieces)])
    rig_.core["lanes"] = rig_.lane.ctypes.data
    rig_.core["epoch"] = epoch
    rig_.offer(rig_.pool.packet([bytes(length)]))
    if length == 100:
        assert rig_.step() == 1, "it is read from the VF, and held"
    lanes = np.array([1, 0], np.uint32)
    poll_lanes(rig_.core.ctypes.data, lanes.ctypes.data)
    assert rig_.counter("sent_pkts") == (length != 100)
    assert (rig_.counter("cycles") > 0) == charged
