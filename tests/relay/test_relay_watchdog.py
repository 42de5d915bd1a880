"""Threads that wait for a full eventfd of a guest are freed, and no others."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from vio4wd.relay.watchdog import FREEING_SIGNAL, CallWatchdog

FULL = 2**64 - 2
write = ctypes.CDLL(None).eventfd_write  # Python's own tries again after a signal
write.argtypes = [ctypes.c_int, ctypes.c_uint64]


@pytest.fixture
def handled() -> Iterator[None]:
    """The signal that frees has a handler, as in a worker."""
    before = signal.signal(FREEING_SIGNAL, lambda *_: None)
    yield
    signal.signal(FREEING_SIGNAL, before)


@pytest.fixture
def eventfd() -> Iterator[Callable[[], int]]:
    """Makes eventfds that are full and block."""
    made = []

    def make() -> int:
        made.append(os.eventfd(0, 0))
        os.eventfd_write(made[-1], FULL)
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)


def writer(fd: int, times: int = 1) -> threading.Thread:
    """A thread that waits in so many writes, one after the other."""
    thread = threading.Thread(target=lambda: [write(fd, 1) for _ in range(times)], daemon=True)
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive()
    return thread


@pytest.mark.usefixtures("handled")
def test_a_thread_that_a_guest_holds_up_is_freed(eventfd: Callable[[], int]) -> None:
    guest, other = eventfd(), eventfd()
    blocked: list[tuple[int, ...]] = []
    watchdog = CallWatchdog(lambda: {guest: 7}, lambda *rest: blocked.append(rest), lambda *told: blocked.append(told))
    theirs, ours = writer(guest, 3), writer(other)
    watchdog.look()
    theirs.join(5)
    assert not theirs.is_alive()
    assert ours.is_alive(), "this one writes to nobody's call eventfd"
    assert set(blocked) == {(7,), (7, guest)}
    assert blocked[0] == (7,), "its lanes rest before the lcore goes on"
    assert os.eventfd_read(guest) == FULL, "nothing was taken from it"
    os.eventfd_read(other)
    ours.join(5)


@pytest.mark.usefixtures("handled")
def test_full_eventfds_alone_are_no_offence(eventfd: Callable[[], int]) -> None:
    """The guest just does not take its interrupts, and the eventfd does not block."""
    guest = eventfd()
    os.set_blocking(guest, False)
    end = threading.Event()

    def write_on() -> None:
        while not end.is_set():
            write(guest, 1)

    busy = threading.Thread(target=write_on)
    busy.start()
    blocked: list[tuple[int, ...]] = []
    watchdog = CallWatchdog(lambda: {guest: 7}, lambda *rest: blocked.append(rest), lambda *told: blocked.append(told))
    for _ in range(200):
        watchdog.look()
    end.set()
    busy.join()
    assert blocked == []


@pytest.mark.usefixtures("handled")
def test_it_looks_by_itself_until_it_is_stopped(eventfd: Callable[[], int]) -> None:
    guest = eventfd()
    blocked: list[tuple[int, ...]] = []
    watchdog = CallWatchdog(lambda: {guest: 7}, lambda *rest: blocked.append(rest), lambda *told: blocked.append(told))
    watchdog.start()
    thread = writer(guest)
    thread.join(5)
    assert not thread.is_alive()
    watchdog.stop()
    thread = writer(guest)
    thread.join(0.6)
    assert thread.is_alive()
    os.eventfd_read(guest)
    thread.join(5)
