"""The daemon in the machine with SR-IOV, and VMs that send back what they get."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Sequence

from sriov_machine import PORTABLE_CODE, SriovMachine

from harness.debian_root import CHECKOUT

PYTHON = CHECKOUT / ".venv/bin/python"
DIRECTORY = "/tmp/daemon"
LOG = f"{DIRECTORY}/log"
SERVICES = ("config", "port_control", "stats")
SETTINGS = {f"VIRTIOFWD_ZMQ_{name.upper()}_EP": f"ipc://{DIRECTORY}/{name}" for name in SERVICES} | {
    "VIRTIOFWD_CPU_MASK": "1",
    "VIRTIOFWD_MASTER_LCORE": "0",
    "VIRTIOFWD_SOCKET_DIR": f"{DIRECTORY}/sockets",
    "VIRTIOFWD_SOCKET_OWNER": "",
    "VIRTIOFWD_SOCKET_GROUP": "",
    "VIRTIOFWD_PID_DIR": DIRECTORY,
    "VIRTIOFWD_HUGETLBFS_MOUNT_POINT": "/dev/hugepages",
    "VIRTIOFWD_MRGBUF": "y",
}
START_LIMIT_S = 90
STOP_LIMIT_S = 15


class SriovDaemon:
    """The running daemon."""

    def __init__(self, machine: SriovMachine) -> None:
        self.machine = machine
        configuration = "".join(f"{key}={value}\n" for key, value in SETTINGS.items())
        machine.run(f"mkdir -p {DIRECTORY}/sockets && cat >{DIRECTORY}/virtioforwarder <<'END'\n{configuration}END")
        command = f"{PYTHON} {CHECKOUT}/scripts/virtio-forwarder --nodaemon --config {DIRECTORY}/virtioforwarder"
        environment = " ".join(f"{name}={value}" for name, value in PORTABLE_CODE.items())
        self.pid = int(machine.run(f"env {environment} setsid {command} >{LOG} 2>&1 & echo $!"))
        self.wait_for_log("READY", START_LIMIT_S)

    @property
    def log(self) -> str:
        """What it has said."""
        return self.machine.run(f"cat {LOG}")

    def wait_for_log(self, text: str, seconds: float, *, count: int = 1) -> None:
        """Wait until so many lines of the log have a text; AssertionError with the log if they do not come."""
        self._wait(f'[ "$(grep -c {shlex.quote(text)} {LOG})" -ge {count} ]', seconds, LOG)

    def _wait(self, condition: str, seconds: float, log: str) -> None:
        turns = int(seconds * 10)
        self.machine.run(
            f"turn=0; until {condition}; do [ $((turn += 1)) -le {turns} ] || {{ tail -n 40 {log}; exit 1; }}; "
            "sleep 0.1; done",
            seconds * 2 + 20,
        )

    def port_control(self, *arguments: str) -> tuple[int, str]:
        """Run the port control tool; answers its exit status and what it says."""
        endpoint = f"--zmq_ep=ipc://{DIRECTORY}/port_control"
        tool = shlex.join([str(PYTHON), f"{CHECKOUT}/scripts/virtioforwarder_port_control.py", *arguments, endpoint])
        *lines, status = self.machine.run(f"{tool}; echo $?").splitlines()
        return int(status), "\n".join(lines)

    def add(self, relay: int, address: str) -> None:
        """Put a VF on a relay; AssertionError if the daemon refuses."""
        status, text = self.port_control("add", f"--virtio-id={relay}", f"--pci-addr={address}")
        assert status == 0, text + self.log[-3000:]

    def remove(self, relay: int, address: str) -> None:
        """Take a VF off a relay."""
        status, text = self.port_control("remove", f"--virtio-id={relay}", f"--pci-addr={address}")
        assert status == 0, text + self.log[-3000:]

    def refusal(self, relay: int, address: str) -> str:
        """Why a VF cannot be added; AssertionError if it can, or if that is not said in one line."""
        status, text = self.port_control("add", f"--virtio-id={relay}", f"--pci-addr={address}")
        assert status == 1, text
        assert text.count("\n") == 0
        return text

    def stats(self) -> dict[str, str]:
        """The flat statistics; keys without the CPU."""
        tool = f"{PYTHON} {CHECKOUT}/scripts/virtioforwarder_stats.py"
        text = self.machine.run(f"{tool} --stats-ep=ipc://{DIRECTORY}/stats --delay=0 --include-inactive")
        pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
        return {re.sub(r"\.cpu_\d+", "", key): value for key, value in pairs}

    def workers(self) -> Sequence[int]:
        """The worker processes, the oldest first."""
        return [int(pid) for pid in self.machine.run("pgrep -f vio4wd.relay.worker").split()]

    def vfio_devices(self) -> int:
        """Devices that the workers have open."""
        links = self.machine.run("for pid in $(pgrep -f vio4wd.relay.worker); do ls -l /proc/$pid/fd; done")
        return links.count("[vfio-device]")

    def start_vm(self, relay: int) -> None:
        """Start a VM that sends back what it gets, on a relay."""
        log = f"{DIRECTORY}/vm{relay}.log"
        sock = f"{DIRECTORY}/sockets/virtio-forwarder{relay}.sock"
        self.machine.run(f"setsid {PYTHON} {CHECKOUT}/tests/sriov/sriov_echo.py {sock} >{log} 2>&1 &")
        self._wait(f"grep -q ready {log}", 60, log)

    def stop(self) -> float:
        """SIGTERM; answers how many seconds it took to end."""
        begun = time.monotonic()
        self.machine.run(f"kill {self.pid}")
        self._wait(f"[ ! -e /proc/{self.pid} ]", STOP_LIMIT_S, LOG)
        return time.monotonic() - begun
