"""A session's connection to the back end: attaching, messages, pauses, and how it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from vio4wd.errors import ForwarderError, ProtocolError, WorkerError
from vio4wd.vhostuser.backend import BackEnd
from vio4wd.vhostuser.channel import Channel, PeerClosed, accept
from vio4wd.vhostuser.codec import Message
from vio4wd.vhostuser.endpoint import Endpoint, listen
from vio4wd.vhostuser.requests import FLAG_REPLY, Request

log = logging.getLogger(__name__)

_NAMES_KEPT = 8

Wait = Callable[[Channel], Awaitable[None]]
"""Waits until a channel has something to read, or until its owner has something else to look at."""


class BackLost(ForwarderError):
    """The back end's connection is gone, for a reason not known yet."""


class BackLink:
    """The way to the worker that carries a relay; for one session at a time.

    ``lost`` says that the worker is dead, set by the owner when it is told and by ``leave`` when it finds out; all that
    talks to the worker raises BackLost from then on.
    """

    def __init__(
        self, relay: int, back_end: BackEnd, new_path: Callable[[], Path], wait: Wait, accept_timeout: float
    ) -> None:
        self.relay = relay
        self.lost = False
        self.paused = False
        self._back_end = back_end
        self._new_path = new_path
        self._wait = wait
        self._accept_timeout = accept_timeout
        self._channel: Channel | None = None
        self._path: Path | None = None
        self._unconfirmed: list[str] = []

    @property
    def attached(self) -> bool:
        """Whether there is a connection."""
        return self._channel is not None

    @property
    def channel(self) -> Channel:
        """The connection, for waiting.

        Raises:
            BackLost: there is none.
        """
        if self.lost:
            raise BackLost("the worker is gone")
        if self._channel is None:
            raise BackLost("there is no back end")
        return self._channel

    @property
    def suspects(self) -> str:
        """Names of the requests that the back end has not yet shown to have handled, most recent last; may be empty."""
        return ", ".join(dict.fromkeys(self._unconfirmed))

    async def attach(self) -> None:
        """Have the worker connect to a fresh private socket.

        Raises:
            BackLost, WorkerError: it did not.
        """
        if self.lost:
            raise BackLost("the worker is gone")
        path = self._new_path()
        listener = listen(Endpoint(path))
        try:
            self._path = path
            await self._back_end.attach(self.relay, path)
            async with asyncio.timeout(self._accept_timeout):
                self._channel = Channel(await accept(listener.sock))
        except TimeoutError:
            raise BackLost("the worker did not connect") from None
        finally:
            listener.close()

    async def send(self, message: Message) -> None:
        """Send a request; its descriptors stay the caller's."""
        channel = self.channel
        self._unconfirmed = [*self._unconfirmed[1 - _NAMES_KEPT :], message.name]
        try:
            await channel.send(message)
        except PeerClosed as error:
            raise BackLost(str(error)) from error

    def receive_now(self) -> Message | None:
        """A message of the back end, if one is there."""
        try:
            return self.channel.try_receive()
        except (PeerClosed, ProtocolError) as error:
            raise BackLost(str(error)) from error

    async def reply_to(self, request: int, stray: Callable[[Message], Awaitable[None]] | None = None) -> Message:
        """The answer to ``request``, now the caller's; answers to other requests go to ``stray`` (or nowhere)."""
        while True:
            message = self.receive_now()
            if message is None:
                await self._wait(self.channel)
            elif message.request == request and message.flags & FLAG_REPLY:
                self._unconfirmed.clear()
                return message
            elif stray is not None:
                await stray(message)
            else:
                message.close()

    async def ask(self, message: Message) -> Message:
        """Send a request and answer its reply, which is now the caller's."""
        await self.send(message)
        return await self.reply_to(message.request)

    async def fence(self) -> int:
        """Wait until the back end has handled all it was sent; answers the features that it offers.

        An answer to GET_FEATURES proves more than REPLY_ACK: rte_vhost acknowledges a request before it tells the
        application of the change.
        """
        reply = await self.ask(Message(Request.GET_FEATURES))
        reply.close()
        return reply.u64

    async def pause(self) -> None:
        """Stop the relay's lanes, unless that is done."""
        if not self.paused:
            self.paused = True
            await self._back_end.pause(self.relay)

    async def resume(self, *, interrupt: bool = False) -> None:
        """Let the lanes go on once the back end has handled all it was sent; ``interrupt`` is as for BackEnd.resume."""
        if self.paused:
            await self.fence()
            await self._back_end.resume(self.relay, interrupt=interrupt)
            self.paused = False

    async def leave(self) -> None:
        """Close the connection and have a living worker forget it.

        Only a worker's answer tells its refusal from its death, which is reported some time after its sockets close.
        """
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._unconfirmed.clear()
        path, self._path = self._path, None
        self.paused = False
        if self.lost or path is None:
            return
        try:
            await self._back_end.detach(self.relay, path)
        except WorkerError as error:
            log.info("relay %d: %s", self.relay, error)
            self.lost = True
