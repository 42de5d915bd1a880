"""What workers refuse: the codes that clients are told, and what the supervisor then takes to be the case.

The worker is a stand-in that refuses what it is told to; everything above it is real.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from vio4wd.daemon.relays import Relays
from vio4wd.daemon.request_codes import add_error, remove_error
from vio4wd.devices import Attachment, Bond, Device
from vio4wd.errors import RequestError, WorkerError
from vio4wd.relay.interface import RelayCpus, VfState
from vio4wd.relay.lanes import LaneTable
from vio4wd.relay.placement import Placement
from vio4wd.relay.worker_process import CommandError
from vio4wd.relay.workers import Slot
from vio4wd.vhostuser.broker import Broker
from vio4wd.vhostuser.endpoint import Endpoint

VF, OTHER = Device("net_null0"), Device("net_null1")
BOND = Bond("net_bonding0", (VF, OTHER))
ADD_VF = "virtio_forwarder_add_vf2()"
ADD_BOND = "virtio_forwarder_bond_add()"
REMOVE_VF = "virtio_forwarder_remove_vf2()"
ADD_SOCK = "virtio_add_sock_dev_pair()"
REMOVE_SOCK = "virtio_remove_sock_dev_pair()"
LATE = WorkerError("vio4wd-1 did not answer within 10 s")


class Worker:
    """A worker process that does nothing but remember what it was told; ``answers`` are called instead, by command."""

    def __init__(self) -> None:
        self.alive = True
        self.crashed = False
        self.facts = {"max_ports": 32}
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Callable[[dict[str, Any]], None]] = {}

    async def call(self, op: str, *, limit_s: float = 0, **args: Any) -> dict[str, Any]:
        self.told.append((op, args))
        self.answers.get(op, lambda args: None)(args)
        return {"numa_node": 0}

    def refuse(self, op: str, error: Exception, relays: range = range(64)) -> None:
        """Have a command fail for some relays."""

        def answer(args: dict[str, Any]) -> None:
            if args["relay"] in relays:
                raise error

        self.answers[op] = answer


class Workers:
    """The one slot of that worker."""

    def __init__(self, slot: Slot) -> None:
        self.slots = (slot,)

    async def reserve(self, ports: int, preferred: Slot | None = None) -> Slot:
        self.slots[0].ports += ports
        return self.slots[0]


class Rig:
    """Relays with dynamic sockets on CPUs 0 and 1."""

    def __init__(self, directory: Path) -> None:
        table = LaneTable.create()
        self.placement = Placement((0, 1), {})
        self.relays = Relays(table, self.placement, Endpoint, dynamic_sockets=True)
        self.broker = Broker(self.relays.carrier, directory / "private")
        self.worker = Worker()
        self.slot = Slot(0)
        self.slot.process = self.worker  # type: ignore[assignment]
        self.relays.connect(Workers(self.slot), self.broker)  # type: ignore[arg-type]


Scenario = Callable[[Rig], Awaitable[None]]


@asynccontextmanager
async def rig(directory: Path) -> AsyncIterator[Rig]:
    made = Rig(directory)
    try:
        yield made
    finally:
        await made.relays.carrier.close()
        await made.broker.shutdown()


@pytest.fixture
def run(short_dir: Path) -> Callable[[Scenario], None]:
    """Runs a scenario, for 10 s at most."""

    def start(scenario: Scenario) -> None:
        async def whole() -> None:
            async with rig(short_dir) as made:
                await asyncio.wait_for(scenario(made), 10)

        asyncio.run(whole())

    return start


async def error_of(request: Awaitable[object]) -> tuple[int | None, str | None]:
    """Code and source of the error that a request ends in."""
    with pytest.raises(RequestError) as caught:
        await request
    return caught.value.code, caught.value.source


@pytest.mark.parametrize(
    ("device", "stage", "code"),
    [
        (VF, "probe", 2),
        (VF, "configure", 4),
        (VF, "start", 4),
        (VF, "rx_queue", 5),
        (VF, "tx_queue", 6),
        (VF, "busy", 8),
        (VF, "memory", -1),
        (BOND, "bond_create", 2),
        (BOND, "configure", 4),
        (BOND, "bond_member", 5),
        (BOND, "start", 6),
        (BOND, "busy", 8),
        (BOND, "no_bonding", -1),
    ],
)
def test_codes_of_additions(device: Attachment, stage: str, code: int) -> None:
    answer = add_error(device, CommandError(stage, "why"))
    assert (answer.code, answer.source, str(answer)) == (code, ADD_VF if device is VF else ADD_BOND, "why")


@pytest.mark.parametrize(("error", "code"), [(CommandError("detach", "why"), 2), (LATE, 5)])
def test_codes_of_removals(error: WorkerError, code: int) -> None:
    answer = remove_error(error)
    assert (answer.code, answer.source, str(answer)) == (code, REMOVE_VF, str(error))


def test_a_vf_that_dpdk_does_not_let_go_of_is_down(run: Callable[[Scenario], None]) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.relays.add_vf(1, VF)
        rig.worker.refuse("remove_port", CommandError("detach", "net_null0: it is stuck"))
        assert await error_of(rig.relays.remove_vf(1, VF)) == (2, REMOVE_VF)
        relay = rig.relays.snapshot()[1]
        assert (relay.attachment, relay.vf_state, relay.fault) == (VF, VfState.UNINIT, "net_null0: it is stuck")
        assert await error_of(rig.relays.add_vf(2, VF)) == (2, ADD_VF)
        await rig.relays.remove_vf(1, VF)  # there is nothing left that the worker could do
        await rig.relays.add_vf(2, VF)
        assert rig.slot.ports == 1

    run(scenario)


def test_a_vf_that_the_worker_keeps_is_up(run: Callable[[Scenario], None]) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.relays.add_vf(1, VF)
        rig.worker.refuse("remove_port", LATE)
        assert await error_of(rig.relays.remove_vf(1, VF)) == (5, REMOVE_VF)
        relay = rig.relays.snapshot()[1]
        assert (relay.attachment, relay.vf_state, relay.fault) == (VF, VfState.ADDED, None)

    run(scenario)


def test_a_socket_that_cannot_be_opened_and_a_vf_that_stays(run: Callable[[Scenario], None], short_dir: Path) -> None:
    path = short_dir / "sub" / "vhub"
    path.parent.mkdir()

    async def scenario(rig: Rig) -> None:
        rig.worker.answers["add_port"] = lambda args: path.parent.rmdir()
        rig.worker.refuse("remove_port", CommandError("detach", "it is stuck"))
        assert await error_of(rig.relays.add_socket(path, VF)) == (5, ADD_SOCK)
        relay = rig.relays.snapshot()[0]
        assert (relay.attachment, relay.socket_path, relay.vf_state) == (VF, None, VfState.UNINIT)
        path.parent.mkdir()
        del rig.worker.answers["add_port"]
        assert await error_of(rig.relays.add_socket(path, VF)) == (-17, ADD_SOCK)
        assert await rig.relays.add_socket(path, OTHER) == 1
        await rig.relays.remove_vf(0, VF)

    run(scenario)


def test_a_pair_that_cannot_be_removed(
    run: Callable[[Scenario], None], short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = short_dir / "sub" / "vhub"
    path.parent.mkdir()

    async def refused(relay: int) -> None:
        raise PermissionError("not yours")

    def lose_directory(args: dict[str, Any]) -> None:
        path.parent.rmdir()
        raise LATE

    async def scenario(rig: Rig) -> None:
        await rig.relays.add_socket(path, VF)
        with monkeypatch.context() as patch:
            patch.setattr(rig.broker, "close", refused)
            assert await error_of(rig.relays.remove_socket(path, None)) == (3, REMOVE_SOCK)
        rig.worker.refuse("remove_port", LATE)
        assert await error_of(rig.relays.remove_socket(path, None)) == (4, REMOVE_SOCK)
        assert rig.relays.query_device(path) == VF and path.is_socket()
        rig.worker.answers["remove_port"] = lose_directory
        assert await error_of(rig.relays.remove_socket(path, None)) == (4, REMOVE_SOCK)
        relay = rig.relays.snapshot()[0]
        assert (relay.attachment, relay.socket_path, relay.vf_state) == (VF, None, VfState.ADDED)
        del rig.worker.answers["remove_port"]
        await rig.relays.remove_vf(0, VF)

    run(scenario)


def test_cpus_that_a_worker_refuses(run: Callable[[Scenario], None]) -> None:
    """All relays stay where they were, those too whose worker had agreed and those that are on none."""

    async def scenario(rig: Rig) -> None:
        for relay in range(3):
            await rig.relays.add_vf(relay, Device(f"net_null{relay}"))
        before = dict(rig.relays.relay_cpus())
        moves = {relay: RelayCpus(1 - cpus.vf_to_vm, 1 - cpus.vm_to_vf) for relay, cpus in before.items()}
        rig.worker.refuse("place", CommandError("internal", "no"), range(1, 2))
        with pytest.raises(CommandError, match="no"):
            await rig.relays.set_cpus(moves | {9: RelayCpus(0, 0)})
        assert rig.relays.relay_cpus() == before
        told = {args["relay"]: RelayCpus(args["vf_cpu"], args["virtio_cpu"]) for _, args in rig.worker.told[-3:]}
        assert told == before
        rig.worker.answers.clear()
        await rig.relays.set_cpus(moves)
        assert rig.relays.relay_cpus() == moves

    run(scenario)


def test_a_new_worker_that_refuses_a_relays_cpus_at_first(run: Callable[[Scenario], None]) -> None:
    async def scenario(rig: Rig) -> None:
        carrier = rig.relays.carrier
        await rig.relays.add_vf(1, VF)
        await rig.relays.add_vf(2, OTHER)
        carrier.worker_lost(rig.slot)
        rig.worker.refuse("place", CommandError("internal", "not yet"), range(1, 2))
        await carrier.worker_back(rig.slot)
        states = [rig.relays.snapshot()[relay] for relay in (1, 2)]
        assert [state.vf_state for state in states] == [VfState.UNINIT, VfState.ADDED]
        assert [state.fault for state in states] == ["not yet", None]
        rig.worker.answers.clear()
        while rig.relays.snapshot()[1].vf_state is not VfState.ADDED:
            await asyncio.sleep(0.01)
        assert rig.relays.snapshot()[1].fault is None

    run(scenario)
