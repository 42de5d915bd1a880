"""The lcores of a worker: the compiled loop on each, the lanes in its list, and waiting until a change is seen."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vio4wd.dpdk_ffi.eal import Eal
from vio4wd.errors import WorkerError
from vio4wd.relay.blame import Notes
from vio4wd.relay.lcore_record import LCORE, LIST_LENGTH

log = logging.getLogger(__name__)

QUIESCENCE_LIMIT_S = 2.0
"""A round of the loop takes microseconds, or a sleep of 1 ms: an lcore that does not pass two in this time hangs."""

_POLL_S = 20e-6


@dataclass
class _Lcore:
    cpu: int
    lcore: int
    record: npt.NDArray[Any]
    lists: npt.NDArray[np.int32]
    current: int = 0
    lanes: set[int] = field(default_factory=set)

    @property
    def epoch(self) -> int:
        return int(self.record["epoch"][0])


class Lcores:
    """Runs the loop on every worker lcore of an initialised EAL.

    ``functions`` maps fields of the lcore record to function addresses; the first of ``notes`` are the lcores';
    ``lanes_address`` is where the table is mapped.
    """

    def __init__(
        self, eal: Eal, functions: Mapping[str, int], notes: Notes, lanes_address: int, *, idle_sleep_max_us: int
    ) -> None:
        self._eal = eal
        self._cores: dict[int, _Lcore] = {}
        for number, (cpu, lcore) in enumerate(eal.worker_lcores.items()):
            record = np.zeros(1, LCORE)
            lists = np.zeros((2, LIST_LENGTH), np.int32)
            record["own_address"] = record.ctypes.data
            record["lcore"] = lcore
            record["note"] = notes.address(number)
            record["lanes"] = lanes_address
            record["list"] = lists[0].ctypes.data
            record["idle_sleep_max_us"] = idle_sleep_max_us
            for name, address in functions.items():
                record[name] = address
            self._cores[cpu] = _Lcore(cpu, lcore, record, lists)

    @property
    def cpus(self) -> tuple[int, ...]:
        """The worker CPUs."""
        return tuple(self._cores)

    def start(self, loop_address: int) -> None:
        """Launch the loop on every lcore."""
        for core in self._cores.values():
            self._eal.launch(loop_address, core.record.ctypes.data, core.lcore)

    def stop(self) -> None:
        """End the loops and wait for them."""
        for core in self._cores.values():
            core.record["stop"] = 1
        for core in self._cores.values():
            self._eal.wait(core.lcore)

    def quiesce(self) -> None:
        """Return once every lcore has begun two rounds since the call: it has seen all that was written before.

        Raises:
            WorkerError: an lcore made no progress; nothing that it may use can be freed any more.
        """
        begun = {cpu: core.epoch for cpu, core in self._cores.items()}
        deadline = time.monotonic() + QUIESCENCE_LIMIT_S
        for cpu, epoch in begun.items():
            while (self._cores[cpu].epoch - epoch) & 0xFFFFFFFF < 2:
                if time.monotonic() > deadline:
                    raise WorkerError(f"the relay loop on CPU {cpu} made no progress for {QUIESCENCE_LIMIT_S:.0f} s")
                time.sleep(_POLL_S)

    def assign(self, lanes: Mapping[int, int | None]) -> bool:
        """Put lanes (by table index) on CPUs, None: on no CPU. Call it while the lanes are off and quiescent.

        Answers whether any list changed; then ``quiesce`` before the lanes are switched on.
        """
        changed: set[int] = set()
        for lane, cpu in lanes.items():
            for core in self._cores.values():
                if core.cpu == cpu and lane not in core.lanes:
                    core.lanes.add(lane)
                    changed.add(core.cpu)
                elif core.cpu != cpu and lane in core.lanes:
                    core.lanes.remove(lane)
                    changed.add(core.cpu)
        self._publish(changed)
        return bool(changed)

    def serving(self, lanes: Iterable[int]) -> set[int]:
        """The lcores (EAL's numbers) that have any of these lanes in their lists."""
        wanted = set(lanes)
        return {core.lcore for core in self._cores.values() if core.lanes & wanted}

    def _publish(self, cpus: Iterable[int]) -> None:
        for cpu in cpus:
            core = self._cores[cpu]
            core.current ^= 1
            entries = core.lists[core.current]
            entries[1 : 1 + len(core.lanes)] = sorted(core.lanes)
            entries[0] = len(core.lanes)
            core.record["list"] = entries.ctypes.data
