"""Decides which relays move between worker CPUs so that the busiest of these has less to do: no clock, no I/O.

The decision starts from where relays are now and is changed step by step, each step taking load off the busiest CPU;
so few relays move, and where no step helps none does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vio4wd.relay.interface import RelayCpus

LEAST_STEP = 0.01
"""A step takes at least this share of its load off the busiest CPU: relays do not move for less."""


@dataclass(frozen=True)
class RelayLoad:
    """One relay: the worker CPUs that serve it now, the load of its two directions, and its NUMA node.

    Loads are in any unit that is the same for all relays. A direction that nothing serves has no load, and the CPU of
    the other.
    """

    relay: int
    cpus: RelayCpus
    vf_to_vm: float
    vm_to_vf: float
    numa_node: int = 0


def balance(
    relays: Sequence[RelayLoad],
    workers: Collection[int],
    *,
    sensitivity: float,
    cpu_nodes: Mapping[int, int] | None = None,
) -> dict[int, RelayCpus]:
    """The relays that should move, and the CPUs that should serve them then; empty where nothing is worth a move.

    The load of the busiest CPU falls by the fraction ``sensitivity`` (0 to 1) at least, or no relay moves. Directions
    of a relay are parted only where that alone makes it fall so much. The answer for the new placement and the same
    loads is empty.

    Args:
        relays: what is served, by CPUs of ``workers``.
        workers: the worker CPUs.
        sensitivity: gain that is worth a move, as a fraction of the busiest CPU's load.
        cpu_nodes: the NUMA node of each CPU; one without is on all. A relay is then moved to CPUs of its own node only,
            or anywhere where that has no worker CPU. None: anywhere.
    """
    search = _Search(relays, workers, cpu_nodes)
    present = {relay.relay: relay.cpus for relay in relays}
    placement: _Placement = present
    while (better := _better(search, placement, sensitivity)) is not None:
        placement = better
    return {relay: cpus for relay, cpus in placement.items() if cpus != present[relay]}


def cpu_loads(relays: Iterable[RelayLoad], workers: Iterable[int]) -> dict[int, float]:
    """The load of each worker CPU, and of other CPUs that serve a relay."""
    loads = dict.fromkeys(workers, 0.0)
    for relay in relays:
        loads[relay.cpus.vf_to_vm] = loads.get(relay.cpus.vf_to_vm, 0.0) + relay.vf_to_vm
        loads[relay.cpus.vm_to_vf] = loads.get(relay.cpus.vm_to_vf, 0.0) + relay.vm_to_vf
    return loads


_Placement = Mapping[int, RelayCpus]


@dataclass(frozen=True)
class _Piece:
    """What moves at once: one direction of a relay, or both."""

    relay: int
    vf_to_vm: bool
    vm_to_vf: bool
    load: float

    def on(self, cpu: int, present: RelayCpus) -> RelayCpus:
        """The relay's CPUs once this is on ``cpu``."""
        return RelayCpus(cpu if self.vf_to_vm else present.vf_to_vm, cpu if self.vm_to_vf else present.vm_to_vf)


@dataclass(frozen=True, order=True)
class _Step:
    """A placement that follows from another. The least one is the best: first by the higher load of its two CPUs."""

    load: float
    parted: int
    moves: tuple[tuple[int, int, int], ...]
    """Relay, CPU from VF to VM, CPU from VM to VF."""

    def applied(self, placement: _Placement) -> _Placement:
        """``placement`` after this step."""
        return {**placement, **{relay: RelayCpus(there, back) for relay, there, back in self.moves}}


@dataclass(frozen=True)
class _State:
    """A placement on its way to a better one: the load of each CPU, the busiest, and whether directions may part."""

    placement: _Placement
    loads: Mapping[int, float]
    busiest: int
    part: bool

    def step(self, less: float, cpu: int, changes: Iterable[tuple[_Piece, int]]) -> _Step:
        """Pieces change CPUs, which takes the load ``less`` from the busiest CPU to ``cpu``."""
        after = [(piece.relay, piece.on(to, self.placement[piece.relay])) for piece, to in changes]
        return _Step(
            load=max(self.loads[self.busiest] - less, self.loads[cpu] + less),
            parted=sum(cpus.vf_to_vm != cpus.vm_to_vf for _, cpus in after),
            moves=tuple((relay, cpus.vf_to_vm, cpus.vm_to_vf) for relay, cpus in after),
        )


