"""What processes of the daemon use, counted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

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
