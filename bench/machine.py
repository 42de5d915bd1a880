"""How the machine treats two of its CPUs right now: a virtual machine's CPUs are moved about while one measures.

Two things change the rate of anything that passes packets between two CPUs by a factor of up to four: how far apart
they are (whether they share a last-level cache), and whether another guest of the host works on the same cores.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np

from vio4wd.relay.native import load64_acquire, read_tsc, store64_release

ROUND_TRIPS = 4000
WORK_ROUNDS = 50_000
MAX_SPINS = 1 << 28
"""Looks at the shared line after which the other CPU is given up: some seconds."""

PATIENCE = 10
"""Seconds in which a thread must get to run on its CPU."""

PRIORITY = 10
"""Real time, so that poll loops on the same CPUs make room at once."""

_NB: Any = numba


@dataclass(frozen=True)
class Conditions:
    """What two CPUs were worth at a moment, in cycles of the TSC: less is better."""

    line: float
    """For a cache line to get from one to the other."""

    work: float
    """For a round of arithmetic that fills the core, on the slower of the two."""

    def alike(self, best: Conditions) -> tuple[bool, bool]:
        """Whether the CPUs were as near and as much ours as in ``best``: equal answers can be compared."""
        return self.line <= 2 * best.line, self.work <= 1.2 * best.work


def cpu_model() -> str:
    """What the kernel calls this machine's first CPU, with the numbers that tell its generation."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    name, family, model = (facts.get(key, "?").strip() for key in ("model name", "cpu family", "model"))
    return f"{name}, family {family}, model {model}"


def best_of(conditions: list[Conditions]) -> Conditions:
    """The least of each."""
    return Conditions(min(c.line for c in conditions), min(c.work for c in conditions))


@_NB.njit("float64(int64)", nogil=True)
def _work(rounds: int) -> Any:
    """Arithmetic in independent chains, as much as the core can do at once; answers cycles for a round."""
    a, b, c, d, start = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4), read_tsc()
    for i in range(rounds):
        a = (a ^ np.uint64(i)) + (a >> np.uint64(3))
        b = (b ^ np.uint64(i)) + (b >> np.uint64(5))
        c = (c ^ np.uint64(i)) + (c >> np.uint64(7))
        d = (d ^ np.uint64(i)) + (d >> np.uint64(9))
    cycles = read_tsc() - start
    return (cycles / rounds) if a ^ b ^ c ^ d else 0.0


@_NB.njit("float64(int64, int64, int64)", nogil=True)
def _play(address: int, mine: int, rounds: int) -> Any:
    """Take turns with the other CPU in counting up the number at the address; answers cycles for a turn, -1: alone."""
    start = read_tsc()
    for i in range(rounds):
        if i == 1:
            start = read_tsc()  # the other one is there
        spins = 0
        while load64_acquire(address) != 2 * i + mine:
            spins += 1
            if spins == MAX_SPINS:
                return -1.0
        store64_release(address, 2 * i + mine + 1)
    return (read_tsc() - start) / (2 * (rounds - 1))


class Probe:
    """Looks at two CPUs, even while others poll on them, for about a millisecond each time."""

    def __init__(self, first: int, second: int) -> None:
        self._cpus = (first, second)
        self._both_run = threading.Barrier(2)
        self._line = np.zeros(16, "i8")
        self._threads = [ThreadPoolExecutor(1, f"probe-{cpu}") for cpu in self._cpus]

    def look(self) -> Conditions:
        """Measure.

        Raises:
            threading.BrokenBarrierError: a thread did not get to run on its CPU.
            TimeoutError: nor, while they counted, for seconds.
        """
        self._line[:] = 0
        played = [thread.submit(self._side, mine) for mine, thread in enumerate(self._threads)]
        (line, first), (_, second) = [side.result() for side in played]
        if line < 0:
            raise TimeoutError(f"CPUs {self._cpus} were not both to be had")
        return Conditions(line, max(first, second))

    def _side(self, mine: int) -> tuple[float, float]:
        os.sched_setaffinity(0, {self._cpus[mine]})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        self._both_run.wait(PATIENCE)
        work = _work(WORK_ROUNDS)
        address = (self._line.ctypes.data + 63) & ~63
        return _play(address, mine, ROUND_TRIPS), work

    def close(self) -> None:
        """End the threads."""
        for thread in self._threads:
            thread.shutdown()
