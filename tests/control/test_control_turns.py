"""Ports of one worker are added and removed one after the other, and the limits on commands are for each by itself.

A device that takes its time is net_failsafe's: it asks a program which device it is to be.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from control.control_client import OK, Answer, Client
from control.in_process import relays_with_worker
from harness.daemon import Daemon
from harness.process import wait_for
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


def test_requests_that_cannot_begin_in_time(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], short_dir: Path
) -> None:
    """They are refused while their clients still wait, and are not carried out later."""
    daemon = start_daemon(VIRTIOFWD_DYNAMIC_SOCKETS="true")
    client = client_of(daemon)
    path = short_dir / "pair"
    assert client.add_sock(path, "net_null0") == client.add(1, "net_null1") == OK
    socket = path.stat().st_ino
    requests: dict[Callable[[Client], Answer], tuple[int, str]] = {
        lambda c: c.add(2, "net_null2"): (2, "virtio_forwarder_add_vf2()"),
        lambda c: c.add(3, "net_null3", "net_null4", name="net_bonding0"): (2, "virtio_forwarder_bond_add()"),
        lambda c: c.remove(1): (5, "virtio_forwarder_remove_vf2()"),
        lambda c: c.remove(9): (5, "virtio_forwarder_remove_vf2()"),
        lambda c: c.add_sock(short_dir / "other", "net_null5"): (3, "virtio_add_sock_dev_pair()"),
        lambda c: c.remove_sock(path): (4, "virtio_remove_sock_dev_pair()"),
    }
    hasty = [client_of(daemon, patience=3) for _ in requests]
    with ThreadPoolExecutor(len(requests) + 1) as threads:
        first = threads.submit(client_of(daemon).add, 9, slow(9, 4).devargs)
        wait_for(lambda: daemon.workers()[0].children(recursive=True), 5, "the probe of the first device")
        answers = list(threads.map(lambda request, c: request(c), requests, hasty))
        assert not first.done()
        assert [answer.error for answer in answers] == list(requests.values())
        assert first.result(15) == OK
    assert client.devices() == {0: "net_null0", 1: "net_null1", 9: slow(9, 4).devargs}
    assert client.sockets() == {0: str(path)}
    assert path.stat().st_ino == socket  # never closed
    assert client.remove_sock(path) == client.remove(1) == client.remove(9) == OK
    assert client.add(2, "net_null2") == OK


def test_requests_that_say_how_long_they_wait(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client]
) -> None:
    daemon = start_daemon()
    first, second = client_of(daemon), client_of(daemon)
    with ThreadPoolExecutor(1) as threads:
        slow_one = threads.submit(first.add, 9, slow(9, 3).devargs)
        wait_for(lambda: daemon.workers()[0].children(recursive=True), 5, "the probe of the first device")
        assert second.add(2, "net_null2", patience_ms=10_000) == OK
        assert slow_one.result(1) == OK


def test_slow_vfs_by_the_tool_at_once(start_daemon: Callable[..., Daemon], client_of: Callable[..., Client]) -> None:
    """Together they take longer than a request may wait that does not say how long."""
    daemon = start_daemon()
    daemon.settled_workers()

    def add(number: int) -> tuple[int, str]:
        done = daemon.port_control("add", f"--virtio-id={number}", f"--devargs={slow(number, 1.0).devargs}")
        return done.returncode, done.stderr

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(add, range(3))) == [(0, "")] * 3
    assert len(client_of(daemon).devices()) == 3
