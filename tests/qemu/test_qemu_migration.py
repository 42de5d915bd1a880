"""A Linux guest moves from one QEMU to another, and with it from one relay to another, while it is pinged."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.daemon import Daemon
from harness.netns import VethPair, run
from harness.qemu import LinuxGuest, Nic
from harness.wire import DATA, Wire

pytestmark = pytest.mark.dpdk

PING_INTERVAL_MS = 50
LOGGED = "its memory is being logged for a migration"


@pytest.fixture
def second_vf(wire: Wire) -> Iterator[VethPair]:
    """Another VF whose far end is bridged with the wire's, like two hosts on one network."""
    second = VethPair()
    inside = wire.pair.namespace
    run("ip", "-n", second.namespace, "link", "set", second.peer, "netns", inside)
    run("ip", "-n", inside, "link", "add", "bridge", "type", "bridge")
    for port in (wire.pair.peer, second.peer):
        run("ip", "-n", inside, "link", "set", port, "up", "master", "bridge")
    run("ip", "netns", "exec", inside, "ethtool", "-K", second.peer, "tx", "off")
    run("ip", "netns", "exec", inside, "ethtool", "-K", "bridge", "tx", "off")
    run("ip", "-n", inside, "addr", "flush", "dev", wire.pair.peer)
    run("ip", "-n", inside, "addr", "add", f"{wire.here}/24", "dev", "bridge")
    run("ip", "-n", inside, "link", "set", "bridge", "addrgenmode", "none", "up")
    yield second
    second.remove()


def checksum_errors(guest: LinuxGuest) -> int:
    """TCP segments that were not as their sender made them."""
    names, values = (line.split() for line in guest.run("grep Tcp: /proc/net/snmp").splitlines())
    return int(values[names.index("InCsumErrors")])


@pytest.mark.parametrize("engine", ["library", "direct"])
def test_a_guest_migrates(
    engine: str, start_guest: Callable[..., LinuxGuest], wire: Wire, second_vf: VethPair, tmp_path: Path
) -> None:
    daemon = Daemon(tmp_path, VIRTIOFWD_RING_ENGINE=engine)
    try:
        daemon.add(0, wire.devargs)
        daemon.add(1, f"net_af_packet_{second_vf.vf},iface={second_vf.vf}")
        source = start_guest(Nic(daemon.socket(0)))
        wire.configure(source)
        target = start_guest(Nic(daemon.socket(1)), incoming=tmp_path / "migration")
        wire.listen(source)
        migrated = threading.Event()  # the target's shell is to tell when the transfer has ended
        stream = threading.Thread(target=wire.stream, kwargs={"end_after": migrated})
        stream.start()
        pinging = wire.start_ping(60, interval_s=PING_INTERVAL_MS / 1000, wait_s=1)
        downtime_ms = source.migrate(tmp_path / "migration")
        migrated.set()
        pings = wire.finish_ping(pinging)
        stream.join()
        assert wire.listened(target) == hashlib.sha256(DATA).hexdigest()
        assert checksum_errors(target) == 0
        # Until the guest runs again the bridge sends to where it was.
        assert pings.received >= pings.sent - 2 - downtime_ms / PING_INTERVAL_MS
        stats = daemon.stats()
        assert stats["relay_1.active"] == "True"
        for direction in ("vf_to_vm", "vm_to_vf"):
            assert int(stats[f"relay_0.{direction}.work.library_bursts"]), "memory was logged, which it does"
            assert bool(int(stats[f"relay_1.{direction}.work.direct_bursts"])) == (engine == "direct")
        if engine == "direct":
            for ring in (0, 1):
                assert f"relay 0: rte_vhost works ring {ring}: {LOGGED}" in daemon.child.log
                assert f"relay 1: rte_vhost works ring {ring}" not in daemon.child.log
        assert wire.ping(50).received == 50
        assert wire.pinged(target, 20).received == 20
        source.stop()
        assert wire.ping(50).received == 50
    finally:
        daemon.stop()
