"""What lane control writes into the shared table, with lcores that only take note."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pytest

from vio4wd.dpdk_ffi.vhost import VringInfo
from vio4wd.errors import WorkerError
from vio4wd.relay.blame import Notes
from vio4wd.relay.direct.ring_record import SavedPosition, saved_positions
from vio4wd.relay.interface import RelayCpus
from vio4wd.relay.lane_control import GuestRing, GuestView, LaneControl, QueueBursts
from vio4wd.relay.lanes import LaneMode, LaneTable, relay_lanes

RELAY = 40
VRING = VringInfo(1, 1, 1, 256, -1, -1, 0)
GUEST = GuestView(0, (GuestRing(0, VRING), GuestRing(1, VRING)), 0, ())
VF = (QueueBursts(1, 2, 3, 4),)


class Lcores:
    """Lcores without a loop; ``hanging`` ones do not become quiescent."""

    def __init__(self) -> None:
        self.hanging = False

    def quiesce(self) -> None:
        if self.hanging:
            raise WorkerError("made no progress")

    def assign(self, lanes: Mapping[int, int | None]) -> bool:
        return True

    def serving(self, lanes: Iterable[int]) -> set[int]:
        return set()


class Rings:
    """The direct engine takes every ring, at position 7."""

    def take(self, lane: np.void, *rest: object) -> None:
        lane["view"]["loaded"] = lane["view"]["known"] = 1
        lane["view"]["saving"] = lane["view"]["saved"] = 7

    def leave(self, lane: np.void) -> None:
        lane["view"]["known"] = 0

    def give_back(self, lane: np.void) -> None:
        lane["view"]["loaded"] = 0


class Worker:
    """The lane control of one worker process, with its own mapping of the table."""

    def __init__(self, table: LaneTable) -> None:
        self.table = LaneTable(table.fd)
        self.lcores = Lcores()
        self.lanes = LaneControl(self.table, self.lcores, Rings(), Notes(0), longest=1522)  # type: ignore[arg-type]
        self.lanes.set(RELAY, cpus=RelayCpus(1, 1))

    def carry(self) -> None:
        self.lanes.set(RELAY, guest=GUEST, mempool=123)
        self.lanes.set(RELAY, queues=VF)

    def modes(self) -> list[int]:
        first = relay_lanes(RELAY).start
        return [int(mode) for mode in self.table.lanes["mode"][first : first + 2]]


@pytest.fixture
def table() -> LaneTable:
    return LaneTable.create()


FORWARDING = [LaneMode.FORWARD, LaneMode.FORWARD]


def test_a_worker_that_a_relay_has_left_keeps_its_hands_off(table: LaneTable) -> None:
    """It may free its buffers when another process carries the relay already."""
    old, new = Worker(table), Worker(table)
    old.carry()
    old.lanes.set(RELAY, queues=())
    old.lanes.set(RELAY, guest=None)
    new.carry()
    table.lanes["held_count"][relay_lanes(RELAY).start] = 7
    old.lanes.set(RELAY, mempool=0)
    assert new.modes() == FORWARDING
    assert table.lanes["held_count"][relay_lanes(RELAY).start] == 7


def test_a_successor_counts_what_was_held_as_dropped(table: LaneTable) -> None:
    Worker(table).carry()
    first = relay_lanes(RELAY).start
    table.lanes["held_count"][first], table.lanes["held_bytes"][first] = 7, 700
    Worker(table).carry()
    assert (table.lanes["not_connected_pkts"][first], table.lanes["not_connected_bytes"][first]) == (7, 700)
    assert table.lanes["held_count"][first] == 0


def test_a_change_that_failed_is_made_when_it_is_asked_for_again(table: LaneTable) -> None:
    worker = Worker(table)
    worker.carry()
    worker.lcores.hanging = True
    with pytest.raises(WorkerError):
        worker.lanes.set(RELAY, queues=())
    assert worker.lanes.sides(RELAY).queues == VF
    worker.lcores.hanging = False
    worker.lanes.set(RELAY, queues=())
    assert worker.modes() == [LaneMode.OFF, LaneMode.DRAIN]
    worker.lanes.set(RELAY, queues=VF)
    assert worker.modes() == FORWARDING


def test_positions_that_a_dead_worker_leaves(table: LaneTable) -> None:
    worker = Worker(table)
    worker.carry()
    rings = table.lanes[relay_lanes(RELAY).start : relay_lanes(RELAY).stop]["view"]
    at_seven = SavedPosition(7, 7)
    assert saved_positions(rings) == {0: at_seven, 1: at_seven}
    worker.lanes.set(RELAY, paused=True)
    assert saved_positions(rings) == {0: at_seven, 1: at_seven}, "during a pause it does not move"
    worker.lanes.set(RELAY, paused=False)
    rings["saving"][1] = 8
    assert saved_positions(rings) == {0: at_seven, 1: SavedPosition(7, 8)}
    rings["one_by_one"][1] = 1
    assert saved_positions(rings) == {0: at_seven, 1: SavedPosition(7, 8, one_by_one=True)}
    worker.lanes.set(RELAY, queues=())
    assert saved_positions(rings) == {0: at_seven}, "rte_vhost drains ring 1, nobody has ring 0"
    worker.lanes.set(RELAY, guest=None)
    assert saved_positions(rings) == {}, "the next guest's rings are others"
    worker.carry()
    Worker(table).lanes.set(RELAY, queues=VF)
    assert saved_positions(rings) == {}, "a successor begins anew"
