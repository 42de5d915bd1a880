"""A small Debian with systemd and what scripts/setup installs, as a directory: the root of the tests' machines."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from fcntl import LOCK_EX, flock
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
ROOTS = Path("/var/cache/virtio-forwarder-tests")
MACHINE_PACKAGES = ("systemd-sysv", "dbus", "procps")


class MachineUnavailable(Exception):
    """Such a machine cannot be made here; the message says why."""


def _output(*command: str, timeout: float = 60) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout).stdout


def require(condition: object, reason: str) -> None:
    """MachineUnavailable for that reason unless the condition holds."""
    if not condition:
        raise MachineUnavailable(reason)


def _debian_mirror() -> tuple[str, str]:
    """Code name of this Debian and the mirror that its own apt uses."""
    release = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    require(release, "/etc/os-release names no Debian release")
    assert release is not None
    codename = release[1]
    filters = ("Created-By: Packages", "Origin: Debian", f"Codename: {codename}")
    mirrors = _output("apt-get", "indextargets", *filters, "--format", "$(REPO_URI)").split()
    require(mirrors, f"apt has no Debian mirror for {codename}")
    return codename, mirrors[0]


def machine_root() -> Path:
    """The root directory of a small Debian with systemd and what scripts/setup installs; made once and kept.

    Raises:
        MachineUnavailable: it cannot be made on this host.
    """
    for tool in ("mmdebstrap", "systemd-nspawn", "apt-get"):
        require(shutil.which(tool), f"{tool} is not installed (scripts/setup --dev installs it)")
    require(os.geteuid() == 0, "needs root")
    packages = [*MACHINE_PACKAGES, *_output(str(CHECKOUT / "scripts" / "setup"), "--packages").split()]
    codename, mirror = _debian_mirror()
    digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    ROOTS.mkdir(parents=True, exist_ok=True)
    root = ROOTS / f"{codename}-{digest}"
    with (ROOTS / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if not root.exists():
            _make_root(root, codename, mirror, packages)
    return root


def _make_root(root: Path, codename: str, mirror: str, packages: Sequence[str]) -> None:
    unfinished = root.with_suffix(".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    options = ["--variant=minbase", f"--include={','.join(packages)}", "--quiet"]
    done = subprocess.run(
        ["mmdebstrap", *options, codename, str(unfinished), mirror],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    require(done.returncode == 0, f"mmdebstrap failed: {done.stderr[-500:]}")
    unfinished.rename(root)
