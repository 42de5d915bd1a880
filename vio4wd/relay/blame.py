"""Whose lane each thread of a worker is working, so that it is known when the process dies of it.

A guest can kill a worker: by memory whose file it truncates (SIGBUS), or by the next bug in rte_vhost. Every thread
that touches guests' memory has a note: an lcore writes into its own which lane it is in, other threads for whom they
read and change rings. The signal that kills is raised on the thread that did it. Its handler, compiled, finds that
thread's note and marks the lane in the shared table, where the supervisor looks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
from numba import types

from vio4wd.dpdk_ffi.compiled import compile_function
from vio4wd.dpdk_ffi.threads import note_fatal
from vio4wd.relay.fatal_signals import FATAL_SIGNALS
from vio4wd.relay.lanes import LANE_RECORD_OFFSETS
from vio4wd.relay.native import external_address, load64, raise_signal, store32, thread_id

LANE_OF_NOTE = 8
"""Offset in a note of the lane's address, 0 for none; the thread's id comes before it."""

_NOTES = 256
_STRIDE = 64  # a cache line each: lcores write theirs in every round
_SYMBOL = "vio4wd_notes"
_FATAL = LANE_RECORD_OFFSETS["fatal"]
_notes_address: Any = external_address(_SYMBOL)


def _mark_lane(number: int) -> None:
    """A signal handler: mark the lane that the calling thread is working, and die."""
    thread = thread_id()
    first = _notes_address()
    for i in range(_NOTES):
        note = first + _STRIDE * i
        if load64(note) == thread:
            lane = load64(note + LANE_OF_NOTE)
            if lane != 0:
                store32(lane + _FATAL, 1)
    raise_signal(number)


class Notes:
    """The notes of a worker's threads; one for each of ``lcores`` lcores, the others for whoever needs one."""

    def __init__(self, lcores: int) -> None:
        words = _STRIDE // 8
        memory = np.zeros((_NOTES + 1) * words, np.int64)
        start = -memory.ctypes.data % _STRIDE // 8
        self._notes: npt.NDArray[np.int64] = memory[start : start + _NOTES * words].reshape(_NOTES, words)
        self._free = list(range(lcores, _NOTES))
        self._handler: Any = None

    def address(self, lcore: int) -> int:
        """Where the note of an lcore lies, counted from 0; the lcore itself writes it."""
        return int(self._notes[lcore].ctypes.data)

    @contextmanager
    def working(self, lane: int) -> Iterator[None]:
        """While the block runs, the calling thread works the lane at an address."""
        index = self._free.pop()
        note = self._notes[index]
        note[:2] = threading.get_native_id(), lane
        try:
            yield
        finally:
            note[:2] = 0
            self._free.append(index)

    def watch(self, *, cached: bool) -> None:
        """From here on a fatal signal marks the lane that it comes from, and ends the process as before."""
        llvm.add_symbol(_SYMBOL, self._notes.ctypes.data)
        self._handler = compile_handler(cached=cached)
        for number in FATAL_SIGNALS:
            note_fatal(number, self._handler.address)


def compile_handler(*, cached: bool) -> Any:
    """Compile the handler, or load it from the folder of compiled code; it wants the notes of a ``Notes``."""
    return compile_function(types.void(types.int32), _mark_lane, cached=cached)
