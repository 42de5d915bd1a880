"""What the daemon needs of its host: being the only one, a socket directory, hugepages."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from vio4wd.errors import StartupError

PAGE_KIB = 2048
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
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise StartupError(f"PID file {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(self._file, 32, 0).decode(errors="replace").strip()
            os.close(self._file)
            raise StartupError(f"another virtio-forwarder is running (PID file {path}, process {other})") from None
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.remove()
            raise StartupError(f"PID file {path}: {error.strerror}") from error

    def remove(self) -> None:
        """Give up the lock and the file."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)


def check_socket_directory(directory: Path) -> None:
    """Make sure that sockets can be made in a directory; it is made itself if its parent is there.

    Raises:
        StartupError: it is missing with its parent, is no directory, or cannot be written.
    """
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
    except FileNotFoundError as error:
        raise StartupError(f"socket directory {directory}: there is no directory {directory.parent}") from error
    except OSError as error:
        raise StartupError(f"socket directory {directory}: {error.strerror}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise StartupError(f"socket directory {directory}: not writable by uid {os.geteuid()}")


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
    """The mount point of 2 MiB hugepages that workers are to use: the configured one, else any, else None."""
    mounts = []
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if kind == "hugetlbfs" and "pagesize=2M" in options.split(","):
            mounts.append(Path(point))
    return configured if configured in mounts else next(iter(mounts), None)
