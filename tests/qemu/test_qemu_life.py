"""What happens to a Linux guest and its relay: the driver's and the guest's restarts, deaths of worker and guest."""

from __future__ import annotations

import pytest
from qemu_line import Line

from harness.guest_image import GuestImage
from harness.process import wait_for
from harness.qemu import LinuxGuest, Nic

pytestmark = pytest.mark.dpdk
direct_only = pytest.mark.parametrize("line", ["direct"], indirect=True, scope="module")
"""For tests that boot a guest and have little to do with the engine."""


def assert_no_loss(line: Line) -> None:
    for pings in (line.wire.ping(50), line.wire.pinged(line.guest, 20)):
        assert pings.received == pings.sent


def test_a_sleeping_guest_is_woken(line: Line) -> None:
    """Pings so far apart that guest and worker have nothing to do between them."""
    pings = line.wire.ping(8, interval_s=0.3)
    assert pings.received == pings.sent
    assert pings.max_ms < 200


def test_killed_workers_cost_no_more_than_two_pings(line: Line) -> None:
    connected = line.daemon.child.log.count("front end connected")
    for _ in range(2):
        worker = line.daemon.settled_workers()[0]
        pinging = line.wire.start_ping(15, interval_s=0.2, wait_s=1)
        worker.kill()
        pings = line.wire.finish_ping(pinging)
        assert pings.received >= pings.sent - 2
        assert_no_loss(line)
    assert line.daemon.child.log.count("front end connected") == connected


def test_the_driver_goes_and_comes_again(line: Line) -> None:
    driver = "/sys/bus/virtio/drivers/virtio_net"
    for _ in range(2):
        line.guest.run(f"echo virtio0 >{driver}/unbind; echo virtio0 >{driver}/bind")
        line.wire.configure(line.guest)
        assert_no_loss(line)


def test_a_link_goes_down_and_up(line: Line) -> None:
    for _ in range(3):
        line.guest.run("ip link set eth0 down; ip link set eth0 up")
        line.wire.wait_reachable()
    assert_no_loss(line)


@direct_only
def test_a_guest_restarts(line: Line) -> None:
    line.guest.monitor("system_reset")
    line.guest.wait_booted()
    line.wire.configure(line.guest)
    assert_no_loss(line)


@direct_only
def test_a_guest_that_is_killed_makes_room_for_the_next(line: Line, image: GuestImage) -> None:
    line.guest.kill()
    wait_for(lambda: line.daemon.stats()["relay_0.active"] == "False", 5, "the relay to notice")
    line.guest = LinuxGuest(image, line.daemon.directory, Nic(line.daemon.socket(0)))
    line.wire.configure(line.guest)
    assert_no_loss(line)
