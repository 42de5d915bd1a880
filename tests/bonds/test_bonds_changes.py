"""Bonds that lose members, workers or the wish to live, and bonds that cannot be had."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from bond_traffic import add_bond, carries, exchange, put_bond, remove_bond, to_vf
from bond_wires import Wires

from harness.daemon import Daemon
from harness.process import wait_for
from harness.testpmd import Testpmd
from vio4wd.portctl.proto.virtioforwarder_pb2 import PortControlResponse

pytestmark = pytest.mark.dpdk

NULLS = ("net_null80,size=60,copy=0", "net_null81,size=60,copy=0")


def worker_of(daemon: Daemon) -> psutil.Process:
    """The worker that carries relays; the other one is a spare."""
    return daemon.settled_workers()[0]


def end_worker(daemon: Daemon) -> None:
    """Kill the worker that carries relays and see it gone."""
    worker = worker_of(daemon)
    worker.kill()
    psutil.wait_procs([worker], timeout=5)


def hugepages_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "_Hugetlb:" in line)


def test_members_that_vanish_and_return(daemon: Daemon, wires: Wires, guest: Callable[..., Testpmd]) -> None:
    """One member, then the other, then a worker's death meanwhile: what is there carries traffic."""
    relay = 1
    put_bond(daemon, relay, 1, wires.devargs())
    testpmd = guest(daemon.socket(relay), mode="macswap")
    testpmd.command("start", "macswap packet forwarding")
    daemon.wait_active(relay)
    wires.cut(0)
    with wires.open(1) as end:
        wait_for(lambda: carries(end), 1, "the other member to carry")
    wires.cut(1)
    time.sleep(0.3)
    wires.lay(0)
    with wires.open(0) as end:
        wait_for(lambda: carries(end), 3, "the first member to carry again")
        end_worker(daemon)
        wait_for(lambda: carries(end), 5, "traffic after the worker's death, with one member missing")
    wires.lay(1)
    daemon.child.wait_for_log(f"{wires.devargs()[1]} is back", 5)
    wires.down(0)
    with wires.open(1) as end:
        wait_for(lambda: carries(end), 1, "the second member to carry again")
        assert len(exchange([end], 0, range(100), 100)[0]) == 100
    testpmd.stop()
    remove_bond(daemon, relay)
    assert "Traceback" not in daemon.child.log


def test_fail_over_does_not_wait_for_a_slow_probe(
    daemon: Daemon, wires: Wires, guest: Callable[..., Testpmd], tmp_path: Path
) -> None:
    """The probe of a virtio-user port that listens takes until somebody has connected to it."""
    relay, slow = 1, tmp_path / "slow.sock"
    put_bond(daemon, relay, 1, wires.devargs())
    testpmd = guest(daemon.socket(relay), mode="macswap")
    testpmd.command("start", "macswap packet forwarding")
    daemon.wait_active(relay)
    with wires.open(0) as end:
        wait_for(lambda: carries(end), 1, "the first member to carry")
    with ThreadPoolExecutor(1) as pool, socket.socket(socket.AF_UNIX) as visitor:
        adding = pool.submit(
            daemon.port_control, "add", "--virtio-id=2", f"--devargs=net_virtio_user2,path={slow},server=1"
        )
        daemon.child.wait_for_log("waiting for client connection")
        wires.down(0)
        with wires.open(1) as end:
            wait_for(lambda: carries(end), 1, "the second member to carry while the probe lasts")
        wires.up(0)
        visitor.connect(str(slow))
    assert adding.result().returncode == 1
    daemon.child.wait_for_log(f"{wires.devargs()[0]} is back", 5)
    testpmd.stop()
    remove_bond(daemon, relay)
    assert "Traceback" not in daemon.child.log


