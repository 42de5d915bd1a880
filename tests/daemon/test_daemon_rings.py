"""What a front end may do to its rings and its memory while frames pass, with both engines for rings."""

from __future__ import annotations

import itertools
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from frontend import FrontEnd, GuestMemory
from frontend.echo import Traffic, echo, endless_traffic, frames, ready
from frontend.memory import GUEST_BASE, MIB, USER_BASE, GuestRegion
from frontend.ring import NO_KICKS
from frontend.vm import DEFAULT_FEATURES, DEFAULT_PROTOCOL_FEATURES, F_RING_PACKED
from harness.daemon import Daemon
from harness.process import wait_for
from vio4wd.relay.lanes import BURST, Direction
from vio4wd.vhostuser import Options
from vio4wd.vhostuser.requests import ProtocolFeature, Request

pytestmark = pytest.mark.dpdk

STOPS = 30
SETTLING_S = Options().settling_time + 0.1
"""After this the session is not suspected of the death."""
MOST_LOST = 1024 + 2 * BURST
"""Frames that a worker takes with it: those in the VF, which is a ring, and what lanes hold."""
OWN = 3
BUFFERS = 64
SPLIT_AND_PACKED = pytest.mark.parametrize("features", [0, F_RING_PACKED], ids=["split", "packed"])
_relays = itertools.count()


@contextmanager
def running(directory: Path, **settings: str) -> Iterator[Daemon]:
    """A daemon that has nothing to say of its guests' rings."""
    daemon = Daemon(directory, **settings)
    try:
        yield daemon
        assert daemon.stop() == 0
        assert "rte_vhost works ring" not in daemon.child.log
        assert "lane of queue pair" not in daemon.child.log
    finally:
        daemon.stop()


