"""virtioforwarder_core_scheduler.py as systemd and people run it: moves, daemons that come and go, signals, options."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq.auth

from harness.daemon import Daemon
from harness.process import Child, wait_for

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRIPT = ROOT / "scripts" / "virtioforwarder_core_scheduler.py"
PATIENCE_S = 15


class Place:
    """A directory with services and balancers of one test, which all end with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._children: list[Child] = []
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(directory / "notify"))
        self.manager.settimeout(PATIENCE_S)

    def serve(self, *words: str) -> Child:
        """Start stats and core_sched, those that are named."""
        server = self._start("server", [sys.executable, HERE / "loaded_server.py", self.directory, *words])
        server.wait_for_log("READY")
        return server

    def balance(self, *arguments: str) -> Child:
        """Start the balancer, which reports to ``manager``."""
        endpoints = [f"--stats-ep=ipc://{self.directory}/stats", f"--sched-ep=ipc://{self.directory}/core_sched"]
        environment = [f"NOTIFY_SOCKET={self.directory}/notify"]
        return self._start(
            "balancer", ["env", *environment, sys.executable, SCRIPT, "--poll-interval=0.3", *endpoints, *arguments]
        )

    def _start(self, name: str, command: list[str | Path]) -> Child:
        child = Child(command, self.directory / f"{name}{len(self._children)}.log")
        self._children.append(child)
        return child

    def await_message(self, pattern: str) -> str:
        """Read what was told to the service manager until a message matches."""
        deadline, messages = time.monotonic() + PATIENCE_S, [""]
        while not re.search(pattern, messages[-1]):
            assert time.monotonic() < deadline, f"not among what was said, {pattern!r}: {messages}"
            messages.append(self.manager.recv(4096).decode())
        return messages[-1]

    def core_map(self) -> str:
        """The CPUs of all relays."""
        tool = ROOT / "scripts" / "virtioforwarder_core_pinner.py"
        arguments = [sys.executable, tool, f"--stats-ep=ipc://{self.directory}/stats"]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=True).stdout

    def end(self) -> None:
        for child in self._children:
            child.stop()
        self.manager.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.end()


def test_a_relay_moves_and_then_none(place: Place) -> None:
    place.serve("stats", "core_sched")
    balancer = place.balance()
    assert place.await_message("READY=1").splitlines()[1] == f"MAINPID={balancer.pid}"
    place.await_message("STATUS=busiest CPU 1 at 1[12][0-9] %, 1 relay moved$")
    place.await_message("STATUS=busiest CPU [12] at [56][0-9] %, no relay moved$")
    assert place.core_map().splitlines() == [
        "relay 1: VF-to-virtio CPU 2, virtio-to-VF CPU 2",
        "relay 2: VF-to-virtio CPU 1, virtio-to-VF CPU 1",
    ]
    assert "1 relay moved: relay 1 to CPU 2" in balancer.log
    assert balancer.stop() == 0
    place.await_message("STOPPING=1")
    assert balancer.log.count("moved") == 1 and "Traceback" not in balancer.log


def test_packet_rates_where_the_daemon_measures_no_loads(place: Place) -> None:
    place.serve("stats", "core_sched", "rates")
    place.balance()
    place.await_message(r"STATUS=busiest CPU 1 at [34]\.[0-9]{3} Mpps, 1 relay moved$")
    place.await_message("no relay moved$")


def test_the_sensitivity_holds_relays_back(place: Place) -> None:
    place.serve("stats", "core_sched")
    place.balance("--sensitivity=0.8")
    place.await_message("STATUS=busiest CPU 1 at 1[0-9]+ %, no relay moved$")


def test_a_daemon_that_comes_goes_and_comes_back(place: Place) -> None:
    balancer = place.balance()
    place.await_message("STATUS=.*no answer within 2 s")
    first = place.serve("stats", "core_sched")
    place.await_message("1 relay moved")
    place.await_message("no relay moved")
    first.stop()
    place.await_message("STATUS=.*no answer within")
    place.await_message("STATUS=.*no answer within")
    place.serve("stats", "core_sched")
    place.await_message("1 relay moved")
    assert balancer.log.count("worker CPUs: 1, 2") == 2
    assert balancer.process.poll() is None and "Traceback" not in balancer.log


def test_a_daemon_without_core_sched(place: Place) -> None:
    server = place.serve("stats")
    balancer = place.balance()
    for _ in range(2):
        place.await_message("STATUS=.*VIO4WD_CORE_SCHED_ENABLE=true")
    assert balancer.log.count("VIO4WD_CORE_SCHED_ENABLE=true") == 1
    server.stop()
    place.serve("stats", "core_sched")
    place.await_message("1 relay moved")


def test_a_daemon_without_stats(place: Place) -> None:
    place.serve("core_sched")
    balancer = place.balance()
    for _ in range(2):
        place.await_message("STATUS=.*VIRTIOFWD_ZMQ_STATS_EP")
    assert balancer.log.count("VIRTIOFWD_ZMQ_STATS_EP") == 1


