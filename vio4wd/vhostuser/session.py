"""One vhost-user session: carries a front end's messages to a back end, records and replays them."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import select
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vio4wd.errors import ForwarderError, ProtocolError, WorkerError
from vio4wd.vhostuser import codec
from vio4wd.vhostuser.backend import BackEnd
from vio4wd.vhostuser.channel import Channel, PeerClosed, resolve, wait_readable
from vio4wd.vhostuser.codec import Message
from vio4wd.vhostuser.endpoint import Endpoint, listen
from vio4wd.vhostuser.record import SessionRecord
from vio4wd.vhostuser.requests import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    MAX_TABLE_REGIONS,
    WITHHELD_PROTOCOL_FEATURES,
    Request,
    rule_of,
)
from vio4wd.vhostuser.ringbase import ring_base

log = logging.getLogger(__name__)

_NAMES_KEPT = 8


@dataclass(frozen=True)
class Options:
    """Limits of sessions. Times are in seconds.

    ``lost_grace`` is how long a closed back end may remain unexplained before the front end is taken to be refused;
    ``batch_gap`` how long a pause waits for the front end's next message; ``replace_grace`` how long a second front end
    waits for the first to leave.
    """

    max_queue_pairs: int = 32
    max_memory_slots: int = 64
    accept_timeout: float = 5.0
    reply_delivery_timeout: float = 10.0
    lost_grace: float = 0.5
    batch_gap: float = 0.001
    replace_grace: float = 1.0

    @property
    def max_rings(self) -> int:
        """Rings of one device: two for each queue pair and the control ring."""
        return 2 * self.max_queue_pairs + 1


class SessionState(enum.Enum):
    """States of a session."""

    ATTACHING = "attaching"
    RUNNING = "running"
    ORPHANED = "waiting for a worker"
    REPLAYING = "replaying"
    CLOSED = "closed"


@dataclass(frozen=True)
class SessionView:
    """A session at one moment. ``features`` and ``protocol_features`` are what was negotiated, None before that."""

    relay: int
    state: SessionState
    peer_pid: int
    features: int | None
    protocol_features: int | None
    rings_started: tuple[int, ...]
    queue_pairs: int
    mtu: int | None


class RefusedError(ForwarderError):
    """The back end closed the connection although its worker lives: it refused what the front end asked."""


class BackLost(ForwarderError):
    """The back end's connection is gone, for a reason not known yet."""


