"""Names and shapes of vhost-user messages, from QEMU's docs/interop/vhost-user.rst."""

from __future__ import annotations

import enum
from dataclasses import dataclass

VERSION = 1
VERSION_MASK = 0x3
FLAG_REPLY = 1 << 2
FLAG_NEED_REPLY = 1 << 3

RING_INDEX_MASK = 0xFF
RING_NO_FD = 1 << 8

MAX_TABLE_REGIONS = 8
"""Memory regions in one SET_MEM_TABLE (the payload has room for eight)."""


class Request(enum.IntEnum):
    """Requests of a front end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class Feature(enum.IntFlag):
    """Virtio and vhost feature bits that the session broker itself looks at."""

    LOG_ALL = 1 << 26
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    IOMMU_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34


class ProtocolFeature(enum.IntFlag):
    """Protocol feature bits."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19


WITHHELD_PROTOCOL_FEATURES = (
    ProtocolFeature.PAGEFAULT | ProtocolFeature.INFLIGHT_SHMFD | ProtocolFeature.XEN_MMAP | ProtocolFeature.DEVICE_STATE
)
"""Never offered to a front end: sessions with these could not be replayed, or would change the shape of messages.

Nobody needs INFLIGHT_SHMFD here, since packets are used in order; and rte_vhost 22.11 believes every number in it.
"""


class Payload(enum.Enum):
    """Kinds of payload, each with the sizes in bytes that are right for it (least, most)."""

    NONE = (0, 0)
    U64 = (8, 8)
    RING_STATE = (8, 8, "index, num")
    RING_FD = (8, 8, "index and no-fd flag")
    RING_ADDRESS = (40, 40)
    MEMORY_TABLE = (8, 8 + 32 * MAX_TABLE_REGIONS)
    MEMORY_REGION = (40, 40, "padding and one region")
    LOG = (16, 16, "size, offset")
    IOTLB = (32, 32)
    CONFIG = (12, 12 + 256)
    UUID = (16, 16)
    ANY = (0, 4096)

    @property
    def least(self) -> int:
        """Smallest payload, in bytes."""
        return int(self.value[0])

    @property
    def most(self) -> int:
        """Largest payload, in bytes."""
        return int(self.value[1])


@dataclass(frozen=True)
class Rule:
    """What is right for one request.

    ``fds`` is the least and most file descriptors; None: the payload says how many. ``reply``: it is always answered.
    ``pause``: it changes rings or memory that a running device may be using. ``recorded``: it is part of the state
    that is replayed into a new worker. ``withheld``: it belongs to a protocol feature that is not offered.
    """

    payload: Payload = Payload.NONE
    fds: tuple[int, int] | None = (0, 0)
    reply: bool = False
    pause: bool = False
    recorded: bool = False
    withheld: bool = False


_SET_RING = Rule(Payload.RING_STATE, pause=True, recorded=True)
_RING_FD = Rule(Payload.RING_FD, None, pause=True, recorded=True)
_SET_U64 = Rule(Payload.U64, recorded=True)
_GET = Rule(reply=True)
_WITHHELD = Rule(withheld=True)

UNKNOWN = Rule(Payload.ANY, (0, 16), pause=True)
"""A request that is not in the table passes through."""

RULES: dict[int, Rule] = {
    Request.GET_FEATURES: _GET,
    Request.SET_FEATURES: Rule(Payload.U64, pause=True, recorded=True),
    Request.SET_OWNER: Rule(recorded=True),
    Request.RESET_OWNER: Rule(pause=True, recorded=True),
    Request.SET_MEM_TABLE: Rule(Payload.MEMORY_TABLE, None, pause=True, recorded=True),
    Request.SET_LOG_BASE: Rule(Payload.LOG, (1, 1), reply=True, pause=True, recorded=True),
    Request.SET_LOG_FD: Rule(fds=(1, 1), recorded=True),
    Request.SET_VRING_NUM: _SET_RING,
    Request.SET_VRING_ADDR: Rule(Payload.RING_ADDRESS, pause=True, recorded=True),
    Request.SET_VRING_BASE: _SET_RING,
    Request.GET_VRING_BASE: Rule(Payload.RING_STATE, reply=True, pause=True, recorded=True),
    Request.SET_VRING_KICK: _RING_FD,
    Request.SET_VRING_CALL: _RING_FD,
    Request.SET_VRING_ERR: _RING_FD,
    Request.GET_PROTOCOL_FEATURES: _GET,
    Request.SET_PROTOCOL_FEATURES: _SET_U64,
    Request.GET_QUEUE_NUM: _GET,
    Request.SET_VRING_ENABLE: _SET_RING,
    Request.SEND_RARP: Rule(Payload.U64),
    Request.NET_SET_MTU: _SET_U64,
    Request.SET_BACKEND_REQ_FD: Rule(fds=(1, 1), recorded=True),
    Request.IOTLB_MSG: Rule(Payload.IOTLB, pause=True),
    Request.SET_VRING_ENDIAN: _SET_RING,
    Request.GET_CONFIG: Rule(Payload.CONFIG, reply=True),
    Request.SET_CONFIG: Rule(Payload.CONFIG),
    Request.CREATE_CRYPTO_SESSION: Rule(Payload.ANY, reply=True),
    Request.CLOSE_CRYPTO_SESSION: Rule(Payload.U64),
    Request.POSTCOPY_ADVISE: _WITHHELD,
    Request.POSTCOPY_LISTEN: _WITHHELD,
    Request.POSTCOPY_END: _WITHHELD,
    Request.GET_INFLIGHT_FD: _WITHHELD,
    Request.SET_INFLIGHT_FD: _WITHHELD,
    Request.GPU_SET_SOCKET: Rule(fds=(1, 1)),
    Request.RESET_DEVICE: Rule(pause=True, recorded=True),
    Request.VRING_KICK: Rule(Payload.RING_STATE),
    Request.GET_MAX_MEM_SLOTS: _GET,
    Request.ADD_MEM_REG: Rule(Payload.MEMORY_REGION, (1, 1), pause=True, recorded=True),
    # The specification asks for no fd, and to accept one for the sake of old front ends.
    Request.REM_MEM_REG: Rule(Payload.MEMORY_REGION, (0, 1), pause=True, recorded=True),
    Request.SET_STATUS: _SET_U64,
    Request.GET_STATUS: _GET,
    Request.GET_SHARED_OBJECT: Rule(Payload.UUID, reply=True),
    Request.SET_DEVICE_STATE_FD: _WITHHELD,
    Request.CHECK_DEVICE_STATE: _WITHHELD,
    Request.GET_SHMEM_CONFIG: _GET,
}


def rule_of(request: int) -> Rule:
    """The rule for a request number; unknown ones have a permissive rule of their own."""
    return RULES.get(request, UNKNOWN)


def name_of(request: int) -> str:
    """The request's name, or ``request 99`` for one that is not known."""
    return Request(request).name if request in RULES else f"request {request}"
