"""Ports of one worker are added and removed one after the other, and the limits on commands are for each by itself.

A device that takes its time is net_failsafe's: it asks a program which device it is to be.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from control.in_process import relays_with_worker
from vio4wd.daemon import carrier
from vio4wd.daemon.relays import Relays
from vio4wd.devices import Device
from vio4wd.relay.interface import VfState

pytestmark = pytest.mark.dpdk


def slow(number: int, seconds: float) -> Device:
    """A device that takes this long to be probed."""
    return Device.parse(f"net_failsafe{number},exec(sleep {seconds}; echo net_null{number})")


def up(relays: Relays, number: int) -> bool:
    return relays.snapshot()[number].vf_state is VfState.ADDED


def test_many_slow_vfs_at_once(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them together take longer than one may, also when a new worker is given them."""
    monkeypatch.setattr(carrier, "ADD_LIMIT_S", 2.0)
    numbers = range(5)

    async def scenario() -> None:
        async with relays_with_worker(short_dir) as (relays, workers):
            first = workers.slots[0].process
            await asyncio.gather(*(relays.add_vf(number, slow(number, 0.7)) for number in numbers))
            assert workers.slots[0].process is first and first.alive and first.pid is not None
            os.kill(first.pid, signal.SIGKILL)
            while workers.slots[0].process is first or not all(up(relays, number) for number in numbers):
                await asyncio.sleep(0.05)
            assert workers.slots[0].process.name.startswith("vio4wd-2-")

    asyncio.run(asyncio.wait_for(scenario(), 60))
