"""vhost-user socket paths: their checks, listening on them and connecting to them."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from vio4wd.errors import ForwarderError

MAX_PATH_BYTES = 107
"""Longest path of a unix socket: sun_path of 108 bytes less the terminating zero (unix(7))."""

_SOCKET_UMASK = 0o117
_BACKLOG = 4


class EndpointError(ForwarderError):
    """A socket path that cannot be used."""


class SocketMode(enum.Enum):
    """Who listens: SERVER is this daemon, CLIENT connects to a front end that listens."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True)
class Endpoint:
    """A guest-facing vhost-user socket. ``uid`` and ``gid`` own it in server mode; None is the daemon's own."""

    path: Path
    mode: SocketMode = SocketMode.SERVER
    uid: int | None = None
    gid: int | None = None

    def check(self) -> None:
        """Check the path without touching a socket.

        Raises:
            EndpointError: relative, too long, or in a directory that does not exist.
        """
        if not self.path.is_absolute():
            raise EndpointError(f"socket {self.path}: the path must be absolute")
        size = len(os.fsencode(self.path))
        if size > MAX_PATH_BYTES:
            raise EndpointError(f"socket {self.path}: the path has {size} bytes, must have at most {MAX_PATH_BYTES}")
        if b"\0" in os.fsencode(self.path):
            raise EndpointError(f"socket {str(self.path)!r}: the path must not contain a zero byte")
        if not self.path.parent.is_dir():
            raise EndpointError(f"socket {self.path}: there is no directory {self.path.parent}")


@dataclass(frozen=True)
class Listener:
    """A listening socket and the identity of its file."""

    sock: socket.socket
    path: Path
    device: int
    inode: int

    def close(self) -> None:
        """Stop listening, and remove the file if it is still ours."""
        self.sock.close()
        with contextlib.suppress(FileNotFoundError):
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == (self.device, self.inode):
                self.path.unlink()


def listen(endpoint: Endpoint) -> Listener:
    """Listen on a path; the socket's owner and group may connect. The stale socket of a dead process is replaced.

    Raises:
        EndpointError: not a socket, another process listens there, or the system refuses.
    """
    endpoint.check()
    _remove_stale(endpoint.path)
    sock = _new_socket(endpoint.path)
    try:
        old_mask = os.umask(_SOCKET_UMASK)
        try:
            sock.bind(str(endpoint.path))
        finally:
            os.umask(old_mask)
        status = endpoint.path.lstat()
        listener = Listener(sock, endpoint.path, status.st_dev, status.st_ino)
    except OSError as error:
        sock.close()
        raise EndpointError(f"socket {endpoint.path}: cannot be made: {error.strerror}") from error
    try:
        if endpoint.uid is not None or endpoint.gid is not None:
            own = (-1 if endpoint.uid is None else endpoint.uid, -1 if endpoint.gid is None else endpoint.gid)
            os.chown(endpoint.path, *own, follow_symlinks=False)
        sock.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise EndpointError(
            f"socket {endpoint.path}: cannot be given to {endpoint.uid}:{endpoint.gid}: {error.strerror}"
        ) from error
    return listener


def connect(path: Path) -> socket.socket | None:
    """Connect to a front end that listens; None when nobody does yet.

    Raises:
        EndpointError: the path is no socket or may not be used; later tries may find it changed.
    """
    sock = _new_socket(path)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.ENOTDIR):
            if error.errno == errno.ECONNREFUSED and _is_no_socket(path):
                raise EndpointError(f"socket {path}: it is not a socket") from error
            return None
        raise EndpointError(f"socket {path}: cannot connect: {error.strerror}") from error
    return sock


def _new_socket(path: Path) -> socket.socket:
    """A socket for a path; EndpointError where the system has no descriptor or memory for it."""
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise EndpointError(f"socket {path}: cannot be used: {error.strerror}") from error


def _is_no_socket(path: Path) -> bool:
    """Whether something else is there."""
    try:
        return not stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise EndpointError(f"socket {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise EndpointError(f"socket {path}: there is a file that is not a socket; it is left alone")
    with _new_socket(path) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                _unlink(path)
                return
            if error.errno == errno.ENOENT:
                return
            raise EndpointError(f"socket {path}: it is in use: {error.strerror}") from error
    raise EndpointError(f"socket {path}: another process listens on it")


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise EndpointError(f"socket {path}: a stale socket cannot be removed: {error.strerror}") from error
