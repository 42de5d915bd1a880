"""Keeping worker processes running: whatever goes wrong meanwhile, the next one comes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable

import pytest

from vio4wd.errors import StartupError, WorkerError
from vio4wd.relay import workers as workers_module
from vio4wd.relay.lanes import LaneTable
from vio4wd.relay.messages import Event
from vio4wd.relay.worker_options import WorkerOptions
from vio4wd.relay.worker_process import WorkerProcess
from vio4wd.relay.workers import Slot, Workers


class Process:
    """A worker process that is not one."""

    pid = 1

    def __init__(self, options: WorkerOptions) -> None:
        self.name = options.name
        self.alive = False
        self.facts = {"max_ports": 32}
        self.level = options.log_level
        self.broken = False
        self.on_event: Callable[[Event], None] = lambda event: None
        self.on_exit: Callable[[], None] = lambda: None

    async def start(self) -> None:
        self.alive = True

    async def call(self, op: str, *, level: int) -> None:
        assert op == "set_log_level"
        if self.broken:
            raise WorkerError("it ended just then")
        self.level = level

    async def stop(self) -> None:
        self.alive = False

    def die(self) -> None:
        self.alive = False
        self.on_exit()


class Listener:
    """Remembers which slots are back; what it does otherwise goes wrong if ``broken``."""

    def __init__(self) -> None:
        self.broken = False
        self.back: list[int] = []

    def worker_lost(self, slot: Slot) -> None:
        if self.broken:
            raise ZeroDivisionError

    async def worker_back(self, slot: Slot) -> None:
        self.back.append(slot.number)
        if self.broken:
            raise ZeroDivisionError

    def worker_event(self, slot: Slot, event: Event) -> None: ...


def options(name: str) -> WorkerOptions:
    return WorkerOptions(name, 0, (0,), "", 1500, 20, 0, 0)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """The processes that are made."""
    made: list[Process] = []

    def make(options: WorkerOptions, fd: int) -> Process:
        made.append(Process(options))
        return made[-1]

    monkeypatch.setattr(workers_module, "WorkerProcess", make)
    return made


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def run(scenario: Awaitable[None]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(scenario, 10)

    asyncio.run(whole())


def test_a_worker_is_replaced_whatever_goes_wrong(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        listener = Listener()
        workers = Workers(options, LaneTable.create(), listener)
        await workers.start()
        listener.broken = True
        fill, failures = workers._fill, [ZeroDivisionError()]

        async def fill_later(slot: Slot) -> None:
            if failures:
                raise failures.pop()
            await fill(slot)

        monkeypatch.setattr(workers, "_fill", fill_later)
        processes[0].die()
        await until(lambda: listener.back == [0])
        assert workers.slots[0].process is processes[1]  # type: ignore[comparison-overlap]
        await workers.stop()

    run(scenario())
    assert "worker process 0: its relays were not told of its end" in caplog.text
    assert "restart of worker process 0: unexpected error" in caplog.text
    assert "worker process 0: putting its relays back failed" in caplog.text


def test_a_spare_is_tried_again_whatever_went_wrong(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers_module, "SPARE_RETRY_S", 0.05)

    async def scenario() -> None:
        workers = Workers(options, LaneTable.create(), Listener())
        await workers.start()
        with monkeypatch.context() as patch:
            patch.setattr(Process, "start", lambda process: 1 // 0)
            workers.prepare_spare()
            await until(lambda: "no spare worker process" in caplog.text)
        await until(lambda: processes[-1].alive)
        await workers.stop()

    run(scenario())


def test_all_have_a_new_log_level_also_those_that_start_just_then(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        workers = Workers(options, LaneTable.create(), Listener())
        for _ in range(3):
            await workers.start()
        begun, go = asyncio.Event(), asyncio.Event()

        async def start(process: Process) -> None:
            begun.set()
            await go.wait()
            process.alive = True

        monkeypatch.setattr(Process, "start", start)
        workers.prepare_spare()
        await begun.wait()
        processes[0].broken = True
        with pytest.raises(WorkerError, match="it ended just then"):
            await workers.set_log_level(10)
        go.set()
        await until(lambda: processes[-1].level == 10)
        assert [process.level for process in processes] == [20, 10, 10, 10]
        await workers.stop()

    run(scenario())


@pytest.mark.parametrize(
    "change", [{"table_layout": "older"}, {"table_layout": None}, {"new_option": 1}, {"mtu": None}]
)
def test_a_worker_of_other_files_than_the_supervisor_s(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    """It says so instead of reading the supervisor's table, which may even have another size, in its own way."""
    fields = json.loads(options("vio4wd-1").encode()) | change
    text = json.dumps({name: value for name, value in fields.items() if value is not None})
    monkeypatch.setattr(WorkerOptions, "encode", lambda options: text)

    async def scenario() -> None:
        fd = os.memfd_create("small")
        process = WorkerProcess(options("vio4wd-1"), fd)
        message = "the files of virtio-forwarder were replaced while it ran: restart the daemon"
        with pytest.raises(StartupError, match=f"^{message}$"):
            await process.start()
        os.close(fd)

    run(scenario())
