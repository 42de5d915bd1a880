"""vhost-user messages as values: reading, writing, and the checks that need nothing but the message."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vio4wd.errors import ProtocolError
from vio4wd.vhostuser.requests import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    MAX_TABLE_REGIONS,
    RING_INDEX_MASK,
    RING_NO_FD,
    VERSION,
    VERSION_MASK,
    Payload,
    Request,
    name_of,
    rule_of,
)

HEADER = struct.Struct("<III")
MAX_PAYLOAD_BYTES = 4096
MAX_FDS = 16
MAX_RING_SIZE = 32768
U64 = struct.Struct("<Q")
RING_STATE = struct.Struct("<II")
_RING_ADDRESS = struct.Struct("<IIQQQQ")
_TABLE_HEAD = struct.Struct("<II")
_REGION = struct.Struct("<QQQQ")
_SINGLE_REGION = struct.Struct("<QQQQQ")
_PAIR = struct.Struct("<QQ")
_U64_END = 1 << 64
_EVENTFD = "anon_inode:[eventfd]"


@dataclass(frozen=True)
class Message:
    """One vhost-user message. Whoever holds it owns ``fds`` and closes them with ``close``."""

    request: int
    payload: bytes = b""
    fds: tuple[int, ...] = ()
    flags: int = VERSION

    @property
    def name(self) -> str:
        """Name of the request."""
        return name_of(self.request)

    @property
    def u64(self) -> int:
        """The payload's first 64 bits."""
        (value,) = U64.unpack_from(self.payload)
        return int(value)

    def encode(self) -> bytes:
        """Header and payload as they go over the socket."""
        return HEADER.pack(self.request, self.flags, len(self.payload)) + self.payload

    def close(self) -> None:
        """Close the file descriptors."""
        close_fds(self.fds)


@dataclass(frozen=True)
class Region:
    """One region of guest memory: guest and front end's user address, size and offset in its file, in bytes."""

    guest: int
    size: int
    user: int
    offset: int

    def encode(self) -> bytes:
        """The region as it is in SET_MEM_TABLE."""
        return _REGION.pack(self.guest, self.size, self.user, self.offset)


@dataclass(frozen=True)
class RingAddress:
    """SET_VRING_ADDR: user addresses of descriptor table, used and available ring; ``log`` is a guest address."""

    index: int
    flags: int
    descriptors: int
    used: int
    available: int
    log: int


def close_fds(fds: Iterable[int]) -> None:
    """Close file descriptors that the caller owns."""
    for fd in fds:
        os.close(fd)


def u64_message(request: Request, value: int, fds: Sequence[int] = ()) -> Message:
    """A request with one 64-bit number."""
    return Message(request, U64.pack(value), tuple(fds))


def ring_message(request: Request, index: int, value: int) -> Message:
    """A request with a ring's index and a 32-bit number."""
    return Message(request, RING_STATE.pack(index, value))


def table_message(regions: Sequence[Region], fds: Sequence[int]) -> Message:
    """SET_MEM_TABLE for up to eight regions, one fd each."""
    head = _TABLE_HEAD.pack(len(regions), 0)
    return Message(Request.SET_MEM_TABLE, head + b"".join(region.encode() for region in regions), tuple(fds))


def region_message(request: Request, region: Region, fds: Sequence[int] = ()) -> Message:
    """ADD_MEM_REG or REM_MEM_REG."""
    return Message(request, U64.pack(0) + region.encode(), tuple(fds))


def ring_state(message: Message) -> tuple[int, int]:
    """Index and number of a ring request."""
    index, number = RING_STATE.unpack_from(message.payload)
    return int(index), int(number)


def ring_address(message: Message) -> RingAddress:
    """The payload of SET_VRING_ADDR."""
    return RingAddress(*_RING_ADDRESS.unpack_from(message.payload))


def ring_index(message: Message) -> int | None:
    """The ring that a message is about, None for messages about no ring."""
    kind = rule_of(message.request).payload
    if kind is Payload.RING_FD:
        return message.u64 & RING_INDEX_MASK
    if kind in (Payload.RING_STATE, Payload.RING_ADDRESS):
        return int.from_bytes(message.payload[:4], "little")
    return None


def regions_of(message: Message) -> list[Region]:
    """The regions of SET_MEM_TABLE, ADD_MEM_REG or REM_MEM_REG."""
    if rule_of(message.request).payload is Payload.MEMORY_REGION:
        return [Region(*_SINGLE_REGION.unpack_from(message.payload)[1:])]
    count, _ = _TABLE_HEAD.unpack_from(message.payload)
    return [Region(*_REGION.unpack_from(message.payload, 8 + 32 * i)) for i in range(count)]


def check_header(request: int, flags: int, size: int) -> None:
    """Refuse a front end's header before its payload is read.

    Raises:
        ProtocolError: wrong version, a reply, a request that nobody offered, or a size that is not right for it.
    """
    if flags & VERSION_MASK != VERSION:
        raise ProtocolError(f"{name_of(request)}: protocol version {flags & VERSION_MASK}, must be {VERSION}")
    if flags & FLAG_REPLY:
        raise ProtocolError(f"{name_of(request)}: the reply flag is set in a request")
    rule = rule_of(request)
    if rule.withheld:
        raise ProtocolError(f"{name_of(request)}: it needs a protocol feature that was not offered")
    kind = rule.payload
    if not kind.least <= size <= kind.most:
        right = str(kind.least) if kind.least == kind.most else f"{kind.least} to {kind.most}"
        raise ProtocolError(f"{name_of(request)}: payload of {size} bytes, must be {right}")


