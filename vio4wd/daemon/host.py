"""What the daemon needs of its host: being the only one, a socket directory, hugepages."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from vio4wd.config.model import Config
from vio4wd.directories import check_directory, make_directory
from vio4wd.errors import StartupError

log = logging.getLogger(__name__)

PAGE_KIB = 2048
PRIVATE_PREFIX = "vio4wd-"
_MOUNTS = Path("/proc/mounts")
_POOL = Path(f"/sys/kernel/mm/hugepages/hugepages-{PAGE_KIB}kB")


class PidFile:
    """A locked file with the daemon's process id: the lock, not the file, says that a daemon runs."""

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            StartupError: another daemon has it, or the file cannot be written.
        """
        self._path = path
        try:
            make_directory(path.parent)
            self._file = self._open()
            while not self._in_place():  # a daemon that ended has removed what was opened before it was locked
                os.close(self._file)
                self._file = self._open()
        except OSError as error:
            raise StartupError(f"PID file {path}: {error.strerror}") from error
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.remove()
            raise StartupError(f"PID file {path}: {error.strerror}") from error

    def remove(self) -> None:
        """Give up the lock and the file, unless somebody has put another in its place."""
        if self._in_place():
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _open(self) -> int:
        """A descriptor that locks the file."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            message = f"another virtio-forwarder is running (PID file {self._path}, process {other})"
            raise StartupError(message) from None
        return descriptor

    def _in_place(self) -> bool:
        """Whether the path is that of the file that is locked."""
        try:
            return os.path.samestat(os.fstat(self._file), self._path.lstat())
        except FileNotFoundError:
            return False


def run_directory() -> Path:
    """Where private sockets go: systemd's runtime directory, else one that only root can write.

    Raises:
        StartupError: it cannot be made, or others can write it.
    """
    directory = Path(os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or "/run/virtio-forwarder")
    try:
        make_directory(directory)
    except OSError as error:
        raise StartupError(f"runtime directory {directory}: {error.strerror}") from error
    check_directory("runtime directory", directory)
    return directory


@contextmanager
def private_directory(parent: Path) -> Iterator[Path]:
    """A new directory of mode 0700, removed at the end; those that killed daemons have left there are removed first.

    A daemon holds a lock on its directory, so that one that is in use is never taken for a leftover.
    """
    for found in parent.glob(f"{PRIVATE_PREFIX}*"):
        if (lock := _lock_directory(found)) is not None:
            shutil.rmtree(found, ignore_errors=True)
            os.close(lock)
    lock = None
    while lock is None:  # another daemon that starts may take it for a leftover before it is locked
        path = Path(tempfile.mkdtemp(prefix=PRIVATE_PREFIX, dir=parent))
        lock = _lock_directory(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _lock_directory(path: Path) -> int | None:
    """A descriptor that locks a directory; None where it is locked by another process, gone, or no directory."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.stat()
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        return None
    return descriptor


def prepare_socket_directory(config: Config) -> None:
    """Make sure that sockets can be made in the socket directory; it is made itself if its parent is there.

    Nobody may exchange the sockets but root, the daemon's user, and the owner and group of the sockets. In client mode
    it is the owner who makes them: a directory that is made is his, and one where he cannot make any is warned of.

    Raises:
        StartupError: it is missing with its parent, is no directory, cannot be written, or can be by others.
    """
    directory, owner, group = config.socket_dir, config.socket_owner, config.socket_group
    try:
        if make_directory(directory, parents=False) and config.vhost_client:
            os.chown(directory, -1 if owner is None else owner, -1 if group is None else group)
    except FileNotFoundError as error:
        raise StartupError(f"socket directory {directory}: there is no directory {directory.parent}") from error
    except OSError as error:
        raise StartupError(f"socket directory {directory}: {error.strerror}") from error
    check_directory("socket directory", directory, owner=owner, group=group)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise StartupError(f"socket directory {directory}: not writable by uid {os.geteuid()}")
    if config.vhost_client and not config.dynamic_sockets and not _writable(directory, owner, group):
        user = config.socket_owner_account.name
        log.warning("socket directory %s: user %s cannot make sockets there: chown %s it", directory, user, user)


def _writable(directory: Path, uid: int | None, gid: int | None) -> bool:
    """Whether a user (None: the daemon's) with a group can make files in a directory, by its mode."""
    if not uid:
        return True
    found = directory.stat()
    bits = found.st_mode >> (6 if found.st_uid == uid else 3 if found.st_gid == gid else 0)
    return bits & 0o3 == 0o3


def raise_descriptor_limit() -> None:
    """Allow this process and its workers as many descriptors as they may have.

    Every connection to a ZeroMQ service takes one, and libzmq aborts the process when there is none left.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    log.debug("up to %d descriptors", most)


def check_hugepages() -> None:
    """Check that the host has free 2 MiB hugepages.

    Raises:
        StartupError: none are free, or the host has none.
    """
    try:
        free = int((_POOL / "free_hugepages").read_text())
    except OSError as error:
        raise StartupError(f"this host has no {PAGE_KIB} kB hugepages ({error.strerror}: {error.filename})") from error
    if free == 0:
        raise StartupError(f"no free hugepages of {PAGE_KIB} kB: reserve some, as in echo 1375 > {_POOL}/nr_hugepages")


def huge_directory(configured: Path) -> Path | None:
    """The mount point of 2 MiB hugepages that workers are to use: the configured one, else any, else None.

    One that was asked for and is not used is warned of, once.
    """
    mounts = []
    for line in _MOUNTS.read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if kind == "hugetlbfs" and "pagesize=2M" in options.split(","):
            mounts.append(Path(point))
    if configured in mounts:
        return configured
    used = next(iter(mounts), None)
    if configured != Config().huge_dir:
        _warn_of_other_directory(configured, used)
    return used


@cache
def _warn_of_other_directory(configured: Path, used: Path | None) -> None:
    log.warning(
        "VIRTIOFWD_HUGETLBFS_MOUNT_POINT %s is no hugetlbfs mount of 2 MiB pages: hugepages are taken %s",
        configured,
        f"from {used}" if used else "without a mount, of which there is none",
    )
