"""What the load balancer reads out of a stats response, and out of sysfs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from vio4wd.portctl.proto.virtioforwarder_pb2 import StatsResponse
from vio4wd.relay.interface import RelayCpus
from vio4wd.scheduler.balance import RelayLoad
from vio4wd.scheduler.loads import Measurement, Unit, cpu_nodes, measurement

State = StatsResponse.RelayState


def relay(number: int, there: int | None, back: int | None, load: float | None, *, node: int = 0) -> State:
    state = State(id=number, socket_id=node)
    if there is not None:
        state.cpu.vf_to_vm = there
    if back is not None:
        state.cpu.vm_to_vf = back
    state.vf_to_vm.pkt_rate_rx_from_vf = 2e6
    state.vm_to_vf.pkt_rate_rx_from_vm = 1e6
    if load is not None:
        state.vf_to_vm.work.load = load
        state.vm_to_vf.work.load = load / 2
    return state


def test_loads_of_both_directions() -> None:
    response = StatsResponse(relay=[relay(3, 1, 2, 0.5, node=1)])
    assert measurement(response, (1, 2)) == Measurement((RelayLoad(3, RelayCpus(1, 2), 0.5, 0.25, 1),), Unit.CPU)


def test_a_direction_without_a_cpu_goes_with_the_other() -> None:
    response = StatsResponse(relay=[relay(3, 1, None, 0.5), relay(4, None, 2, 0.5), relay(5, None, None, 0.5)])
    assert measurement(response, (1, 2)).relays == (
        RelayLoad(3, RelayCpus(1, 1), 0.5, 0.0),
        RelayLoad(4, RelayCpus(2, 2), 0.0, 0.25),
    )


def test_packet_rates_where_a_load_is_missing() -> None:
    response = StatsResponse(relay=[relay(3, 1, 1, 0.5), relay(4, 1, 1, None)])
    rates = (RelayLoad(3, RelayCpus(1, 1), 2e6, 1e6), RelayLoad(4, RelayCpus(1, 1), 2e6, 1e6))
    assert measurement(response, (1, 2)) == Measurement(rates, Unit.PPS)


def test_a_load_that_is_none_of_a_served_direction_does_not_count() -> None:
    response = StatsResponse(relay=[relay(3, 1, 1, 0.5), relay(4, None, None, None)])
    assert measurement(response, (1,)).unit is Unit.CPU


def test_relays_on_other_cpus_are_left_out() -> None:
    response = StatsResponse(relay=[relay(3, 1, 9, 0.5), relay(4, 9, 9, 0.5), relay(5, 9, None, None)])
    assert measurement(response, (1, 2)) == Measurement((), Unit.CPU)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_loads_that_are_none(value: float) -> None:
    (found,) = measurement(StatsResponse(relay=[relay(3, 1, 1, value)]), (1,)).relays
    assert (found.vf_to_vm, found.vm_to_vf) == (0.0, 0.0)


def test_loads_as_people_read_them() -> None:
    assert Unit.CPU.text(0.834) == "83 %"
    assert Unit.PPS.text(1.5e6) == "1.500 Mpps"


def test_numa_nodes(tmp_path: Path) -> None:
    for node, cpus in ((0, "0-1,4\n"), (1, "2-3\n"), (12, "\n")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cpus)
    (tmp_path / "possible").write_text("0-12\n")
    assert cpu_nodes(tmp_path) == {0: 0, 1: 0, 4: 0, 2: 1, 3: 1}
    assert cpu_nodes(tmp_path / "none") == {}
