"""What the load balancer decides: single cases, and what holds for all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vio4wd.relay.interface import RelayCpus
from vio4wd.scheduler.balance import RelayLoad, balance, cpu_loads


def on(cpu: int, relay: int, there: float, back: float = 0.0, node: int = 0) -> RelayLoad:
    """A relay with both directions on one CPU."""
    return RelayLoad(relay, RelayCpus(cpu, cpu), there, back, node)


def both(cpu: int) -> RelayCpus:
    return RelayCpus(cpu, cpu)


def after(relays: Sequence[RelayLoad], moves: Mapping[int, RelayCpus]) -> list[RelayLoad]:
    return [replace(relay, cpus=moves.get(relay.relay, relay.cpus)) for relay in relays]


def highest(relays: Sequence[RelayLoad], workers: Sequence[int]) -> float:
    return max(cpu_loads(relays, workers).values())


def test_one_of_two_relays_moves() -> None:
    assert balance([on(1, 1, 0.3, 0.1), on(1, 2, 0.3, 0.1)], (1, 2), sensitivity=0.25) == {1: both(2)}


def test_nothing_to_do() -> None:
    assert balance([], (1, 2), sensitivity=0.25) == {}
    assert balance([], (), sensitivity=0.25) == {}
    assert balance([on(1, 1, 0.0), on(1, 2, 0.0)], (1, 2), sensitivity=0) == {}
    assert balance([on(1, 1, 0.9)], (1,), sensitivity=0) == {}
    assert balance([on(1, 1, 0.9), on(2, 2, 0.9)], (1, 2), sensitivity=0) == {}


def test_the_load_decides_and_not_the_number_of_relays() -> None:
    relays = [on(1, 1, 0.6), on(1, 2, 0.2), on(1, 3, 0.2), on(1, 4, 0.2)]
    assert balance(relays, (1, 2), sensitivity=0.25) == {1: both(2)}


@pytest.mark.parametrize(("sensitivity", "moves"), [(0.24, True), (0.25, True), (0.26, False)])
def test_the_gain_must_reach_the_sensitivity(sensitivity: float, moves: bool) -> None:
    relays = [on(1, 1, 0.5), on(1, 2, 0.25), on(1, 3, 0.25), on(2, 4, 0.5)]  # 1.0 and 0.5, at best 0.75 and 0.75
    assert bool(balance(relays, (1, 2), sensitivity=sensitivity)) == moves


def test_directions_part_where_nothing_else_helps() -> None:
    assert balance([on(1, 1, 0.5, 0.5)], (1, 2), sensitivity=0.25) == {1: RelayCpus(1, 2)}
    assert balance([on(1, 1, 0.5, 0.0)], (1, 2), sensitivity=0.25) == {}


def test_directions_stay_together_where_parting_them_gains_little() -> None:
    relays = [on(1, 1, 0.3, 0.2), on(1, 2, 0.2, 0.1)]  # 0.5 and 0.3; parted it would be 0.4 and 0.4
    moves = balance(relays, (1, 2), sensitivity=0.25)
    assert list(moves.values()) == [both(2)]


def test_parted_directions_come_together_on_the_way() -> None:
    relays = [RelayLoad(1, RelayCpus(1, 2), 0.2, 0.1), on(1, 2, 0.5), on(3, 3, 0.1)]
    assert balance(relays, (1, 2, 3), sensitivity=0.25) == {1: both(2)}


def test_relays_change_places_where_moving_one_does_not_help() -> None:
    relays = [on(1, 1, 0.5), on(1, 2, 0.4), on(2, 3, 0.3), on(2, 4, 0.1)]  # 0.9 and 0.4 of 1.3
    moves = balance(relays, (1, 2), sensitivity=0.2)
    assert highest(after(relays, moves), (1, 2)) <= 0.7
    assert len(moves) <= 2


def test_relays_stay_on_their_node() -> None:
    relays = [on(1, 1, 0.4, node=0), on(1, 2, 0.4, node=1), on(1, 3, 0.4, node=7)]
    nodes = {1: 0, 2: 0, 3: 1}
    moves = balance(relays, (1, 2, 3), sensitivity=0.25, cpu_nodes=nodes)
    assert moves.get(1, both(2)) == both(2)
    assert moves[2] == both(3)
    assert highest(after(relays, moves), (1, 2, 3)) == pytest.approx(0.4)
    alone = [on(1, 1, 0.4, node=0), on(1, 2, 0.4, node=0)]
    assert balance(alone, (1, 3), sensitivity=0.25, cpu_nodes=nodes) == {}
    assert balance(alone, (1, 3), sensitivity=0.25) == {1: both(3)}


@pytest.mark.parametrize("cpus", [2, 8, 32])
def test_64_relays_are_spread_evenly_and_soon(cpus: int) -> None:
    source = Random(cpus)
    workers = range(cpus)
    relays = [on(0, number, source.random(), source.random()) for number in range(64)]
    begun = time.process_time()
    placed = after(relays, balance(relays, workers, sensitivity=0.25))
    assert time.process_time() - begun < 2
    mean = sum(cpu_loads(relays, workers).values()) / cpus
    assert highest(placed, workers) < 1.3 * mean


Problem = tuple[list[RelayLoad], list[int], dict[int, int] | None]

LOADS = st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5, 1.0, 1e-9, 3e6]) | st.floats(0, 1)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to 10 relays on up to 5 CPUs of up to 3 NUMA nodes, which count or not."""
    workers = list(range(3, draw(st.integers(4, 8))))
    cpu = st.sampled_from(workers)
    rows = draw(st.lists(st.tuples(cpu, cpu, LOADS, LOADS, st.integers(0, 2)), max_size=10))
    relays = [RelayLoad(number, RelayCpus(a, b), x, y, node) for number, (a, b, x, y, node) in enumerate(rows)]
    spread = draw(st.sampled_from([None, 1, 2, 3]))
    return relays, workers, None if spread is None else {cpu: cpu % spread for cpu in workers}


@settings(max_examples=300, deadline=None)
@given(problems(), st.floats(0, 1))
def test_what_always_holds(problem: Problem, sensitivity: float) -> None:
    relays, workers, nodes = problem
    moves = balance(relays, workers, sensitivity=sensitivity, cpu_nodes=nodes)
    moved = after(relays, moves)
    before, now = highest(relays, workers), highest(moved, workers)
    present = {relay.relay: relay for relay in relays}
    assert now <= before
    if moves:
        assert (before - now) / before >= sensitivity - 1e-9
        assert now < before
    for number, cpus in moves.items():
        relay = present[number]
        assert cpus != relay.cpus
        assert {cpus.vf_to_vm, cpus.vm_to_vf} <= set(workers)
        near = {cpu for cpu in workers if nodes is not None and nodes[cpu] == relay.numa_node} or set(workers)
        assert cpus.vf_to_vm == relay.cpus.vf_to_vm or cpus.vf_to_vm in near
        assert cpus.vm_to_vf == relay.cpus.vm_to_vf or cpus.vm_to_vf in near
    assert balance(moved, workers, sensitivity=sensitivity, cpu_nodes=nodes) == {}


@settings(deadline=None)
@given(problems())
def test_a_direction_without_load_stays_with_the_other(problem: Problem) -> None:
    relays, workers, _ = problem
    one_way = [replace(relay, vm_to_vf=0.0, cpus=both(relay.cpus.vf_to_vm)) for relay in relays]
    moves = balance(one_way, workers, sensitivity=0.1)
    assert all(cpus.vf_to_vm == cpus.vm_to_vf for cpus in moves.values())
