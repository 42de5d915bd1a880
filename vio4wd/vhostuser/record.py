"""The record of one vhost-user session: all that a new back end must be told to take it over."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from vio4wd.errors import ProtocolError
from vio4wd.vhostuser import codec
from vio4wd.vhostuser.codec import Message, Region
from vio4wd.vhostuser.requests import (
    MAX_TABLE_REGIONS,
    RING_INDEX_MASK,
    RING_NO_FD,
    WITHHELD_PROTOCOL_FEATURES,
    Feature,
    ProtocolFeature,
    Request,
    rule_of,
)

RingBase = Callable[[int], int]
"""Gives the index (as in SET_VRING_BASE) at which a ring that was running is to go on."""

_RING_FDS = (Request.SET_VRING_CALL, Request.SET_VRING_ERR, Request.SET_VRING_KICK)


@dataclass
class Ring:
    """What the front end said of one ring; each fd is the record's own, -1 stands for "none, poll instead"."""

    size: int | None = None
    base: int = 0
    address: codec.RingAddress | None = None
    address_payload: bytes = b""
    enabled: int | None = None
    endian: int | None = None
    fds: dict[Request, int] = field(default_factory=dict)

    @property
    def started(self) -> bool:
        """A kick was set and the ring was not stopped since."""
        return Request.SET_VRING_KICK in self.fds

    def set_fd(self, request: Request, fd: int | None) -> None:
        """Replace one of the ring's descriptors by ``fd`` (now the record's), -1, or nothing (None)."""
        old = self.fds.pop(request, -1)
        if old >= 0:
            os.close(old)
        if fd is not None:
            self.fds[request] = fd


