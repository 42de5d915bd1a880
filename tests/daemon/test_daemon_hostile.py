"""Front ends that go for the worker: whatever they do costs themselves their session, and nobody else's goes on less.

The VF is a net_ring port, which gives back what is sent to it.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from frontend import FrontEnd, GuestMemory, Wire
from frontend.echo import echo, frames, ready
from frontend.memory import GUEST_BASE, MIB
from frontend.ring import Buffer
from frontend.vm import DEFAULT_FEATURES, F_RING_PACKED
from harness.daemon import Daemon
from harness.process import wait_for
from harness.testpmd import Testpmd
from vio4wd.relay.direct.ring_record import RULE_TEXTS, RingRule
from vio4wd.relay.lanes import Direction
from vio4wd.relay.worker import FAULT_POLL_S

pytestmark = pytest.mark.dpdk

GOOD, BAD = 1, 2
FULL = 2**64 - 2
NOWHERE = GUEST_BASE - MIB
"""A guest address in no region."""


@pytest.fixture(params=["direct", "library"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose guests' rings are worked by one engine, with two relays that echo."""
    daemon = Daemon(tmp_path, VIRTIOFWD_RING_ENGINE=request.param)
    for relay in (GOOD, BAD):
        daemon.add(relay, f"net_ring{relay}")
    yield daemon
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.child.log


@contextmanager
def up(
    daemon: Daemon,
    relay: int,
    memory: GuestMemory | None = None,
    *,
    features: int = 0,
    buffers: int | None = None,
) -> Iterator[FrontEnd]:
    """A front end whose frames come back; ``features`` besides the usual ones, receive ``buffers`` (default: all)."""
    with FrontEnd(daemon.socket(relay), memory=memory, features=DEFAULT_FEATURES | features) as vm:
        vm.handshake()
        assert vm.features & features == features
        vm.post_rx(buffers)
        ready(vm)
        yield vm


def test_a_call_eventfd_that_blocks_holds_up_the_others_for_a_moment(engine: Daemon) -> None:
    """Its counter is full, and the front end has taken back that writes do not wait."""
    with up(engine, GOOD) as good:
        engine.settled_workers()
        before = [process.pid for process in engine.workers()]
        for _ in range(3):
            with up(engine, BAD) as bad:
                for ring in bad.rings:
                    ring.calls()
                    os.eventfd_write(ring.call_fd, FULL)
                    os.set_blocking(ring.call_fd, True)
                bad.send(bytes(60))
                begun = time.monotonic()
                while time.monotonic() < begun + 0.1:  # by now the lcore has met the eventfd
                    time.sleep(0.01)
                good.send_all([bytes(60)] * 16)
                good.receive_all(16, timeout=2)
                assert time.monotonic() - begun < 1.5
                assert bad.wire.is_closed()
        assert engine.child.log.count("is cut off: it holds the worker up") == 3
        refused = Wire.connect(engine.socket(BAD))
        assert refused.is_closed()
        refused.close()
        engine.remove(BAD, f"net_ring{BAD}")
        engine.add(BAD, f"net_ring{BAD}")
        ready(good)
        assert [process.pid for process in engine.workers()] == before


def test_a_guest_that_workers_die_of_again_and_again_is_cut_off(engine: Daemon) -> None:
    """It truncates its memory, has it back before the replay, and waits until the worker has had it for long enough."""
    memory = GuestMemory(count=2)  # buffers in the first region, rings in the second
    file, size = memory.regions[0].fd, memory.regions[0].size
    with up(engine, GOOD) as good, up(engine, BAD, memory) as bad:
        for death in range(3):
            worker = engine.settled_workers()[0]
            time.sleep(1.2)
            os.ftruncate(file, 0)
            bad.rings[1].add([Buffer(memory.regions[0].guest, 72)])
            bad.rings[1].publish()
            wait_for(lambda worker=worker: not worker.is_running(), 5, "the worker's death")
            os.ftruncate(file, size)
            assert bad.wire.is_closed(1) == (death == 2)
        ready(good)
        assert engine.child.log.count(f"relay {BAD}: front end (pid {os.getpid()}) is cut off: a worker process") == 1
        refused = Wire.connect(engine.socket(BAD))
        assert refused.is_closed()
        refused.close()
        engine.child.wait_for_log(f"relay {BAD}: front ends are refused for", 5)
        assert f"relay {GOOD}: a worker process died" not in engine.child.log


def test_the_guest_of_a_killed_worker_is_interrupted(engine: Daemon) -> None:
    """The dead worker may have used buffers and not told; a guest that sleeps would never look."""
    with up(engine, GOOD) as vm:
        engine.settled_workers()
        for ring in vm.rings:
            ring.calls()
        engine.workers()[0].kill()
        for ring in vm.rings:
            wait_for(lambda ring=ring: ring.calls(), 10, "an interrupt")


