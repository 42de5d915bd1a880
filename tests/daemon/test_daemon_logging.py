"""A migration as the back end sees it: while frames pass, what it writes is to be logged, and then no longer."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import pytest

from frontend import FrontEnd
from frontend.echo import echo, frames, ready
from frontend.vm import DEFAULT_FEATURES, DEFAULT_PROTOCOL_FEATURES, F_RING_PACKED
from harness.daemon import Daemon
from vio4wd.relay.direct.rings import VHOST_F_LOG_ALL
from vio4wd.relay.lanes import Direction
from vio4wd.vhostuser.requests import ProtocolFeature, Request

pytestmark = pytest.mark.dpdk

RELAY = 3
LOG_ALL = 1 << VHOST_F_LOG_ALL
LOG_BYTES = 1 << 16
PAGE = 4096


class DirtyLog:
    """The bitmap that the back end sets a bit in for each page that it writes."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("log")
        os.ftruncate(self.fd, LOG_BYTES)
        self._map = mmap.mmap(self.fd, LOG_BYTES)

    def pages(self) -> set[int]:
        """Pages that were written since this was asked last."""
        bits, self._map[:] = int.from_bytes(self._map[:], "little"), bytes(LOG_BYTES)
        return {number for number in range(bits.bit_length()) if bits >> number & 1}

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)


def bursts(daemon: Daemon) -> dict[str, tuple[int, int]]:
    """Bursts of the direct engine and of rte_vhost, by direction."""
    lanes = {direction: daemon.lanes().of(RELAY, direction)[0] for direction in Direction}
    return {way.name: (int(lane["direct_bursts"]), int(lane["library_bursts"])) for way, lane in lanes.items()}


def worked_by(daemon: Daemon, vm: FrontEnd, seed: int) -> str:
    """Echo frames over all buffers of the ring; answers which engine did it, in both directions."""
    before = bursts(daemon)
    echo(vm, frames(2 * vm.ring_size, seed))
    after = bursts(daemon)
    # Of rings from the guest rte_vhost has one poll in thousands also where the direct engine has the others.
    engines = {"direct" if after[way][0] > before[way][0] else "library" for way in after}
    assert len(engines) == 1, f"{before}, {after}"
    return engines.pop()


def set_features(vm: FrontEnd, features: int) -> None:
    """As QEMU does: features, then the rings' addresses, under way."""
    vm.set_u64(Request.SET_FEATURES, features)
    for index in (0, 1):
        vm.set_address(index, logged=bool(features & LOG_ALL))
    vm.barrier()


@pytest.mark.parametrize("features", [0, F_RING_PACKED], ids=["split", "packed"])
def test_rte_vhost_takes_over_while_memory_is_logged(features: int, tmp_path: Path) -> None:
    """A migration begins, is cancelled, and begins again; between them the direct engine works, which does not log."""
    daemon, log = Daemon(tmp_path, VIRTIOFWD_RING_ENGINE="direct"), DirtyLog()
    protocol = DEFAULT_PROTOCOL_FEATURES | ProtocolFeature.LOG_SHMFD
    try:
        daemon.add(RELAY, f"net_ring{RELAY}")
        wanted = DEFAULT_FEATURES | features
        with FrontEnd(daemon.socket(RELAY), features=wanted, protocol_features=protocol) as vm:
            vm.handshake()
            assert (vm.features, vm.protocol_features) == (wanted, protocol)
            vm.post_rx()
            ready(vm)
            assert worked_by(daemon, vm, 1) == "direct"
            reply = vm.wire.ask(Request.SET_LOG_BASE, struct.pack("<QQ", LOG_BYTES, 0), [log.fd])
            assert reply.request == Request.SET_LOG_BASE
            for turn in (2, 3):
                assert not log.pages()
                set_features(vm, vm.features | LOG_ALL)
                assert worked_by(daemon, vm, 10 * turn) == "library"
                for ring in (0, 1):
                    reason = "its memory is being logged for a migration"
                    assert daemon.child.log.count(f"rte_vhost works ring {ring}: {reason}") >= turn - 1
                written = log.pages()
                assert {guest // PAGE for guest in vm.pairs[0].rx_buffers.values()} <= written
                if not features:
                    assert {ring.used // PAGE for ring in vm.rings} <= written
                set_features(vm, vm.features)
                assert worked_by(daemon, vm, 10 * turn + 1) == "direct"
        daemon.remove(RELAY, f"net_ring{RELAY}")
        assert daemon.stop() == 0
    finally:
        daemon.stop()
        log.close()
