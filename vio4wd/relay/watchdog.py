"""Frees threads that a guest holds up, lcores above all: they interrupt it by an eventfd whose other end it has.

Whether a write to a full eventfd waits is decided by a flag of the open file, which the front end shares and can set
back at any time. So no check before a write helps. Here every thread of the process is looked at, a few times a second:
one that the kernel shows in a write to a call eventfd, which is full, waits for the guest and for nothing else. The
guest's lanes are switched off, and the thread is sent a signal, which ends the write. Nothing is taken from an eventfd
and nobody else is touched, however busy the machine is.
"""

from __future__ import annotations

import logging
import platform
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vio4wd.dpdk_ffi.threads import interrupt

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""Time from one look at the threads to the next."""

FREEING_SIGNAL = signal.SIGUSR1
"""Ends a system call of the thread that it is sent to; it must have a handler, which need not do anything."""

_WRITE = {"x86_64": 1, "aarch64": 64}.get(platform.machine())
_TASKS = Path("/proc/self/task")
_LOOKS_AGAIN = 20
_AGAIN_S = 0.005
_FIELDS = 9  # of a thread that waits in a system call: its number, six arguments, stack pointer, program counter


class CallWatchdog:
    """Looks for threads that wait for guests.

    ``call_fds`` answers the call eventfds of all guests with their relays. ``rest(relay)`` is called for a guest that
    holds a thread up, before that is freed, ``tell(relay, fd)`` afterwards.
    """

    def __init__(
        self,
        call_fds: Callable[[], Mapping[int, int]],
        rest: Callable[[int], None],
        tell: Callable[[int, int], None],
    ) -> None:
        self._call_fds = call_fds
        self._rest = rest
        self._tell = tell
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End looking."""
        self._end.set()
        self._thread.join()

    def look(self) -> None:
        """Look once, and again and again while a thread that was freed is held up by the next eventfd."""
        for _ in range(_LOOKS_AGAIN):
            fds = self._call_fds()
            held = [(thread, fd) for thread, fd in _writes() if fd in fds and _full(fd)]
            for thread, fd in held:
                self._rest(fds[fd])
                interrupt(thread, FREEING_SIGNAL)
            for _, fd in held:
                self._tell(fds[fd], fd)
            if not held:
                return
            time.sleep(_AGAIN_S)

    def _run(self) -> None:
        while not self._end.wait(LOOK_S):
            try:
                self.look()
            except Exception:
                log.exception("looking for threads that wait for guests failed")


def _writes() -> Iterator[tuple[int, int]]:
    """Threads that wait in write(2), with the descriptor."""
    for task in _TASKS.iterdir():
        try:
            fields = (task / "syscall").read_text().split()
        except OSError:  # the thread has ended
            continue
        if len(fields) == _FIELDS and int(fields[0]) == _WRITE:
            yield int(task.name), int(fields[1], 16)


def _full(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return not any(events & select.POLLOUT for _, events in poll.poll(0))
