"""What is wanted survives the death of workers, and what cannot come back at once comes back by itself."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import zmq

from control.control_client import OK, Answer, Client
from frontend import FrontEnd
from harness.daemon import Daemon
from harness.netns import VethPair, received, run
from harness.process import wait_for
from harness.testpmd import Testpmd
from portctl import portctl_wire as wire

pytestmark = pytest.mark.dpdk

SCHED = {"VIRTIOFWD_CPU_MASK": "0,1", "VIO4WD_CORE_SCHED_ENABLE": "true"}


def with_sched(directory: Path) -> dict[str, str]:
    return SCHED | {"VIRTIOFWD_ZMQ_CORE_SCHED_EP": f"ipc://{directory}/core_sched"}


def pin(daemon: Daemon, relay: int, there: int, back: int) -> int:
    """Move a relay with the core pinner; its exit status."""
    endpoints = (f"--stats-ep={daemon.endpoint('stats')}", f"--sched-ep={daemon.endpoint('core_sched')}")
    return daemon.tool("core_pinner", *endpoints, f"--virtio-cpu={relay}:{there},{back}").returncode


class Sched:
    """A client of the core_sched service."""

    def __init__(self, daemon: Daemon) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self._socket.connect(daemon.endpoint("core_sched"))

    def __enter__(self) -> Sched:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def __call__(self, request: bytes) -> bytes:
        self._socket.send(request)
        return self._socket.recv()


def kill_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.kill()


def test_everything_is_put_back(
    start_daemon: Callable[..., Daemon],
    client_of: Callable[..., Client],
    guest: Callable[..., Testpmd],
    short_dir: Path,
    tmp_path: Path,
) -> None:
    """VFs, a bond, dynamic sockets with and without guests, CPUs: as they were, time after time."""
    daemon = start_daemon(
        VIRTIOFWD_DYNAMIC_SOCKETS="true",
        VIRTIOFWD_STATIC_VFS="net_null50=50",
        VIRTIOFWD_CPU_PINS="50:1,0",
        **with_sched(tmp_path),
    )
    client = client_of(daemon)
    wait_for(lambda: 50 in client.devices(), 5, "the static VF")
    path = short_dir / "vhub679325f-ca"
    assert client.add_sock(path, "net_null0,size=60,copy=0") == OK
    assert client.add_sock(short_dir / "bond", "net_null1", "net_null2", name="net_bonding0", mode=0) == OK
    assert client.add_sock(short_dir / "quiet", "net_null3") == OK
    assert client.add(40, "net_null40") == OK
    assert pin(daemon, 0, 1, 1) == pin(daemon, 40, 1, 0) == 0
    testpmd = guest(path)
    testpmd.command("start", "io packet forwarding")
    wait_for(lambda: client.relay(0).active, 10, "the guest")

    def state() -> dict[int, tuple[object, ...]]:
        return {
            number: (relay.vf.pci_addr_str, relay.vf_to_vm.internal_state, relay.vm_to_vf.internal_state,
                     relay.cpu.vf_to_vm, relay.cpu.vm_to_vf, relay.vhost.vhost_socket_name, relay.fault)
            for number, relay in client.stats().items()
        }  # fmt: skip

    before = state()
    for _ in range(3):
        daemon.settled_workers()
        packets = client.relay(0).vm_to_vf.pkts_tx_to_vf
        daemon.workers()[0].kill()
        wait_for(lambda n=packets: client.relay(0).vm_to_vf.pkts_tx_to_vf > n + 50_000, 10, "packets")
        wait_for(lambda: state() == before, 10, "everything to be as it was")
    kill_all(daemon.workers())  # the spare one, too
    wait_for(lambda: state() == before, 20, "everything to be as it was")
    with FrontEnd(short_dir / "quiet") as front:
        front.handshake()
        wait_for(lambda: client.relay(2).active, 5, "a new guest")
    assert client.remove_sock(path) == client.remove_sock(short_dir / "bond") == OK
    assert daemon.child.log.count("could not be put back") == 0


def make_link(pair: VethPair) -> None:
    """Make a veth pair anew whose links have been deleted."""
    run("ip", "link", "add", pair.vf, "type", "veth", "peer", "name", pair.peer, "netns", pair.namespace)
    run("ip", "link", "set", pair.vf, "up")
    run("ip", "-n", pair.namespace, "link", "set", pair.peer, "up")


def test_a_vf_that_cannot_come_back_yet(
    start_daemon: Callable[..., Daemon],
    client_of: Callable[..., Client],
    guest: Callable[..., Testpmd],
    veth: Callable[[], VethPair],
) -> None:
    daemon = start_daemon()
    client = client_of(daemon)
    gone, there = veth(), veth()
    assert client.add(1, f"net_af_packet1,iface={gone.vf}") == OK
    assert client.add(2, f"net_af_packet2,iface={there.vf}") == OK
    testpmd = guest(daemon.socket(1))
    testpmd.command("start", "io packet forwarding")
    wait_for(lambda: client.relay(1).active, 10, "the guest")
    daemon.settled_workers()
    run("ip", "link", "delete", gone.vf)
    daemon.workers()[0].kill()
    daemon.child.wait_for_log("could not be put back")
    wait_for(lambda: client.relay(2).vf_to_vm.internal_state == "DPDK_ADDED", 10, "the other VF")
    assert f"iface={gone.vf}" in client.relay(1).fault
    wait_for(lambda: client.relay(1).vm_to_vf.internal_state == "VIRTIO_READY", 10, "the guest's session")
    assert client.relay(2).fault == ""
    assert client.relay(1).vf_to_vm.internal_state == "DPDK_UNINIT"
    assert client.devices()[1] == f"net_af_packet1,iface={gone.vf}"
    time.sleep(1)
    assert daemon.child.log.count("could not be put back") == 1
    make_link(gone)
    wait_for(lambda: client.relay(1).active, 10, "the VF")
    assert client.relay(1).fault == ""
    with gone.open() as sock:
        frame = bytes.fromhex("020000000001 020000000002 88b5") + bytes(60)
        sock.send(frame)
        assert frame in received(sock, 1, 5)
    assert daemon.child.log.count("front end connected") == 1


def test_a_vf_that_cannot_come_back_can_be_removed(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], veth: Callable[[], VethPair]
) -> None:
    daemon = start_daemon()
    client = client_of(daemon)
    pair = veth()
    assert client.add(1, f"net_af_packet1,iface={pair.vf}") == OK
    daemon.settled_workers()
    run("ip", "link", "delete", pair.vf)
    daemon.workers()[0].kill()
    daemon.child.wait_for_log("could not be put back")
    assert client.add(1, "net_null1").error == (8, "virtio_forwarder_add_vf2()")
    assert client.remove(1, "net_af_packet1") == OK
    assert client.add(1, "net_null1") == OK
    make_link(pair)
    time.sleep(1)
    assert client.devices() == {1: "net_null1"}
    assert client.relay(1).fault == ""


def test_requests_while_no_worker_runs(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], tmp_path: Path
) -> None:
    """With the spare dead as well a new worker takes a second; nothing fails half-way meanwhile, nobody is cut off."""
    daemon = start_daemon(**with_sched(tmp_path))
    client = client_of(daemon)
    for relay in (1, 2):
        assert client.add(relay, f"net_null{relay},size=60,copy=0") == OK
    kill_all(daemon.settled_workers())
    wait_for(lambda: "waits for a worker process" in client.relay(1).fault, 2, "the death to be noticed")
    assert pin(daemon, 1, 0, 1) == 0
    assert pin(daemon, 1, 7, 1) == 1
    with FrontEnd(daemon.socket(1)) as first, FrontEnd(daemon.socket(3)) as second:
        assert client.remove(2, "net_null2") == OK
        added = client.add(5, "net_null5")
        assert added == OK or added.error == (2, "virtio_forwarder_add_vf2()")
        for front in (first, second):
            front.handshake()
            front.post_rx()
        assert len(first.receive(5).data) == 60
        relay = client.relay(1)
        assert (relay.cpu.vf_to_vm, relay.cpu.vm_to_vf) == (0, 1)
        expected = {1: "net_null1,size=60,copy=0"} | ({5: "net_null5"} if added.ok else {})
        assert client.devices() == expected
        assert client.add(3, "net_null3,size=60,copy=0") == OK
        assert len(second.receive(5).data) == 60


def test_a_system_without_descriptors_for_a_new_worker(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client]
) -> None:
    """It is tried again until there are some, and so is the spare one."""
    daemon = start_daemon()
    client = client_of(daemon)
    assert client.add(1, "net_null1") == OK
    workers = daemon.settled_workers()
    supervisor = psutil.Process(daemon.child.pid)
    limits = supervisor.rlimit(psutil.RLIMIT_NOFILE)
    supervisor.rlimit(psutil.RLIMIT_NOFILE, (1, limits[1]))
    kill_all(workers)
    wait_for(lambda: daemon.child.log.count("cannot be started again") >= 2, 10, "two attempts")
    assert "Too many open files" in daemon.child.log
    supervisor.rlimit(psutil.RLIMIT_NOFILE, limits)
    wait_for(lambda: client.relay(1).vf_to_vm.internal_state == "DPDK_ADDED", 20, "the VF")
    assert daemon.settled_workers() != workers


def test_pins_over_all_relays_while_a_worker_dies(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], tmp_path: Path
) -> None:
    """All or none are moved, whenever the worker dies."""
    daemon = start_daemon(**with_sched(tmp_path))
    client = client_of(daemon)
    relays = range(20)
    for relay in relays:
        assert client.add(relay, f"net_null{relay}") == OK
    with Sched(daemon) as sched:
        for round_ in range(4):
            cpu = round_ % 2
            daemon.settled_workers()
            killer = threading.Timer(0.005 * round_, daemon.workers()[0].kill)
            killer.start()
            entries = [wire.number(1, relay) + wire.number(2, cpu) + wire.number(3, cpu) for relay in relays]
            answer = wire.decode(sched(wire.number(1, 0) + b"".join(wire.data(2, entry) for entry in entries)))
            assert wire.only(answer, 4) == wire.OK
            killer.join()
            wait_for(lambda: all(client.relay(r).vf_to_vm.internal_state == "DPDK_ADDED" for r in relays), 10, "VFs")
            assert {client.relay(relay).cpu.vf_to_vm for relay in relays} == {cpu}


def test_a_worker_that_hangs(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], guest: Callable[..., Testpmd]
) -> None:
    """Commands time out, the worker is replaced, and all services answer meanwhile."""
    daemon = start_daemon()
    client, patient = client_of(daemon), client_of(daemon, patience=60)
    assert client.add(1, "net_null1,size=60,copy=0") == OK
    testpmd = guest(daemon.socket(1))
    testpmd.command("start", "io packet forwarding")
    wait_for(lambda: client.relay(1).vm_to_vf.pkts_tx_to_vf > 10_000, 10, "packets")
    worker = daemon.settled_workers()[0]
    worker.send_signal(signal.SIGSTOP)
    packets = client.relay(1).vm_to_vf.pkts_tx_to_vf
    answers: list[Answer] = []
    request = threading.Thread(target=lambda: answers.append(patient.add(2, "net_null2")))
    request.start()
    slowest = 0.0
    deadline = time.monotonic() + 40
    while request.is_alive():
        begun = time.monotonic()
        assert begun < deadline
        client.stats()
        assert client.query(daemon.socket(1)).text == "net_null1,size=60,copy=0"
        slowest = max(slowest, time.monotonic() - begun)
        request.join(0.1)
    assert slowest < 1
    wait_for(lambda: not worker.is_running(), 5, "the end of the worker")
    assert answers[0] == OK or answers[0].error == (2, "virtio_forwarder_add_vf2()")
    assert 2 not in client.devices() or answers[0].ok
    wait_for(lambda: client.relay(1).vm_to_vf.pkts_tx_to_vf > packets + 10_000, 10, "packets")
    assert "did not answer" in daemon.child.log
    assert client.add(2, "net_null2", conditional=True) == OK
    assert client.remove(1, "net_null1") == OK


def test_a_hung_worker_does_not_hold_up_the_end(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client]
) -> None:
    daemon = start_daemon()
    assert client_of(daemon).add(1, "net_null1") == OK
    daemon.settled_workers()[0].send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 3
