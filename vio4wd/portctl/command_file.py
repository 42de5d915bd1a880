"""Port control by a file: watches it with inotify, takes complete lines out of it, and has them carried out."""

from __future__ import annotations

import asyncio
import enum
import fcntl
import logging
import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asyncinotify import Inotify, Mask, Watch

from vio4wd.errors import ForwarderError
from vio4wd.portctl.commands import CommandFailed, CommandRunner, parse_command

log = logging.getLogger(__name__)

DEFAULT_PATH = Path("/run/virtio-forwarder/vio_cmd")
"""In a directory that only root can write."""

LEGACY_PATH = Path("/tmp/vio_cmd")
"""Where older daemons looked."""

MAX_FILE_BYTES = 64 * 1024
"""A file larger than this is no list of commands. It is emptied unread."""

MAX_LINE_BYTES = 1024
"""Longer lines, complete or not, are no commands."""

LINES_PER_BURST = 32
BURST_INTERVAL_S = 0.1
"""So many lines are carried out at a time, so far apart, to leave the daemon to its other work."""

WARNINGS_PER_BURST = 5

LOOK_INTERVAL_S = 1.0
"""How often the file is looked at where no event asks for it, and a missing directory looked for."""

SETTLE_S = 0.02
"""The least time between two looks at a file that keeps changing."""

WRITER_PATIENCE_S = 0.5
"""How long to wait for others to close the file, so that nothing they write can be lost while it is emptied."""

_EVENTS = Mask.CREATE | Mask.MODIFY | Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.ATTRIB | Mask.DELETE_SELF | Mask.MOVE_SELF


class _Topic(enum.Enum):
    """What there can be something wrong with."""

    DIRECTORY = enum.auto()
    FILE = enum.auto()


class Refused(ForwarderError):
    """A file at the command file's path that must not be obeyed."""