class _Search:
    """Steps from a placement to a better one. The same placement always leads to the same steps."""

    def __init__(
        self, relays: Sequence[RelayLoad], workers: Collection[int], cpu_nodes: Mapping[int, int] | None
    ) -> None:
        self._relays = relays
        self._workers = sorted(workers)
        self._allowed = {relay.relay: self._cpus_for(relay, cpu_nodes) for relay in relays}

    def _cpus_for(self, relay: RelayLoad, cpu_nodes: Mapping[int, int] | None) -> frozenset[int]:
        if cpu_nodes is None:
            return frozenset(self._workers)
        node = relay.numa_node
        near = frozenset(cpu for cpu in self._workers if cpu_nodes.get(cpu, node) == node)
        return near or frozenset(self._workers)

    def loads(self, placement: _Placement) -> dict[int, float]:
        """The load of each CPU in a placement."""
        loads = dict.fromkeys(self._workers, 0.0)
        for relay in self._relays:
            loads[placement[relay.relay].vf_to_vm] += relay.vf_to_vm
            loads[placement[relay.relay].vm_to_vf] += relay.vm_to_vf
        return loads

    def highest(self, placement: _Placement) -> float:
        """The load of the busiest CPU."""
        return max(self.loads(placement).values(), default=0.0)

    def best_step(self, placement: _Placement, *, part: bool) -> _Step | None:
        """The step that relieves the busiest CPU most, None where none does; ``part`` lets it part directions.

        Something moves away; where no such step helps, it changes places with something smaller.
        """
        loads = self.loads(placement)
        busiest = max(self._workers, key=lambda cpu: loads[cpu], default=None)
        if busiest is None:
            return None
        state = _State(placement, loads, busiest, part)
        below = loads[busiest] * (1 - LEAST_STEP)
        for steps in (self._moves, self._swaps):
            if (best := min((step for step in steps(state) if step.load < below), default=None)) is not None:
                return best
        return None

    def _moves(self, state: _State) -> Iterator[_Step]:
        for piece in self._pieces(state, state.busiest):
            for cpu in self._allowed[piece.relay] - {state.busiest}:
                yield state.step(piece.load, cpu, [(piece, cpu)])

    def _swaps(self, state: _State) -> Iterator[_Step]:
        own = list(self._pieces(state, state.busiest))
        for cpu in self._workers:
            for other in self._pieces(state, cpu) if cpu != state.busiest else ():
                if state.busiest not in self._allowed[other.relay]:
                    continue
                for piece in own:
                    if piece.load > other.load and piece.relay != other.relay and cpu in self._allowed[piece.relay]:
                        yield state.step(piece.load - other.load, cpu, [(piece, cpu), (other, state.busiest)])

    def _pieces(self, state: _State, cpu: int) -> Iterator[_Piece]:
        """What loads a CPU: directions of one relay together, and also each by itself where they may be parted."""
        for relay in self._relays:
            there = state.placement[relay.relay].vf_to_vm == cpu
            back = state.placement[relay.relay].vm_to_vf == cpu
            pieces = (
                (there and back, _Piece(relay.relay, True, True, relay.vf_to_vm + relay.vm_to_vf)),
                (there and (state.part or not back), _Piece(relay.relay, True, False, relay.vf_to_vm)),
                (back and (state.part or not there), _Piece(relay.relay, False, True, relay.vm_to_vf)),
            )
            yield from (piece for here, piece in pieces if here and piece.load > 0)


def _better(search: _Search, placement: _Placement, sensitivity: float) -> _Placement | None:
    """A placement whose busiest CPU has less to do by ``sensitivity``; with relays in one piece if that is enough."""
    before = search.highest(placement)
    for part in (False, True):
        candidate = _best(search, placement, part=part)
        gain = before - search.highest(candidate)
        if gain > 0 and gain >= sensitivity * before:
            return candidate
    return None


def _best(search: _Search, placement: _Placement, *, part: bool) -> _Placement:
    """Go on while there is a step; answers the first placement with the lowest load of the busiest CPU."""
    best, lowest = placement, search.highest(placement)
    while (step := search.best_step(placement, part=part)) is not None:
        placement = step.applied(placement)
        if (load := search.highest(placement)) < lowest:
            best, lowest = placement, load
    return best
