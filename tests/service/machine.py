"""A throw-away Debian machine with systemd as its init, made by mmdebstrap and booted by systemd-nspawn."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.debian_root import CHECKOUT, MachineUnavailable, machine_root, require

BOOT_TIMEOUT_S = 60
ADD_SYS_MODULE = """
mount -o remount,rw /sys && mkdir /sys/module /run/sysfs && mount -t sysfs sysfs /run/sysfs &&
mount --bind /run/sysfs/module /sys/module && umount /run/sysfs && mount -o remount,ro /sys
"""
"""EAL looks at /sys/module, which systemd-nspawn leaves out."""


@dataclass(frozen=True)
class Machine:
    """A booted machine; ``init_pid`` is its systemd as this host sees it."""

    init_pid: int

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command inside; stdout and stderr come together in ``stdout``."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.init_pid), "--all", "--root", "--wd", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}"
        return done

    def unit_property(self, unit: str, name: str) -> str:
        """A property of a unit, as ``systemctl show`` prints it."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()

    def journal(self, unit: str) -> str:
        """All that a unit has logged."""
        return self.run("journalctl", "--no-pager", "--output", "cat", "--unit", unit).stdout


def wait_until(condition: object, what: str, timeout_s: float = 20) -> None:
    """Poll a callable until it answers something true; an AssertionError names ``what`` when it does not in time."""
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.1)


def _child_of(pid: int) -> int | None:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


@contextmanager
def booted_machine(log: Path) -> Iterator[Machine]:
    """Boot a fresh machine with this checkout (read-only, at its own path) and the host's hugepages in it.

    Its changes are kept in memory and lost at the end. It has its own network namespace. Console output goes
    to ``log``.

    Raises:
        MachineUnavailable: systemd-nspawn does not work on this host.
    """
    command = ["systemd-nspawn", f"--directory={machine_root()}", "--boot", "--volatile=overlay", "--register=no"]
    command += [
        "--keep-unit",
        "--console=pipe",
        "--private-network",
        "--capability=all",
        f"--machine=vio4wd-{os.getpid()}",
    ]
    command += ["--bind=/dev/hugepages", f"--bind-ro={CHECKOUT}", "--quiet"]
    with log.open("wb") as console:
        nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
    try:
        yield _wait_for_boot(nspawn, log)
    finally:
        _power_off(nspawn)


def _wait_for_boot(nspawn: subprocess.Popen[bytes], log: Path) -> Machine:
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    state = "no init process"
    while time.monotonic() < deadline:
        require(nspawn.poll() is None, f"systemd-nspawn cannot run here: {log.read_text(errors='replace')[-500:]}")
        init = _child_of(nspawn.pid)
        if init is not None:
            machine = Machine(init)
            state = machine.run("systemctl", "is-system-running", check=False).stdout.strip()
            if state in ("running", "degraded"):
                machine.run("sh", "-ec", ADD_SYS_MODULE)
                return machine
        time.sleep(0.2)
    raise MachineUnavailable(f"the machine did not boot in {BOOT_TIMEOUT_S} s ({state})")


def _power_off(nspawn: subprocess.Popen[bytes]) -> None:
    """Ask its systemd to power off (SIGRTMIN+4), and end nspawn, which ends all in it, where that takes too long."""
    if nspawn.poll() is None and (init := _child_of(nspawn.pid)) is not None:
        os.kill(init, signal.SIGRTMIN + 4)
    with suppress(subprocess.TimeoutExpired):
        nspawn.wait(timeout=30)
    if nspawn.poll() is None:
        nspawn.kill()
        nspawn.wait(timeout=10)
