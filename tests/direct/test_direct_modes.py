"""DPDK's own front end in its modes, its rings worked by the direct engine: frames come back unchanged."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from player import keep_library_out

from harness.daemon import Daemon
from harness.netns import VethPair, received
from harness.testpmd import Testpmd
from vio4wd.relay.direct.ring_record import own_packets
from vio4wd.relay.lanes import Direction, lane_index

pytestmark = pytest.mark.dpdk

RELAY = 5
MODES = {
    "split, in order": "",
    "split": "in_order=0",
    "split, not mergeable": "mrg_rxbuf=0",
    "split, not mergeable, not in order": "mrg_rxbuf=0,in_order=0",
    "split, vectorized": "mrg_rxbuf=0,in_order=0,vectorized=1",
    "packed": "packed_vq=1",
    "packed, not in order": "packed_vq=1,in_order=0",
    "packed, not mergeable": "packed_vq=1,mrg_rxbuf=0",
    "packed, not mergeable, not in order": "packed_vq=1,mrg_rxbuf=0,in_order=0",
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), VIRTIOFWD_RING_ENGINE="direct")
    yield daemon
    daemon.stop()
    assert "Traceback" not in daemon.child.log
    assert "rte_vhost works ring" not in daemon.child.log


@pytest.fixture
def veth() -> Iterator[VethPair]:
    pair = VethPair()
    yield pair
    pair.remove()


def lanes(daemon: Daemon) -> list[Any]:
    """The lanes of both directions, as they are now, from the supervisor's memory."""
    table = daemon.lanes()
    return [table.lanes[lane_index(RELAY, 0, direction)].copy() for direction in Direction]


def frame(number: int) -> bytes:
    source = random.Random(number)
    head = bytes.fromhex("020000000001 020000000002 88b5") + number.to_bytes(4, "big")
    return head + source.randbytes(source.randint(42, 1496))


@pytest.mark.parametrize("mode", MODES)
def test_frames_come_back(daemon: Daemon, veth: VethPair, tmp_path: Path, mode: str) -> None:
    daemon.add(RELAY, f"net_af_packet{RELAY},iface={veth.vf}")
    before = lanes(daemon)
    front = Testpmd(daemon.socket(RELAY), tmp_path, options=MODES[mode])
    try:
        front.command("start", "io packet forwarding")
        daemon.wait_active(RELAY)
        keep_library_out(daemon.lanes(), RELAY)
        frames = [frame(number) for number in range(1500)]
        back: list[bytes] = []
        with veth.open() as sock:
            for begin in range(0, len(frames), 50):
                for data in frames[begin : begin + 50]:
                    sock.send(data)
                back += received(sock, 50, 10)
                time.sleep(0.001)
        assert back == frames
        for lane, then in zip(lanes(daemon), before, strict=True):
            ring = lane["view"]
            assert ring["packed"] == ("packed_vq" in MODES[mode])
            assert ring["mergeable"] == ("mrg_rxbuf=0" not in MODES[mode])
            assert own_packets(ring) - own_packets(then["view"]) >= len(frames)
            assert lane["library_bursts"] == then["library_bursts"]
    finally:
        front.stop()
        daemon.remove(RELAY, f"net_af_packet{RELAY}")
