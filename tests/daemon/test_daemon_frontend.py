"""The daemon against a front end that can do everything right and everything wrong, frames checked byte by byte.

The VF is a net_ring port, which gives back what is sent to it: what the guest sends it receives again.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from frontend import FrontEnd, GuestMemory, Wire
from frontend.echo import echo, frames, ready
from frontend.malformed import CASES, MIB
from frontend.split import Buffer
from harness.daemon import Daemon
from harness.process import wait_for
from vio4wd.vhostuser.requests import Request

pytestmark = pytest.mark.dpdk

_relays = itertools.count()


@pytest.fixture(scope="module", params=["direct", "library"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose guests' rings are worked by one engine."""
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), VIRTIOFWD_RING_ENGINE=request.param)
    yield daemon
    lanes = daemon.lanes().lanes
    assert (lanes["direct_bursts"].sum() > 0) == (request.param == "direct")
    assert daemon.stop() == 0
    assert "rte_vhost works ring" not in daemon.child.log


@pytest.fixture
def relay(engine: Daemon) -> Iterator[int]:
    """A relay with a VF that echoes."""
    number = next(_relays) % 60
    engine.add(number, f"net_ring{number}")
    yield number
    engine.remove(number, f"net_ring{number}")


def test_frames_of_all_shapes_come_back(engine: Daemon, relay: int) -> None:
    with FrontEnd(engine.socket(relay), memory=GuestMemory(count=3, offset=8192)) as vm:
        vm.handshake()
        vm.post_rx()
        ready(vm)
        echo(vm, frames(600))  # more than twice around the ring
        echo(vm, frames(64, 2), parts=3)
        echo(vm, frames(64, 3), parts=2, indirect=True)
        vm.await_sent()
        assert vm.stop_ring(1) == vm.rings[1].next_available
        assert vm.stop_ring(0) == vm.rings[0].used_index()
        vm.restart_rings()
        ready(vm)
        echo(vm, frames(300, 4))


def test_frames_go_on_after_a_worker_s_death(engine: Daemon, relay: int) -> None:
    with FrontEnd(engine.socket(relay)) as vm:
        vm.handshake()
        vm.post_rx()
        ready(vm)
        echo(vm, frames(100))
        engine.settled_workers()[0].kill()
        ready(vm)
        echo(vm, frames(300, 2))


def fds(daemon: Daemon) -> tuple[int, ...]:
    """Open descriptors of the supervisor and its workers."""
    processes = [psutil.Process(daemon.child.pid), *sorted(daemon.workers(), key=lambda process: process.pid)]
    return tuple(process.num_fds() for process in processes)


def settled_fds(daemon: Daemon) -> tuple[int, ...]:
    started = 15  # descriptors that a worker has when its EAL is up
    wait_for(lambda: len(fds(daemon)) == 3 and min(fds(daemon)) > started, 60, "a worker and a spare one")
    wait_for(lambda: fds(daemon) == (time.sleep(0.1), fds(daemon))[1], 5, "descriptors to settle")
    return fds(daemon)


def test_death_at_every_step_of_the_handshake(engine: Daemon, relay: int) -> None:
    victim = 63
    with FrontEnd(engine.socket(relay)) as other:
        other.handshake()
        other.post_rx()
        ready(other)
        before = settled_fds(engine)
        steps = 1
        while True:
            with FrontEnd(engine.socket(victim)) as vm:
                done = len(list(itertools.islice(vm.steps(), steps)))
            if done < steps:
                break
            steps += 1
        assert steps > 15
        wait_for(lambda: fds(engine) == before, 10, f"descriptors {before}")
        echo(other, frames(64))


@pytest.mark.parametrize("chunk", range(6))
def test_malformed_messages_disturb_nobody(engine: Daemon, relay: int, chunk: int) -> None:
    victim = 62
    memory = os.memfd_create("memory")
    os.ftruncate(memory, MIB)
    with FrontEnd(engine.socket(relay)) as other:
        other.handshake()
        other.post_rx()
        ready(other)
        before = settled_fds(engine)
        for name in list(CASES)[chunk::6]:
            send, problem = CASES[name]
            wire = Wire.connect(engine.socket(victim))
            assert wire.ask(Request.GET_FEATURES).u64
            send(wire, memory)
            assert wire.is_closed()
            wire.close()
            engine.child.wait_for_log(problem, 5)
        echo(other, frames(64))
        wait_for(lambda: fds(engine) == before, 10, f"descriptors {before}")
    os.close(memory)


def test_call_descriptors_hold_up_no_lcore(engine: Daemon, relay: int) -> None:
    """A guest whose interrupts nobody takes goes on, and a pipe in place of an eventfd is refused."""
    with FrontEnd(engine.socket(relay)) as vm:
        for ring in vm.rings:
            os.close(ring.call_fd)
            ring.call_fd = os.eventfd(0, os.EFD_CLOEXEC)
            os.eventfd_write(ring.call_fd, 2**64 - 2)
        vm.handshake()
        vm.post_rx()
        ready(vm)
        echo(vm, frames(300))
        read_end, write_end = os.pipe()
        vm.set_u64(Request.SET_VRING_CALL, 0, [write_end])
        assert vm.wire.is_closed()
        engine.child.wait_for_log("malformed SET_VRING_CALL: its file descriptor must be an eventfd", 5)
        os.close(read_end)
        os.close(write_end)


def test_truncated_memory_costs_only_its_owner(engine: Daemon, relay: int) -> None:
    """A worker dies of it (SIGBUS); its successor is not given the session that would kill it again."""
    victim = 61
    engine.add(victim, f"net_ring{victim}")
    memory = GuestMemory(count=2)  # buffers in the first region, rings in the second
    with FrontEnd(engine.socket(relay)) as other, FrontEnd(engine.socket(victim), memory=memory) as vm:
        for front in (other, vm):
            front.handshake()
            front.post_rx()
            ready(front)
        os.ftruncate(memory.regions[0].fd, 0)
        vm.rings[1].add([Buffer(memory.regions[0].guest, 72)])
        vm.rings[1].publish()
        assert vm.wire.is_closed(30)
        engine.child.wait_for_log("malformed SET_MEM_TABLE: region at guest address", 5)
        ready(other)
        echo(other, frames(64))
        assert f"relay {victim}: session replayed" not in engine.child.log
    engine.remove(victim, f"net_ring{victim}")


def test_sockets_are_there_after_all_this(engine: Daemon) -> None:
    assert all(Path(engine.socket(number)).is_socket() for number in range(64))
