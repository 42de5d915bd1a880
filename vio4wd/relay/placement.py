"""Which worker CPUs serve a relay: its pins, else the least busy CPU for both directions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vio4wd.relay.interface import RelayCpus


class Placement:
    """Assigns relays to worker CPUs. A CPU is the busier the more directions it serves."""

    def __init__(self, cpus: Sequence[int], pins: Mapping[int, RelayCpus]) -> None:
        self.cpus = tuple(sorted(cpus))
        self.pins = dict(pins)
        self._placed: dict[int, RelayCpus] = {}

    @property
    def placed(self) -> Mapping[int, RelayCpus]:
        """The CPUs of every relay that has been placed."""
        return self._placed

    def place(self, relay: int) -> RelayCpus:
        """The CPUs of a relay, chosen now if it has none."""
        if relay not in self._placed:
            self._placed[relay] = self.pins.get(relay) or self._least_busy()
        return self._placed[relay]

    def move(self, relay: int, cpus: RelayCpus) -> None:
        """Note that a relay is served by other CPUs from now on."""
        self._placed[relay] = cpus

    def release(self, relay: int) -> None:
        """Forget a relay that has neither VF nor guest."""
        self._placed.pop(relay, None)

    def _least_busy(self) -> RelayCpus:
        load = Counter(dict.fromkeys(self.cpus, 0))
        for placed in self._placed.values():
            load[placed.vf_to_vm] += 1
            load[placed.vm_to_vf] += 1
        cpu = min(self.cpus, key=lambda candidate: (load[candidate], candidate))
        return RelayCpus(cpu, cpu)