def test_refused_moves_are_said_once_and_tried_again(place: Place) -> None:
    server = place.serve("stats", "core_sched", "refuse")
    balancer = place.balance()
    for _ in range(3):
        place.await_message("STATUS=1 relay not moved: not today .error 4 from virtio_set_relay_cpus")
    assert balancer.log.count("not today") == 1
    server.stop()
    place.serve("stats", "core_sched")
    place.await_message("1 relay moved")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("words", [(), ("stats", "core_sched")], ids=["waiting", "measuring"])
def test_signals_end_it_at_once(place: Place, number: signal.Signals, words: tuple[str, ...]) -> None:
    if words:
        place.serve(*words)
    balancer = place.balance("--poll-interval=60")
    place.await_message("READY=1")
    time.sleep(0.3)
    begun = time.monotonic()
    balancer.process.send_signal(number)
    assert balancer.process.wait(5) == 0
    assert time.monotonic() - begun < 1
    place.await_message("STOPPING=1")
    assert "Traceback" not in balancer.log


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tool where it is to end by itself."""
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize(
    "argument",
    [
        "--sensitivity=x", "--sensitivity=1.5", "--sensitivity=nan", "--sensitivity=", "--poll-interval=0",
        "--loglevel=8", "--stats-ep=nowhere", "--sched-ep=ipc://x", "--no-such-option", "--curve-server-key=/x", "now",
    ],
)  # fmt: skip
def test_bad_options(argument: str) -> None:
    done = run(argument)
    assert done.returncode == 2 and "Error" in done.stderr and "Traceback" not in done.stderr


def test_what_can_never_work_ends_with_one_error(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("VIO4WD_CORE_SCHED_SENSITIVITY=much\n")
    for arguments, text in (
        ((f"--config={config}",), f"{config}:1: VIO4WD_CORE_SCHED_SENSITIVITY 'much'"),
        ((f"--config={tmp_path}/none",), "none: the configuration file cannot be read"),
        (("--stats-ep=tcp://127.0.0.1:5",), "tcp:// needs --curve-server-key and --curve-client-key"),
        (("--curve-server-key=/none", "--curve-client-key=/none"), "/none"),
    ):
        done = run(*arguments)
        assert done.returncode == 1 and text in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_file_is_read_and_the_command_line_wins(place: Place) -> None:
    config = place.directory / "config"
    config.write_text(
        "VIRTIOFWD_STATIC_VFS=(net_null0=1\n net_null1=2)\n"
        "VIO4WD_CORE_SCHED_SENSITIVITY=0.9\nVIO4WD_CORE_SCHED_LOG_LEVEL=3\nVIO4WD_CORE_SCHED_POLL_INTERVAL=0.2\n"
        f"VIRTIOFWD_ZMQ_STATS_EP=ipc://{place.directory}/stats\n"
        f"VIRTIOFWD_ZMQ_CORE_SCHED_EP=ipc://{place.directory}/core_sched\n"
    )
    place.serve("stats", "core_sched")
    command = ["env", f"NOTIFY_SOCKET={place.directory}/notify", sys.executable, SCRIPT, f"--config={config}"]
    quiet = place._start("quiet", [*command])
    for _ in range(3):
        place.await_message("no relay moved")
    assert quiet.stop() == 0 and quiet.log == ""
    place._start("keen", [*command, "--sensitivity=0.1", "--loglevel=7"])
    place.await_message("1 relay moved")


def test_keys(place: Place) -> None:
    """CURVE certificates are taken as by the other tools."""
    for name in ("server", "client"):
        zmq.auth.create_certificates(place.directory, name)
    keys = [
        f"--curve-server-key={place.directory}/server.key",
        f"--curve-client-key={place.directory}/client.key_secret",
    ]
    balancer = place.balance("--stats-ep=tcp://127.0.0.1:9", "--sched-ep=tcp://127.0.0.1:9", *keys)
    place.await_message("STATUS=tcp://127.0.0.1:9: no answer within")
    assert balancer.stop() == 0


@pytest.mark.dpdk
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_the_real_daemon(place: Place) -> None:
    """Two relays that drain their VFs, pinned to one CPU: one of them goes to the other."""
    sched = place.directory / "core_sched"
    settings = {"VIRTIOFWD_CPU_MASK": "0,1", "VIO4WD_CORE_SCHED_ENABLE": "true"}
    daemon = Daemon(place.directory, **settings, VIRTIOFWD_ZMQ_CORE_SCHED_EP=f"ipc://{sched}")
    try:
        for relay in (1, 2):
            daemon.add(relay, f"net_null{relay},size=60,copy=0")
        pins = daemon.tool("core_pinner", f"--sched-ep=ipc://{sched}", "--virtio-cpu=1:1", "--virtio-cpu=2:1")
        assert pins.returncode == 0, pins.stderr
        assert place.core_map().count("VF-to-virtio CPU 1") == 2
        balancer = place.balance("--poll-interval=0.5", f"--config={daemon.config}")
        place.await_message("STATUS=busiest CPU 1 at .*, 1 relay moved$")
        wait_for(lambda: place.core_map().count("VF-to-virtio CPU 1") == 1, 5, "a relay on each CPU")
        for _ in range(3):
            place.await_message("no relay moved$")
        assert balancer.stop() == 0
        for relay in (1, 2):
            daemon.remove(relay, f"net_null{relay}")
    finally:
        assert daemon.stop() == 0
