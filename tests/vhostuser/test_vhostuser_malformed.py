"""What a broken or hostile front end may send: it is cut off with one clear warning, and nobody else notices."""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from broker_thread import BrokerThread, wait_until
from fake_back_end import FakeBackEnd

from frontend import Closed, FrontEnd, GuestMemory, Wire, fd_count
from vio4wd.vhostuser import Options
from vio4wd.vhostuser.requests import FLAG_REPLY, Request

U64 = struct.Struct("<Q")
STATE = struct.Struct("<II")
MIB = 1 << 20
MAX_RINGS = Options().max_rings


def table(*regions: tuple[int, int, int, int], count: int | None = None) -> bytes:
    """SET_MEM_TABLE of (guest, size, user, offset)."""
    head = struct.pack("<II", len(regions) if count is None else count, 0)
    return head + b"".join(struct.pack("<QQQQ", *region) for region in regions)


Send = Callable[[Wire, int], None]


def sends(request: int, payload: bytes = b"", fds: int = 0, flags: int = 1) -> Send:
    """Send one message with ``fds`` descriptors of a file of 1 MiB."""
    return lambda wire, fd: wire.send(request, payload, [fd] * fds, flags)


def raw(data: bytes) -> Send:
    return lambda wire, fd: wire.send_raw(data)


