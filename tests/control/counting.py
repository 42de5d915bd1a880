"""What processes of the daemon use, counted."""

from __future__ import annotations

import json
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


def workers(daemon: Daemon) -> list[psutil.Process]:
    """The worker processes, oldest first: the first carries relays until it dies."""

    def generation(process: psutil.Process) -> int:
        return int(json.loads(process.cmdline()[-1])["name"].split("-")[1])

    return sorted(daemon.workers(), key=generation)


def settled_workers(daemon: Daemon, count: int) -> list[psutil.Process]:
    """The worker processes when there are that many and none is just starting (a started one has lcore threads)."""
    wait_for(lambda: len(daemon.workers()) == count, 30, f"{count} worker processes")
    wait_for(lambda: all(footprint(process).hugepages_kb for process in daemon.workers()), 30, "all to have memory")
    return workers(daemon)
