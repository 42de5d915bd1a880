"""Groups of tasks, which some kernels schedule badly beside a poll loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")


@contextmanager
def no_autogroups() -> Iterator[None]:
    """Programs started meanwhile are not grouped by session.

    Linux 6.18 up to 6.18.44 favours the group of a session that polls on two CPUs without end: whatever else is to run
    on one of them, kernel threads included, waits for minutes. 6.18.45 reverts the change to ``reweight_entity()``.
    """
    if not AUTOGROUP.exists():
        yield
        return
    before = AUTOGROUP.read_text()
    AUTOGROUP.write_text("0")
    try:
        yield
    finally:
        AUTOGROUP.write_text(before)
