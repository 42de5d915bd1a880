"""A socket that carries vhost-user messages with their file descriptors, for one asyncio loop."""

from __future__ import annotations

import array
import asyncio
import select
import socket
import struct
from collections.abc import Callable

from vio4wd.errors import ForwarderError, ProtocolError
from vio4wd.vhostuser.codec import HEADER, MAX_FDS, MAX_PAYLOAD_BYTES, Message, close_fds

HeaderCheck = Callable[[int, int, int], None]
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * 4)
_PEER = struct.Struct("iII")


class PeerClosed(ForwarderError):
    """The other end of a channel is gone."""


def _any_header(request: int, flags: int, size: int) -> None:
    """Accept what a trusted peer sends, as long as it can be held."""


class Channel:
    """Sends and receives whole messages; owns its socket and what has arrived of an unfinished message.

    At most one message is held, so a flooding peer fills only its own socket buffer.
    """

    def __init__(self, sock: socket.socket, check_header: HeaderCheck = _any_header) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._check_header = check_header
        self._data = bytearray()
        self._fds: list[int] = []

    @property
    def peer_pid(self) -> int:
        """Process id of the peer as it was when it connected, 0 where that is another container's."""
        pid, _, _ = _PEER.unpack(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        return int(pid)

    def fileno(self) -> int:
        """The socket's descriptor, for waiting."""
        return self._sock.fileno()

    def try_receive(self) -> Message | None:
        """The next message if it has arrived as a whole, else None; never waits.

        Raises:
            PeerClosed: end of file or a reset connection.
            ProtocolError: a header that must not be followed, or too many file descriptors.
        """
        while True:
            missing = self._missing()
            if missing == 0:
                return self._take()
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(missing, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                return None
            except OSError as error:
                raise PeerClosed(f"connection broken: {error.strerror}") from error
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(content[: len(content) - len(content) % 4])
                    self._fds.extend(received)
            if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
                raise ProtocolError(
                    f"a message with more than {MAX_FDS} file descriptors, or none left in this process"
                )
            if not data:
                raise PeerClosed("connection closed" + (" in the middle of a message" if self._data else ""))
            self._data += data

    async def receive(self) -> Message:
        """Wait for the next message; raises as ``try_receive``."""
        while True:
            message = self.try_receive()
            if message is not None:
                return message
            await wait_readable(None, self)

    async def send(self, message: Message) -> None:
        """Send a message whole; its file descriptors stay the caller's.

        Raises:
            PeerClosed: the peer is gone.
        """
        data = memoryview(message.encode())
        fds = list(message.fds)
        while data:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                await self._wait_writable()
                continue
            except OSError as error:
                raise PeerClosed(f"connection broken: {error.strerror}") from error
            data = data[sent:]
            fds = []

    def hung_up(self) -> bool:
        """Whether the peer has closed, even where unread messages of it are waiting."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the socket and what was received and not taken."""
        self._sock.close()
        close_fds(self._fds)
        self._fds = []

    def _missing(self) -> int:
        if len(self._data) < HEADER.size:
            return HEADER.size - len(self._data)
        request, flags, size = HEADER.unpack_from(self._data)
        if len(self._data) == HEADER.size:
            self._check_header(request, flags, size)
            if size > MAX_PAYLOAD_BYTES:
                raise ProtocolError(f"request {request}: payload of {size} bytes, must be at most {MAX_PAYLOAD_BYTES}")
        return int(HEADER.size + size - len(self._data))

    def _take(self) -> Message:
        request, flags, _ = HEADER.unpack_from(self._data)
        message = Message(request, bytes(self._data[HEADER.size :]), tuple(self._fds), flags)
        self._data.clear()
        self._fds = []
        return message

    async def _wait_writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        fd = self._sock.fileno()
        loop.add_writer(fd, resolve, ready)
        try:
            await ready
        finally:
            loop.remove_writer(fd)


def resolve(future: asyncio.Future[None]) -> None:
    """Let whoever waits for ``future`` go on; harmless when it is done already."""
    if not future.done():
        future.set_result(None)


async def wait_readable(ready: asyncio.Future[None] | None, *channels: Channel | socket.socket) -> None:
    """Return when one of the channels has something to read (or is closed), or when ``ready`` is resolved."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future() if ready is None else ready
    fds = [channel.fileno() for channel in channels]
    for fd in fds:
        loop.add_reader(fd, resolve, future)
    try:
        await future
    finally:
        for fd in fds:
            loop.remove_reader(fd)


async def accept(listener: socket.socket) -> socket.socket:
    """Wait for the next connection; raises OSError as accept(2).

    Not the loop's ``sock_accept``: a connection that it has accepted when its caller is cancelled is nobody's.
    """
    while True:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            await wait_readable(None, listener)
        else:
            return sock
