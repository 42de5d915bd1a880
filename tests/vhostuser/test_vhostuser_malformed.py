"""What a broken or hostile front end may send: it is cut off with one clear warning, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import time
import warnings
from collections.abc import Iterator

import pytest
from broker_thread import BrokerThread, wait_until
from fake_back_end import FakeBackEnd

from frontend import Closed, FrontEnd, GuestMemory, Wire, fd_count
from frontend.malformed import CASES, MIB, REGION, STATE, table
from vio4wd.vhostuser.requests import Request


@pytest.fixture
def memory_fd() -> Iterator[int]:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, MIB)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("case", CASES)
def test_malformed_message(
    broker: BrokerThread, back: FakeBackEnd, memory_fd: int, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    send, problem = CASES[case]
    path, other_path = broker.open(7), broker.open(8)
    with FrontEnd(other_path) as other:
        other.handshake()
        other.barrier()
        idle = fd_count()
        wire = Wire.connect(path)
        try:
            assert wire.ask(Request.GET_FEATURES).u64
            send(wire, memory_fd)
            assert wire.is_closed()
        finally:
            wire.close()
        wait_until(lambda: fd_count() == idle, f"{idle} descriptors")
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert warnings[0].startswith("relay 7: front end (pid ")
        assert problem in warnings[0]
        other.barrier()
        assert broker.started(8) == (0, 1)
    with FrontEnd(path) as vm:
        vm.handshake()
        vm.barrier()


def test_memory_that_is_no_file(broker: BrokerThread, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("eventfd", "socket", "/dev/zero", "directory"):
        caplog.clear()
        ends = socket.socketpair()
        fd = {
            "eventfd": lambda: os.eventfd(0),
            "socket": lambda ends=ends: os.dup(ends[0].fileno()),
            "/dev/zero": lambda: os.open("/dev/zero", os.O_RDWR),
            "directory": lambda: os.open("/", os.O_RDONLY),
        }[kind]()
        wire = Wire.connect(broker.broker.path(0) or broker.open())
        wire.send(Request.SET_MEM_TABLE, table(REGION), [fd])
        assert wire.is_closed(), kind
        wait_until(lambda: "SET_MEM_TABLE: region at guest address 0x0" in caplog.text, "warned")
        wire.close()
        os.close(fd)
        for end in ends:
            end.close()


def test_memory_on_a_disk_is_accepted(broker: BrokerThread, socket_dir) -> None:  # type: ignore[no-untyped-def]
    with (socket_dir / "memory").open("w+b") as file, FrontEnd(broker.open()) as vm:
        file.truncate(MIB)
        vm.wire.send(Request.SET_MEM_TABLE, table(REGION), [file.fileno()])
        vm.barrier()


def test_same_regions_are_not_too_many(broker: BrokerThread) -> None:
    with FrontEnd(broker.open(), memory=GuestMemory(size=4 * MIB, count=8)) as vm:
        vm.handshake()
        vm.set_memory()
        vm.barrier()


def test_half_a_message_holds_up_nobody(broker: BrokerThread, back: FakeBackEnd) -> None:
    path, other_path = broker.open(0), broker.open(1)
    half = Wire.connect(path)
    half.send_raw(struct.pack("<II", 1, 1))
    with FrontEnd(other_path) as other:
        other.handshake()
        other.barrier()
    time.sleep(0.1)
    assert broker.do(broker.broker.connected, 0)
    half.send_raw(struct.pack("<I", 0))
    assert half.receive().u64 == back.features
    half.close()


def test_half_a_message_under_a_pause_does_not_keep_it(broker: BrokerThread, back: FakeBackEnd) -> None:
    with FrontEnd(broker.open()) as vm:
        vm.handshake()
        vm.barrier()
        vm.wire.send_raw(struct.pack("<III", Request.SET_VRING_ENABLE, 1, 8) + STATE.pack(0, 0) + b"\x12\x00\x00")
        wait_until(lambda: back.log[-1] == "resume", "resumed")


def test_descriptors_of_an_unfinished_message_are_closed(
    broker: BrokerThread, back: FakeBackEnd, memory_fd: int
) -> None:
    path = broker.open()
    idle = fd_count()
    wire = Wire.connect(path)
    wire.send_raw(struct.pack("<III", Request.SET_MEM_TABLE, 1, 40), [memory_fd] * 8)
    wait_until(lambda: "attach" in back.log, "attached")
    time.sleep(0.05)
    wire.close()
    wait_until(lambda: fd_count() == idle, f"{idle} descriptors")


def test_flood_of_requests_starves_nobody(broker: BrokerThread, back: FakeBackEnd) -> None:
    path, other_path = broker.open(0), broker.open(1)
    flood = Wire.connect(path, timeout=0.01)
    message = struct.pack("<III", Request.SET_OWNER, 1, 0) * 4096
    with FrontEnd(other_path) as other:
        other.handshake()
        deadline = time.monotonic() + 1
        slowest = 0.0
        while time.monotonic() < deadline:
            try:
                flood.sock.send(message)
            except TimeoutError:
                pass
            except (BrokenPipeError, ConnectionResetError) as error:
                raise Closed("the flood was cut off") from error
            began = time.monotonic()
            other.barrier()
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 0.5
    flood.close()


@pytest.mark.parametrize("turns", range(6))
def test_a_connection_that_comes_as_the_socket_goes_is_closed(broker: BrokerThread, turns: int) -> None:
    """At whatever turn of the broker's loop: before it is accepted, in between, before its session has begun."""
    path = broker.open(0)

    async def come() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            for _ in range(turns):
                await asyncio.sleep(0)
            await broker.broker.close(0)
            with contextlib.suppress(ConnectionResetError):  # it was still to be accepted
                assert sock.recv(1, socket.MSG_DONTWAIT) == b""

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        broker.call(come())
    assert not [str(warning.message) for warning in said]


def test_many_connections_hold_up_nobody(broker: BrokerThread) -> None:
    path, other_path = broker.open(0), broker.open(1)
    socks = []
    with FrontEnd(path) as vm:
        vm.handshake()
        for _ in range(20):
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            socks.append(sock)
            try:
                sock.connect(str(path))
            except BlockingIOError:
                break
        with FrontEnd(other_path) as other:
            other.handshake()
            other.barrier()
        vm.barrier()
    for sock in socks:
        sock.close()
