"""The socket of a front end: whole messages, or any bytes and descriptors."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vio4wd.vhostuser.requests import Request

HEADER = struct.Struct("<III")


class Closed(Exception):
    """The back end has closed the connection."""


@dataclass(frozen=True)
class Reply:
    request: int
    flags: int
    payload: bytes
    fds: tuple[int, ...] = ()

    @property
    def u64(self) -> int:
        return struct.unpack("<Q", self.payload)[0]


def listen(path: Path) -> socket.socket:
    """Listen as a front end in server mode (QEMU's server=on)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen(1)
    sock.settimeout(10)
    return sock


class Wire:
    """A connected vhost-user socket; every wait ends after ``timeout`` seconds."""

    def __init__(self, sock: socket.socket, timeout: float = 10.0) -> None:
        self.sock = sock
        sock.settimeout(timeout)

    @classmethod
    def connect(cls, path: Path, timeout: float = 10.0) -> Wire:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(str(path))
        except BaseException:
            sock.close()
            raise
        return cls(sock, timeout)

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes as they are."""
        try:
            if fds:
                socket.send_fds(self.sock, [data], list(fds))
            else:
                self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed(str(error)) from error

    def send(self, request: Request | int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 1) -> None:
        """Send a message without looking at it."""
        self.send_raw(HEADER.pack(request, flags, len(payload)) + payload, fds)

    def receive(self) -> Reply:
        """The next message of the back end."""
        head, fds = self._exactly(HEADER.size)
        request, flags, size = HEADER.unpack(head)
        payload, _ = self._exactly(size)
        return Reply(request, flags, payload, tuple(fds))

    def ask(self, request: Request | int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 1) -> Reply:
        """Send a request and wait for its answer."""
        self.send(request, payload, fds, flags)
        reply = self.receive()
        assert reply.request == request, f"{reply.request} was answered, {request!r} was asked"
        assert reply.flags & 0x7 == 0x5, f"reply flags {reply.flags:#x}"
        return reply

    def is_closed(self, timeout: float = 5.0) -> bool:
        """Whether the back end closes the connection within ``timeout``; unread answers are dropped."""
        self.sock.settimeout(timeout)
        try:
            while self.sock.recv(4096):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.sock.close()

    def _exactly(self, size: int) -> tuple[bytes, list[int]]:
        data = b""
        fds: list[int] = []
        while len(data) < size:
            try:
                part, got, _, _ = socket.recv_fds(self.sock, size - len(data), 8)
            except ConnectionResetError as error:
                raise Closed(str(error)) from error
            fds += got
            if not part:
                raise Closed("connection closed")
            data += part
        return data, fds
