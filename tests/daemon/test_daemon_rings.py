"""What a front end may do to its rings and its memory while frames pass, with both engines for rings."""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frontend import FrontEnd, GuestMemory
from frontend.echo import echo, endless_traffic, frames, ready
from frontend.memory import GUEST_BASE, MIB, USER_BASE, GuestRegion
from frontend.vm import DEFAULT_FEATURES, DEFAULT_PROTOCOL_FEATURES, F_RING_PACKED
from harness.daemon import Daemon
from harness.process import wait_for
from vio4wd.relay.lanes import Direction
from vio4wd.vhostuser.requests import ProtocolFeature, Request

pytestmark = pytest.mark.dpdk

STOPS = 30
_relays = itertools.count()


@pytest.fixture(scope="module", params=["direct", "library"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose guests' rings are worked by one engine."""
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), VIRTIOFWD_RING_ENGINE=request.param)
    yield daemon
    assert daemon.stop() == 0
    assert "rte_vhost works ring" not in daemon.child.log
    assert "lane of queue pair" not in daemon.child.log


@pytest.fixture
def relay(engine: Daemon) -> Iterator[int]:
    """A relay with a VF that echoes."""
    number = next(_relays)
    engine.add(number, f"net_ring{number}")
    yield number
    engine.remove(number, f"net_ring{number}")


def begin(vm: FrontEnd) -> None:
    vm.handshake()
    vm.post_rx()
    ready(vm)


@pytest.mark.parametrize("features", [0, F_RING_PACKED], ids=["split", "packed"])
def test_rings_stop_where_they_say_under_traffic(engine: Daemon, relay: int, features: int) -> None:
    with FrontEnd(engine.socket(relay), features=DEFAULT_FEATURES | features) as vm:
        begin(vm)
        assert vm.features & F_RING_PACKED == features
        with endless_traffic(vm) as lock:
            for turn in range(STOPS):
                received = vm.received
                for ring in (1, 0) if turn % 2 else (0, 1):
                    stopped_at = vm.stop_ring(ring)
                    with lock:
                        assert stopped_at == vm.rings[ring].used_index(), f"turn {turn}, ring {ring}"
                for ring in (0, 1):
                    with lock:
                        for _ in vm.start_ring(ring):
                            pass
                        vm.enable(ring)
                wait_for(lambda: vm.received > received, 5, "frames after the restart")  # noqa: B023
        vm.await_sent()
        while vm.poll():
            time.sleep(0.05)
        echo(vm, frames(300))


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


@pytest.mark.parametrize("kind", [set_table, set_region])
def test_memory_comes_and_goes(
    engine: Daemon, relay: int, kind: Callable[[FrontEnd], Callable[[GuestRegion, bool], None]]
) -> None:
    """Regions are added, frames sent from them, and taken away; then their files are cut off: it must hurt nobody."""
    protocol = DEFAULT_PROTOCOL_FEATURES | (ProtocolFeature.CONFIGURE_MEM_SLOTS if kind is set_region else 0)
    with FrontEnd(engine.socket(relay), memory=GuestMemory(count=2), protocol_features=protocol) as vm:
        begin(vm)
        if vm.protocol_features != protocol:
            pytest.skip("this rte_vhost does not offer to change memory region by region")
        change, memory, pair = kind(vm), vm.memory, vm.pairs[0]
        for turn in range(5):
            at = (900 + 64 * turn) * MIB
            region = memory.add_region(GUEST_BASE + at, USER_BASE + at)
            change(region, True)
            vm.await_sent()
            usual, pair.tx_free = pair.tx_free, [memory.alloc(4096, 64, 2) for _ in range(64)]
            echo(vm, frames(128, turn))
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
    settings = {"VIRTIOFWD_CPU_MASK": "0,1", "VIRTIOFWD_CPU_PINS": "3:0,1", "VIRTIOFWD_RING_ENGINE": "direct"}
    daemon = Daemon(tmp_path, **settings)
    try:
        daemon.add(3, "net_ring3")
        with FrontEnd(daemon.socket(3)) as vm:
            begin(vm)
            echo(vm, frames(1500))
            echo(vm, frames(64, 2), parts=3)
            stats = daemon.stats()
            assert (stats["relay_3.cpu.vf_to_vm"], stats["relay_3.cpu.vm_to_vf"]) == ("0", "1")
            for direction in ("vf_to_vm", "vm_to_vf"):
                assert int(stats[f"relay_3.{direction}.work.direct_bursts"]) >= 40
        daemon.remove(3, "net_ring3")
        assert daemon.stop() == 0
    finally:
        daemon.stop()
