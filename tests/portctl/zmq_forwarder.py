"""A running forwarder with all its ZeroMQ services, and a plain client of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import portctl_wire as wire
import zmq

from harness.daemon import Daemon

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SERVICES = ("config", "stats", "port_control", "core_sched")
PATIENCE_S = 10


@dataclass(frozen=True)
class Forwarder:
    """A forwarder under test. ``socket_path`` tells relay 1's vhost-user socket; ``workers`` are its worker CPUs."""

    directory: Path
    pid: int
    workers: tuple[int, ...]
    socket_path: str

    def endpoint(self, service: str) -> str:
        return f"ipc://{self.directory}/{service}"

    def path(self, name: str) -> str:
        """A path for a socket."""
        return str(self.directory / name)

    def ask(self, service: str, request: bytes, *, timeout_s: float = PATIENCE_S) -> bytes:
        """Send one frame as a REQ client does and give the one frame of the answer."""
        (answer,) = self.exchange(service, [request], timeout_s=timeout_s)
        return answer

    def exchange(self, service: str, frames: list[bytes], *, timeout_s: float = PATIENCE_S) -> list[bytes]:
        with zmq.Context() as context, context.socket(zmq.REQ) as client:
            client.setsockopt(zmq.LINGER, 0)
            client.setsockopt(zmq.RCVTIMEO, round(timeout_s * 1000))
            client.connect(self.endpoint(service))
            client.send_multipart(frames)
            return client.recv_multipart()

    def control(self, request: bytes) -> wire.Fields:
        """The PortControlResponse to a request."""
        return wire.decode(self.ask("port_control", request))

    def check_alive(self) -> None:
        """Every service answers a good request as it should."""
        assert wire.only(wire.decode(self.ask("config", b"")), 1) == 0
        assert wire.only(wire.decode(self.ask("stats", b"")), 1) == 0
        assert wire.only(wire.decode(self.ask("core_sched", wire.number(1, 1))), 4) == wire.OK
        query = self.control(wire.request(wire.QUERY_PCI, path="/nowhere"))
        assert (wire.only(query, 4), wire.only(query, 5)) == (wire.ERROR, 2)


def start_memory(*, dynamic: bool = False) -> Iterator[Forwarder]:
    """A forwarder whose relays are in memory."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory(prefix="vio4wd-zmq-") as directory:
        command = [sys.executable, "-W", "error", str(HERE / "memory_server.py"), directory, *["dynamic"] * dynamic]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None and process.stderr is not None
                assert process.stdout.readline() == "READY\n", process.stderr.read()
                yield Forwarder(Path(directory), process.pid, (1, 2), "/tmp/vf1.sock")
                assert process.poll() is None, "the forwarder died"
                process.terminate()
                _, errors = process.communicate(timeout=PATIENCE_S)
                assert process.returncode == 0 and "Traceback" not in errors, errors
            finally:
                process.kill()
        assert list(Path(directory).iterdir()) == [], "socket files are left"


def start_daemon(*, dynamic: bool = False) -> Iterator[Forwarder]:
    """The real daemon, on CPUs 0 and 1."""
    with tempfile.TemporaryDirectory(prefix="vio4wd-zmq-") as directory:
        daemon = Daemon(
            Path(directory),
            VIRTIOFWD_CPU_MASK="0,1",
            VIO4WD_CORE_SCHED_ENABLE="true",
            VIRTIOFWD_ZMQ_CORE_SCHED_EP=f"ipc://{directory}/core_sched",
            **({"VIRTIOFWD_DYNAMIC_SOCKETS": "true"} if dynamic else {}),
        )
        try:
            daemon.settled_workers()
            yield Forwarder(Path(directory), daemon.child.pid, (0, 1), str(daemon.socket(1)))
        finally:
            assert daemon.stop() == 0