class SessionRecord:
    """A session as the front end has set it. Keeps duplicates of the descriptors that it needs; ``close`` ends them."""

    def __init__(self, max_regions: int = MAX_TABLE_REGIONS) -> None:
        self.max_regions = max_regions
        self.owned = False
        self.features: int | None = None
        self.protocol_features: int | None = None
        self.regions: list[tuple[Region, int]] = []
        self.rings: dict[int, Ring] = {}
        self._has_table = False
        # Messages that are replayed as they came, by request, with descriptors of our own.
        self._verbatim: dict[int, Message] = {}

    @property
    def packed(self) -> bool:
        """Packed rings were negotiated."""
        return bool((self.features or 0) & Feature.RING_PACKED)

    @property
    def reply_ack(self) -> bool:
        """REPLY_ACK was negotiated."""
        return bool((self.protocol_features or 0) & ProtocolFeature.REPLY_ACK)

    @property
    def started_rings(self) -> list[int]:
        """Numbers of the rings that a device may be using, ascending."""
        return sorted(index for index, ring in self.rings.items() if ring.started)

    @property
    def mtu(self) -> int | None:
        """The MTU that the front end set, in bytes, None if it set none."""
        message = self._verbatim.get(Request.NET_SET_MTU)
        return message.u64 if message else None

    @property
    def status(self) -> int | None:
        """The virtio device status that the front end set last, None if it set none."""
        message = self._verbatim.get(Request.SET_STATUS)
        return message.u64 if message else None

    def check(self, message: Message) -> None:
        """Refuse what does not fit the session so far.

        Raises:
            ProtocolError: regions that overlap, are unknown or too many.
        """
        if message.request == Request.SET_PROTOCOL_FEATURES and message.u64 & WITHHELD_PROTOCOL_FEATURES:
            raise ProtocolError(f"{message.name}: {message.u64:#x} has features that were not offered")
        if message.request == Request.ADD_MEM_REG:
            if len(self.regions) >= self.max_regions:
                raise ProtocolError(
                    f"{message.name}: there are {self.max_regions} regions already, no more are possible"
                )
            codec.check_overlap(message.name, [*(region for region, _ in self.regions), *codec.regions_of(message)])
        elif message.request == Request.REM_MEM_REG and self._find(codec.regions_of(message)[0]) is None:
            raise ProtocolError(
                f"{message.name}: there is no region at {codec.regions_of(message)[0].guest:#x} of this size"
            )

    def apply(self, message: Message, reply: Message | None = None) -> None:
        """Take over what a request changed: duplicates descriptors that are kept, closes those that it replaces.

        ``reply`` is the back end's answer where the request has one.
        """
        if not rule_of(message.request).recorded:
            return
        ring_index = codec.ring_index(message)
        if ring_index is not None:
            self._apply_ring(message, self.rings.setdefault(ring_index, Ring()), reply)
            return
        match message.request:
            case Request.SET_OWNER:
                self.owned = True
            case Request.SET_FEATURES:
                self.features = message.u64
            case Request.SET_PROTOCOL_FEATURES:
                self.protocol_features = message.u64
            case Request.SET_MEM_TABLE:
                self._set_table(message)
            case Request.ADD_MEM_REG:
                self.regions.append((codec.regions_of(message)[0], os.dup(message.fds[0])))
            case Request.REM_MEM_REG:
                self._remove_region(codec.regions_of(message)[0])
            case Request.RESET_OWNER | Request.RESET_DEVICE:
                self._reset(keep_memory=message.request == Request.RESET_DEVICE)
            case _:
                self._keep(message)

    def replay(self, base_of: RingBase) -> Iterator[Message]:
        """The messages that bring a new back end to this state, in order; their descriptors stay the record's.

        Features are to be checked against what the new back end offers before. ``base_of`` is asked for each ring that
        was running.
        """
        if self.owned:
            yield Message(Request.SET_OWNER)
        if self.protocol_features is not None:
            yield codec.u64_message(Request.SET_PROTOCOL_FEATURES, self.protocol_features)
        yield from self._kept(Request.SET_BACKEND_REQ_FD)
        if self.features is not None:
            yield codec.u64_message(Request.SET_FEATURES, self.features)
        yield from self._kept(Request.NET_SET_MTU)
        yield from self._replay_memory()
        yield from self._kept(Request.SET_LOG_BASE)
        yield from self._kept(Request.SET_LOG_FD)
        for index, ring in sorted(self.rings.items()):
            yield from _replay_ring(index, ring, base_of)
        for index, ring in sorted(self.rings.items()):
            if ring.enabled is not None:
                yield codec.ring_message(Request.SET_VRING_ENABLE, index, ring.enabled)
        yield from self._kept(Request.SET_STATUS)

    def close(self) -> None:
        """Forget everything and close the record's descriptors."""
        self._reset(keep_memory=False)
        for message in self._verbatim.values():
            message.close()
        self._verbatim.clear()
        self.protocol_features = None
        self.owned = False

    def _apply_ring(self, message: Message, ring: Ring, reply: Message | None) -> None:
        match message.request:
            case Request.SET_VRING_NUM:
                ring.size = codec.ring_state(message)[1]
            case Request.SET_VRING_BASE:
                ring.base = codec.ring_state(message)[1]
            case Request.SET_VRING_ENABLE:
                ring.enabled = codec.ring_state(message)[1]
            case Request.SET_VRING_ENDIAN:
                ring.endian = codec.ring_state(message)[1]
            case Request.SET_VRING_ADDR:
                ring.address = codec.ring_address(message)
                ring.address_payload = message.payload
            case Request.GET_VRING_BASE:
                if reply is not None and len(reply.payload) == codec.RING_STATE.size:
                    ring.base = codec.ring_state(reply)[1]
                ring.set_fd(Request.SET_VRING_KICK, None)
            case _:
                ring.set_fd(Request(message.request), os.dup(message.fds[0]) if message.fds else -1)

    def _set_table(self, message: Message) -> None:
        fds = _duplicates(message.fds)
        codec.close_fds(fd for _, fd in self.regions)
        self.regions = list(zip(codec.regions_of(message), fds, strict=True))
        self._has_table = True

    def _find(self, wanted: Region) -> int | None:
        for i, (region, _) in enumerate(self.regions):
            if (region.guest, region.user, region.size) == (wanted.guest, wanted.user, wanted.size):
                return i
        return None

    def _remove_region(self, wanted: Region) -> None:
        index = self._find(wanted)
        if index is not None:
            os.close(self.regions.pop(index)[1])

    def _reset(self, *, keep_memory: bool) -> None:
        for ring in self.rings.values():
            for request in list(ring.fds):
                ring.set_fd(request, None)
        self.rings.clear()
        self.features = None
        if not keep_memory:
            codec.close_fds(fd for _, fd in self.regions)
            self.regions = []
            self._has_table = False

    def _keep(self, message: Message) -> None:
        kept = Message(message.request, message.payload, _duplicates(message.fds))
        old = self._verbatim.pop(message.request, None)
        if old is not None:
            old.close()
        self._verbatim[message.request] = kept

    def _kept(self, request: Request) -> Iterator[Message]:
        if request in self._verbatim:
            yield self._verbatim[request]

    def _replay_memory(self) -> Iterator[Message]:
        in_table = self.regions[:MAX_TABLE_REGIONS] if self._has_table else []
        if in_table:
            yield codec.table_message([region for region, _ in in_table], [fd for _, fd in in_table])
        for region, fd in self.regions[len(in_table) :]:
            yield codec.region_message(Request.ADD_MEM_REG, region, [fd])


def _duplicates(fds: Sequence[int]) -> tuple[int, ...]:
    """Duplicates of descriptors: of all or, with an OSError, of none."""
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))
    except OSError:
        codec.close_fds(made)
        raise
    return tuple(made)


def _replay_ring(index: int, ring: Ring, base_of: RingBase) -> Iterator[Message]:
    if ring.size is not None:
        yield codec.ring_message(Request.SET_VRING_NUM, index, ring.size)
    if ring.endian is not None:
        yield codec.ring_message(Request.SET_VRING_ENDIAN, index, ring.endian)
    yield codec.ring_message(Request.SET_VRING_BASE, index, base_of(index) if ring.started else ring.base)
    if ring.address is not None:
        yield Message(Request.SET_VRING_ADDR, ring.address_payload)
    for request in _RING_FDS:
        fd = ring.fds.get(request)
        if fd is not None:
            assert index <= RING_INDEX_MASK
            yield codec.u64_message(request, index | (RING_NO_FD if fd < 0 else 0), [fd] if fd >= 0 else [])
