"""What SIGHUP changes in a running daemon, and that one part of it does not hold up another."""

from __future__ import annotations

import asyncio
import logging
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frontend import FrontEnd
from harness.daemon import Daemon
from harness.process import wait_for
from vio4wd.config.model import Config, StaticVf
from vio4wd.daemon.supervisor import Supervisor
from vio4wd.devices import Device
from vio4wd.errors import WorkerError
from vio4wd.portctl.claims import Claim
from vio4wd.relay.interface import RelayCpus


def reload(daemon: Daemon, **settings: str) -> str:
    """Write settings to the file, empty ones not at all, and have it read; what the daemon logs until that is done."""
    lines = daemon.config.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.partition("=")[0] not in settings]
    daemon.config.write_text("".join(kept) + "".join(f"{key}={text}\n" for key, text in settings.items() if text))
    before = len(daemon.child.log)
    ends = ("configuration reloaded", "configuration is not reloaded")
    daemon.child.process.send_signal(signal.SIGHUP)
    wait_for(lambda: any(end in daemon.child.log[before:] for end in ends), 10, "the reload")
    return daemon.child.log[before:]


def cpu(daemon: Daemon, relay: int) -> int:
    return int(daemon.stats()[f"relay_{relay}.cpu.vf_to_vm"])


@pytest.mark.dpdk
def test_pins(tmp_path: Path) -> None:
    """A new one moves the relay; one that is gone lets it move to where there is the least to do."""
    daemon = Daemon(tmp_path, VIRTIOFWD_CPU_MASK="0,1", VIRTIOFWD_CPU_PINS="1:0;2:1")
    for relay in (1, 2):
        daemon.add(relay, f"net_null{relay},size=60")
    assert (cpu(daemon, 1), cpu(daemon, 2)) == (0, 1)
    reload(daemon, VIRTIOFWD_CPU_PINS="1:1;2:1")
    assert (cpu(daemon, 1), cpu(daemon, 2)) == (1, 1)
    reload(daemon, VIRTIOFWD_CPU_PINS="2:1")
    assert (cpu(daemon, 1), cpu(daemon, 2)) == (0, 1)
    received = "relay_1.vf_to_vm.pkts_rx_from_vf"
    before = int(daemon.stats()[received])
    wait_for(lambda: int(daemon.stats()[received]) > before, 5, "packets on the CPU that it moved to")
    assert daemon.stop() == 0


@pytest.mark.dpdk
def test_static_vfs(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, VIRTIOFWD_STATIC_VFS="(net_null8=8 net_null9=9)")
    for relay in (8, 9):
        daemon.child.wait_for_log(f"relay {relay}: net_null{relay} added")
    reload(daemon, VIRTIOFWD_STATIC_VFS="(net_null8=8 net_null7=7)")
    daemon.child.wait_for_log("relay 9: VF removed")
    daemon.child.wait_for_log("relay 7: net_null7 added")
    reload(daemon, VIRTIOFWD_STATIC_VFS="")
    for relay in (7, 8):
        daemon.child.wait_for_log(f"relay {relay}: VF removed")
    assert daemon.stop() == 0


@pytest.mark.dpdk
def test_log_level_and_warnings(daemon: Daemon) -> None:
    daemon.settled_workers()
    log = reload(daemon, VIRTIOFWD_LOG_LEVEL="7", VIRTIOFWD_NONSENSE="1", VIRTIOFWD_TSO="y")
    assert "VIRTIOFWD_NONSENSE is not a known key" in log
    assert "VIRTIOFWD_TSO is set, but has no effect" in log
    with FrontEnd(daemon.socket(3)) as vm:
        vm.handshake()
    daemon.child.wait_for_log("relay 3: session attaching -> running", 5)
    before = len(daemon.child.log)
    daemon.config.write_text(daemon.config.read_text().replace("VIRTIOFWD_LOG_LEVEL=7", "VIRTIOFWD_LOG_LEVEL=4"))
    daemon.child.process.send_signal(signal.SIGHUP)
    wait_for(lambda: daemon.child.log.count("VIRTIOFWD_NONSENSE is not") == 2, 5, "the reload")
    daemon.add(1, "net_null1")
    daemon.workers()[0].kill()
    wait_for(lambda: "ended with status" in daemon.child.log, 5, "the worker's end")
    wait_for(lambda: daemon.stats()["relay_1.vf_to_vm.internal_state"] == "DPDK_ADDED", 20, "the VF")
    levels = {line.split()[2] for line in daemon.child.log[before:].splitlines() if line.startswith("20")}
    assert levels <= {"WARNING", "ERROR"}  # of the supervisor, its worker, and the spare one that has taken over


def test_each_part_is_applied_whatever_becomes_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    claimed: list[Claim] = []

    async def fail(_: Any) -> None:
        raise WorkerError("vio4wd-1 ended with status -9")

    core: Any = SimpleNamespace(
        workers=SimpleNamespace(set_log_level=fail), relays=SimpleNamespace(set_pins=lambda pins: 1 // 0)
    )
    reconciler: Any = SimpleNamespace(set_claims=lambda source, claims: claimed.extend(claims))
    old = Config(static_vfs=(StaticVf(3, Device("net_null3")),))
    vf = StaticVf(4, Device("net_null4"))
    new = replace(old, log_level=7, cpu_pins={1: RelayCpus(1, 1)}, static_vfs=(vf,))
    level = logging.getLogger().level
    supervisor = Supervisor(old, lambda: new, lambda: None)
    try:
        asyncio.run(supervisor._apply(new, core, reconciler))
    finally:
        logging.getLogger().setLevel(level)
    assert [(claim.relay, str(claim.attachment)) for claim in claimed] == [(4, "net_null4")]
    assert "log level: not everywhere as in the configuration: vio4wd-1 ended with status -9" in caplog.text
    assert "CPU pins: not as in the configuration" in caplog.text
    assert supervisor._worker_options("next").log_level == logging.DEBUG
