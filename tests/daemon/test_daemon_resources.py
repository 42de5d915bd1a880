"""What the daemon takes of a machine, CPUs, hugepages and memory, and what it says of its work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from frontend import FrontEnd, GuestMemory, Wire
from frontend.malformed import CASES, MIB
from frontend.vm import DEFAULT_FEATURES, F_MRG_RXBUF
from harness.daemon import Daemon
from harness.process import wait_for
from harness.testpmd import Testpmd
from vio4wd.vhostuser.requests import Request

pytestmark = pytest.mark.dpdk

HUGE = Path("/dev/hugepages")
MASTER_CPU, WORKER_CPU = 0, min(1, psutil.cpu_count() - 1)  # as the daemon of the harness has them


def threads(pid: int) -> dict[str, set[str]]:
    """The CPUs that a process's threads may run on, by the threads' names; the main thread is ``main``."""
    found: dict[str, set[str]] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        name = "main" if task.name == str(pid) else lines["Name"].strip()
        found.setdefault(name, set()).add(lines["Cpus_allowed_list"].strip())
    return found


def test_threads_keep_to_their_cpus(daemon: Daemon) -> None:
    for worker in daemon.settled_workers():
        cpus = threads(worker.pid)
        lcores = [name for name in cpus if "worker" in name and name != "main"]
        assert len(lcores) == 1, cpus
        assert cpus.pop(lcores[0]) == {str(WORKER_CPU)}
        assert cpus["main"] == {str(MASTER_CPU)}
        assert all(allowed == {str(MASTER_CPU)} for allowed in cpus.values()), cpus


def own_files() -> list[str]:
    return [path.name for path in HUGE.iterdir() if "vio4wd" in path.name]


def test_no_hugepage_file_is_seen(daemon: Daemon) -> None:
    daemon.add(1, "net_ring1")
    with FrontEnd(daemon.socket(1)) as vm:
        vm.handshake()
        vm.barrier()
        daemon.settled_workers()
        assert own_files() == []
        daemon.workers()[0].kill()
        daemon.settled_workers()
        assert own_files() == []
    assert daemon.stop() == 0
    assert own_files() == []


def counters(daemon: Daemon, relay: int) -> dict[str, int]:
    """All counters of a relay, cycles included."""
    kinds = (".pkts_", ".bytes_", ".work.cycles")
    found = {key: value for key, value in daemon.stats().items() if key.startswith(f"relay_{relay}.")}
    return {key.split(".", 1)[1]: int(value) for key, value in found.items() if any(kind in key for kind in kinds)}


NEVER = {f"vm_to_vf.{what}_dropped_vf_queue_full" for what in ("pkts", "bytes")}
"""A VF that takes nothing holds the guest up, and none of its packets is lost."""


def test_counters_of_all_kinds_survive_a_worker_s_death(daemon: Daemon) -> None:
    with FrontEnd(daemon.socket(1), features=DEFAULT_FEATURES & ~F_MRG_RXBUF) as vm:
        vm.handshake()
        vm.post_rx(64, size=512)
        for _ in range(200):  # there is no VF; cycles are those of one round in 16
            vm.send_all([bytes(100)] * 32)
            vm.await_sent()
        daemon.add(1, "net_ring1")
        for size in (100, 1000, 2000):  # it comes back, it comes back too long for a buffer, it is too long for the VF
            vm.send_all([bytes(size)] * 32)
        vm.await_sent()
        wait_for(lambda: counters(daemon, 1)["vf_to_vm.pkts_dropped_vm_queue_full"] == 32, 5, "drops")
        daemon.remove(1, "net_ring1")
    wait_for(lambda: daemon.stats()["relay_1.active"] == "False", 5, "the guest to be gone")
    daemon.add(1, "net_null1,copy=0")
    wait_for(lambda: counters(daemon, 1)["vf_to_vm.pkts_dropped_vm_not_connected"] > 1000, 5, "drops")
    daemon.remove(1, "net_null1")
    before = counters(daemon, 1)
    assert {name for name, value in before.items() if value == 0} <= NEVER
    for worker in daemon.settled_workers():
        worker.kill()
    daemon.settled_workers()
    assert counters(daemon, 1) == before
    daemon.add(1, "net_null1,copy=0")
    wait_for(lambda: counters(daemon, 1)["vf_to_vm.work.cycles"] > before["vf_to_vm.work.cycles"], 5, "work")
    after = counters(daemon, 1)
    assert all(after[name] >= value for name, value in before.items())


def test_rates_and_load_agree_with_the_counters(daemon: Daemon, guest: Callable[..., Testpmd]) -> None:
    daemon.add(1, "net_null1,size=60,copy=0")
    idle = daemon.stats(delay=200)
    testpmd = guest(daemon.socket(1))
    testpmd.command("start", "io packet forwarding")
    daemon.wait_active(1)

    def reading() -> tuple[float, dict[str, str]]:
        figures = daemon.stats(delay=1000)
        return time.monotonic(), figures

    (then, first), (now, last) = reading(), reading()
    testpmd.stop()
    for direction, near, far in (("vf_to_vm", "rx_from_vf", "tx_to_vm"), ("vm_to_vf", "rx_from_vm", "tx_to_vf")):
        prefix = f"relay_1.{direction}"
        for kind in (near, far):
            for counter, rate in (("pkts", "pkt"), ("bytes", "byte")):
                key = f"{prefix}.{counter}_{kind}"
                counted = (int(last[key]) - int(first[key])) / (now - then)
                told = float(last[f"{prefix}.{rate}_rate_{kind}"])
                assert 1 / 1.5 < told / counted < 1.5, (key, told, counted)
        assert 0 < float(last[f"{prefix}.work.load"]) <= 1
        assert int(last[f"{prefix}.work.cycles"]) > int(first[f"{prefix}.work.cycles"]) > 0
    assert float(idle["relay_1.vm_to_vf.work.load"]) == 0


def malformed(daemon: Daemon, relay: int, memory: int) -> None:
    """Front ends that do everything wrong, one after the other, and some that leave in the middle."""
    for send, _ in CASES.values():
        wire = Wire.connect(daemon.socket(relay))
        assert wire.ask(Request.GET_FEATURES).u64
        send(wire, memory)
        assert wire.is_closed()
        wire.close()
    for pairs in (1, 4):
        with FrontEnd(daemon.socket(relay), queue_pairs=pairs, memory=GuestMemory(size=16 * MIB, count=2)) as vm:
            vm.handshake()
            vm.barrier()
            vm.wire.send_raw(b"nonsense" * 4)
            assert vm.wire.is_closed()


def footprint(pid: int) -> tuple[int, int, int]:
    """Resident kilobytes (with hugepages' apart), mappings and descriptors of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    return resident, len(Path(f"/proc/{pid}/maps").read_text().splitlines()), psutil.Process(pid).num_fds()


def test_memory_comes_back_after_malformed_front_ends(daemon: Daemon) -> None:
    worker, spare = daemon.settled_workers()
    memory = os.memfd_create("memory")
    os.ftruncate(memory, MIB)
    daemon.add(1, "net_ring1")
    for _ in range(3):
        malformed(daemon, 1, memory)
    processes = [daemon.child.pid, worker.pid, spare.pid]
    before = [footprint(pid) for pid in processes]
    for _ in range(8):
        malformed(daemon, 1, memory)
    os.close(memory)

    def is_back() -> bool:
        after = [footprint(pid) for pid in processes]
        grown = [[b - a for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)]
        return all(kilobytes < 1500 and maps <= 4 and fds <= 0 for kilobytes, maps, fds in grown)

    wait_for(is_back, 10, f"footprints of before: {before}")
    assert worker.is_running() and spare.is_running()
