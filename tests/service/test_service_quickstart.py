"""scripts/quickstart as a user runs it: it shows replies and counters, in time, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import wait_until

from harness.debian_root import CHECKOUT

QUICKSTART = str(CHECKOUT / "scripts" / "quickstart")
TRACE = "virtio-forwarder-quickstart"
SECOND_RUN_S = 20

pytestmark = [pytest.mark.dpdk, pytest.mark.slow]


def _traces() -> list[str]:
    """What a run would leave: namespaces, directories, files of hugepages and of DPDK, and processes that name any."""
    found = [str(path) for folder in ("/run/netns", "/tmp") for path in Path(folder).glob(f"{TRACE}*")]
    found += [str(path) for folder in ("/dev/hugepages", "/run/dpdk") for path in Path(folder).glob("quickstart*")]
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if TRACE in text:
            found.append(text)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail a test after which something of the quickstart is still there."""
    before = set(_traces())
    yield
    assert set(_traces()) <= before


def test_ping_crosses_the_relay() -> None:
    begun = time.monotonic()
    done = subprocess.run([QUICKSTART, "--count", "7"], capture_output=True, text=True, timeout=100, check=False)
    taken = time.monotonic() - begun
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 packets transmitted, 7 received, 0% packet loss" in done.stdout
    counters = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("relay_1."))
    assert counters["relay_1.active"] == "True"
    packets = {key.rpartition(".")[2]: int(value) for key, value in counters.items() if ".pkts_" in key}
    assert packets["pkts_tx_to_vm"] >= 7
    assert packets["pkts_tx_to_vf"] >= 7
    assert taken < SECOND_RUN_S, f"took {taken:.1f} s"


@pytest.mark.parametrize("step", ["3/5", "5/5"])
def test_control_c_leaves_nothing(step: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("w") as stdout:
        quickstart = subprocess.Popen(
            [QUICKSTART, "--count", "500"],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: f"== {step}" in output.read_text(), f"step {step}", 40)
        time.sleep(0.5)
        os.killpg(quickstart.pid, signal.SIGINT)
        assert quickstart.wait(timeout=20) == 130, output.read_text()
    finally:
        if quickstart.poll() is None:
            os.killpg(quickstart.pid, signal.SIGKILL)
            quickstart.wait(timeout=10)


def test_usage_errors_change_nothing() -> None:
    done = subprocess.run([QUICKSTART, "--count", "many"], capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: scripts/quickstart")