class Session:
    """Owns a connected front end until it leaves. ``run`` is its only task; all else wakes that task.

    Requests are carried one at a time and in order: the next is read when the last was answered, so neither side can
    make the other, or this process, queue without bound.
    """

    def __init__(
        self, relay: int, sock: socket.socket, back_end: BackEnd, new_path: Callable[[], Path], options: Options
    ) -> None:
        self.relay = relay
        self.state = SessionState.ATTACHING
        self._front = Channel(sock, codec.check_header)
        self.peer_pid = self._front.peer_pid
        self._back: Channel | None = None
        self._back_path: Path | None = None
        self._back_end = back_end
        self._new_path = new_path
        self._options = options
        self._record = SessionRecord()
        self._paused = False
        self._lost = False
        self._wake: asyncio.Future[None] | None = None
        self._replay: asyncio.Future[None] | None = None
        self._pending: Message | None = None
        self._unconfirmed: list[str] = []

    def view(self) -> SessionView:
        """The session's state for others to look at."""
        record = self._record
        started = tuple(record.started_rings)
        return SessionView(
            self.relay,
            self.state,
            self.peer_pid,
            record.features,
            record.protocol_features,
            started,
            len({ring // 2 for ring in started}),
            record.mtu,
        )

    def front_left(self) -> bool:
        """Whether the front end has hung up, noticed by the session or not."""
        return self.state is SessionState.CLOSED or self._front.hung_up()

    def worker_lost(self) -> None:
        """The worker at the back died: keep the front end until ``replay``."""
        self._lost = True
        self._nudge()

    async def replay(self) -> None:
        """Attach to a new worker and replay the session, if its worker was lost.

        Raises:
            WorkerError: the new worker failed as well; the session waits for another.
        """
        if not self._lost or self.state is SessionState.CLOSED:
            return
        if self._replay is None:
            self._replay = asyncio.get_running_loop().create_future()
        self._nudge()
        await asyncio.shield(self._replay)

    async def run(self) -> None:
        """Serve the front end until it leaves or is cut off; logs why, and leaves nothing open."""
        log.info("relay %d: front end connected (pid %d)", self.relay, self.peer_pid)
        try:
            await self._serve()
        except PeerClosed as error:
            log.info("relay %d: front end left: %s", self.relay, error)
        except RefusedError as error:
            log.warning("relay %d: front end (pid %d) is cut off: %s", self.relay, self.peer_pid, error)
        except ProtocolError as error:
            log.warning("relay %d: front end (pid %d) is cut off: malformed %s", self.relay, self.peer_pid, error)
        except ForwarderError as error:
            log.error("relay %d: front end (pid %d) is cut off: %s", self.relay, self.peer_pid, error)
        finally:
            await self._end()

    async def _serve(self) -> NoReturn:
        while True:
            try:
                if self._back is None:
                    self._check_worker()
                    await self._attach()
                    self._set_state(SessionState.RUNNING)
                if self._pending is None:
                    await asyncio.sleep(0)  # a flood must not starve the other sessions
                    self._pending = await self._next_request()
                    codec.check(self._pending, self._options.max_rings)
                    self._record.check(self._pending)
                await self._carry(self._pending)
            except (BackLost, WorkerError) as error:
                await self._recover(error)

    async def _next_request(self) -> Message:
        """The front end's next request. Ends a pause as soon as no request is there, and passes on stray answers."""
        while True:
            message = self._front.try_receive()
            if message is not None:
                return message
            if self._paused:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._readable(self._front), self._options.batch_gap)
                    continue
                await self._fence_and_resume()
                continue
            stray = self._from_back_now()
            if stray is not None:
                await self._answer(stray)
                continue
            await self._readable(self._front, self._need_back())

    async def _carry(self, message: Message) -> None:
        """Pass one request on, record it, and deliver its answer. Repeats nothing that the record would replay."""
        rule = rule_of(message.request)
        wants_ack = bool(message.flags & FLAG_NEED_REPLY) and self._record.reply_ack
        if rule.pause and not self._paused and self._record.started_rings:
            self._paused = True
            await self._back_end.pause(self.relay)
        if rule.reply or wants_ack:
            await self._to_back(message)
            reply = await self._reply_to(message.request)
            if rule.reply or reply.payload == bytes(8):
                self._record.apply(message, reply)
            self._forget_pending()
            self._unconfirmed.clear()
            await self._answer(reply)
        elif rule.recorded:
            self._record.apply(message)
            self._pending = None
            try:
                await self._to_back(codec.without_need_reply(message))
            finally:
                message.close()
        else:
            await self._to_back(codec.without_need_reply(message))
            self._forget_pending()

    def _forget_pending(self) -> None:
        if self._pending is not None:
            self._pending.close()
            self._pending = None

    async def _fence_and_resume(self) -> None:
        """Wait until the back end has handled all it was sent, then let the device go on.

        An answer to GET_FEATURES proves more than REPLY_ACK: rte_vhost acknowledges a request before it tells the
        application of the change.
        """
        await self._fence()
        await self._back_end.resume(self.relay)
        self._paused = False

    async def _fence(self) -> int:
        await self._to_back(Message(Request.GET_FEATURES))
        reply = await self._reply_to(Request.GET_FEATURES)
        reply.close()
        self._unconfirmed.clear()
        return reply.u64

    async def _answer(self, reply: Message) -> None:
        """Give the front end an answer, within the broker's own limits."""
        try:
            async with asyncio.timeout(self._options.reply_delivery_timeout):
                await self._front.send(self._limited(reply))
        except TimeoutError:
            raise RefusedError(f"it does not read the answer to {reply.name}") from None
        finally:
            reply.close()

    def _limited(self, reply: Message) -> Message:
        if len(reply.payload) != 8:
            return reply
        match reply.request:
            case Request.GET_QUEUE_NUM:
                value = min(reply.u64, self._options.max_queue_pairs)
            case Request.GET_PROTOCOL_FEATURES:
                value = reply.u64 & ~WITHHELD_PROTOCOL_FEATURES
            case Request.GET_MAX_MEM_SLOTS:
                value = min(reply.u64, self._options.max_memory_slots)
                self._record.max_regions = max(value, MAX_TABLE_REGIONS)
            case _:
                return reply
        return Message(reply.request, codec.U64.pack(value), reply.fds, reply.flags)

    # The back end's side

    def _need_back(self) -> Channel:
        if self._back is None:
            raise BackLost("there is no back end")
        return self._back

    async def _to_back(self, message: Message) -> None:
        back = self._need_back()
        self._unconfirmed = [*self._unconfirmed[-_NAMES_KEPT:], message.name]
        try:
            await back.send(message)
        except PeerClosed as error:
            raise BackLost(str(error)) from error

    def _check_worker(self) -> None:
        if self._lost:
            raise BackLost("the worker is gone")

    def _from_back_now(self) -> Message | None:
        self._check_worker()
        try:
            return self._need_back().try_receive()
        except (PeerClosed, ProtocolError) as error:
            raise BackLost(str(error)) from error

    async def _reply_to(self, request: int) -> Message:
        """The back end's answer to ``request``; answers to others (unknown requests) go to the front end."""
        while True:
            message = self._from_back_now()
            if message is None:
                await self._readable(self._need_back())
            elif message.request == request and message.flags & FLAG_REPLY:
                return message
            else:
                await self._answer(message)

    async def _attach(self) -> None:
        """Have the worker connect to a fresh private socket."""
        path = self._new_path()
        listener = listen(Endpoint(path))
        try:
            self._back_path = path
            await self._back_end.attach(self.relay, path)
            async with asyncio.timeout(self._options.accept_timeout):
                sock, _ = await asyncio.get_running_loop().sock_accept(listener.sock)
            self._back = Channel(sock)
        except TimeoutError:
            raise BackLost("the worker did not connect") from None
        finally:
            listener.close()

    async def _leave_back(self) -> None:
        """Close the back end's connection and have a living worker forget it."""
        if self._back is not None:
            self._back.close()
            self._back = None
        path, self._back_path = self._back_path, None
        if self._lost:
            self._paused = False
            return
        if path is not None:
            await self._ask_worker(self._back_end.detach(self.relay, path), "detach")
        if self._paused:
            self._paused = False
            await self._ask_worker(self._back_end.resume(self.relay), "resume")

    async def _ask_worker(self, command: Awaitable[None], what: str) -> None:
        try:
            await command
        except WorkerError as error:
            log.warning("relay %d: %s failed: %s", self.relay, what, error)

    # A lost worker

    async def _recover(self, cause: ForwarderError) -> None:
        """Return when the session was replayed into a new worker.

        Raises:
            RefusedError: the worker lives, so it has refused the front end.
            PeerClosed: the front end left meanwhile.
        """
        while True:
            if not self._lost and not await self._is_lost_soon():
                names = ", ".join(dict.fromkeys(self._unconfirmed[-_NAMES_KEPT:])) or "the connection"
                raise RefusedError(f"the back end refused {names}: {cause}")
            await self._leave_back()
            self._set_state(SessionState.ORPHANED)
            await self._replay_asked()
            replay, self._replay = self._replay, None
            assert replay is not None
            self._lost = False
            try:
                await self._replay_now()
            except (BackLost, WorkerError) as error:
                cause = error
                replay.set_exception(WorkerError(f"relay {self.relay}: the session could not be replayed: {error}"))
                replay.exception()  # whoever asked may have gone
            except BaseException:
                resolve(replay)
                raise
            else:
                resolve(replay)
                return

    async def _is_lost_soon(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.lost_grace):
                while not self._lost:
                    await self._readable()
        return self._lost

    async def _replay_asked(self) -> None:
        """Wait for ``replay``; the front end's messages wait in its socket meanwhile."""
        while self._replay is None:
            if self._front.hung_up():
                raise PeerClosed("connection closed while it waited for a worker")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._readable(), 0.05)

    async def _replay_now(self) -> None:
        self._set_state(SessionState.REPLAYING)
        await self._attach()
        record = self._record
        offered = await self._fence()
        missing = (record.features or 0) & ~offered
        if missing:
            raise ForwarderError(f"the new worker lacks the negotiated features {missing:#x}")
        if record.protocol_features is not None:
            await self._to_back(Message(Request.GET_PROTOCOL_FEATURES))
            (await self._reply_to(Request.GET_PROTOCOL_FEATURES)).close()
        self._paused = bool(record.started_rings)
        if self._paused:
            await self._back_end.pause(self.relay)
        for message in record.replay(self._base_of):
            await self._to_back(message)
            if rule_of(message.request).reply:
                (await self._reply_to(message.request)).close()
        if self._paused:
            await self._fence_and_resume()
            _interrupt(record.call_fds())
        self._set_state(SessionState.RUNNING)
        log.info("relay %d: session replayed, rings %s go on", self.relay, record.started_rings)

    def _base_of(self, ring: int) -> int:
        return ring_base(self._record, ring, self._back_end.saved_ring_base(self.relay, ring))

    # Waiting and ending

    async def _readable(self, *channels: Channel) -> None:
        """Wait until a channel has something, or somebody nudges."""
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await wait_readable(self._wake, *channels)
        finally:
            self._wake = None

    def _nudge(self) -> None:
        if self._wake is not None:
            resolve(self._wake)

    def _set_state(self, state: SessionState) -> None:
        if state is not self.state:
            log.debug("relay %d: session %s -> %s", self.relay, self.state.value, state.value)
            self.state = state

    async def _end(self) -> None:
        self._set_state(SessionState.CLOSED)
        self._front.close()
        self._forget_pending()
        self._record.close()
        try:
            await self._leave_back()
        finally:
            if self._replay is not None:
                resolve(self._replay)


def _interrupt(call_fds: list[int]) -> None:
    """Interrupt the guest for what a dead worker used and did not tell; one interrupt too many is harmless.

    Only real eventfds with room are written, so that a front end's odd descriptor cannot hold up this process.
    """
    for fd in call_fds:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:[eventfd]" and poll.poll(0):
            os.eventfd_write(fd, 1)
