"""One vhost-user session: carries a front end's messages to a back end, records and replays them."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vio4wd.errors import ForwarderError, ProtocolError, WorkerError
from vio4wd.vhostuser import codec
from vio4wd.vhostuser.backend import BackEnd
from vio4wd.vhostuser.backlink import BackLink, BackLost
from vio4wd.vhostuser.channel import Channel, PeerClosed, resolve, wait_readable
from vio4wd.vhostuser.codec import Message
from vio4wd.vhostuser.options import Options
from vio4wd.vhostuser.record import SessionRecord
from vio4wd.vhostuser.requests import (
    FLAG_NEED_REPLY,
    MAX_TABLE_REGIONS,
    WITHHELD_PROTOCOL_FEATURES,
    Request,
    rule_of,
)
from vio4wd.vhostuser.ringbase import ring_base

log = logging.getLogger(__name__)

_HANG_UP_POLL_S = 0.05
_DEATH_TOLD_S = 1.0
_ACKNOWLEDGED = bytes(8)


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
        self._back = BackLink(relay, back_end, new_path, self._readable, options.accept_timeout)
        self._saved_position = back_end.saved_position
        self._options = options
        self._record = SessionRecord()
        self._wake: asyncio.Future[None] | None = None
        self._replay: asyncio.Future[None] | None = None
        self._release: asyncio.Future[None] | None = None
        # Since when it is in its state.
        self._since = 0.0
        # Workers in a row that died soon after they got the session, or with requests of it.
        self._deaths = 0
        # Whether it is known to be innocent of the last death; None before anybody has told.
        self._cleared: bool | None = None
        self._left_unanswered = ""
        # Why it is to be cut off, and what ends it then.
        self._verdict: str | None = None
        self._limit: asyncio.Timeout | None = None
        # Where rings stopped when the last worker released them.
        self._bases: dict[int, int] = {}
        # The request that is being carried: repeated after a replay, unless the record has it.
        self._pending: Message | None = None

    def view(self) -> SessionView:
        """The session's state for others to look at."""
        record = self._record
        started = tuple(record.started_rings)
        return SessionView(
            relay=self.relay,
            state=self.state,
            peer_pid=self.peer_pid,
            features=record.features,
            protocol_features=record.protocol_features,
            rings_started=started,
            queue_pairs=len({ring // 2 for ring in started}),
            mtu=record.mtu,
        )

    def front_left(self) -> bool:
        """Whether the front end has hung up, noticed by the session or not."""
        return self.state is SessionState.CLOSED or self._front.hung_up()

    @property
    def orphaned(self) -> bool:
        """Whether it waits for a worker."""
        return self._back.lost and self.state is not SessionState.CLOSED

    @property
    def doubtful(self) -> bool:
        """Whether workers died of it, as it seems, so that with one more death it is cut off."""
        return self._deaths >= self._options.most_deaths - 1

    @property
    def unanswered(self) -> str:
        """Names of the requests, not those of a replay, that the back end has not answered, or had not when it died."""
        if self.state is SessionState.RUNNING:
            return self._back.suspects
        return self._left_unanswered if self.state is SessionState.ORPHANED else ""

    def worker_lost(self, *, cleared: bool = False) -> None:
        """The worker at the back died: keep the front end until ``replay``.

        With ``cleared`` it is known that this session had nothing to do with it.
        """
        self._back.lost = True
        self._cleared = cleared
        self._nudge()

    def cut_off(self, reason: str) -> None:
        """End the session wherever it is."""
        if self._limit is not None and self._verdict is None and self.state is not SessionState.CLOSED:
            self._verdict = reason
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def release(self) -> None:
        """Take the rings from a living worker in good order and leave it; the session then waits for ``replay``."""
        if self._back.lost or self.state is SessionState.CLOSED:
            return
        if self._release is None:
            self._release = asyncio.get_running_loop().create_future()
        self._nudge()
        await asyncio.shield(self._release)

    async def replay(self) -> None:
        """Attach to a new worker and replay the session, if its worker was lost or has released it.

        Raises:
            WorkerError: the new worker failed as well; the session waits for another.
        """
        if not self.orphaned:
            return
        if self._replay is None:
            self._replay = asyncio.get_running_loop().create_future()
        self._nudge()
        await asyncio.shield(self._replay)

    async def run(self) -> None:
        """Serve the front end until it leaves or is cut off; logs why, and leaves nothing open."""
        log.info("relay %d: front end connected (pid %d)", self.relay, self.peer_pid)
        try:
            async with asyncio.timeout(None) as self._limit:
                await self._serve()
        except TimeoutError:
            log.error("relay %d: front end (pid %d) is cut off: %s", self.relay, self.peer_pid, self._verdict)
        except PeerClosed as error:
            log.info("relay %d: front end left: %s", self.relay, error)
        except ProtocolError as error:
            log.warning("relay %d: front end (pid %d) is cut off: malformed %s", self.relay, self.peer_pid, error)
        except RefusedError as error:
            log.warning("relay %d: front end (pid %d) is cut off: %s", self.relay, self.peer_pid, error)
        except (ForwarderError, OSError) as error:  # OSError: the system has no descriptor or memory left
            log.error("relay %d: front end (pid %d) is cut off: %s", self.relay, self.peer_pid, error)
        finally:
            await self._end()

    async def _serve(self) -> NoReturn:
        while True:
            try:
                if not self._back.attached:
                    await self._back.attach()
                    self._set_state(SessionState.RUNNING)
                if self._pending is None:
                    await asyncio.sleep(0)  # a flood must not starve the other sessions
                    self._pending = await self._next_request()
                    codec.check(self._pending, self._options.max_rings)
                    self._record.check(self._pending)
                    _never_block(self._pending)
                await self._carry(self._pending)
            except (BackLost, WorkerError) as error:
                await self._recover(error)

    async def _next_request(self) -> Message:
        """The front end's next request. Ends a pause as soon as no request is there, and passes on stray answers."""
        while True:
            if self._release is not None:
                await self._hand_back()
            message = self._front.try_receive()
            if message is not None:
                return message
            if self._back.paused:
                if not await self._readable_within(self._options.batch_gap, self._front):
                    await self._back.resume()
                continue
            stray = self._back.receive_now()
            if stray is not None:
                await self._answer(stray)
                continue
            await self._readable(self._front, self._back.channel)

    async def _carry(self, message: Message) -> None:
        """Pass one request on, record it, and deliver its answer. Repeats nothing that the record would replay."""
        rule = rule_of(message.request)
        if rule.pause and self._record.started_rings:
            await self._back.pause()
        if rule.reply or (message.flags & FLAG_NEED_REPLY and self._record.reply_ack):
            await self._back.send(message)
            reply = await self._back.reply_to(message.request, self._answer)
            if rule.reply or reply.payload == _ACKNOWLEDGED:
                self._record.apply(message, reply)
            self._forget_pending()
            await self._answer(reply)
        elif rule.recorded:
            self._record.apply(message)
            self._pending = None
            try:
                await self._back.send(codec.without_need_reply(message))
            finally:
                message.close()
        else:
            await self._back.send(codec.without_need_reply(message))
            self._forget_pending()

    def _forget_pending(self) -> None:
        if self._pending is not None:
            self._pending.close()
            self._pending = None

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
        if len(reply.payload) != codec.U64.size:
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

    # From one worker to the next

    async def _recover(self, cause: ForwarderError) -> None:
        """Return when the session was replayed into a new worker.

        Raises:
            RefusedError: the worker lives, so it has refused the front end.
            ForwarderError: too many workers died of the session.
            PeerClosed: the front end left meanwhile.
        """
        while True:
            suspects, deaths = self._back.suspects, self._deaths_with_this()
            self._left_unanswered = self.unanswered
            await self._back.leave()
            if not self._back.lost:
                raise RefusedError(f"the back end refused {suspects or 'the connection'}: {cause}")
            self._settle_release()
            self._set_state(SessionState.ORPHANED)
            if not deaths or not await self._is_cleared():
                self._deaths = deaths
            if self._deaths >= self._options.most_deaths:
                raise ForwarderError(
                    f"{deaths} workers in a row died at once with its session (not answered: {suspects or 'none'})"
                )
            await self._replay_asked()
            replay, self._replay = self._replay, None
            assert replay is not None
            self._back.lost = False
            self._cleared = None
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

    def _deaths_with_this(self) -> int:
        """Deaths in a row that this session may be the reason for, if the worker has died now."""
        if not self._back.attached:
            return self._deaths
        carried = asyncio.get_running_loop().time() - self._since
        settled = self.state is SessionState.RUNNING and carried >= self._options.settling_time
        suspect = not settled or self._back.suspects != ""
        return (0 if settled else self._deaths) + int(suspect)

    async def _is_cleared(self) -> bool:
        """Whether the worker's death is known to be others' doing; that is told a little after its sockets close."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DEATH_TOLD_S):
                while self._cleared is None and self._replay is None:
                    await self._readable_within(_HANG_UP_POLL_S)
        return self._cleared or False

    async def _hand_back(self) -> None:
        """Stop the rings where they are and leave the worker.

        Raises:
            BackLost: always; the session then waits for its replay.
        """
        await self._back.pause()
        for ring in self._record.started_rings:
            reply = await self._back.ask(codec.ring_message(Request.GET_VRING_BASE, ring, 0))
            self._bases[ring] = codec.ring_state(reply)[1]
            reply.close()
        await self._back.leave()
        self._back.lost = True
        self._deaths = 0
        raise BackLost("the worker has released the session")

    def _settle_release(self) -> None:
        if self._release is not None:
            resolve(self._release)
            self._release = None

    async def _replay_asked(self) -> None:
        """Wait for ``replay``; the front end's messages wait in its socket meanwhile."""
        while self._replay is None:
            if self._front.hung_up():
                raise PeerClosed("connection closed while it waited for a worker")
            await self._readable_within(_HANG_UP_POLL_S)

    async def _replay_now(self) -> None:
        self._set_state(SessionState.REPLAYING)
        await self._back.attach()
        record = self._record
        missing = (record.features or 0) & ~await self._back.fence()
        if missing:
            raise ForwarderError(f"the new worker lacks the negotiated features {missing:#x}")
        if record.protocol_features is not None:
            (await self._back.ask(Message(Request.GET_PROTOCOL_FEATURES))).close()
        if record.started_rings:
            await self._back.pause()
        for message in record.replay(self._base_of):
            codec.check(message, self._options.max_rings)  # files may have been truncated since
            await self._back.send(message)
            if rule_of(message.request).reply:
                (await self._back.reply_to(message.request)).close()
        if self._bases:
            await self._back.fence()
            self._bases.clear()  # now lanes may use the rings, even if the worker dies before it says that they do
        await self._back.resume(interrupt=True)
        self._set_state(SessionState.RUNNING)
        log.info("relay %d: session replayed, rings %s go on", self.relay, record.started_rings)

    def _base_of(self, ring: int) -> int:
        if ring in self._bases:
            return self._bases[ring]
        return ring_base(self._record, ring, self._saved_position(self.relay, ring))

    # Waiting and ending

    async def _readable(self, *channels: Channel) -> None:
        """Wait until a channel has something, or somebody nudges."""
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await wait_readable(self._wake, *channels)
        finally:
            self._wake = None

    async def _readable_within(self, seconds: float, *channels: Channel) -> bool:
        # Not asyncio.wait_for, which can lose a cancellation in Python 3.11.
        try:
            async with asyncio.timeout(seconds):
                await self._readable(*channels)
        except TimeoutError:
            return False
        return True

    def _nudge(self) -> None:
        if self._wake is not None:
            resolve(self._wake)

    def _set_state(self, state: SessionState) -> None:
        if state is not self.state:
            log.debug("relay %d: session %s -> %s", self.relay, self.state.value, state.value)
            self.state = state
            self._since = asyncio.get_running_loop().time()

    async def _end(self) -> None:
        self._set_state(SessionState.CLOSED)
        self._front.close()
        self._forget_pending()
        self._record.close()
        try:
            await _to_the_end(self._back.leave())
        finally:
            self._settle_release()
            if self._replay is not None:
                resolve(self._replay)


async def _to_the_end(work: Coroutine[None, None, None]) -> None:
    """Finish ``work`` even when this task is cancelled meanwhile; the cancellation comes after it."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def _never_block(message: Message) -> None:
    """See to it that a call eventfd whose counter is full does not hold up the lcore that writes to it."""
    if message.request == Request.SET_VRING_CALL:
        for fd in message.fds:
            os.set_blocking(fd, False)
