"""A process that dies of a fault leaves a mark in the lane that its thread was working."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vio4wd.relay.fatal_signals import FATAL_SIGNALS
from vio4wd.relay.lanes import LaneTable

ROOT = Path(__file__).resolve().parents[2]

DYING = """
import signal, sys, threading
from vio4wd.relay.blame import Notes
from vio4wd.relay.lanes import LANE_STRIDE, LaneTable, relay_lanes
number, mine, other = map(int, sys.argv[2:])
table = LaneTable(int(sys.argv[1]))
notes = Notes(2)
notes.watch(cached=False)

def address(relay):
    return table.address + relay_lanes(relay).start * LANE_STRIDE

entered, end = threading.Event(), threading.Event()

def bystander():
    with notes.working(address(other)):
        entered.set()
        end.wait(20)

threading.Thread(target=bystander, daemon=True).start()
entered.wait()
with notes.working(address(5)):
    pass
if mine < 0:
    signal.pthread_kill(threading.get_ident(), number)
with notes.working(address(mine)):
    signal.pthread_kill(threading.get_ident(), number)
print("it lives")
"""


def dies(table: LaneTable, number: int, mine: int, other: int) -> int:
    """Run a process that dies of a signal while it works for ``mine``, and another thread for ``other``."""
    done = subprocess.run(
        [sys.executable, "-c", DYING, *map(str, (table.fd, number, mine, other))],
        pass_fds=[table.fd], cwd=ROOT, timeout=60, check=False, capture_output=True,
    )  # fmt: skip
    assert not done.stdout
    return done.returncode


@pytest.mark.parametrize("number", FATAL_SIGNALS)
def test_the_lane_of_the_thread_that_dies_is_marked(number: int) -> None:
    table = LaneTable.create()
    assert dies(table, number, 3, 4) == -number
    assert [relay for relay in range(64) if table.died_of(relay)] == [3]
    assert not table.died_of(3), "it was taken note of"


def test_a_thread_that_works_for_nobody_marks_nothing() -> None:
    table = LaneTable.create()
    assert dies(table, FATAL_SIGNALS[0], -1, 4) == -FATAL_SIGNALS[0]
    assert not any(table.died_of(relay) for relay in range(64))
