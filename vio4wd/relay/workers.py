"""All worker processes of the daemon: started when ports need them, and started again when they die."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from vio4wd.errors import StartupError, WorkerError
from vio4wd.relay.lanes import LaneTable
from vio4wd.relay.messages import Event
from vio4wd.relay.worker_options import WorkerOptions
from vio4wd.relay.worker_process import WorkerProcess
from vio4wd.tasks import supervised

log = logging.getLogger(__name__)

RESTART_DELAYS_S = (0.0, 0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
"""Waits before a worker is started again, growing while it dies young; the last repeats."""

YOUNG_S = 30.0

SPARE_RETRY_S = 10.0
"""Wait before another spare is started after one that could not start or has died."""


@dataclass
class Slot:
    """A place for one worker process, which successive processes take: the relays it carries and the ports it has.

    Whoever has a port added or removed holds ``port_turn``: a worker does one after the other, and the limit on a
    command must not count those before it.
    """

    number: int
    process: WorkerProcess = field(init=False)
    relays: set[int] = field(default_factory=set)
    ports: int = 0
    port_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    started: float = 0.0
    young_deaths: int = 0

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
        self._spare: WorkerProcess | None = None
        self._spare_start: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._generation = 0
        self._growing = asyncio.Lock()
        self._stopping = False
        self._log_level: int | None = None

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
        await self._fill(slot)
        self._slots.append(slot)
        return slot

    async def reserve(self, ports: int, preferred: Slot | None = None) -> Slot:
        """A slot with room for that many more DPDK ports, which are taken; a new process where there is none.

        ``preferred`` is taken if it has the room, else the first that has.

        Raises:
            WorkerError: no process can be started, or none will ever have the room.
        """
        async with self._growing:
            for slot in filter(None, (preferred, *self._slots)):
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
            self.prepare_spare()
            return slot

    async def stop(self) -> None:
        """End all worker processes, those that are being started with the others."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        ready = self._processes()
        await asyncio.gather(*self._tasks, *(process.stop() for process in ready), return_exceptions=True)
        await asyncio.gather(*(process.stop() for process in self._processes() if process not in ready))

    async def set_log_level(self, level: int) -> None:
        """Set the log threshold (Python's) of all processes, those of later ones by their options.

        Raises:
            WorkerError: one did not do it; the others have.
        """
        self._log_level = level
        told = (process.call("set_log_level", level=level) for process in self._processes() if process.alive)
        results = await asyncio.gather(*told, return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                raise error

    def _processes(self) -> list[WorkerProcess]:
        return [slot.process for slot in self._slots] + ([self._spare] if self._spare else [])

    def prepare_spare(self) -> None:
        """Have a process ready, in the background, for the next worker that dies or is needed in addition."""
        starting = self._spare_start is not None and not self._spare_start.done()
        if self._spare is None and not starting and not self._stopping:
            self._spare_start = self._run(self._start_spare())

    async def _start_spare(self) -> None:
        try:
            process = await self._start_process()
        except StartupError as error:
            log.warning("no spare worker process: %s", error)
            self._prepare_spare_later()
            return
        except Exception:
            log.exception("no spare worker process")
            self._prepare_spare_later()
            return
        process.on_exit = lambda: self._spare_lost(process)
        self._spare = process
        log.info("%s stands by (pid %s)", process.name, process.pid)

    def _spare_lost(self, process: WorkerProcess) -> None:
        if self._spare is process:
            self._spare = None
        self._prepare_spare_later()

    def _prepare_spare_later(self) -> None:
        asyncio.get_running_loop().call_later(SPARE_RETRY_S, self.prepare_spare)

    async def _start_process(self) -> WorkerProcess:
        """A new process, ready.

        Raises:
            StartupError: it could not be started.
        """
        try:
            process = self._make()
            await process.start()
            if self._log_level is not None:  # it may have been changed since the options were made
                await process.call("set_log_level", level=self._log_level)
        except (OSError, WorkerError) as error:
            raise StartupError(f"a worker process cannot be started: {error}") from error
        if not process.alive:
            raise StartupError("a worker process ended as soon as it was ready")
        return process

    def _make(self) -> WorkerProcess:
        self._generation += 1
        return WorkerProcess(self._options(f"vio4wd-{self._generation}"), self._table.fd)

    async def _fill(self, slot: Slot) -> None:
        """Give a slot the spare process, waiting for one that is being started, or else a new one.

        Raises:
            StartupError: a new one could not be started.
        """
        if self._spare is None and self._spare_start is not None:
            await asyncio.wait([self._spare_start])
        process, self._spare = self._spare, None
        if process is None or not process.alive:
            process = await self._start_process()
        process.on_event = lambda event: self._listener.worker_event(slot, event)
        process.on_exit = lambda: self._exited(slot)
        slot.process = process
        slot.started = time.monotonic()

    def _exited(self, slot: Slot) -> None:
        young = time.monotonic() - slot.started < YOUNG_S
        slot.young_deaths = slot.young_deaths + 1 if young else 0
        try:
            self._listener.worker_lost(slot)
        except Exception:
            log.exception("worker process %d: its relays were not told of its end", slot.number)
        if not self._stopping:
            self._run(supervised(f"restart of worker process {slot.number}", lambda: self._restart(slot)))

    async def _restart(self, slot: Slot) -> None:
        attempt = max(slot.young_deaths - 1, 0)
        while True:
            await asyncio.sleep(RESTART_DELAYS_S[min(attempt, len(RESTART_DELAYS_S) - 1)])
            attempt += 1
            try:
                await self._fill(slot)
                break
            except StartupError as error:
                log.error("worker process %d cannot be started again: %s", slot.number, error)
        await self._guarded(slot, self._listener.worker_back(slot))
        self.prepare_spare()

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _guarded(self, slot: Slot, work: Awaitable[None]) -> None:
        try:
            await work
        except WorkerError as error:
            log.warning("worker process %d: %s", slot.number, error)
        except Exception:
            log.exception("worker process %d: putting its relays back failed", slot.number)