@pytest.fixture(scope="module", params=["direct", "library"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose guests' rings are worked by one engine."""
    with running(tmp_path_factory.mktemp("daemon"), VIRTIOFWD_RING_ENGINE=request.param) as daemon:
        yield daemon


@pytest.fixture
def relay(engine: Daemon) -> Iterator[int]:
    """A relay with a VF that echoes."""
    number = next(_relays)
    engine.add(number, f"net_ring{number}")
    yield number
    engine.remove(number, f"net_ring{number}")


def begin(vm: FrontEnd, buffers: int | None = None) -> None:
    vm.handshake()
    vm.post_rx(buffers)
    ready(vm)


@contextmanager
def echoing(daemon: Daemon, features: int = 0) -> Iterator[FrontEnd]:
    """A guest with a VF that echoes, on a daemon of the test's own."""
    daemon.add(OWN, f"net_ring{OWN}")
    with FrontEnd(daemon.socket(OWN), features=DEFAULT_FEATURES | features) as vm:
        begin(vm)
        yield vm
    daemon.remove(OWN, f"net_ring{OWN}")


def direct_bursts(daemon: Daemon) -> list[int]:
    """Bursts that the direct engine has moved to the guest of ``echoing`` and from it."""
    figures = daemon.stats()
    return [int(figures[f"relay_{OWN}.{way}.work.direct_bursts"]) for way in ("vf_to_vm", "vm_to_vf")]


def await_frames(vm: FrontEnd) -> None:
    """Wait until more frames have come than there may have been already."""
    received = vm.received
    wait_for(lambda: vm.received > received + 2 * vm.ring_size, 10, "frames")


def assert_stops_exactly(vm: FrontEnd, traffic: Traffic) -> None:
    """Stop both rings; each says that it is where the guest sees it."""
    for ring in (1, 0):
        stopped_at = vm.stop_ring(ring)
        with traffic.lock:
            assert stopped_at == vm.rings[ring].used_index(), f"ring {ring}"


@SPLIT_AND_PACKED
def test_rings_stop_where_they_say_under_traffic(engine: Daemon, relay: int, features: int) -> None:
    with FrontEnd(engine.socket(relay), features=DEFAULT_FEATURES | features) as vm:
        begin(vm)
        assert vm.features & F_RING_PACKED == features
        with endless_traffic(vm) as traffic:
            for turn in range(STOPS):
                received = vm.received
                for ring in (1, 0) if turn % 2 else (0, 1):
                    stopped_at = vm.stop_ring(ring)
                    with traffic.lock:
                        assert stopped_at == vm.rings[ring].used_index(), f"turn {turn}, ring {ring}"
                with traffic.lock:
                    vm.restart_rings()
                wait_for(lambda: vm.received > received, 5, "frames after the restart")  # noqa: B023
        echo(vm, frames(300))


@SPLIT_AND_PACKED
def test_disabled_rings_rest_under_traffic(engine: Daemon, relay: int, features: int) -> None:
    with FrontEnd(engine.socket(relay), features=DEFAULT_FEATURES | features) as vm:
        begin(vm)
        with endless_traffic(vm) as traffic:

            def used(rings: Sequence[int]) -> list[int]:
                with traffic.lock:
                    return [vm.rings[ring].used_index() for ring in rings]

            for rings in [(0,), (1,), (0, 1)] * 4:
                for ring in rings:
                    vm.enable(ring, False)
                vm.barrier()
                before = used(rings)
                time.sleep(0.05)
                assert used(rings) == before, f"rings {rings}"
                for ring in rings:
                    vm.enable(ring)
                await_frames(vm)
            assert_stops_exactly(vm, traffic)
            vm.restart_rings()
        echo(vm, frames(300))


@SPLIT_AND_PACKED
def test_no_buffer_is_lost_with_workers_that_die_under_traffic(tmp_path: Path, features: int) -> None:
    settings = {"VIRTIOFWD_RING_ENGINE": "direct"}
    with running(tmp_path, **settings) as daemon, echoing(daemon, features) as vm:
        pair = vm.pairs[0]
        posted = sorted(pair.rx_buffers.values())
        with endless_traffic(vm) as traffic:
            for parts in (1, 2, 3):
                worker = daemon.settled_workers()[0]
                time.sleep(SETTLING_S)
                replayed = daemon.child.log.count("session replayed") + 1
                with traffic.lock:
                    traffic.send(192 // parts, parts)
                    os.kill(worker.pid, signal.SIGKILL)  # in the middle of a burst, or close to it
                    worker.wait(5)
                    before = direct_bursts(daemon)
                    if parts > 1:  # what chains leave in a packed ring misleads who has to guess where it was
                        wait_for(lambda n=replayed: daemon.child.log.count("session replayed") == n, 10, "the replay")
                await_frames(vm)
                assert all(now > then for now, then in zip(direct_bursts(daemon), before, strict=True))
            assert_stops_exactly(vm, traffic)
            vm.restart_rings()
        # A buffer or frame that came twice has ended the traffic with an error; a buffer that is lost is missing now.
        assert (len(pair.tx.free), pair.tx_buffers) == (vm.ring_size, {})
        assert (len(pair.rx.free), sorted(pair.rx_buffers.values())) == (0, posted)
        assert 0 <= traffic.sent - traffic.received <= 3 * MOST_LOST
        echo(vm, frames(300))


@SPLIT_AND_PACKED
def test_guests_are_asked_not_to_kick(engine: Daemon, relay: int, features: int) -> None:
    def flags() -> list[int]:
        return [vm.memory.read_u16(ring.device_flags) for ring in vm.rings]

    def forget() -> None:
        for ring in vm.rings:
            vm.memory.write_u16(ring.device_flags, 0)

    with FrontEnd(engine.socket(relay), features=DEFAULT_FEATURES | features) as vm:
        assert flags() == [0, 0]
        begin(vm)
        assert flags() == [NO_KICKS] * 2
        for ring in (0, 1):
            vm.stop_ring(ring)
        forget()
        vm.restart_rings()
        ready(vm)
        assert flags() == [NO_KICKS] * 2, "after the rings were stopped"
        worker = engine.settled_workers()[0]
        forget()
        worker.kill()
        worker.wait(5)
        ready(vm)
        assert flags() == [NO_KICKS] * 2, "after the worker's death"


@SPLIT_AND_PACKED
def test_the_direct_engine_is_the_default(tmp_path: Path, features: int) -> None:
    with running(tmp_path) as daemon, echoing(daemon, features) as vm:
        echo(vm, frames(300))
        assert min(direct_bursts(daemon)) >= 10


def set_table(vm: FrontEnd) -> Callable[[GuestRegion, bool], None]:
    """Changes of memory by SET_MEM_TABLE with all regions."""

    def change(region: GuestRegion, added: bool) -> None:
        if not added:
            vm.memory.regions.remove(region)
        vm.set_memory()
        vm.barrier()

    return change


def set_region(vm: FrontEnd) -> Callable[[GuestRegion, bool], None]:
    """Changes by ADD_MEM_REG and REM_MEM_REG."""

    def change(region: GuestRegion, added: bool) -> None:
        payload = struct.pack("<QQQQQ", 0, region.guest, region.size, region.user, region.offset)
        if added:
            reply = vm.acknowledged(Request.ADD_MEM_REG, payload, [region.fd])
        else:
            vm.memory.regions.remove(region)
            reply = vm.acknowledged(Request.REM_MEM_REG, payload)
        assert reply.u64 == 0

    return change


@SPLIT_AND_PACKED
@pytest.mark.parametrize("kind", [set_table, set_region])
def test_memory_comes_and_goes(
    engine: Daemon, relay: int, kind: Callable[[FrontEnd], Callable[[GuestRegion, bool], None]], features: int
) -> None:
    """Regions are added, have buffers of both rings, and are taken away.

    Then their files are cut off: it must hurt nobody.
    """
    protocol = DEFAULT_PROTOCOL_FEATURES | (ProtocolFeature.CONFIGURE_MEM_SLOTS if kind is set_region else 0)
    wanted, memory = DEFAULT_FEATURES | features, GuestMemory(count=2)
    with FrontEnd(engine.socket(relay), memory=memory, features=wanted, protocol_features=protocol) as vm:
        begin(vm, BUFFERS)
        if vm.protocol_features != protocol:
            pytest.skip("this rte_vhost does not offer to change memory region by region")
        change, pair = kind(vm), vm.pairs[0]
        for turn in range(5):
            at = (900 + 64 * turn) * MIB
            region = memory.add_region(GUEST_BASE + at, USER_BASE + at)
            change(region, True)
            vm.await_sent()
            usual, pair.tx_free = pair.tx_free, [memory.alloc(4096, 64, 2) for _ in range(64)]
            vm.post_rx(BUFFERS, region=2)  # used in their turn, after the others
            echo(vm, frames(2 * BUFFERS, turn))
            assert sum(guest in region for guest in pair.rx_buffers.values()) == BUFFERS
            vm.withdraw_rx(region)
            echo(vm, frames(2 * BUFFERS, turn))
            assert not any(guest in region for guest in pair.rx_buffers.values())
            vm.await_sent()
            pair.tx_free = usual
            change(region, False)
            os.ftruncate(region.fd, 0)
            region.close()
            echo(vm, frames(64, 50 + turn))


def test_frames_held_for_a_guest_that_leaves_are_counted(engine: Daemon, tmp_path: Path) -> None:
    """The VF is read a burst at a time, whatever room there is; what the guest does not take is not lost unnoticed."""
    relay, count = next(_relays), 100
    lane = engine.lanes().of(relay, Direction.VF_TO_VM)[0]
    capture = tmp_path / "in.pcap"
    record = struct.pack("<IIII", 0, 0, 60, 60) + bytes(60)
    capture.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + record * count)
    with FrontEnd(engine.socket(relay)) as vm:
        vm.handshake()
        vm.post_rx(3)
        engine.child.wait_for_log(f"relay {relay}: guest is up")
        time.sleep(0.3)  # the last rings are enabled a moment after the guest is announced
        engine.add(relay, f"net_pcap{relay},rx_pcap={capture},tx_pcap=/dev/null")
        wait_for(lambda: lane["sent_pkts"] == 3, 5, "three frames")
        assert len(vm.receive_all(3)) == 3
        wait_for(lambda: lane["sent_pkts"] == 6, 5, "three more, now that there are buffers again")
        assert lane["held_count"] == 32 - 6
    wait_for(lambda: lane["received_pkts"] == count, 5, "the rest to be drained")
    wait_for(lambda: lane["not_connected_pkts"] == count - 6, 5, "them to be counted")
    assert lane["not_connected_bytes"] == 60 * (count - 6)
    engine.remove(relay, f"net_pcap{relay}")


def test_the_directions_on_two_cpus(tmp_path: Path) -> None:
    """Each CPU has its own stash of buffers: those that one direction frees are not those that the other one takes."""
    settings = {"VIRTIOFWD_CPU_MASK": "0,1", "VIRTIOFWD_CPU_PINS": f"{OWN}:0,1", "VIRTIOFWD_RING_ENGINE": "direct"}
    with running(tmp_path, **settings) as daemon, echoing(daemon) as vm:
        echo(vm, frames(1500))
        echo(vm, frames(64, 2), parts=3)
        stats = daemon.stats()
        assert (stats[f"relay_{OWN}.cpu.vf_to_vm"], stats[f"relay_{OWN}.cpu.vm_to_vf"]) == ("0", "1")
        assert min(direct_bursts(daemon)) >= 40
