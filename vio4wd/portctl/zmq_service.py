"""One ZeroMQ service: a ROUTER socket that answers REQ clients, each without waiting for the others."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import zmq
import zmq.asyncio

from vio4wd.errors import ProtocolError, StartupError
from vio4wd.portctl.curve import CurveAuthority
from vio4wd.portctl.endpoint import IpcListener, ipc_path, listen_ipc
from vio4wd.tasks import supervised

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 1024
"""Requests of one service being answered at a time; more wait in their clients' queues."""
MAX_OF_ONE_CLIENT = 16
"""Those of one connection; more are refused, so that no client takes the others' places. REQ clients have one."""
MAX_MESSAGE_BYTES = 64 * 1024
"""Largest frame; a client that sends a larger one is disconnected. Requests that mean something are below 16 KiB."""
_HANDSHAKE_MS = 2000
"""A connection that has not said by then that it is ZeroMQ's is closed: each takes a descriptor of the daemon."""
_QUEUED_PER_CLIENT = 64


class Handler(Protocol):
    """Answers the requests of one service."""

    @property
    def refusal(self) -> bytes:
        """The serialized answer to a message that cannot be read, or to a request that failed unexpectedly."""

    async def __call__(self, request: bytes) -> bytes:
        """Answer one serialized request; ProtocolError: it cannot be read."""


class Service:
    """A ZeroMQ service, bound while started.

    Args:
        endpoint: ``ipc:///absolute/path``, or ``tcp://address:port`` together with ``curve``.
        handler: answers the requests, called concurrently.
        context: the ZeroMQ context, shared by the services of a process.
        group_gid: group of the ``ipc`` socket file (mode 0660); None: the daemon's own.
        curve: keys for ``tcp``.
    """

    def __init__(
        self,
        endpoint: str,
        handler: Handler,
        *,
        context: zmq.asyncio.Context,
        group_gid: int | None = None,
        curve: CurveAuthority | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._handler = handler
        self._context = context
        self._group_gid = group_gid
        self._curve = curve
        self._socket: zmq.asyncio.Socket | None = None
        self._listener: IpcListener | None = None
        self._receiver: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._in_flight: Counter[bytes] = Counter()
        self._refused = b""

    async def start(self) -> None:
        """Bind and serve.

        Raises:
            StartupError: the endpoint is not allowed, taken, or refused by the system; nothing is left behind.
        """
        path = ipc_path(self.endpoint)
        if path is None:
            self._check_tcp()
        socket = self._open_socket()
        try:
            if path is None:
                assert self._curve is not None
                self._curve.protect(socket)
            else:
                self._listener = listen_ipc(path, self._group_gid)
                socket.setsockopt(zmq.USE_FD, self._listener.socket.fileno())
            socket.bind(self.endpoint)
        except zmq.ZMQError as error:
            socket.close(linger=0)
            self._drop_listener(bound=False)
            raise StartupError(f"endpoint {self.endpoint}: cannot listen: {error.strerror}") from error
        except StartupError:
            socket.close(linger=0)
            raise
        if self._listener is not None:
            self._listener.socket.detach()
        self._socket = socket
        self._receiver = asyncio.create_task(supervised(f"zmq {self.endpoint}", lambda: self._receive(socket)))
        log.info("serving %s", self.endpoint)

    async def stop(self) -> None:
        """Stop serving; requests under way are given up. Does nothing where not started."""
        tasks = [task for task in (self._receiver, *self._answers) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._receiver = None
        self._drop_listener(bound=True)
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def _check_tcp(self) -> None:
        if not self.endpoint.startswith("tcp://"):
            raise StartupError(f"endpoint {self.endpoint}: must be ipc:///path, or tcp://address:port with CURVE keys")
        if self._curve is None:
            raise StartupError(
                f"endpoint {self.endpoint}: tcp:// needs CURVE keys, since anyone who can reach the port could control"
                " the forwarder without them; configure the keys or use ipc:///path"
            )

    def _open_socket(self) -> zmq.asyncio.Socket:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.RCVHWM, _QUEUED_PER_CLIENT)
        socket.setsockopt(zmq.SNDHWM, _QUEUED_PER_CLIENT)
        return socket

    def _drop_listener(self, *, bound: bool) -> None:
        """Remove the socket file; once bound its descriptor is ZeroMQ's to close."""
        if self._listener is None:
            return
        self._listener.remove()
        if not bound:
            self._listener.socket.close()
        self._listener = None

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            await self._slots.acquire()
            try:
                frames = await socket.recv_multipart()
            except BaseException:
                self._slots.release()
                raise
            client = frames[0]
            self._in_flight[client] += 1
            task = asyncio.create_task(self._answer(socket, frames))
            self._answers.add(task)
            task.add_done_callback(partial(self._answered, client))
            await asyncio.sleep(0)  # what can be answered at once is, before a client has too many

    def _answered(self, client: bytes, task: asyncio.Task[None]) -> None:
        self._answers.discard(task)
        self._slots.release()
        self._in_flight[client] -= 1
        if not self._in_flight[client]:
            del self._in_flight[client]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: cannot answer: %s", self.endpoint, error)

    async def _answer(self, socket: zmq.asyncio.Socket, frames: Sequence[bytes]) -> None:
        """Answer one message: addresses, an empty frame, one body (RFC 28, the REQ and REP envelope)."""
        if b"" not in frames[1:]:
            log.warning("%s: dropped a message without the empty frame that REQ sends", self.endpoint)
            return
        delimiter = frames.index(b"", 1)
        envelope, body = frames[: delimiter + 1], frames[delimiter + 1 :]
        if self._in_flight[frames[0]] > MAX_OF_ONE_CLIENT:
            if self._refused != frames[0]:  # once for a client that goes on like this
                self._refused = frames[0]
                log.warning("%s: refuses requests of a client that has %d others", self.endpoint, MAX_OF_ONE_CLIENT)
            reply = self._handler.refusal
        else:
            reply = await self._reply(body)
        await socket.send_multipart([*envelope, reply])

    async def _reply(self, body: Sequence[bytes]) -> bytes:
        if len(body) != 1:
            log.warning("%s: refused a message of %d frames, must have 1", self.endpoint, len(body))
            return self._handler.refusal
        try:
            return await self._handler(body[0])
        except ProtocolError as error:
            log.warning("%s: refused a request: %s", self.endpoint, error)
        except Exception:
            log.exception("%s: a request failed unexpectedly", self.endpoint)
        return self._handler.refusal
