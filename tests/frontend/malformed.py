"""Messages that no front end should send, each with what the broker's warning says of it."""

from __future__ import annotations

import struct
from collections.abc import Callable

from frontend.wire import Wire
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
    "kick that is no eventfd": (
        sends(Request.SET_VRING_KICK, U64.pack(0), 1),
        "SET_VRING_KICK: its file descriptor must",
    ),
    "call that is no eventfd": (
        sends(Request.SET_VRING_CALL, U64.pack(1), 1),
        "SET_VRING_CALL: its file descriptor must",
    ),
    "error that is no eventfd": (
        sends(Request.SET_VRING_ERR, U64.pack(0), 1),
        "SET_VRING_ERR: its file descriptor must",
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
    "inflight area that is not there": (
        sends(Request.SET_INFLIGHT_FD, struct.pack("<QQHHI", 4096, 0, 64, 65535, 0), 1),
        "SET_INFLIGHT_FD: it needs a protocol feature that was not offered",
    ),
    "inflight area of 4 GB": (
        sends(Request.GET_INFLIGHT_FD, struct.pack("<QQHHI", 0, 0, 65535, 65535, 0)),
        "GET_INFLIGHT_FD: it needs",
    ),
    "postcopy that was not offered": (sends(Request.POSTCOPY_ADVISE), "POSTCOPY_ADVISE: it needs"),
    "inflight areas as a feature": (sends(Request.SET_PROTOCOL_FEATURES, U64.pack(1 << 12)), "were not offered"),
    "withheld protocol features": (sends(Request.SET_PROTOCOL_FEATURES, U64.pack(1 << 8)), "were not offered"),
}
