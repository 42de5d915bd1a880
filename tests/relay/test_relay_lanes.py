"""The lane table, placement on CPUs, and which lanes a relay has for what is on its sides."""

from __future__ import annotations

import os

from vio4wd.dpdk_ffi.vhost import VringInfo
from vio4wd.relay.interface import RelayCpus
from vio4wd.relay.lane_control import GuestRing, GuestView, QueueBursts, RelaySides, _plan
from vio4wd.relay.lanes import LANES, Direction, LaneMode, LaneTable, lane_index, relay_lanes
from vio4wd.relay.placement import Placement

VF = QueueBursts(1, 2, 3, 4)


def guest(*enabled: bool) -> GuestView:
    info = VringInfo(desc=1, avail=2, used=3, log_guest_addr=0, callfd=-1, kickfd=-1, size=256)
    rings = tuple(GuestRing(index, info if up else None) for index, up in enumerate(enabled))
    return GuestView(0, rings, features=0, regions=())


def modes(sides: RelaySides) -> dict[tuple[int, Direction], LaneMode]:
    first = relay_lanes(3).start
    return {
        ((index - first) // 2, Direction((index - first) % 2)): lane.mode for index, lane in _plan(3, sides).items()
    }


def test_counters_outlive_the_process_that_wrote_them() -> None:
    table = LaneTable.create()
    if (child := os.fork()) == 0:
        other = LaneTable(table.fd)
        other.of(63, Direction.VM_TO_VF)["sent_pkts"][0] = 5
        other.of(63, Direction.VM_TO_VF)["sent_pkts"][31] = 2**40
        os._exit(0)
    os.waitpid(child, 0)
    assert table.counters(63, Direction.VM_TO_VF).sent_pkts == 5 + 2**40
    assert table.counters(63, Direction.VF_TO_VM).sent_pkts == 0
    assert table.counters(62, Direction.VM_TO_VF).sent_pkts == 0


def test_lanes_do_not_overlap() -> None:
    seen = [lane_index(relay, pair, direction) for relay in range(64) for pair in range(32) for direction in Direction]
    assert sorted(seen) == list(range(LANES))


def test_nothing_on_either_side() -> None:
    assert modes(RelaySides()) == {}


def test_a_vf_alone_is_drained() -> None:
    assert modes(RelaySides(queues=(VF,))) == {(0, Direction.VF_TO_VM): LaneMode.DRAIN}


def test_a_guest_alone_is_drained() -> None:
    sides = RelaySides(guest=guest(True, True))
    assert modes(sides) == {(0, Direction.VM_TO_VF): LaneMode.DRAIN}


def test_both_sides_forward() -> None:
    sides = RelaySides(queues=(VF,), guest=guest(True, True))
    assert modes(sides) == {
        (0, Direction.VF_TO_VM): LaneMode.FORWARD,
        (0, Direction.VM_TO_VF): LaneMode.FORWARD,
    }


def test_a_disabled_ring_is_an_absent_guest() -> None:
    assert modes(RelaySides(queues=(VF,), guest=guest(False, True))) == {
        (0, Direction.VF_TO_VM): LaneMode.DRAIN,
        (0, Direction.VM_TO_VF): LaneMode.FORWARD,
    }
    assert modes(RelaySides(queues=(VF,), guest=guest(True, False))) == {(0, Direction.VF_TO_VM): LaneMode.FORWARD}


def test_queue_pairs_without_a_vf_queue_share_one() -> None:
    plan = _plan(0, RelaySides(queues=(VF,), guest=guest(True, True, True, True)))
    second = plan[lane_index(0, 1, Direction.VM_TO_VF)]
    assert second.mode is LaneMode.FORWARD
    assert (second.burst_function, second.burst_queue) == (VF.tx_function, VF.tx_queue)
    assert lane_index(0, 1, Direction.VF_TO_VM) not in plan


def test_relays_go_to_the_least_busy_cpu() -> None:
    placement = Placement([2, 1], {})
    assert [placement.place(relay).vf_to_vm for relay in range(4)] == [1, 2, 1, 2]
    placement.release(1)
    assert placement.place(9) == RelayCpus(2, 2)
    assert placement.place(9) == RelayCpus(2, 2)


def test_pins_come_first_and_count_as_load() -> None:
    placement = Placement([1, 2], {5: RelayCpus(1, 2), 6: RelayCpus(1, 1)})
    assert placement.place(5) == RelayCpus(1, 2)
    assert placement.place(6) == RelayCpus(1, 1)
    assert placement.place(7) == RelayCpus(2, 2)