REGION = (0, MIB, 1 << 40, 0)
CASES: dict[str, tuple[Send, str]] = {
    "version 0": (sends(1, flags=0), "GET_FEATURES: protocol version 0"),
    "version 2": (sends(1, flags=2), "GET_FEATURES: protocol version 2"),
    "reply flag": (sends(1, flags=1 | FLAG_REPLY), "GET_FEATURES: the reply flag"),
    "payload where none belongs": (
        sends(Request.GET_FEATURES, bytes(8)),
        "GET_FEATURES: payload of 8 bytes, must be 0",
    ),
    "no payload": (sends(Request.SET_FEATURES), "SET_FEATURES: payload of 0 bytes, must be 8"),
    "short payload": (sends(Request.SET_VRING_ADDR, bytes(39)), "SET_VRING_ADDR: payload of 39 bytes, must be 40"),
    "long payload": (sends(Request.SET_VRING_NUM, bytes(9)), "SET_VRING_NUM: payload of 9 bytes, must be 8"),
    "4 GiB payload": (raw(struct.pack("<III", 1, 1, 0xFFFFFFFF)), "GET_FEATURES: payload of 4294967295 bytes"),
    "4 GiB payload, unknown request": (
        raw(struct.pack("<III", 77, 1, 0xFFFFFFFF)),
        "request 77: payload of 4294967295",
    ),
    "garbage": (raw(b"GET / HTTP/1.1\r\n\r\n"), "request 542393671"),
    "zeros": (raw(bytes(64)), "request 0: protocol version 0"),
    "ring number of NUM": (
        sends(Request.SET_VRING_NUM, STATE.pack(MAX_RINGS, 256)),
        f"ring {MAX_RINGS}, must be below",
    ),
    "ring number of BASE": (
        sends(Request.SET_VRING_BASE, STATE.pack(0xFFFFFFFF, 0)),
        "SET_VRING_BASE: ring 4294967295",
    ),
    "ring number of GET_BASE": (sends(Request.GET_VRING_BASE, STATE.pack(200, 0)), "GET_VRING_BASE: ring 200"),
    "ring number of ENABLE": (sends(Request.SET_VRING_ENABLE, STATE.pack(99, 1)), "SET_VRING_ENABLE: ring 99"),
    "ring number of ADDR": (sends(Request.SET_VRING_ADDR, bytes([99]) + bytes(39)), "SET_VRING_ADDR: ring 99"),
    "ring number of KICK": (sends(Request.SET_VRING_KICK, U64.pack(255), 1), "SET_VRING_KICK: ring 255"),
    "ring of no entries": (sends(Request.SET_VRING_NUM, STATE.pack(0, 0)), "SET_VRING_NUM: 0 entries"),
    "ring too large": (sends(Request.SET_VRING_NUM, STATE.pack(0, 32769)), "SET_VRING_NUM: 32769 entries"),
    "kick without fd": (sends(Request.SET_VRING_KICK, U64.pack(0)), "SET_VRING_KICK: 0 file descriptors, must be 1"),
    "kick with two fds": (
        sends(Request.SET_VRING_KICK, U64.pack(0), 2),
        "SET_VRING_KICK: 2 file descriptors, must be 1",
    ),
    "call with no-fd flag and fd": (sends(Request.SET_VRING_CALL, U64.pack(256), 1), "1 file descriptors, must be 0"),
    "fd where none belongs": (sends(Request.GET_FEATURES, b"", 1), "GET_FEATURES: 1 file descriptors, must be 0"),
    "16 fds": (sends(Request.SET_FEATURES, U64.pack(0), 16), "SET_FEATURES: 16 file descriptors, must be 0"),
    "100 fds": (sends(Request.SET_FEATURES, U64.pack(0), 100), "a message with more than 16 file descriptors"),
    "log without fd": (sends(Request.SET_LOG_BASE, struct.pack("<QQ", 4096, 0)), "SET_LOG_BASE: 0 file descriptors"),
    "log outside its file": (
        sends(Request.SET_LOG_BASE, struct.pack("<QQ", MIB, 1), 1),
        "SET_LOG_BASE: area: bytes 0x1",
    ),
    "backend channel without fd": (sends(Request.SET_BACKEND_REQ_FD), "SET_BACKEND_REQ_FD: 0 file descriptors"),
    "nine regions": (sends(Request.SET_MEM_TABLE, table(*[REGION] * 8, count=9), 9), "9 regions, must be at most 8"),
    "no fd for a region": (sends(Request.SET_MEM_TABLE, table(REGION)), "SET_MEM_TABLE: 0 file descriptors, must be 1"),
    "more fds than regions": (sends(Request.SET_MEM_TABLE, table(REGION), 2), "2 file descriptors, must be 1"),
    "table shorter than its count": (sends(Request.SET_MEM_TABLE, table(REGION, count=2), 2), "40 bytes for 2 regions"),
    "region beyond its file": (sends(Request.SET_MEM_TABLE, table((0, MIB + 1, 0, 0)), 1), "are outside of its file"),
    "offset beyond its file": (sends(Request.SET_MEM_TABLE, table((0, MIB, 0, 1)), 1), "are outside of its file"),
    "offset that overflows": (sends(Request.SET_MEM_TABLE, table((0, MIB, 0, 2**64 - MIB)), 1), "outside of its file"),
    "empty region": (sends(Request.SET_MEM_TABLE, table((0, 0, 0, 0)), 1), "is empty"),
    "region that wraps": (sends(Request.SET_MEM_TABLE, table((2**64 - 4096, MIB, 0, 0)), 1), "wraps around"),
    "user address that wraps": (sends(Request.SET_MEM_TABLE, table((0, MIB, 2**64 - 1, 0)), 1), "wraps around"),
    "guest addresses overlap": (
        sends(Request.SET_MEM_TABLE, table((0, MIB, 0, 0), (MIB - 1, 4096, 1 << 40, 0)), 2),
        "regions at guest addresses 0x0 and 0xfffff overlap",
    ),
    "user addresses overlap": (
        sends(Request.SET_MEM_TABLE, table((0, MIB, 0, 0), (1 << 40, 4096, 4096, 0)), 2),
        "regions at user addresses 0x0 and 0x1000 overlap",
    ),
    "added region beyond its file": (
        sends(Request.ADD_MEM_REG, bytes(8) + struct.pack("<QQQQ", 0, 2 * MIB, 0, 0), 1),
        "ADD_MEM_REG: region at guest address 0x0",
    ),
    "unknown region removed": (
        sends(Request.REM_MEM_REG, bytes(8) + struct.pack("<QQQQ", 0, 2 * MIB, 0, 0)),
        "REM_MEM_REG: there is no region",
    ),
    "withheld protocol features": (sends(Request.SET_PROTOCOL_FEATURES, U64.pack(1 << 8)), "were not offered"),
}


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
