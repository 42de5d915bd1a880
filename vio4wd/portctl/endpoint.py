"""Endpoints of the ZeroMQ services: their defaults, which are allowed, and the socket file behind ``ipc://``."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vio4wd.directories import check_directory, make_directory
from vio4wd.errors import StartupError

DEFAULT_DIRECTORY = "/var/run/virtio-forwarder"
STATS_EP = f"ipc://{DEFAULT_DIRECTORY}/stats"
PORT_CONTROL_EP = f"ipc://{DEFAULT_DIRECTORY}/port_control"
CORE_SCHED_EP = f"ipc://{DEFAULT_DIRECTORY}/core_sched"

SOCKET_MODE = 0o660
MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket: sun_path of sockaddr_un (108 bytes, unix(7)) without its end mark."""

_BACKLOG = 1024


@dataclass
class IpcListener:
    """A listening Unix socket whose file is removed by ``remove``."""

    path: Path
    socket: socket.socket
    _identity: tuple[int, int]

    def remove(self) -> None:
        """Remove the socket file, unless another process has put its own there since."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if (found.st_dev, found.st_ino) == self._identity:
            self.path.unlink()


def ipc_path(endpoint: str) -> Path | None:
    """The socket path of an ``ipc://`` endpoint, None for another transport.

    Raises:
        StartupError: the path is empty, relative, abstract (``@``) or too long.
    """
    scheme, separator, name = endpoint.partition("://")
    if not separator or scheme != "ipc":
        return None
    if not name.startswith("/") or "\0" in name:
        raise StartupError(f"endpoint {endpoint}: must have an absolute path, as in {STATS_EP}")
    length = len(os.fsencode(name))
    if length > MAX_SOCKET_PATH_BYTES:
        raise StartupError(
            f"endpoint {endpoint}: the path has {length} bytes, a Unix socket's has at most {MAX_SOCKET_PATH_BYTES}"
        )
    return Path(name)


def listen_ipc(path: Path, group_gid: int | None) -> IpcListener:
    """Listen on a Unix socket at ``path``: mode 0660, the daemon's user, group ``group_gid`` (None: the daemon's own).

    Missing directories are made with mode 0755, so that only the daemon's user can put sockets there; one that is there
    must not let others replace the socket. The file never has wider permissions than in the end. A socket file that
    nobody listens on is replaced.

    Raises:
        StartupError: the path is taken by another daemon or is not a socket, others could replace it, or the system
            refuses it.
    """
    with ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            make_directory(path.parent)
            check_directory("directory", path.parent, group=group_gid, sticky=True)
            _bind(listener, path)
            undo.callback(path.unlink, missing_ok=True)
            if group_gid is not None:
                os.chown(path, -1, group_gid)
            path.chmod(SOCKET_MODE)
            listener.listen(_BACKLOG)
            found = path.lstat()
        except OSError as error:
            raise StartupError(f"socket {path}: cannot listen: {error.strerror}") from error
        undo.pop_all()
    return IpcListener(path, listener, (found.st_dev, found.st_ino))


def _bind(listener: socket.socket, path: Path) -> None:
    """Bind; the mode of an unbound socket limits that of its file (unix_bind of Linux), so nobody can connect early."""
    os.fchmod(listener.fileno(), 0o600)
    try:
        listener.bind(os.fsencode(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        _remove_stale(path)
        listener.bind(os.fsencode(path))


def _remove_stale(path: Path) -> None:
    """Remove a socket file of a process that is gone."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise StartupError(f"socket {path}: the file there is not a socket; remove it or configure another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(os.fsencode(path))
    if answer not in (errno.ECONNREFUSED, errno.ENOENT):
        raise StartupError(f"socket {path}: another process listens there; stop it or configure another path")
    path.unlink(missing_ok=True)
