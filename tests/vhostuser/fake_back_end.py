"""A vhost-user back end in Python that moves no packets: it answers, notes what it sees, refuses or dies on request."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from vio4wd.errors import WorkerError
from vio4wd.relay.direct.ring_record import SavedPosition
from vio4wd.vhostuser import codec
from vio4wd.vhostuser.channel import Channel, PeerClosed
from vio4wd.vhostuser.codec import Message
from vio4wd.vhostuser.requests import FLAG_NEED_REPLY, FLAG_REPLY, Feature, ProtocolFeature, Request, rule_of

FEATURES = (
    Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.LOG_ALL | Feature.RING_PACKED | 1 << 15 | 1 << 28 | 1 << 29
)
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.NET_MTU
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.PAGEFAULT
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)


class FakeBackEnd:
    """Implements ``BackEnd``. ``log`` has an entry for each message (its name) and each pause, resume, attach, detach.

    ``refuse``: requests that close the connection (or are acknowledged with 1). ``swallow``: those never answered.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.messages: list[Message] = []
        self.fd_counts: list[int] = []
        self.refuse: set[int] = set()
        self.swallow: set[int] = set()
        self.saved: dict[int, int] = {}
        self.dead = False
        self.features = int(FEATURES)
        self.on_message: Callable[[Message], None] | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.bases: dict[int, int] = {}

    async def attach(self, relay: int, path: Path) -> None:
        if self.dead:
            raise WorkerError("the worker is dead")
        self.log.append("attach")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect(str(path))
        self._tasks[relay] = asyncio.create_task(self._serve(Channel(sock)))

    async def detach(self, relay: int, path: Path) -> None:
        if self.dead:
            raise WorkerError("the worker is dead")
        self.log.append("detach")

    async def pause(self, relay: int) -> None:
        if self.dead:
            raise WorkerError("the worker is dead")
        self.log.append("pause")

    async def resume(self, relay: int, *, interrupt: bool = False) -> None:
        if self.dead:
            raise WorkerError("the worker is dead")
        self.log += ["interrupt", "resume"] if interrupt else ["resume"]

    def saved_position(self, relay: int, ring: int) -> SavedPosition | None:
        return self.saved.get(ring)

    async def die(self, *relays: int) -> None:
        """Close connections as a killed process does; attach fails until ``dead`` is cleared."""
        self.dead = True
        for relay in relays or list(self._tasks):
            task = self._tasks.pop(relay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def stop(self) -> None:
        """End all connections."""
        await self.die()

    async def _serve(self, channel: Channel) -> None:
        try:
            while True:
                message = await channel.receive()
                try:
                    self.log.append(message.name)
                    self.messages.append(message)
                    self.fd_counts.append(len(message.fds))
                    if self.on_message is not None:
                        self.on_message(message)
                    if message.request in self.swallow:
                        continue
                    if not await self._handle(channel, message):
                        return
                finally:
                    message.close()
        except PeerClosed:
            pass
        finally:
            channel.close()

    async def _handle(self, channel: Channel, message: Message) -> bool:
        needs_ack = bool(message.flags & FLAG_NEED_REPLY)
        refused = message.request in self.refuse
        if refused and not needs_ack:
            return False
        if message.request == Request.SET_VRING_BASE:
            index, base = codec.ring_state(message)
            self.bases[index] = base
        payload: bytes | None = None
        if rule_of(message.request).reply:
            payload = self._answer(message)
        elif needs_ack:
            payload = codec.U64.pack(int(refused))
        if payload is not None:
            await channel.send(Message(message.request, payload, (), 1 | FLAG_REPLY))
        return True

    def _answer(self, message: Message) -> bytes:
        match message.request:
            case Request.GET_FEATURES:
                return codec.U64.pack(self.features)
            case Request.GET_PROTOCOL_FEATURES:
                return codec.U64.pack(int(PROTOCOL_FEATURES))
            case Request.GET_QUEUE_NUM:
                return codec.U64.pack(128)
            case Request.GET_MAX_MEM_SLOTS:
                return codec.U64.pack(509)
            case Request.GET_VRING_BASE:
                index, _ = codec.ring_state(message)
                return codec.RING_STATE.pack(index, self.bases.get(index, 0))
            case Request.SET_LOG_BASE:
                return b""
            case _:
                return codec.U64.pack(0)