@pytest.mark.parametrize("mode", [1, 4])
def test_a_killed_worker_s_bond_comes_back(daemon: Daemon, guest: Callable[..., Testpmd], mode: int) -> None:
    relay = 7
    put_bond(daemon, relay, mode, NULLS)
    testpmd = guest(daemon.socket(relay))
    testpmd.command("start", "io packet forwarding")
    daemon.wait_active(relay)
    if mode == 1:
        wait_for(lambda: to_vf(daemon, relay) > 50_000, 5, "traffic")
    before = to_vf(daemon, relay)
    end_worker(daemon)
    daemon.child.wait_for_log(f"relay {relay}: added net_bonding{relay}")
    wait_for(lambda: daemon.child.log.count("added net_bonding7") == 2, 5, "the bond on the new worker")
    if mode == 1:
        wait_for(lambda: to_vf(daemon, relay) > before + 50_000, 5, "traffic after the death")
    daemon.wait_active(relay)
    testpmd.stop()
    remove_bond(daemon, relay)


def test_removal_under_traffic_leaves_nothing(daemon: Daemon, guest: Callable[..., Testpmd]) -> None:
    relay = 3
    testpmd = guest(daemon.socket(relay))
    testpmd.command("start", "io packet forwarding")

    def cycle(mode: int) -> None:
        put_bond(daemon, relay, mode, NULLS)
        before = to_vf(daemon, relay)
        if mode != 4:  # nobody to negotiate with
            wait_for(lambda: to_vf(daemon, relay) > before, 5, f"traffic in mode {mode}")
        remove_bond(daemon, relay)

    for mode in range(7):
        cycle(mode)
    worker = worker_of(daemon)

    def footprint() -> tuple[int, int, int]:
        return psutil.Process(daemon.child.pid).num_fds(), worker.num_fds(), hugepages_kb(worker.pid)

    before = footprint()
    for number in range(20):
        cycle(number % 7)
    wait_for(lambda: footprint() == before, 2, f"{before}, is {footprint()}")
    added = [line for line in daemon.child.log.splitlines() if ": added net_bonding3" in line]
    assert len(added) == 27
    assert len({line.split("(port ")[1] for line in added}) == 1  # the same port number each time: all were given back
    assert "not given back" not in daemon.child.log
    testpmd.stop()


def refused(daemon: Daemon, code: int, relay: int, devargs: tuple[str, ...], name: str = "", mode: int = 1) -> None:
    answer = add_bond(daemon, relay, mode, devargs, name)
    assert answer.status == PortControlResponse.ERROR
    assert (answer.error_code, answer.error_code_source) == (code, "virtio_forwarder_bond_add()"), answer


def test_refusals_change_nothing(daemon: Daemon) -> None:
    relay = 5
    put_bond(daemon, relay, 1, NULLS)
    remove_bond(daemon, relay)
    worker = worker_of(daemon)
    before = worker.num_fds(), hugepages_kb(worker.pid)
    daemon.add(6, "net_null60")
    good = "net_null50"
    for _ in range(5):
        refused(daemon, 1, 64, NULLS)
        refused(daemon, 2, relay, NULLS, name="net_bonding_" + "x" * 80)
        refused(daemon, 3, relay, (good, "net_null60"))
        refused(daemon, 5, relay, (good, "net_af_packet5,iface=nowhere"))
        refused(daemon, 5, relay, (good, "0000:ff:1f.7"))
        refused(daemon, 8, 6, NULLS)
        assert f"relay_{relay}.vf.pci_addr_str" not in daemon.stats()
    daemon.remove(6, "net_null60")
    put_bond(daemon, relay, 1, NULLS)
    remove_bond(daemon, relay)
    assert (worker.num_fds(), hugepages_kb(worker.pid)) == before


def test_members_that_cannot_be_configured(tmp_path: Path, wires: Wires) -> None:
    """net_af_packet does not take frames of 9000 bytes."""
    daemon = Daemon(tmp_path, VIRTIOFWD_JUMBO="y")
    refused(daemon, 4, 5, tuple(wires.devargs()))
    put_bond(daemon, 5, 1, NULLS)
    assert daemon.stop() == 0


def test_without_the_bonding_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = tmp_path / "lib"
    libraries.mkdir()
    for library in Path("/usr/lib/x86_64-linux-gnu").glob("librte_*.so.*"):
        if "net_bond" not in library.name:
            (libraries / library.name).symlink_to(library)
    monkeypatch.setenv("VIO4WD_DPDK_LIBDIR", str(libraries))
    daemon = Daemon(tmp_path)
    refused(daemon, -1, 5, NULLS)
    daemon.add(5, "net_null5")
    assert daemon.stop() == 0
