"""All relays of one daemon: the second worker process, moves between processes, and nothing that leaks."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import pytest

from control.control_client import OK, Client
from control.counting import footprint, settled_footprint
from frontend import FrontEnd
from harness.daemon import Daemon
from harness.process import wait_for
from harness.testpmd import Testpmd

pytestmark = pytest.mark.dpdk

RELAYS = 64
PORTS = 32
"""Ports of a process of a stock DPDK."""


def test_64_vfs(start_daemon: Callable[..., Daemon], client_of: Callable[..., Client]) -> None:
    daemon = start_daemon()
    daemon.settled_workers()
    client = client_of(daemon)
    for _ in range(2):
        begun = time.monotonic()
        for relay in range(RELAYS):
            assert client.add(relay, f"net_null{relay}") == OK
        states = {relay: state.vf_to_vm.internal_state for relay, state in client.stats().items()}
        assert states == dict.fromkeys(range(RELAYS), "DPDK_ADDED")
        for relay in range(RELAYS):
            assert client.remove(relay, f"net_null{relay}") == OK
        assert time.monotonic() - begun < 30  # a bound against hanging; the time itself is the benchmark's matter
        assert client.devices() == {}
    assert daemon.child.log.count("starting one more") == 1
    daemon.settled_workers(3)  # two in use, one spare


def test_a_bond_that_does_not_fit_goes_to_the_next_process(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client]
) -> None:
    daemon = start_daemon()
    daemon.settled_workers()
    client = client_of(daemon)
    for relay in range(PORTS - 2):
        assert client.add(relay, f"net_null{relay}") == OK
    assert client.add(40, "net_null40", "net_null41", name="net_bonding0") == OK  # 3 ports, 2 are left
    for relay in (41, 42):
        assert client.add(relay, f"net_null{relay + 10}") == OK
    assert client.remove(40, name="net_bonding0") == OK
    members = [f"net_null{number}" for number in range(50, 58)]
    assert client.add(43, *members, name="net_bonding1").error == (3, "virtio_forwarder_bond_add()")
    assert client.add(43, *members[3:], name="net_bonding1") == OK
    assert client.relay(43).vf_to_vm.internal_state == "DPDK_ADDED"


def test_a_guest_moves_to_the_process_that_has_room_for_its_vf(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], guest: Callable[..., Testpmd]
) -> None:
    daemon = start_daemon()
    client = client_of(daemon)
    first = daemon.settled_workers()[0]
    for relay in range(PORTS):
        assert client.add(relay, f"net_null{relay}") == OK
    assert client.remove(PORTS - 1, f"net_null{PORTS - 1}") == OK
    assert client.add(PORTS - 1, f"net_null{PORTS - 1}") == OK
    relay = 40
    with FrontEnd(daemon.socket(relay)) as visitor:  # the first guest ever has rte_vhost start its thread
        visitor.handshake()
    wait_for(lambda: daemon.child.log.count("front end left") == 1, 5, "the visitor to be gone")
    before = settled_footprint(first)
    testpmd = guest(daemon.socket(relay))
    testpmd.command("start", "io packet forwarding")
    wait_for(lambda: client.relay(relay).vm_to_vf.internal_state == "VIRTIO_READY", 10, "the guest")
    assert footprint(first).fds > before.fds
    seen = 0
    for _ in range(3):
        assert client.add(relay, "net_null40,size=60,copy=0") == OK
        wait_for(lambda seen=seen: client.relay(relay).vm_to_vf.pkts_tx_to_vf > seen + 100_000, 10, "packets")
        assert client.remove(relay, "net_null40") == OK
        seen = client.relay(relay).vm_to_vf.pkts_tx_to_vf
    assert daemon.child.log.count("relay 40: moves from worker process 0 to 1") == 1
    assert daemon.child.log.count("front end connected") == 2
    assert settled_footprint(first).fds == before.fds  # the session is forgotten there
    assert client.add(relay, "net_null40,size=60,copy=0") == OK
    second = daemon.workers()[1]
    for process in (second, first):  # the one that has the guest, and the one that had it
        packets = client.relay(relay).vm_to_vf.pkts_tx_to_vf
        process.kill()
        time.sleep(0.2)
        wait_for(lambda n=packets: client.relay(relay).vm_to_vf.pkts_tx_to_vf > n + 100_000, 10, "packets")
    wait_for(lambda: client.relay(0).vf_to_vm.internal_state == "DPDK_ADDED", 10, "the first process's VFs")
    received = testpmd.counters()["RX-packets"]
    wait_for(lambda: testpmd.counters()["RX-packets"] > received, 10, "packets at the front end")
    testpmd.stop()
    assert client.remove(relay, "net_null40") == OK
    testpmd = guest(daemon.socket(relay))  # on the first process again
    wait_for(lambda: client.relay(relay).vm_to_vf.internal_state == "VIRTIO_READY", 10, "the next guest")


def test_200_cycles_leave_nothing_and_disturb_nobody(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], guest: Callable[..., Testpmd]
) -> None:
    """VFs come and go while a neighbour forwards: it loses no packet, and no process has more at the end."""
    cycles, steady = 200, 5
    daemon = start_daemon()
    client = client_of(daemon)
    worker = daemon.settled_workers()[0]
    supervisor = psutil.Process(daemon.child.pid)
    testpmd = guest(daemon.socket(steady))
    testpmd.command("start", "io packet forwarding")
    wait_for(lambda: client.relay(steady).vm_to_vf.internal_state == "VIRTIO_READY", 10, "the guest")
    assert client.add(steady, "net_null500,size=60,copy=0") == OK

    def cycle(number: int) -> None:
        relay = 10 + number % 50
        if number % 10 == 9:
            assert client.add(relay, "net_null100", "net_null101", name="net_bonding0") == OK
            assert client.remove(relay, name="net_bonding0") == OK
        else:
            assert client.add(relay, f"net_null{number}") == OK
            assert client.remove(relay, f"net_null{number}") == OK

    for number in range(20):
        cycle(number)
    before = [footprint(process) for process in (supervisor, worker)]
    forwarded = client.relay(steady).vm_to_vf.pkts_tx_to_vf
    for number in range(cycles):
        cycle(number)
    assert [footprint(process) for process in (supervisor, worker)] == before
    assert client.relay(steady).vm_to_vf.pkts_tx_to_vf > forwarded + 100_000
    assert client.remove(steady, "net_null500") == OK
    last = testpmd.counters()
    while (now := testpmd.counters()) != last:
        last = now
    to_vm, to_vf = client.relay(steady).vf_to_vm, client.relay(steady).vm_to_vf
    assert to_vm.pkts_rx_from_vf == to_vm.pkts_tx_to_vm == last["RX-packets"]
    assert to_vf.pkts_rx_from_vm == last["TX-packets"]
    assert to_vf.pkts_rx_from_vm == to_vf.pkts_tx_to_vf + to_vf.pkts_dropped_vf_not_connected
    assert (to_vm.pkts_dropped_vm_queue_full, to_vm.pkts_dropped_vm_not_connected) == (0, 0)
    assert to_vf.pkts_dropped_vf_queue_full == 0
    assert not any("not given back" in line for line in daemon.child.log.splitlines())