class CommandFile:
    """Watches one path for as long as ``run`` does. The file may come, go and be replaced at any time.

    It is obeyed only if it is a regular file with one link, owned by root or by the daemon's own user, and writable
    by its owner alone. The path's last component is never followed as a symbolic link.
    """

    def __init__(self, path: Path, runner: CommandRunner) -> None:
        self._path = path
        self._runner = runner
        self._complaints: dict[_Topic, str] = {}
        self._busy_since: float | None = None

    async def run(self) -> None:
        """Carry out commands until cancelled."""
        with Inotify() as inotify:
            watch: Watch | None = None
            while True:
                watch = self._watch(inotify, watch)
                lines = self._take_lines()
                await self._obey(lines)
                if not lines:
                    await self._event(inotify, LOOK_INTERVAL_S if self._busy_since is None else WRITER_PATIENCE_S / 10)

    def _watch(self, inotify: Inotify, previous: Watch | None) -> Watch | None:
        """Watch the directory that is at the path now, which may be another than before; None where there is none."""
        try:
            watch = inotify.add_watch(self._path.parent, _EVENTS | Mask.ONLYDIR)
        except OSError as error:
            self._complain(_Topic.DIRECTORY, f"cannot watch {self._path.parent}: {error.strerror}; it is tried again")
            return None
        self._complaints.pop(_Topic.DIRECTORY, None)
        if previous is not None and previous.wd != watch.wd and previous in inotify.watches:
            inotify.rm_watch(previous)
        return watch

    def _take_lines(self) -> list[str]:
        """Take the complete lines out of the file; none where it is absent, refused or being written."""
        try:
            lines = self._take_or_refuse()
        except FileNotFoundError:
            lines = []
        except OSError as error:
            self._complain(_Topic.FILE, f"cannot use {self._path}: {error.strerror}")
            return []
        except Refused as error:
            self._complain(_Topic.FILE, str(error))
            return []
        self._complaints.pop(_Topic.FILE, None)
        return lines

    def _take_or_refuse(self) -> list[str]:
        status = _check(os.lstat(self._path), self._path)
        if status.st_size == 0:
            self._busy_since = None
            return []
        with _opened(self._path, os.O_RDONLY) as descriptor:
            content = _content(descriptor)
        if content is not None and b"\n" not in content and len(content) <= MAX_LINE_BYTES:
            return []
        # Opened for writing only now: closing it is an event, which would make an idle file look busy for ever.
        with _opened(self._path, os.O_RDWR) as descriptor:
            if not self._may_empty(descriptor):
                return []
            try:
                return self._empty(descriptor)
            finally:
                _release(descriptor)

    def _may_empty(self, descriptor: int) -> bool:
        """Keep others from opening the file, or find that some have it open and say whether that is to be endured."""
        if _lease(descriptor):
            self._busy_since = None
            return True
        now = time.monotonic()
        if self._busy_since is None:
            self._busy_since = now
        return now - self._busy_since >= WRITER_PATIENCE_S

    def _empty(self, descriptor: int) -> list[str]:
        """Read the file and leave in it only the beginning of a line that is not yet complete."""
        content = _content(descriptor)
        if content is None:
            log.warning("%s has more than %d bytes; emptied unread", self._path, MAX_FILE_BYTES)
            os.ftruncate(descriptor, 0)
            return []
        complete, _, rest = content.rpartition(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            log.warning("%s: a line of more than %d bytes is not a command; dropped", self._path, MAX_LINE_BYTES)
            rest = b""
        os.pwrite(descriptor, rest, 0)
        os.ftruncate(descriptor, len(rest))
        # A writer that does not append goes on at its old offset, which leaves a hole of zeros in the emptied file.
        lines = complete.replace(b"\0", b"").decode(errors="replace").split("\n")
        return [line for line in lines if line.strip()]

    async def _obey(self, lines: list[str]) -> None:
        for start in range(0, len(lines), LINES_PER_BURST):
            refusals = [
                refusal for line in lines[start : start + LINES_PER_BURST] if (refusal := await self._run(line))
            ]
            for refusal in refusals[:WARNINGS_PER_BURST]:
                log.warning("%s: %s", self._path, refusal)
            if len(refusals) > WARNINGS_PER_BURST:
                log.warning("%s: %d more lines like these", self._path, len(refusals) - WARNINGS_PER_BURST)
            await asyncio.sleep(BURST_INTERVAL_S)

    async def _run(self, line: str) -> str:
        """Carry one line out; what went wrong, or an empty string."""
        try:
            if len(line) > MAX_LINE_BYTES:
                raise CommandFailed(f"longer than {MAX_LINE_BYTES} bytes")
            command = parse_command(line)
            if command is not None:
                await self._runner.run(command)
        except ForwarderError as error:
            return f"{line[:100]!r}: {error}"
        return ""

    def _complain(self, topic: _Topic, complaint: str) -> None:
        """Log what is wrong, once until it changes."""
        if complaint != self._complaints.get(topic):
            log.warning("%s", complaint)
        self._complaints[topic] = complaint

    async def _event(self, inotify: Inotify, most_s: float) -> None:
        """Wait for something to happen to the file, but no longer than this."""
        try:
            async with asyncio.timeout(most_s):
                while (event := await inotify.get()).name is not None and event.name.name != self._path.name:
                    pass
        except TimeoutError:
            return
        await asyncio.sleep(SETTLE_S)


def _check(status: os.stat_result, path: Path) -> os.stat_result:
    """The status itself, of a file that may be obeyed.

    Raises:
        Refused: it is not such a file.
    """
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{path} is not a regular file; ignored")
    if status.st_uid not in (0, os.geteuid()):
        raise Refused(
            f"{path} belongs to user {status.st_uid}; ignored: it must belong to root or to the daemon's user"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(f"{path} can be written by group or others; ignored: chmod go-w it")
    if status.st_nlink != 1:
        raise Refused(f"{path} has {status.st_nlink} links; ignored: it must have one")
    return status


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of a file that may be obeyed, checked once it is open and cannot be exchanged any more."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor), path)
        yield descriptor
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes | None:
    """All of a file, or None where that is too much."""
    content = os.pread(descriptor, MAX_FILE_BYTES + 1, 0)
    return content if len(content) <= MAX_FILE_BYTES else None


def _lease(descriptor: int) -> bool:
    """Take a write lease (fcntl(2)): nobody else has the file open, and whoever opens it waits until it is given back.

    True also where the file system has no leases: emptying the file then races with a writer, as it always did.
    """
    # The kernel announces a waiting opener by SIGIO, which would end the process; SIGURG does nothing.
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _release(descriptor: int) -> None:
    """Give a lease back, if there is one, before the descriptor is closed so that a waiting writer goes on at once."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        log.debug("no lease to give back: %s", error.strerror)
