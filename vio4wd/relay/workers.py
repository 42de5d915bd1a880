"""All worker processes of the daemon: started when ports need them, and started again when they die."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from vio4wd.errors import StartupError, WorkerError
from vio4wd.relay.lanes import LaneTable
from vio4wd.relay.messages import Event
from vio4wd.relay.worker_options import WorkerOptions
from vio4wd.relay.worker_process import WorkerProcess

log = logging.getLogger(__name__)

RESTART_DELAYS_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
"""Waits before a worker is started again, growing while it dies young; the last repeats."""

YOUNG_S = 30.0


@dataclass
class Slot:
    """A place for one worker process, which successive processes take: the relays it carries and the ports it has."""

    number: int
    process: WorkerProcess = field(init=False)
    relays: set[int] = field(default_factory=set)
    ports: int = 0
    started: float = 0.0
    young_deaths: int = 0
    up: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, op: str, **args: Any) -> dict[str, Any]:
        """See WorkerProcess.call."""
        return await self.process.call(op, **args)


class Listener(Protocol):
    """Whoever must know of workers' lives."""

    def worker_lost(self, slot: Slot) -> None:
        """The slot's process has ended; another is being started."""

    async def worker_back(self, slot: Slot) -> None:
        """A new process is ready and empty."""

    def worker_event(self, slot: Slot, event: Event) -> None:
        """The slot's process reports something."""


class Workers:
    """Keeps worker processes running. ``options(number)`` makes the start options of a slot's process."""

    def __init__(self, options: Callable[[str], WorkerOptions], table: LaneTable, listener: Listener) -> None:
        self._options = options
        self._table = table
        self._listener = listener
        self._slots: list[Slot] = []
        self._restarts: dict[int, asyncio.Task[None]] = {}
        self._generation = 0
        self._growing = asyncio.Lock()
        self._stopping = False

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, by number."""
        return tuple(self._slots)

    async def start(self) -> Slot:
        """Start one more worker process.

        Raises:
            StartupError: it cannot run here.
        """
        slot = Slot(len(self._slots))
        slot.process = self._make(slot)
        await slot.process.start()
        slot.started = time.monotonic()
        slot.up.set()
        self._slots.append(slot)
        return slot

    async def reserve(self, ports: int) -> Slot:
        """A slot with room for that many more DPDK ports, which are taken; a new process where there is none.

        Raises:
            WorkerError: no process can be started, or none will ever have the room.
        """
        async with self._growing:
            for slot in self._slots:
                if slot.ports + ports <= slot.process.facts["max_ports"]:
                    slot.ports += ports
                    return slot
            if self._slots and ports > self._slots[0].process.facts["max_ports"]:
                raise WorkerError(f"{ports} ports are more than this DPDK allows a process")
            log.info("all %d worker processes are full: starting one more", len(self._slots))
            try:
                slot = await self.start()
            except StartupError as error:
                raise WorkerError(f"no more worker processes: {error}") from error
            slot.ports += ports
            return slot

    async def stop(self) -> None:
        """End all worker processes."""
        self._stopping = True
        for task in self._restarts.values():
            task.cancel()
        await asyncio.gather(*(slot.process.stop() for slot in self._slots))

    def _make(self, slot: Slot) -> WorkerProcess:
        self._generation += 1
        name = f"vio4wd-{self._generation}"
        return WorkerProcess(
            self._options(name),
            self._table.fd,
            lambda event: self._listener.worker_event(slot, event),
            lambda: self._exited(slot),
        )

    def _exited(self, slot: Slot) -> None:
        slot.up.clear()
        young = time.monotonic() - slot.started < YOUNG_S
        slot.young_deaths = slot.young_deaths + 1 if young else 0
        self._listener.worker_lost(slot)
        if not self._stopping:
            self._restarts[slot.number] = asyncio.get_running_loop().create_task(self._restart(slot))

    async def _restart(self, slot: Slot) -> None:
        attempt = slot.young_deaths
        while True:
            await asyncio.sleep(RESTART_DELAYS_S[min(attempt, len(RESTART_DELAYS_S) - 1)])
            attempt += 1
            slot.process = self._make(slot)
            try:
                await slot.process.start()
            except StartupError as error:
                log.error("worker process %d cannot be started again: %s", slot.number, error)
                continue
            slot.started = time.monotonic()
            slot.up.set()
            await self._guarded(slot, self._listener.worker_back(slot))
            return

    async def _guarded(self, slot: Slot, work: Awaitable[None]) -> None:
        try:
            await work
        except WorkerError as error:
            log.warning("worker process %d: %s", slot.number, error)
        except Exception:
            log.exception("worker process %d: putting its relays back failed", slot.number)
