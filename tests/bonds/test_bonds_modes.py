"""Traffic through bonds of every mode: the guest sends back what it gets, with the addresses swapped."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bond_switch import Switch
from bond_traffic import carries, collect, exchange, frame, put_bond, remove_bond
from bond_wires import Wires

from harness.daemon import Daemon
from harness.netns import run
from harness.process import wait_for
from harness.testpmd import Testpmd

pytestmark = pytest.mark.dpdk

FRAMES = range(200)
RELAY = 1
Echo = Callable[[int], contextlib.AbstractContextManager[tuple[socket.socket, socket.socket]]]


@pytest.fixture
def echo(shared_daemon: Daemon, wires: Wires, guest: Callable[..., Testpmd]) -> Echo:
    """Puts a bond of a mode over the wires, with a guest that answers; gives sockets on the far ends."""

    @contextlib.contextmanager
    def use(mode: int) -> Iterator[tuple[socket.socket, socket.socket]]:
        put_bond(shared_daemon, RELAY, mode, wires.devargs())
        try:
            testpmd = guest(shared_daemon.socket(RELAY), mode="macswap")
            testpmd.command("start", "macswap packet forwarding")
            shared_daemon.wait_active(RELAY)
            with wires.open(0) as first, wires.open(1) as second:
                yield first, second
            testpmd.stop()
        finally:
            remove_bond(shared_daemon, RELAY)

    return use


def test_round_robin_uses_both_members_in_turn(echo: Echo) -> None:
    with echo(0) as ends:
        for sender in (0, 1):
            first, second = exchange(ends, sender, FRAMES, len(FRAMES))
            assert sorted(first + second) == list(FRAMES)
            assert len(first) == len(second)


def test_active_backup_uses_one_member(echo: Echo) -> None:
    with echo(1) as ends:
        assert exchange(ends, 0, FRAMES, len(FRAMES)) == [list(FRAMES), []]
        ends[1].send(frame(1))
        assert collect(ends, 0.2) == [[], []]


def test_balance_keeps_flows_on_members(echo: Echo) -> None:
    with echo(2) as ends:
        rounds = [exchange(ends, sender, FRAMES, len(FRAMES)) for sender in (0, 1)]
        assert rounds[0] == rounds[1]
        assert sorted(sum(rounds[0], [])) == list(FRAMES)
        assert min(map(len, rounds[0])) > len(FRAMES) // 4


def test_broadcast_uses_all_members(echo: Echo) -> None:
    with echo(3) as ends:
        assert exchange(ends, 0, FRAMES, 2 * len(FRAMES)) == [list(FRAMES), list(FRAMES)]


@pytest.mark.parametrize("mode", [5, 6])
def test_adaptive_load_balancing_loses_nothing(echo: Echo, mode: int) -> None:
    with echo(mode) as ends:
        first, second = exchange(ends, 0, FRAMES, len(FRAMES))
        assert sorted(first + second) == list(FRAMES)


@pytest.mark.parametrize("mode", [0, 1, 2, 3, 5, 6])
def test_a_lost_link_leaves_the_other_member_and_comes_back(
    shared_daemon: Daemon, echo: Echo, wires: Wires, mode: int
) -> None:
    def events(what: str) -> int:
        return shared_daemon.child.log.count(what)

    with echo(mode) as (first, second):
        for down, left in ((0, second), (1, first)):
            lost, back = events("lost its link"), events("is back")
            wires.down(down)
            wait_for(
                lambda left=left, lost=lost: events("lost its link") > lost and carries(left),
                1,
                f"wire {1 - down} to carry alone",
            )
            assert Counter(exchange([left], 0, FRAMES, len(FRAMES))[0]) == Counter(FRAMES)
            wires.up(down)
            wait_for(lambda back=back: events("is back") > back, 2, f"wire {down} to be used again")


def test_8023ad_with_a_switch(
    shared_daemon: Daemon, wires: Wires, guest: Callable[..., Testpmd], tmp_path: Path
) -> None:
    """Negotiates without a guest, carries traffic, and goes on with one member when the other loses its link."""
    relay = 2
    switch = Switch(wires, tmp_path)
    try:
        put_bond(shared_daemon, relay, 4, wires.devargs())
        wait_for(lambda: switch.members_up() == 2, 15, f"both members to be in use: {switch.lacp()}")
        assert switch.lacp().count("partner state: activity aggregation synchronized collecting distributing") == 2
        testpmd = guest(shared_daemon.socket(relay), mode="macswap")
        testpmd.command("start", "macswap packet forwarding")
        shared_daemon.wait_active(relay)
        run("ip", "-n", wires.namespace, "link", "set", "br0", "up")
        with wires.open_interface("br0") as bridge:
            assert sorted(exchange([bridge], 0, FRAMES, len(FRAMES))[0]) == list(FRAMES)
            wires.down(0)
            wait_for(lambda: switch.members_up() == 1, 5, "one member")
            wait_for(lambda: carries(bridge), 2, "traffic over one member")
            assert sorted(exchange([bridge], 0, FRAMES, len(FRAMES))[0]) == list(FRAMES)
            wires.up(0)
            wait_for(lambda: switch.members_up() == 2, 15, f"both members to be in use again: {switch.lacp()}")
            assert sorted(exchange([bridge], 0, FRAMES, len(FRAMES))[0]) == list(FRAMES)
        testpmd.stop()
        remove_bond(shared_daemon, relay)
    finally:
        switch.stop()
