"""The broker between the Python front end and DPDK's vhost library: frames cross it and survive its death."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_thread import BrokerThread, wait_until
from testpmd_back_end import TestpmdBackEnd

from frontend import FrontEnd, GuestMemory, Wire
from vio4wd.vhostuser.requests import Request

pytestmark = pytest.mark.dpdk


@pytest.fixture
def testpmd() -> TestpmdBackEnd:
    return TestpmdBackEnd()


@pytest.fixture
def dpdk_broker(testpmd: TestpmdBackEnd, socket_dir: Path) -> Iterator[BrokerThread]:
    thread = BrokerThread(testpmd, socket_dir)
    try:
        yield thread
    finally:
        thread.stop()


def frames(count: int, seed: int = 1) -> list[bytes]:
    """Frames of 60 to 1514 bytes."""
    source = random.Random(seed)
    return [source.randbytes(source.randint(60, 1514)) for _ in range(count)]


def echoed(vm: FrontEnd, sent: list[bytes], pair: int = 0, **how: object) -> None:
    """Send frames and expect the same back, in order."""
    for start in range(0, len(sent), 32):
        part = sent[start : start + 32]
        vm.send_all(part, pair=pair, **how)  # type: ignore[arg-type]
        assert [packet.data for packet in vm.receive_all(len(part), pair=pair)] == part


def running(vm: FrontEnd, seconds: float = 5.0) -> None:
    """Wait until frames come back: testpmd starts the directions of a device one after the other."""
    deadline = time.monotonic() + seconds
    came = 0
    while came < 3:
        assert time.monotonic() < deadline, "no frame came back"
        vm.send(bytes(60))
        time.sleep(0.02)
        came += len(vm.poll())
    time.sleep(0.05)
    vm.poll()


def test_frames_cross_and_survive_the_back_end(dpdk_broker: BrokerThread, testpmd: TestpmdBackEnd) -> None:
    memory = GuestMemory(count=3, offset=8192)
    with FrontEnd(dpdk_broker.open(), memory=memory) as vm:
        vm.handshake()
        vm.post_rx()
        running(vm)
        echoed(vm, frames(600))  # more than twice around the ring
        echoed(vm, frames(60, 2), parts=3)
        echoed(vm, frames(60, 3), parts=2, indirect=True)
        vm.await_sent()

        for _ in range(2):
            vm.send_all(frames(40, 4))
            dpdk_broker.do(dpdk_broker.broker.worker_lost, [0])
            dpdk_broker.call(testpmd.kill(0))
            wait_until(
                lambda: dpdk_broker.do(dpdk_broker.broker.session, 0).state.value == "waiting for a worker", "lost"
            )
            vm.send_all(frames(20, 5))
            dpdk_broker.call(dpdk_broker.broker.replay(0))
            vm.await_sent()  # by the next worker; testpmd may drop them, as it starts its directions one by one
            running(vm)
            echoed(vm, frames(300, 6))

        base = vm.stop_ring(1)
        assert base == vm.rings[1].next_available
        assert vm.stop_ring(0) == vm.rings[0].used_index()
        vm.restart_rings()
        running(vm)
        echoed(vm, frames(100, 7))
    wait_until(lambda: testpmd.calls[-1] == "detach", "detached")


def test_two_queue_pairs_on_hugepages(dpdk_broker: BrokerThread, testpmd: TestpmdBackEnd) -> None:
    memory = GuestMemory(size=8 << 20, huge=True)
    with FrontEnd(dpdk_broker.open(), memory=memory, queue_pairs=2) as vm:
        vm.handshake()
        vm.post_rx(pair=0)
        vm.post_rx(pair=1)
        running(vm)
        for pair in (0, 1):
            echoed(vm, frames(64, pair), pair=pair)
        dpdk_broker.do(dpdk_broker.broker.worker_lost, [0])
        dpdk_broker.call(testpmd.kill(0))
        dpdk_broker.call(dpdk_broker.broker.replay(0))
        running(vm)
        for pair in (0, 1):
            echoed(vm, frames(64, pair), pair=pair)


def test_what_rte_vhost_refuses_cuts_the_front_end_off(
    dpdk_broker: BrokerThread, testpmd: TestpmdBackEnd, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire.connect(dpdk_broker.open())
    assert wire.ask(Request.GET_FEATURES).u64
    wire.send(Request.SET_FEATURES, struct.pack("<Q", 1 << 63))
    assert wire.is_closed(10)
    wire.close()
    wait_until(lambda: "the back end refused SET_FEATURES" in caplog.text, "warned")
