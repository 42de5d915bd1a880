"""Sessions from worker to worker under the real carrier and broker, with workers that are back ends in Python."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from broker_thread import BrokerThread, wait_until
from fake_back_end import FakeBackEnd

from frontend import FrontEnd
from vio4wd.daemon.carrier import Carrier
from vio4wd.daemon.patience import Patience
from vio4wd.daemon.relay_state import Relay
from vio4wd.devices import Device
from vio4wd.errors import WorkerError
from vio4wd.relay.interface import RELAYS
from vio4wd.relay.lanes import LaneTable
from vio4wd.relay.placement import Placement
from vio4wd.relay.worker_process import CommandError
from vio4wd.relay.workers import Slot
from vio4wd.vhostuser import Options
from vio4wd.vhostuser.requests import Request


class FakeProcess:
    """A worker process whose guests' side is a FakeBackEnd.

    ``refuse``: commands that it refuses once; ``broken``: those that fail once, in a way that nobody expects.
    ``on_resume`` is called with a relay whose rings go on. ``told`` is which ports it was to add and remove; it answers
    that one was added when ``go`` is set.
    """

    def __init__(self) -> None:
        self.crashed = False
        self.guests = FakeBackEnd()
        self.refuse: set[str] = set()
        self.broken: set[str] = set()
        self.ports: set[int] = set()
        self.told: list[str] = []
        self.go = asyncio.Event()
        self.go.set()
        self.on_resume: Callable[[int], None] = lambda relay: None

    @property
    def alive(self) -> bool:
        return not self.guests.dead

    async def call(self, op: str, *, limit_s: float = 0, **args: Any) -> dict[str, Any]:
        if not self.alive:
            raise WorkerError("the process is not running")
        if op in self.broken:
            self.broken.remove(op)
            raise ZeroDivisionError
        if op in self.refuse:
            self.refuse.remove(op)
            raise CommandError("error", f"{op} is refused")
        if op in ("attach", "detach"):
            await getattr(self.guests, op)(args["relay"], Path(args["path"]))
        elif op == "pause":
            await self.guests.pause(args["relay"])
        elif op == "resume":
            await self.guests.resume(args["relay"], interrupt=args["interrupt"])
        elif op == "add_port":
            await self._add_port(args["relay"])
        elif op == "remove_port":
            self.told.append(op)
            self.ports.remove(args["relay"])
        if op == "resume":
            self.on_resume(args["relay"])
        return {"numa_node": 0}

    async def _add_port(self, relay: int) -> None:
        self.told.append("add_port")
        if relay in self.ports:
            raise CommandError("busy", f"relay {relay} has a VF already")
        self.ports.add(relay)
        await self.go.wait()


class FakeWorkers:
    """Two slots; the first for whoever comes, the second (``target``) for devices."""

    def __init__(self) -> None:
        self.slots = (Slot(0), Slot(1))
        for slot in self.slots:
            slot.process = FakeProcess()  # type: ignore[assignment]
        self.target = self.slots[1]

    async def reserve(self, ports: int, preferred: Slot | None = None) -> Slot:
        self.target.ports += ports
        return self.target


class Rig(Carrier):
    """A carrier with its broker in a thread."""

    def __init__(self, directory: Path) -> None:
        self.states = [Relay(number) for number in range(RELAYS)]
        super().__init__(self.states, Placement([1], {}), LaneTable.create())
        self.workers = FakeWorkers()
        self._ends: list[asyncio.Task[None]] = []
        self.deaths = 0
        self.next_broken: set[str] = set()
        self.thread = BrokerThread(self, directory, Options(settling_time=0.3), on_change=self.front_end_changed)
        self.connect(self.workers, self.thread.broker)  # type: ignore[arg-type]

    async def stop(self) -> None:
        await self.close()
        await asyncio.gather(*self._ends)
        for slot in self.workers.slots:
            await self.process(slot.number).guests.die()

    def process(self, number: int = 0) -> FakeProcess:
        return cast(FakeProcess, self.workers.slots[number].process)

    def kill(self) -> None:
        """Have the first worker die."""
        self.thread.call(self.process().guests.die())
        self.thread.do(self.worker_lost, self.workers.slots[0])

    def restart(self) -> None:
        """Have a new process take its place, of which ``next_broken`` fail."""
        slot = self.workers.slots[0]
        slot.process = FakeProcess()  # type: ignore[assignment]
        self.process().broken = self.next_broken
        self.thread.call(self.worker_back(slot))

    def dies_of(self, poison: str, relay: int) -> None:
        """Have the first worker and all its successors die of a request, or of ``rings`` that go on."""
        process = self.process()

        def die(found: bool) -> None:
            if found:
                self._ends.append(asyncio.get_running_loop().create_task(self._die_and_return(poison, relay)))

        if poison == "rings":
            process.on_resume = lambda resumed: die(resumed == relay)
        else:
            process.guests.swallow.add(Request[poison])
            process.guests.on_message = lambda message: die(message.name == poison)

    async def _die_and_return(self, poison: str, relay: int) -> None:
        slot = self.workers.slots[0]
        self.deaths += 1
        await self.process().guests.die()
        self.worker_lost(slot)
        slot.process = FakeProcess()  # type: ignore[assignment]
        self.dies_of(poison, relay)
        await self.worker_back(slot)

    def await_no_front_end(self, relay: int, seconds: float = 5.0) -> None:
        wait_until(lambda: not self.thread.do(self.thread.broker.connected, relay), "front end gone", seconds)


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
        rig.process(1).refuse.add("place")
        with pytest.raises(CommandError):
            rig.thread.call(rig.put_vf(rig.states[5], Device.parse("net_null0"), Patience("add net_null0")))
        vm.barrier()
        assert rig.states[5].slot is target
        assert rig.thread.started(5) == (0, 1)


def test_an_addition_that_is_cancelled_is_taken_back(rig: Rig) -> None:
    """The worker carries it out nevertheless. Whoever comes next waits for that, and finds the relay free."""
    state, process = rig.states[5], rig.process(1)

    async def add(name: str) -> None:
        await rig.put_vf(state, Device.parse(name), Patience(f"add {name}"))

    async def scenario() -> None:
        process.go.clear()
        cancelled = asyncio.create_task(add("net_null0"))
        while not process.ports:
            await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        following = asyncio.create_task(add("net_null1"))
        await asyncio.sleep(0.1)
        assert process.told == ["add_port"] and not following.done()
        process.go.set()
        await following

    rig.thread.call(scenario())
    assert process.told == ["add_port", "remove_port", "add_port"]
    assert (state.vf_up, process.ports, rig.workers.target.ports) == (True, {5}, 1)
    assert state.slot is rig.workers.target


def test_what_nobody_expects_leaves_no_relay_behind(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A device and a session are put back in the end, even if that failed in a way that nobody expects."""
    state = rig.states[5]
    rig.workers.target = rig.workers.slots[0]
    with FrontEnd(rig.thread.open(5)) as vm:
        vm.handshake()
        vm.barrier()
        device = Device.parse("net_null0")
        rig.thread.call(rig.put_vf(state, device, Patience("add net_null0")))
        state.attachment = device
        rig.kill()
        rig.next_broken = {"add_port"}
        rig.restart()
        assert not state.vf_up
        wait_until(lambda: state.vf_up and state.fault is None and not state.session_waits, "the device")
        vm.barrier()
    assert "relay 5: could not be put back and is tried again" in caplog.text