def check(message: Message, max_rings: int) -> None:
    """Check a front end's message for everything that can be told without the session's state.

    Raises:
        ProtocolError: naming the request, what is wrong and what would be right.
    """
    check_header(message.request, message.flags, len(message.payload))
    ring = ring_index(message)
    if ring is not None and ring >= max_rings:
        raise ProtocolError(f"{message.name}: ring {ring}, must be below {max_rings}")
    _check_fd_count(message)
    match message.request:
        case Request.SET_MEM_TABLE:
            _check_table_size(message)
            regions = regions_of(message)
            check_overlap(message.name, regions)
            for region, fd in zip(regions, message.fds, strict=True):
                _check_region(message.name, region, fd)
        case Request.ADD_MEM_REG:
            _check_region(message.name, regions_of(message)[0], message.fds[0])
        case Request.SET_LOG_BASE:
            size, offset = _PAIR.unpack_from(message.payload)
            _check_inside(f"{message.name}: area", offset, size, message.fds[0])
        case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
            for fd in message.fds:
                _check_eventfd(message.name, fd)
        case Request.SET_VRING_NUM:
            _, size = ring_state(message)
            if not 1 <= size <= MAX_RING_SIZE:
                raise ProtocolError(f"{message.name}: {size} entries, must be 1 to {MAX_RING_SIZE}")


def check_overlap(name: str, regions: Sequence[Region]) -> None:
    """Refuse regions that share guest or user addresses.

    Raises:
        ProtocolError: naming two regions that overlap.
    """
    for space in ("guest", "user"):
        ordered = sorted(regions, key=lambda region: int(getattr(region, space)))
        for low, high in zip(ordered, ordered[1:], strict=False):
            if getattr(low, space) + low.size > getattr(high, space):
                starts = f"{getattr(low, space):#x} and {getattr(high, space):#x}"
                raise ProtocolError(f"{name}: regions at {space} addresses {starts} overlap")


def _check_fd_count(message: Message) -> None:
    rule = rule_of(message.request)
    if rule.fds is not None:
        least, most = rule.fds
    elif rule.payload is Payload.RING_FD:
        least = most = 0 if message.u64 & RING_NO_FD else 1
    else:
        least = most = _TABLE_HEAD.unpack_from(message.payload)[0]
    if not least <= len(message.fds) <= most:
        right = str(least) if least == most else f"{least} to {most}"
        raise ProtocolError(f"{message.name}: {len(message.fds)} file descriptors, must be {right}")


def _check_table_size(message: Message) -> None:
    count, _ = _TABLE_HEAD.unpack_from(message.payload)
    if count > MAX_TABLE_REGIONS:
        raise ProtocolError(f"{message.name}: {count} regions, must be at most {MAX_TABLE_REGIONS}")
    # Some front ends always send the whole table.
    if len(message.payload) not in (8 + 32 * count, Payload.MEMORY_TABLE.most):
        raise ProtocolError(f"{message.name}: payload of {len(message.payload)} bytes for {count} regions")


def _check_region(name: str, region: Region, fd: int) -> None:
    if region.size == 0:
        raise ProtocolError(f"{name}: region at guest address {region.guest:#x} is empty")
    for space, start in (("guest", region.guest), ("user", region.user)):
        if start + region.size > _U64_END:
            raise ProtocolError(f"{name}: region at {space} address {start:#x} of {region.size:#x} bytes wraps around")
    _check_inside(f"{name}: region at guest address {region.guest:#x}", region.offset, region.size, fd)


def _check_inside(what: str, offset: int, size: int, fd: int) -> None:
    if not _answers_at_once(fd):
        raise ProtocolError(f"{what}: its file must be a memfd or on tmpfs, hugetlbfs or a local disk")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ProtocolError(f"{what}: its file descriptor is no file that holds memory")
    if offset + size > status.st_size:
        raise ProtocolError(
            f"{what}: bytes {offset:#x} to {offset + size:#x} are outside of its file of {status.st_size:#x} bytes"
        )


def _check_eventfd(name: str, fd: int) -> None:
    # Anything else (a pipe, a terminal) can hold up whoever writes to it, which is an lcore.
    if str(Path(f"/proc/self/fd/{fd}").readlink()) != _EVENTFD:
        raise ProtocolError(f"{name}: its file descriptor must be an eventfd")


def _answers_at_once(fd: int) -> bool:
    """Whether no file system that the front end itself may serve (FUSE) can hold up file operations on ``fd``."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        if error.errno != errno.EINVAL:
            return False
    else:
        return True  # only files in memory (memfd, tmpfs, hugetlbfs) have seals
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines() if ":" in line
    )
    mount_id = fields["mnt_id"].strip()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[0] == mount_id:
            kind = words[words.index("-") + 1]
            return not kind.startswith(("fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs", "virtiofs"))
    return False


def without_need_reply(message: Message) -> Message:
    """The message with the need_reply flag cleared; the file descriptors are shared with the original."""
    return Message(message.request, message.payload, message.fds, message.flags & ~FLAG_NEED_REPLY)
