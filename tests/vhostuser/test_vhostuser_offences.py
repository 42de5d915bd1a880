"""What guests did to workers is counted per relay, against those that did it only, and for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_thread import BrokerThread, wait_until
from fake_back_end import FakeBackEnd

from frontend import FrontEnd, Wire
from vio4wd.vhostuser import Options
from vio4wd.vhostuser.requests import Request

MEMORY_S = 3.0
OPTIONS = Options(settling_time=0.05, offence_memory=MEMORY_S)
OFFENCE = "it holds the worker up"


@pytest.fixture
def thread(back: FakeBackEnd, socket_dir: Path) -> Iterator[BrokerThread]:
    made = BrokerThread(back, socket_dir, OPTIONS)
    yield made
    made.stop()


def die(thread: BrokerThread, back: FakeBackEnd, *relays: int, culprits: tuple[int, ...] = ()) -> None:
    """Have the worker of these relays crash, with what is known of it, and replay their sessions."""

    async def lost() -> None:
        back.dead = True
        thread.broker.worker_lost(relays, crashed=True, culprits=culprits)
        await back.die()
        back.dead = False

    thread.call(lost())
    for relay in relays:
        thread.call(thread.broker.replay(relay))


def ready(vm: FrontEnd) -> None:
    vm.handshake()
    vm.barrier()


def test_an_offender_is_cut_off_at_once_and_refused_after_the_third(
    thread: BrokerThread, caplog: pytest.LogCaptureFixture
) -> None:
    path = thread.open(4)
    for _ in range(3):
        with FrontEnd(path) as vm:
            ready(vm)
            thread.do(thread.broker.offended, 4, OFFENCE)
            assert vm.wire.is_closed()
    assert caplog.text.count(f"(pid {os.getpid()}) is cut off: {OFFENCE}") == 3
    refused = Wire.connect(path)
    assert refused.is_closed()
    refused.close()
    wait_until(lambda: "relay 4: front ends are refused for" in caplog.text, "told")
    wait_until(lambda: not thread.do(thread.broker._ports[4]._recent_offences), "forgotten", MEMORY_S + 1)
    with FrontEnd(path) as vm:
        ready(vm)


@pytest.mark.parametrize("reconnects", [False, True])
def test_the_guest_that_workers_die_of_is_cut_off_at_the_third(
    thread: BrokerThread, back: FakeBackEnd, reconnects: bool
) -> None:
    """However long it waits between, and whether or not it begins a new session each time; its neighbour goes on."""
    path = thread.open(1)
    with FrontEnd(thread.open(0)) as innocent:
        ready(innocent)
        vm = FrontEnd(path)
        ready(vm)
        for _ in range(2):
            die(thread, back, 0, 1, culprits=(1,))
            vm.barrier()
            if reconnects:
                vm.close()
                vm = FrontEnd(path)
                ready(vm)
        die(thread, back, 0, 1, culprits=(1,))
        assert vm.wire.is_closed()
        vm.close()
        innocent.barrier()


def test_those_who_were_cleared_are_not_suspected(thread: BrokerThread, back: FakeBackEnd) -> None:
    """They have been with each worker for a moment only, which makes them suspects as long as nobody knows better."""
    with FrontEnd(thread.open(0)) as innocent:
        ready(innocent)
        for _ in range(5):
            die(thread, back, 0, culprits=(1,))
            innocent.barrier()
        for _ in range(3):
            die(thread, back, 0)
        assert innocent.wire.is_closed()


def test_an_unanswered_request_is_to_blame_where_no_lane_is(thread: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(thread.open(0)) as innocent, FrontEnd(thread.open(1)) as vm:
        for front in (innocent, vm):
            ready(front)
        for turn in range(3):
            back.log.clear()
            back.swallow.add(Request.GET_QUEUE_NUM)
            vm.wire.send(Request.GET_QUEUE_NUM)
            wait_until(lambda: "GET_QUEUE_NUM" in back.log, "asked")
            back.swallow.clear()
            die(thread, back, 0, 1)
            if turn < 2:
                assert vm.wire.receive().request == Request.GET_QUEUE_NUM
        assert vm.wire.is_closed()
        innocent.barrier()
