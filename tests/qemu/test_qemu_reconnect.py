"""The daemon ends and comes again under a running Linux guest, in both directions of connecting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.daemon import Daemon
from harness.qemu import LinuxGuest, Nic
from harness.wire import Wire

pytestmark = pytest.mark.dpdk


@pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
def test_the_guest_s_network_returns_with_the_daemon(
    client: bool, start_guest: Callable[..., LinuxGuest], wire: Wire, tmp_path: Path
) -> None:
    settings = {"VIRTIOFWD_VHOST_CLIENT": "y"} if client else {}
    daemon = Daemon(tmp_path, **settings)
    try:
        daemon.add(0, wire.devargs)
        guest = start_guest(Nic(daemon.socket(0), server=client, reconnect=not client))
        wire.configure(guest)
        features = guest.features()
        assert daemon.stop() == 0
        assert wire.ping(1, wait_s=0.2).received == 0
        daemon = Daemon(tmp_path, **settings)
        daemon.add(0, wire.devargs)
        wire.wait_reachable()
        assert wire.ping(50).received == 50
        assert wire.pinged(guest, 20).received == 20
        assert guest.features() == features
    finally:
        daemon.stop()
