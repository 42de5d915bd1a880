"""The daemon is told to stop before it is ready, and finds what an earlier one left that was killed."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from harness.daemon import Daemon
from harness.process import wait_for

pytestmark = pytest.mark.dpdk

FREE_HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directory of the test's daemon and of its DPDK."""
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(directory))
    return directory


@pytest.fixture
def cold_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon has its loop to compile before it is ready."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))


def terminal_interrupts(daemon: Daemon) -> None:
    """SIGINT to what Ctrl-C would reach in a terminal: the daemon's process group (pytest is in it here, too)."""
    parent = psutil.Process(daemon.child.pid)
    group = os.getpgid(parent.pid)
    for process in (*parent.children(recursive=True), parent):
        if os.getpgid(process.pid) == group:
            process.send_signal(signal.SIGINT)


def stops_and_leaves_nothing(daemon: Daemon, run_directory: Path, *, interrupt: bool = False) -> None:
    workers = psutil.Process(daemon.child.pid).children(recursive=True)
    begun = time.monotonic()
    if interrupt:
        terminal_interrupts(daemon)
    else:
        daemon.child.process.send_signal(signal.SIGTERM)
    try:
        assert daemon.child.process.wait(20) == 0, daemon.child.log
    finally:
        daemon.stop()
    assert time.monotonic() - begun < 3, daemon.child.log
    assert "READY" not in daemon.child.log
    assert "Traceback" not in daemon.child.log
    assert not any(process.is_running() for process in workers)
    assert not list(daemon.sockets.iterdir())
    assert not (daemon.directory / "virtio-forwarder.pid").exists()
    assert [path for path in run_directory.rglob("*") if path != run_directory / "dpdk"] == []


@pytest.mark.usefixtures("cold_cache")
@pytest.mark.parametrize("after_s", [0, 0.2, 0.5, 0.8, 1.0, 1.5])
def test_a_stop_before_it_is_ready(tmp_path: Path, run_directory: Path, after_s: float) -> None:
    free = FREE_HUGEPAGES.read_text()
    daemon = Daemon(tmp_path, ready=False)
    wait_for((tmp_path / "virtio-forwarder.pid").exists, 20, "the PID file")
    time.sleep(after_s)
    stops_and_leaves_nothing(daemon, run_directory)
    assert FREE_HUGEPAGES.read_text() == free


@pytest.mark.usefixtures("cold_cache")
def test_ctrl_c_before_it_is_ready(tmp_path: Path, run_directory: Path) -> None:
    daemon = Daemon(tmp_path, ready=False)
    wait_for(daemon.workers, 20, "a worker process")
    stops_and_leaves_nothing(daemon, run_directory, interrupt=True)


def test_leftovers_of_killed_daemons_are_removed(tmp_path: Path, run_directory: Path) -> None:
    """Those alone: neither a directory that another daemon has locked nor what is not the daemon's."""
    (run_directory / "vio4wd-killed").mkdir()
    (run_directory / "vio4wd-killed" / "1-0.sock").touch()
    (run_directory / "vio4wd-used").mkdir()
    (run_directory / "vio4wd-file").touch()
    (run_directory / "other").mkdir()
    lock = os.open(run_directory / "vio4wd-used", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def names() -> set[str]:
        return {path.name for path in run_directory.iterdir()} - {"dpdk"}

    killed, after = (tmp_path / name for name in ("killed", "after"))
    for directory in (killed, after):
        directory.mkdir()
    daemon = Daemon(killed)
    try:
        (own,) = names() - {"vio4wd-used", "vio4wd-file", "other"}
        assert own.startswith("vio4wd-") and own != "vio4wd-killed"
    finally:
        daemon.child.process.kill()
        daemon.stop()
    assert own in names()
    daemon = Daemon(after)
    left = names()
    assert daemon.stop() == 0
    assert own not in left
    assert names() == {"vio4wd-used", "vio4wd-file", "other"}
    os.close(lock)
