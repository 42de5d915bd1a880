"""stats and core_sched over relays in memory that are under load: ``loaded_server.py DIRECTORY WORD...``; says READY.

Words: the services to open, ``rates`` (no loads, only packet rates), ``refuse`` (moves are refused).
Relays 1 and 2 have a VF and a VM, both on CPU 1; each direction uses 30 % of a CPU and carries a million packets/s.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

sys.path += [__file__.rsplit("/", 2)[0], __file__.rsplit("/", 2)[0] + "/portctl"]

from memory_controller import MemoryController

from harness.services import serve
from vio4wd.errors import RequestError
from vio4wd.relay.interface import DirectionCounters, RelayCpus, RelaySnapshot, VfState, VirtioState
from vio4wd.scheduler.service import CoreSchedService
from vio4wd.stats.service import StatsService

HZ = 1e9
SHARE = 0.3
PPS = 1e6


class LoadedController(MemoryController):
    """Relays 1 and 2 work without packets."""

    def __init__(self, *, refuse: bool) -> None:
        super().__init__()
        self._refuse = refuse
        for relay in (1, 2):
            self._change(relay, vf_state=VfState.READY, virtio_state=VirtioState.READY, vf_cpu=1, virtio_cpu=1)

    async def set_cpus(self, cpus: Mapping[int, RelayCpus]) -> None:
        if self._refuse:
            raise RequestError("not today", code=4, source="virtio_set_relay_cpus()")
        await super().set_cpus(cpus)

    def snapshot(self) -> Sequence[RelaySnapshot]:
        now = time.monotonic()
        counters = DirectionCounters(received_pkts=round(PPS * now), cycles=round(HZ * SHARE * now))
        return [
            replace(state, vf_to_vm=counters, vm_to_vf=counters) if state.active else state
            for state in super().snapshot()
        ]


async def main(directory: str, words: Sequence[str]) -> None:
    controller = LoadedController(refuse="refuse" in words)
    handlers = {
        "stats": StatsService(controller, tsc_hz=lambda: None if "rates" in words else HZ),
        "core_sched": CoreSchedService(controller),
    }
    await serve(directory, {name: handler for name, handler in handlers.items() if name in words})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
