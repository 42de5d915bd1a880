"""What processes of the daemon use, counted."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.daemon import Daemon
from harness.process import wait_for


@dataclass(frozen=True)
class Footprint:
    """What one process has at a moment."""

    fds: int
    threads: int
    hugepages_kb: int


def footprint(process: psutil.Process) -> Footprint:
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    hugepages = sum(int(line.split()[1]) for line in lines if "_Hugetlb:" in line)
    return Footprint(process.num_fds(), process.num_threads(), hugepages)


def settled_footprint(process: psutil.Process) -> Footprint:
    """The footprint once it has not changed for a while: a session's descriptors are closed after its end is told."""
    last: list[Footprint] = []

    def settled() -> bool:
        last.append(footprint(process))
        time.sleep(0.02)
        return len(set(last[-15:])) == 1 and len(last) >= 15

    wait_for(settled, 10, f"process {process.pid} to settle")
    return last[-1]


def workers(daemon: Daemon) -> list[psutil.Process]:
    """The worker processes, oldest first: the first carries relays until it dies."""

    def generation(process: psutil.Process) -> int:
        return int(json.loads(process.cmdline()[-1])["name"].split("-")[1])

    return sorted(daemon.workers(), key=generation)


def settled_workers(daemon: Daemon, count: int) -> list[psutil.Process]:
    """The worker processes, oldest first, when there are that many and all have their memory."""
    found: list[psutil.Process] = []

    def settled() -> bool:
        try:
            found[:] = workers(daemon)
            return len(found) == count and all(footprint(process).hugepages_kb for process in found)
        except (psutil.Error, OSError):  # one of them has just ended
            return False

    wait_for(settled, 30, f"{count} worker processes")
    return found
