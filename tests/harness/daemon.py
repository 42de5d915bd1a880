"""The real daemon with its own directories, and the tools that talk to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil

from harness.process import Child, wait_for
from vio4wd.relay.lanes import LaneTable

ROOT = Path(__file__).resolve().parents[2]
TROUBLE = ("not given back", "Traceback", "made no progress")
"""Packet buffers that nobody freed, bugs, and lcores that hang."""

SERVICES = ("config", "port_control", "stats")


class Daemon:
    """A running virtio-forwarder: worker on CPU 1 (CPU 0 where there is one only), master on CPU 0.

    ``prefix`` is a command that runs it; ``trouble`` are texts out of TROUBLE that its log may have.
    """

    def __init__(
        self,
        directory: Path,
        *,
        ready: bool = True,
        prefix: Sequence[str] = (),
        trouble: Collection[str] = (),
        **settings: str,
    ) -> None:
        self.directory = directory
        self._unwanted = [text for text in TROUBLE if text not in trouble]
        self._lanes: LaneTable | None = None
        self.sockets = directory / "sockets"
        self.sockets.mkdir(exist_ok=True)
        self.config = directory / "virtioforwarder"
        self.config.write_text("".join(f"{key}={value}\n" for key, value in (self._defaults() | settings).items()))
        self.child = Child(
            [*prefix, sys.executable, ROOT / "scripts" / "virtio-forwarder", "--nodaemon", "--config", self.config],
            directory / "daemon.log",
        )
        if ready:
            try:
                self.child.wait_for_log("READY", 60)
            except BaseException:
                self.child.stop()
                raise

    def _defaults(self) -> dict[str, str]:
        endpoints = {f"VIRTIOFWD_ZMQ_{name.upper()}_EP": self.endpoint(name) for name in SERVICES}
        return endpoints | {
            "VIRTIOFWD_CPU_MASK": str(min(1, psutil.cpu_count() - 1)),
            "VIRTIOFWD_MASTER_LCORE": "0",
            "VIRTIOFWD_SOCKET_DIR": str(self.sockets),
            "VIRTIOFWD_SOCKET_OWNER": "",
            "VIRTIOFWD_SOCKET_GROUP": "",
            "VIRTIOFWD_PID_DIR": str(self.directory),
            "VIRTIOFWD_HUGETLBFS_MOUNT_POINT": "/dev/hugepages",
            "VIRTIOFWD_MRGBUF": "y",
        }

    def endpoint(self, name: str) -> str:
        """The ZeroMQ endpoint of a service."""
        return f"ipc://{self.directory}/{name}"

    def socket(self, relay: int) -> Path:
        """The vhost-user socket of a relay."""
        return self.sockets / f"virtio-forwarder{relay}.sock"

    def tool(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a tool of scripts/ by its name without ``virtioforwarder_`` and ``.py``."""
        script = ROOT / "scripts" / f"virtioforwarder_{name}.py"
        return subprocess.run(
            [sys.executable, script, *arguments], capture_output=True, text=True, timeout=30, check=False
        )

    def port_control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the port control tool against this daemon."""
        return self.tool("port_control", *arguments, f"--zmq_ep={self.endpoint('port_control')}")

    def add(self, relay: int, devargs: str) -> None:
        """Put a device on a relay; AssertionError if the daemon refuses."""
        done = self.port_control("add", f"--virtio-id={relay}", f"--devargs={devargs}")
        assert done.returncode == 0, done.stderr + done.stdout + self.child.log[-2000:]

    def remove(self, relay: int, devargs: str) -> None:
        """Take a device off a relay."""
        done = self.port_control("remove", f"--virtio-id={relay}", f"--devargs={devargs}")
        assert done.returncode == 0, done.stderr + done.stdout + self.child.log[-2000:]

    def stats(self, *, delay: int = 0) -> dict[str, str]:
        """The flat statistics as a dictionary; keys without the ``cpu_N.`` part."""
        done = self.tool("stats", f"--stats-ep={self.endpoint('stats')}", f"--delay={delay}", "--include-inactive")
        assert done.returncode == 0, done.stderr
        pairs = (line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        return {".".join(part for part in key.split(".") if not part.startswith("cpu_")): value for key, value in pairs}

    def wait_active(self, relay: int, seconds: float = 10) -> None:
        """Wait until both sides of a relay are ready."""
        wait_for(lambda: self.stats()[f"relay_{relay}.active"] == "True", seconds, f"relay {relay} to be active")

    def lanes(self) -> LaneTable:
        """The lane table that the supervisor shares with its workers."""
        if self._lanes is None:
            fds = Path(f"/proc/{self.child.pid}/fd").iterdir()
            entry = next((entry for entry in fds if "vio4wd-lanes" in str(entry.readlink())), None)
            assert entry is not None, "the supervisor has no lane table"
            fd = os.open(entry, os.O_RDWR)
            self._lanes = LaneTable(fd)  # it keeps a descriptor of its own
            os.close(fd)
        return self._lanes

    def workers(self) -> list[psutil.Process]:
        """The worker processes, oldest first: the first carries relays until it dies, the last is a spare one."""
        found = {child: _worker_name(child) for child in psutil.Process(self.child.pid).children()}
        names = {child: name for child, name in found.items() if name}
        return sorted(names, key=lambda child: int(names[child].split("-")[1]))

    def settled_workers(self, count: int = 2) -> list[psutil.Process]:
        """The worker processes, oldest first, when there are that many and the last is ready to take over."""
        found: list[psutil.Process] = []

        def settled() -> bool:
            found[:] = self.workers()
            return len(found) == count and f"{_worker_name(found[-1])} stands by" in self.child.log

        wait_for(settled, 30, f"{count} worker processes, the last of them a spare one that is ready")
        return found

    def stop(self) -> int:
        """End it; answers the exit status. AssertionError if its log has what it should never have."""
        status, unwanted = self.child.stop(), self._unwanted
        self._unwanted = []  # a second call is no second failure
        bad = [line for line in self.child.log.splitlines() if any(text in line for text in unwanted)]
        assert not bad, "\n".join(["in the daemon's log:", *bad])
        return status


def _worker_name(process: psutil.Process) -> str:
    """The name of a worker process, empty for others and for those that have just ended."""
    try:
        arguments = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
    return str(json.loads(arguments[-1])["name"]) if "vio4wd.relay.worker" in arguments else ""
