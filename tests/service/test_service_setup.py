"""scripts/setup while it installs packages: services are not started meanwhile, and may be afterwards in any case."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from machine import wait_until

from harness.debian_root import CHECKOUT

OVERLAY = """
mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$0/upper,workdir=$0/work" /usr/sbin || exit 77
[ -e "$0/kept" ] || rm -f /usr/sbin/policy-rc.d
exec "$@"
"""
APT_GET = """#!/bin/sh
case "$*" in *" install "*) cat /usr/sbin/policy-rc.d >"$SCRATCH/seen"; exec sleep "$APT_SECONDS" ;; esac
"""
NOTHING_INSTALLED = "#!/bin/sh\n"


class PrivateMachine:
    """Runs scripts with an /usr/sbin of their own, without a policy at first, and with an apt-get that only waits."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[subprocess.Popen[str]] = []
        for name in ("upper", "work", "bin", "tmp"):
            (directory / name).mkdir()
        for name, text in (("apt-get", APT_GET), ("dpkg-query", NOTHING_INSTALLED)):
            (directory / "bin" / name).write_text(text)
            (directory / "bin" / name).chmod(0o755)

    def start(self, *command: str | Path, apt_seconds: int = 100) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        environment: Mapping[str, str] = {
            "PATH": f"{self._directory}/bin:{os.environ['PATH']}",
            "TMPDIR": f"{self._directory}/tmp",
            "SCRATCH": str(self._directory),
            "APT_SECONDS": str(apt_seconds),
        }
        self._running.append(
            subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", OVERLAY, self._directory, *command],
                env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )
        )  # fmt: skip
        return self._running[-1]

    def run(self, *command: str | Path) -> str:
        """Run a command to its end, which must be a good one; its output."""
        process = self.start(*command, apt_seconds=0)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 0, output
        return output

    def wait_for_install(self) -> str:
        """Wait until packages are being installed; the policy by which that happens."""
        wait_until(lambda: self.seen.endswith("\n"), "the installation of packages")
        return self.seen

    @property
    def seen(self) -> str:
        path = self._directory / "seen"
        return path.read_text() if path.exists() else ""

    @property
    def policy(self) -> str | None:
        path = self._directory / "upper" / "policy-rc.d"
        return path.read_text() if path.is_file() else None  # what was removed is no regular file there

    @policy.setter
    def policy(self, text: str) -> None:
        path = self._directory / "upper" / "policy-rc.d"
        path.unlink(missing_ok=True)
        path.write_text(text)
        (self._directory / "kept").touch()

    @property
    def logs(self) -> list[str]:
        return [path.name for path in (self._directory / "tmp").iterdir()]

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=10)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[PrivateMachine]:
    if os.geteuid() != 0:
        pytest.skip("a private /usr/sbin needs root")
    machine = PrivateMachine(tmp_path)
    probe = machine.start("true")
    if probe.wait(10) != 0:
        pytest.skip("no overlay can be mounted over /usr/sbin here")
    yield machine
    machine.close()


SETUP = CHECKOUT / "scripts" / "setup"


@pytest.mark.parametrize(
    ("script", "number", "status"),
    [
        ("setup", signal.SIGINT, 130),
        ("setup", signal.SIGTERM, 143),
        ("setup", signal.SIGHUP, 143),
        ("quickstart", signal.SIGINT, 130),
    ],
)
def test_a_signal_lifts_the_policy(machine: PrivateMachine, script: str, number: int, status: int) -> None:
    process = machine.start(CHECKOUT / "scripts" / script)
    assert machine.wait_for_install().endswith("exit 101\n")
    os.killpg(process.pid, number)
    assert process.wait(20) == status
    assert machine.policy is None
    assert machine.logs == []


def test_the_policy_of_a_killed_run_is_lifted_by_the_next(machine: PrivateMachine) -> None:
    process = machine.start(SETUP)
    left = machine.wait_for_install()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    machine.policy = left
    machine.run(SETUP)
    assert machine.policy is None


def test_somebody_else_s_policy_stays(machine: PrivateMachine) -> None:
    machine.policy = "#!/bin/sh\nexit 101\n"
    machine.run(SETUP)
    assert machine.seen == machine.policy == "#!/bin/sh\nexit 101\n"
