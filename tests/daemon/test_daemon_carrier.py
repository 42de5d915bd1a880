"""Sessions from worker to worker under the real carrier and broker, with workers that are back ends in Python."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broker_thread import BrokerThread, wait_until
from fake_back_end import FakeBackEnd

from frontend import FrontEnd
from vio4wd.daemon.carrier import Carrier
from vio4wd.daemon.relay_state import Relay
from vio4wd.devices import Device
from vio4wd.errors import WorkerError
from vio4wd.relay.interface import RELAYS
from vio4wd.relay.lanes import LaneTable
from vio4wd.relay.placement import Placement
from vio4wd.relay.worker_process import CommandError
from vio4wd.relay.workers import Slot


class FakeProcess:
    """A worker process whose guests' side is a FakeBackEnd; ``refuse``: commands that it refuses once."""

    def __init__(self) -> None:
        self.guests = FakeBackEnd()
        self.refuse: set[str] = set()

    @property
    def alive(self) -> bool:
        return not self.guests.dead

    async def call(self, op: str, *, limit_s: float = 0, **args: Any) -> dict[str, Any]:
        if not self.alive:
            raise WorkerError("the process is not running")
        if op in self.refuse:
            self.refuse.remove(op)
            raise CommandError("error", f"{op} is refused")
        if op in ("attach", "detach"):
            await getattr(self.guests, op)(args["relay"], Path(args["path"]))
        elif op in ("pause", "resume"):
            await getattr(self.guests, op)(args["relay"])
        return {"numa_node": 0}


class FakeWorkers:
    """Two slots; the first for whoever comes, the second for devices."""

    def __init__(self) -> None:
        self.slots = (Slot(0), Slot(1))
        for slot in self.slots:
            slot.process = FakeProcess()  # type: ignore[assignment]

    async def reserve(self, ports: int, preferred: Slot | None = None) -> Slot:
        self.slots[1].ports += ports
        return self.slots[1]


class Rig(Carrier):
    """A carrier with its broker in a thread."""

    def __init__(self, directory: Path) -> None:
        self.states = [Relay(number) for number in range(RELAYS)]
        super().__init__(self.states, Placement([1], {}), LaneTable.create())
        self.workers = FakeWorkers()
        self.thread = BrokerThread(self, directory, on_change=self.front_end_changed)
        self.connect(self.workers, self.thread.broker)  # type: ignore[arg-type]

    async def stop(self) -> None:
        await self.close()
        for slot in self.workers.slots:
            await slot.process.guests.die()  # type: ignore[attr-defined]

    def kill(self, number: int = 0) -> None:
        slot = self.workers.slots[number]
        self.thread.call(slot.process.guests.die())  # type: ignore[attr-defined]
        self.thread.do(self.worker_lost, slot)

    def restart(self, number: int = 0) -> None:
        slot = self.workers.slots[number]
        slot.process = FakeProcess()  # type: ignore[assignment]
        self.thread.call(self.worker_back(slot))

    def await_no_front_end(self, relay: int) -> None:
        wait_until(lambda: not self.thread.do(self.thread.broker.connected, relay), "front end gone")


@pytest.fixture
def rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="vu") as name:
        made = Rig(Path(name))
        try:
            yield made
        finally:
            made.thread.stop()


def test_front_end_that_left_without_a_worker_leaves_a_relay_that_works(rig: Rig) -> None:
    path = rig.thread.open(5)
    with FrontEnd(path) as vm:
        vm.handshake()
        rig.kill()
    rig.await_no_front_end(5)
    with FrontEnd(path) as vm:  # meets the dead process by itself
        vm.wire.send(1)
        wait_until(lambda: rig.states[5].slot, "an attempt to attach")
    rig.await_no_front_end(5)
    rig.restart()
    with FrontEnd(path) as vm:
        vm.handshake()
        vm.barrier()


def test_front_end_that_came_without_a_worker_gets_the_next(rig: Rig) -> None:
    rig.kill()
    with FrontEnd(rig.thread.open(5)) as vm:
        vm.wire.send(1)
        wait_until(lambda: rig.states[5].slot, "an attempt to attach")
        rig.restart()
        assert vm.wire.receive().u64
        vm.handshake()


def test_session_goes_on_although_its_move_failed(rig: Rig) -> None:
    with FrontEnd(rig.thread.open(5)) as vm:
        vm.handshake()
        vm.barrier()
        target = rig.workers.slots[1]
        target.process.refuse.add("place")  # type: ignore[attr-defined]
        with pytest.raises(CommandError):
            rig.thread.call(rig.put_vf(rig.states[5], Device.parse("net_null0")))
        vm.barrier()
        assert rig.states[5].slot is target
        assert rig.thread.started(5) == (0, 1)