@pytest.mark.parametrize("engine", ["direct"], indirect=True)
@pytest.mark.parametrize("features", [0, F_RING_PACKED], ids=["split", "packed"])
@pytest.mark.parametrize("ring", [0, 1], ids=["to the guest", "from the guest"])
def test_a_ring_that_breaks_a_rule_rests_until_the_guest_resets_it(engine: Daemon, features: int, ring: int) -> None:
    direction = Direction.VM_TO_VF if ring else Direction.VF_TO_VM
    fault = f"relay {BAD}: {direction.name.lower()} lane of queue pair 0: {RULE_TEXTS[RingRule.ADDRESS]} (ring {ring},"
    with up(engine, GOOD) as good, up(engine, BAD, features=features, buffers=64) as bad:
        workers = [process.pid for process in engine.settled_workers()]
        for turn in (1, 2):
            echo(bad, frames(100))
            last_good = bad.rings[ring].next_available
            bad.rings[ring].add([Buffer(NOWHERE, 1024, writable=not ring)])
            bad.rings[ring].publish()
            bad.post_rx(8)
            bad.send_all([bytes(60)] * 100)
            wait_for(lambda turn=turn: engine.child.log.count(fault) == turn, 5, f"fault {turn} in the log")
            echo(good, frames(64))
            time.sleep(2 * FAULT_POLL_S)
            assert engine.child.log.count("lane of queue pair") == turn
            assert bad.rings[ring].used_index() == last_good
            assert bad.stop_ring(ring) == last_good
            bad.stop_ring(1 - ring)
            bad.renew()
            bad.restart_rings()
            bad.post_rx(64)
            ready(bad)
            echo(bad, frames(300))
        echo(good, frames(64))
        assert engine.child.log.count("lane of queue pair") == 2
        assert [process.pid for process in engine.workers()] == workers


@pytest.mark.parametrize("text", ["é" * 20_000, "x" * 60_000, "x=" + "\U0001f600" * 8000])
def test_devargs_of_any_length_cost_no_worker(shared_daemon: Daemon, text: str) -> None:
    shared_daemon.settled_workers()
    before = [process.pid for process in shared_daemon.workers()]
    done = shared_daemon.port_control("add", "--virtio-id=2", f"--devargs=net_null2,{text}")
    assert done.returncode == 1
    assert "bytes, must be at most 4096" in done.stdout + done.stderr
    assert len(done.stdout + done.stderr) < 400
    long = shared_daemon.port_control("add", "--virtio-id=2", f"--devargs=net_nul2,{'x' * 4000}")
    assert long.returncode == 1
    assert "net_nul2" in long.stdout + long.stderr
    assert [process.pid for process in shared_daemon.workers()] == before
    assert "Traceback" not in shared_daemon.child.log


def capture(path: Path, *sizes: int) -> Path:
    """A file for net_pcap with a frame of each size."""
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    records = (struct.pack("<IIII", 0, 0, size, size) + bytes(12) + b"\x08\x00" + bytes(size - 14) for size in sizes)
    path.write_bytes(head + b"".join(records))
    return path


@pytest.mark.parametrize("ring_engine", ["direct", "library"])
@pytest.mark.parametrize("rings", ["packed_vq=0", "packed_vq=1"])
def test_a_frame_that_no_buffer_can_take_does_not_end_the_stream(
    tmp_path: Path, guest: Callable[..., Testpmd], ring_engine: str, rings: str
) -> None:
    """One frame in twelve is longer than any buffer of a guest that does not join them."""
    daemon = Daemon(tmp_path, VIRTIOFWD_RING_ENGINE=ring_engine, VIRTIOFWD_JUMBO="1")
    frames = capture(tmp_path / "frames.pcap", *(60,) * 11, 4000)
    daemon.add(1, f"net_pcap0,rx_pcap={frames},infinite_rx=1")
    testpmd = guest(daemon.socket(1), mode="rxonly", options=f"{rings},mrg_rxbuf=0,in_order=0")
    testpmd.command("start", "rxonly packet forwarding")
    daemon.wait_active(1)
    seen = testpmd.counters()["RX-packets"]
    wait_for(lambda: testpmd.counters()["RX-packets"] > seen + 20_000, 10, "frames")
    testpmd.stop()
    figures = daemon.stats()
    sent, dropped = (int(figures[f"relay_1.vf_to_vm.pkts_{name}"]) for name in ("tx_to_vm", "dropped_vm_queue_full"))
    assert 10 < sent / dropped < 12
    assert daemon.stop() == 0
