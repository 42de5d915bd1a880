"""Sessions through the broker to a back end in Python: order, answers, pauses, records, replays."""

from __future__ import annotations

import errno
import logging
import os
import struct
import time

import pytest
from broker_thread import BrokerThread, wait_until
from fake_back_end import FakeBackEnd

from frontend import Closed, FrontEnd, GuestMemory, Wire, fd_count, listen
from vio4wd.errors import WorkerError
from vio4wd.vhostuser import Options, SessionState, SocketMode
from vio4wd.vhostuser.requests import ProtocolFeature, Request

ALL_STEPS = [
    *("GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "SET_OWNER", "SET_FEATURES"),
    "SET_MEM_TABLE",
    *(f"{name} {ring}" for ring in (0, 1) for name in ("SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR")),
    *(f"{name} {ring}" for ring in (0, 1) for name in ("SET_VRING_CALL", "SET_VRING_KICK", "SET_VRING_ENABLE")),
]


def ready(broker: BrokerThread, rings: tuple[int, ...] = (0, 1)) -> None:
    wait_until(lambda: broker.started() == rings, f"rings {rings} started")


def settled(back: FakeBackEnd, vm: FrontEnd) -> None:
    """All messages are with the back end, and pauses are over."""
    vm.barrier()
    wait_until(lambda: back.log.count("pause") == back.log.count("resume"), "resumed")


def test_handshake_is_passed_in_order(broker: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(broker.open()) as vm:
        sent = [step.split()[0] for step in vm.steps()]
        settled(back, vm)
        view = broker.do(broker.broker.session, 0)
        assert view is not None
        assert view.state is SessionState.RUNNING
        assert (view.features, view.protocol_features) == (vm.features, vm.protocol_features)
        assert (view.rings_started, view.queue_pairs, view.peer_pid) == ((0, 1), 1, os.getpid())
    seen = [name for name in back.log if name in Request.__members__ and name != "GET_FEATURES"]
    assert seen == [name for name in sent if name != "GET_FEATURES"]
    assert dict(zip((m.name for m in back.messages), back.fd_counts, strict=True))["SET_MEM_TABLE"] == 1
    wait_until(lambda: "detach" in back.log, "detached")
    assert broker.changes == [0, 0]
    assert list((broker.directory / "private").iterdir()) == []


@pytest.mark.parametrize("step", ALL_STEPS)
def test_front_end_dies_at_every_step(broker: BrokerThread, back: FakeBackEnd, step: str) -> None:
    path = broker.open()
    idle = fd_count()
    with FrontEnd(path) as vm:
        for done in vm.steps():
            if done == step:
                break
        else:
            pytest.fail(f"no step {step}")
    wait_until(lambda: "detach" in back.log, "detached")
    wait_until(lambda: fd_count() == idle, f"{idle} descriptors")
    with FrontEnd(path) as vm:
        vm.handshake()
        ready(broker)


def test_pause_only_under_running_rings_and_once_a_batch(broker: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(broker.open(), queue_pairs=2) as vm:
        steps = vm.steps()
        for step in steps:
            if step == "SET_VRING_KICK 0":
                break
        vm.barrier()
        assert "pause" not in back.log
        for _ in steps:
            pass
        settled(back, vm)
        assert 1 <= back.log.count("pause") <= 4
        back.log.clear()
        for ring in range(4):
            vm.enable(ring, False)
        wait_until(lambda: back.log[-1:] == ["resume"], "resumed")
        assert back.log == ["pause", *["SET_VRING_ENABLE"] * 4, "GET_FEATURES", "resume"]


def test_stopping_a_ring_answers_its_base_and_then_resumes(broker: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(broker.open()) as vm:
        vm.handshake()
        settled(back, vm)
        back.bases[1] = 77
        back.log.clear()
        assert vm.stop_ring(1) == 77
        assert broker.started() == (0,)
        settled(back, vm)
        assert back.log[:4] == ["pause", "GET_VRING_BASE", "GET_FEATURES", "resume"] or back.log[0:2] == [
            "pause",
            "GET_VRING_BASE",
        ]
        for _ in vm.start_ring(1):
            pass
        ready(broker)


def test_limits_on_answers(broker: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(broker.open()) as vm:
        assert vm.ask_u64(Request.GET_QUEUE_NUM) == Options().max_queue_pairs
        assert vm.ask_u64(Request.GET_MAX_MEM_SLOTS) == Options().max_memory_slots
        assert not vm.ask_u64(Request.GET_PROTOCOL_FEATURES) & ProtocolFeature.PAGEFAULT


def test_acknowledgements(broker: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(broker.open()) as vm:
        vm.handshake()
        assert vm.acknowledged(Request.NET_SET_MTU, struct.pack("<Q", 1500)).u64 == 0
        back.refuse.add(Request.NET_SET_MTU)
        assert vm.acknowledged(Request.NET_SET_MTU, struct.pack("<Q", 9000)).u64 == 1
        view = broker.do(broker.broker.session, 0)
        assert view is not None
        assert view.mtu == 1500


def test_need_reply_without_reply_ack_is_not_answered(broker: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(broker.open(), protocol_features=0) as vm:
        vm.handshake()
        vm.wire.send(Request.NET_SET_MTU, struct.pack("<Q", 1500), flags=9)
        vm.barrier()


def test_unknown_request_passes_with_its_descriptors(broker: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(broker.open()) as vm:
        vm.handshake()
        vm.wire.send(999, b"hello", [0, 1])
        settled(back, vm)
        index = [m.request for m in back.messages].index(999)
        assert back.messages[index].payload == b"hello"
        assert back.fd_counts[index] == 2


def test_refused_request_cuts_the_front_end_off(
    broker: BrokerThread, back: FakeBackEnd, caplog: pytest.LogCaptureFixture
) -> None:
    path = broker.open()
    back.refuse.add(Request.SET_VRING_NUM)
    with FrontEnd(path) as vm:
        for step in vm.steps():
            if step == "SET_VRING_NUM 0":
                break
        assert vm.wire.is_closed()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "relay 0" in warnings[0]
    assert "SET_VRING_NUM" in warnings[0]
    back.refuse.clear()
    with FrontEnd(path) as vm:
        vm.handshake()
        ready(broker)


def lose_worker(broker: BrokerThread, back: FakeBackEnd, *, told_first: bool = True) -> None:
    if told_first:
        broker.do(broker.broker.worker_lost, [0])
        broker.call(back.die())
    else:
        broker.call(back.die())
        time.sleep(1.0)  # a busy machine takes its time to report a death
        broker.do(broker.broker.worker_lost, [0])


def replay(broker: BrokerThread, back: FakeBackEnd) -> None:
    back.dead = False
    back.log.clear()
    back.messages.clear()
    back.fd_counts.clear()
    broker.call(broker.broker.replay(0))


@pytest.mark.parametrize("told_first", [True, False])
def test_replay_restores_the_session(broker: BrokerThread, back: FakeBackEnd, told_first: bool) -> None:
    log_fd = os.memfd_create("log")
    os.ftruncate(log_fd, 8192)
    with FrontEnd(broker.open(), memory=GuestMemory(count=3, offset=4096), queue_pairs=2) as vm:
        vm.handshake()
        vm.wire.ask(Request.SET_LOG_BASE, struct.pack("<QQ", 4096, 4096), [log_fd])
        os.close(log_fd)
        vm.set_u64(Request.NET_SET_MTU, 1500)
        vm.set_u64(Request.SET_STATUS, 15)
        vm.enable(3, False)
        settled(back, vm)
        assert vm.stop_ring(2) == 0
        for ring, used in ((0, 5), (1, 65535), (3, 300)):
            vm.memory.write_u16(vm.rings[ring].used + 2, used)
        settled(back, vm)
        lose_worker(broker, back, told_first=told_first)
        assert not vm.wire.is_closed(0.2)
        replay(broker, back)
        assert back.bases == {0: 5, 1: 65535, 2: 0, 3: 300}
        kicks = [m.u64 for m in back.messages if m.request == Request.SET_VRING_KICK]
        assert kicks == [0, 1, 3]
        enables = [m.payload for m in back.messages if m.request == Request.SET_VRING_ENABLE]
        assert enables == [struct.pack("<II", i, int(i != 3)) for i in range(4)]
        table = next(m for m in back.messages if m.request == Request.SET_MEM_TABLE)
        assert table.payload == vm.memory_table()
        assert {"SET_LOG_BASE", "NET_SET_MTU", "SET_STATUS", "SET_OWNER", "SET_FEATURES"} <= set(back.log)
        assert back.log[-3:] == ["GET_FEATURES", "interrupt", "resume"], "what the dead worker did not tell"
        vm.wire.sock.settimeout(10)
        assert vm.stop_ring(1) == 65535


def test_release_moves_a_running_session(broker: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(broker.open()) as vm:
        vm.handshake()
        settled(back, vm)
        back.bases = {0: 40, 1: 50}
        back.log.clear()
        broker.call(broker.broker.release(0))
        assert back.log == ["pause", "GET_VRING_BASE", "GET_VRING_BASE", "detach"]
        back.bases.clear()
        replay(broker, back)
        assert back.bases == {0: 40, 1: 50}
        assert broker.started() == (0, 1)
        vm.barrier()


def test_a_worker_that_dies_while_it_resumes_a_moved_session(
    broker: BrokerThread, back: FakeBackEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lanes were on before it could say so: where rings stopped in the worker before is out of date."""
    with FrontEnd(broker.open()) as vm:
        vm.handshake()
        settled(back, vm)
        for ring, used in ((0, 40), (1, 50)):
            vm.memory.write_u16(vm.rings[ring].used + 2, used)
        back.bases = {0: 40, 1: 50}
        broker.call(broker.broker.release(0))

        async def resume(relay: int, *, interrupt: bool = False) -> None:
            vm.memory.write_u16(vm.rings[0].used + 2, 45)
            back.dead = True
            raise WorkerError("the worker died")

        with monkeypatch.context() as patch:
            patch.setattr(back, "resume", resume)
            with pytest.raises(WorkerError):
                broker.call(broker.broker.replay(0))
        assert back.bases == {0: 40, 1: 50}
        broker.call(back.die())
        replay(broker, back)
        assert back.bases == {0: 45, 1: 50}


def test_request_in_flight_is_repeated_after_the_replay(broker: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(broker.open()) as vm:
        vm.handshake()
        settled(back, vm)
        vm.memory.write_u16(vm.rings[0].used + 2, 9)
        back.swallow.add(Request.GET_VRING_BASE)
        vm.wire.send(Request.GET_VRING_BASE, struct.pack("<II", 0, 0))
        vm.wire.send(Request.GET_QUEUE_NUM)
        wait_until(lambda: "GET_VRING_BASE" in back.log, "asked")
        lose_worker(broker, back)
        back.swallow.clear()
        replay(broker, back)
        reply = vm.wire.receive()
        assert (reply.request, struct.unpack("<II", reply.payload)) == (Request.GET_VRING_BASE, (0, 9))
        assert vm.wire.receive().request == Request.GET_QUEUE_NUM
        assert vm.ask_u64(Request.GET_FEATURES)
        assert back.log.count("GET_VRING_BASE") == 1


def test_acknowledged_region_in_flight_is_added_once(broker: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(
        broker.open(), protocol_features=ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS
    ) as vm:
        vm.handshake()
        region = vm.memory.add_region(0x9000_0000, 0x7FFF_0000_0000)
        payload = struct.pack("<QQQQQ", 0, region.guest, region.size, region.user, region.offset)
        back.swallow.add(Request.ADD_MEM_REG)
        vm.wire.send(Request.ADD_MEM_REG, payload, [region.fd], flags=9)
        wait_until(lambda: "ADD_MEM_REG" in back.log, "asked")
        lose_worker(broker, back)
        back.swallow.clear()
        replay(broker, back)
        assert vm.wire.receive().u64 == 0
        assert back.log.count("ADD_MEM_REG") == 1
        vm.wire.send(Request.REM_MEM_REG, payload)
        settled(back, vm)
        lose_worker(broker, back)
        replay(broker, back)
        assert "ADD_MEM_REG" not in back.log


def test_front_end_that_comes_without_a_worker_waits(broker: BrokerThread, back: FakeBackEnd) -> None:
    back.dead = True
    broker.do(broker.broker.worker_lost, [0])
    with FrontEnd(broker.open()) as vm:
        vm.wire.send(Request.GET_FEATURES)
        time.sleep(0.7)
        replay(broker, back)
        assert vm.wire.receive().u64 == back.features
        vm.handshake()
        ready(broker)


def test_front_end_leaves_while_the_worker_is_gone(broker: BrokerThread, back: FakeBackEnd) -> None:
    path = broker.open()
    idle = fd_count()
    with FrontEnd(path) as vm:
        vm.handshake()
        ready(broker)
        lose_worker(broker, back)
        vm.wire.send(Request.GET_FEATURES)
    wait_until(lambda: not broker.do(broker.broker.connected, 0), "front end gone")
    assert fd_count() == idle
    replay(broker, back)
    assert back.log == []


def test_worker_dies_again_in_the_replay(broker: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(broker.open()) as vm:
        vm.handshake()
        settled(back, vm)
        lose_worker(broker, back)
        with pytest.raises(WorkerError):
            broker.call(broker.broker.replay(0))  # attach fails: still dead
        broker.do(broker.broker.worker_lost, [0])
        replay(broker, back)
        ready(broker)
        vm.barrier()


def test_lacking_features_end_the_session(
    broker: BrokerThread, back: FakeBackEnd, caplog: pytest.LogCaptureFixture
) -> None:
    with FrontEnd(broker.open()) as vm:
        vm.handshake()
        settled(back, vm)
        lose_worker(broker, back)
        back.features &= ~(1 << 15)
        replay(broker, back)
        assert vm.wire.is_closed()
        wait_until(lambda: "lacks the negotiated features" in caplog.text, "logged")


def test_truncated_memory_ends_the_session(
    broker: BrokerThread, back: FakeBackEnd, caplog: pytest.LogCaptureFixture
) -> None:
    with FrontEnd(broker.open()) as vm:
        vm.handshake()
        settled(back, vm)
        lose_worker(broker, back)
        os.ftruncate(vm.memory.regions[0].fd, 0)
        replay(broker, back)
        assert vm.wire.is_closed()
        wait_until(lambda: "malformed SET_MEM_TABLE: region at guest address" in caplog.text, "logged")


def test_second_front_end_is_refused_and_a_restarted_one_is_not(
    broker: BrokerThread, back: FakeBackEnd, caplog: pytest.LogCaptureFixture
) -> None:
    path = broker.open()
    with FrontEnd(path) as vm:
        vm.handshake()
        second = Wire.connect(path)
        assert second.is_closed()
        second.close()
        assert "second front end" in caplog.text
        vm.barrier()
        waiting = Wire.connect(path)
        vm.close()
        assert waiting.ask(Request.GET_FEATURES).u64 == back.features
        waiting.close()


def test_client_mode_reconnects(broker: BrokerThread, back: FakeBackEnd) -> None:
    path = broker.open(mode=SocketMode.CLIENT)
    time.sleep(0.3)
    offered = []
    for _ in range(3):
        listener = listen(path)
        began = time.monotonic()
        sock, _ = listener.accept()
        assert time.monotonic() - began < 1
        with FrontEnd(sock=sock) as vm:
            vm.handshake()
            offered.append(vm.ask_u64(Request.GET_FEATURES))
            ready(broker)
        listener.close()
        path.unlink()
    assert len(set(offered)) == 1


def test_close_cuts_the_front_end_off(broker: BrokerThread, back: FakeBackEnd) -> None:
    path = broker.open()
    with FrontEnd(path) as vm:
        vm.handshake()
        broker.call(broker.broker.close(0))
        assert vm.wire.is_closed()
    assert not path.exists()
    assert broker.do(broker.broker.path, 0) is None
    with pytest.raises(FileNotFoundError):
        Wire.connect(path)
    with FrontEnd(broker.open()) as vm:
        vm.handshake()


def test_front_end_that_does_not_read_its_answers(back: FakeBackEnd, socket_dir, caplog) -> None:  # type: ignore[no-untyped-def]
    thread = BrokerThread(back, socket_dir, Options(reply_delivery_timeout=0.3))
    try:
        silent = Wire.connect(thread.open(0), timeout=0.3)
        with FrontEnd(thread.open(1)) as other, pytest.raises((TimeoutError, Closed)):
            while True:
                silent.send(Request.GET_FEATURES)
        wait_until(lambda: "does not read" in caplog.text, "cut off")
        with FrontEnd(thread.broker.path(1)) as other:
            other.handshake()
        silent.close()
    finally:
        thread.stop()


@pytest.mark.parametrize("regions", [1, 3])
def test_without_descriptors_left_the_front_end_is_cut_off_in_one_line(
    broker: BrokerThread, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, regions: int
) -> None:
    """They run out in the middle of a memory table; nothing is left open, and another front end is served."""
    path = broker.open()
    duplicate = os.dup
    with FrontEnd(path, memory=GuestMemory(count=regions)) as vm:
        vm.handshake()
        vm.barrier()
        left = [regions - 1]

        def dup(fd: int) -> int:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return duplicate(fd)

        monkeypatch.setattr(os, "dup", dup)
        vm.set_memory()
        assert vm.wire.is_closed()
        monkeypatch.undo()
    wait_until(lambda: "is cut off: [Errno 24] Too many open files" in caplog.text, "logged")
    assert "Traceback" not in caplog.text
    with FrontEnd(path) as vm:
        vm.handshake()
        vm.barrier()
