"""Packets through the real daemon, with real ports and front ends: every one is accounted for on both sides."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest

from harness.daemon import Daemon
from harness.netns import VethPair, received
from harness.process import wait_for
from harness.testpmd import Testpmd

pytestmark = pytest.mark.dpdk

SIZES = (60, 64, 65, 127, 128, 256, 511, 1024, 1500, 1514)


@pytest.fixture
def veth() -> Iterator[VethPair]:
    pair = VethPair()
    yield pair
    pair.remove()


def frame(size: int, number: int) -> bytes:
    head = bytes.fromhex("020000000001 020000000002 88b5") + number.to_bytes(4, "big")
    return head + random.Random(number).randbytes(size - len(head))


def counters(daemon: Daemon, relay: int) -> dict[str, int]:
    prefix = f"relay_{relay}."
    return {
        key[len(prefix) :]: int(value)
        for key, value in daemon.stats().items()
        if key.startswith(prefix) and ".pkts_" in key or ".bytes_" in key and key.startswith(prefix)
    }


def test_every_frame_comes_back_unchanged(shared_daemon: Daemon, veth: VethPair, guest: Callable[..., Testpmd]) -> None:
    relay = 1
    shared_daemon.add(relay, f"net_af_packet1,iface={veth.vf}")
    testpmd = guest(shared_daemon.socket(relay))
    testpmd.command("start", "io packet forwarding")
    shared_daemon.wait_active(relay)
    frames = [frame(size, number * 100 + index) for index, size in enumerate(SIZES) for number in range(20)]
    with veth.open() as sock:
        for data in frames:
            sock.send(data)
            time.sleep(0.0005)
        back = received(sock, len(frames), 10)
    assert back == frames
    wait_for(lambda: counters(shared_daemon, relay)["vm_to_vf.pkts_tx_to_vf"] == len(frames), 5, "counters")
    figures = counters(shared_daemon, relay)
    size = sum(map(len, frames))
    for name in ("vf_to_vm.{}_rx_from_vf", "vf_to_vm.{}_tx_to_vm", "vm_to_vf.{}_rx_from_vm", "vm_to_vf.{}_tx_to_vf"):
        assert figures[name.format("pkts")] == len(frames)
        assert figures[name.format("bytes")] == size
    front = testpmd.counters()
    assert (front["RX-packets"], front["TX-packets"]) == (len(frames), len(frames))
    assert front["RX-bytes"] == size
    testpmd.stop()
    shared_daemon.remove(relay, "net_af_packet1")


@pytest.mark.parametrize("size", [60, 252, 1514])
def test_counters_agree_with_the_front_end_at_full_rate(
    shared_daemon: Daemon, guest: Callable[..., Testpmd], size: int
) -> None:
    relay = 2
    base = counters(shared_daemon, relay)
    testpmd = guest(shared_daemon.socket(relay))
    testpmd.command("start", "io packet forwarding")
    shared_daemon.add(relay, f"net_null2,size={size},copy=0")
    time.sleep(1)
    shared_daemon.remove(relay, "net_null2")
    wait_for(lambda: _still(testpmd), 10, "the front end to become quiet")
    front = testpmd.counters()
    figures = {name: value - base[name] for name, value in counters(shared_daemon, relay).items()}
    assert front["RX-packets"] == figures["vf_to_vm.pkts_tx_to_vm"] > 10_000
    assert front["TX-packets"] == figures["vm_to_vf.pkts_rx_from_vm"]
    for direction, near, far in (("vf_to_vm", "rx_from_vf", "tx_to_vm"), ("vm_to_vf", "rx_from_vm", "tx_to_vf")):
        dropped = sum(value for name, value in figures.items() if name.startswith(f"{direction}.pkts_dropped"))
        assert figures[f"{direction}.pkts_{near}"] == figures[f"{direction}.pkts_{far}"] + dropped
        assert figures[f"{direction}.bytes_{near}"] == size * figures[f"{direction}.pkts_{near}"]
        assert figures[f"{direction}.bytes_{far}"] == size * figures[f"{direction}.pkts_{far}"]
    testpmd.stop()


def test_without_a_guest_packets_are_dropped_and_counted(shared_daemon: Daemon) -> None:
    relay = 3
    shared_daemon.add(relay, "net_null3,size=100,copy=0")
    wait_for(lambda: counters(shared_daemon, relay)["vf_to_vm.pkts_dropped_vm_not_connected"] > 1000, 5, "drops")
    shared_daemon.remove(relay, "net_null3")
    figures = counters(shared_daemon, relay)
    assert figures["vf_to_vm.pkts_rx_from_vf"] == figures["vf_to_vm.pkts_dropped_vm_not_connected"]
    assert figures["vf_to_vm.bytes_dropped_vm_not_connected"] == 100 * figures["vf_to_vm.pkts_rx_from_vf"]


def test_without_a_vf_the_guest_s_packets_are_dropped_and_counted(
    shared_daemon: Daemon, guest: Callable[..., Testpmd]
) -> None:
    relay = 4
    testpmd = guest(shared_daemon.socket(relay), mode="txonly")
    testpmd.command("start", "txonly packet forwarding")
    wait_for(lambda: counters(shared_daemon, relay)["vm_to_vf.pkts_dropped_vf_not_connected"] > 1000, 5, "drops")
    testpmd.command("stop", "Done.")
    figures = counters(shared_daemon, relay)
    assert figures["vm_to_vf.pkts_rx_from_vm"] == figures["vm_to_vf.pkts_dropped_vf_not_connected"]
    assert figures["vm_to_vf.bytes_dropped_vf_not_connected"] == 64 * figures["vm_to_vf.pkts_rx_from_vm"]
    testpmd.stop()


def test_other_relays_do_not_notice(shared_daemon: Daemon, guest: Callable[..., Testpmd]) -> None:
    """Front ends come, stop and go on one relay, VFs on another, while a third forwards without a lost packet."""
    steady, other = 5, 6
    shared_daemon.add(steady, "net_null5,size=60,copy=0")
    testpmd = guest(shared_daemon.socket(steady))
    before = counters(shared_daemon, steady)
    testpmd.command("start", "io packet forwarding")
    for _ in range(3):
        shared_daemon.add(other, "net_null6,size=60,copy=0")
        visitor = guest(shared_daemon.socket(other))
        visitor.command("start", "io packet forwarding")
        visitor.command("stop", "Done.")
        visitor.command("port stop 0", "Done")
        visitor.command("port start 0", "Done")
        visitor.child.process.kill()
        visitor.stop()
        shared_daemon.remove(other, "net_null6")
    dropped = "vf_to_vm.pkts_dropped_vm_not_connected"
    assert counters(shared_daemon, steady)[dropped] == before[dropped]
    assert counters(shared_daemon, steady)["vf_to_vm.pkts_dropped_vm_queue_full"] == 0
    testpmd.stop()
    shared_daemon.remove(steady, "net_null5")


def _still(testpmd: Testpmd) -> bool:
    first = testpmd.counters()
    time.sleep(0.2)
    return first == testpmd.counters()