@pytest.mark.parametrize("poison", ["GET_STATUS", "NET_SET_MTU", "rings"])
def test_front_end_that_workers_die_of_is_cut_off_and_no_other(
    rig: Rig, caplog: pytest.LogCaptureFixture, poison: str
) -> None:
    """Of a request that is repeated after the replay, of one that is part of it, of what is in the rings."""
    culprit = 5
    with (
        FrontEnd(rig.thread.open(3)) as before,
        FrontEnd(rig.thread.open(culprit)) as vm,
        FrontEnd(rig.thread.open(7)) as after,
    ):
        for front in (before, after, vm):
            front.handshake()
            front.barrier()
        rig.thread.do(rig.dies_of, poison, culprit)
        match poison:
            case "GET_STATUS":
                vm.wire.send(Request.GET_STATUS)
            case "NET_SET_MTU":
                vm.set_u64(Request.NET_SET_MTU, 1500)
            case _:
                vm.enable(0)
        rig.await_no_front_end(culprit, 20)
        for front in (before, after):
            front.barrier()
        assert [rig.thread.started(relay) for relay in (3, culprit, 7)] == [(0, 1), (), (0, 1)]
    assert "relay 5: front end (pid" in caplog.text
    assert "3 workers in a row died at once with its session" in caplog.text
    assert 3 <= rig.deaths <= 8
