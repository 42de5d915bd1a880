"""A Linux for QEMU guests: Debian's kernel and a small initramfs whose init carries out what a test sends it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path

CACHE = Path("/var/cache/virtio-forwarder-tests")
MODULES = ("virtio_pci", "virtio_net")
TOOLS = ("qemu-system-x86_64", "apt-get", "dpkg-deb", "depmod", "modprobe", "cpio", "busybox", "ethtool")

INIT = """#!/bin/sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod "$module"; done
ip link set lo up
exec 3<>/dev/ttyS1
stty raw -echo <&3
printf '%%ready\\n' >&3
while read -r job <&3; do
    echo "$job" | base64 -d >/tmp/job
    sh /tmp/job >/tmp/output 2>&1 </dev/null 3<&-
    status=$?
    cat /tmp/output >&3
    printf '\\n%%exit %d\\n' $status >&3
done
"""
"""The second serial line carries one job in base64 a line, and back its output and ``%exit STATUS``."""


class ImageUnavailable(Exception):
    """No guest can be made here; the message says why."""


@dataclass(frozen=True)
class GuestImage:
    """What QEMU boots."""

    kernel: Path
    initramfs: Path


def _run(*command: str | Path, cwd: Path | None = None, stdin: str = "") -> str:
    arguments = [str(argument) for argument in command]
    try:
        return subprocess.run(
            arguments, check=True, capture_output=True, text=True, timeout=120, cwd=cwd, input=stdin
        ).stdout
    except subprocess.CalledProcessError as error:
        raise ImageUnavailable(f"{' '.join(arguments)}: {error.stderr.strip()}") from error


def guest_image() -> GuestImage:
    """The guest's kernel and initramfs; made once and kept.

    Raises:
        ImageUnavailable: they cannot be made on this host.
    """
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        raise ImageUnavailable(f"{', '.join(missing)} not installed (scripts/setup --dev installs them)")
    if os.geteuid() != 0:
        raise ImageUnavailable("needs root")
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    CACHE.mkdir(parents=True, exist_ok=True)
    directory = CACHE / f"guest-{recipe}"
    with (CACHE / "guest-lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if not directory.exists():
            _make(directory)
    return GuestImage(directory / "vmlinuz", directory / "initramfs")


def _make(directory: Path) -> None:
    work = directory.with_suffix(".new")
    shutil.rmtree(work, ignore_errors=True)
    kernel = _unpack_kernel(work / "kernel")
    root = work / "root"
    _fill_root(root, kernel)
    (work / "vmlinuz").write_bytes(next((kernel / "boot").glob("vmlinuz-*")).read_bytes())
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    _run("cpio", "--quiet", "-o", "-H", "newc", "-F", work / "initramfs", cwd=root, stdin=names)
    shutil.rmtree(kernel)
    shutil.rmtree(root)
    work.rename(directory)


def _unpack_kernel(kernel: Path) -> Path:
    """Debian's current kernel for clouds, unpacked and with its modules' dependencies."""
    kernel.mkdir(parents=True)
    depends = _run("apt-cache", "depends", "linux-image-cloud-amd64")
    package = re.search(r"Depends: (linux-image-\d\S+)", depends)
    if package is None:
        raise ImageUnavailable("apt knows no kernel linux-image-cloud-amd64 (apt-get update)")
    _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package[1], cwd=kernel)
    _run("dpkg-deb", "-x", next(kernel.glob("*.deb")), kernel)
    _run("depmod", "-b", kernel, _release(kernel))
    return kernel


def _release(kernel: Path) -> str:
    return next((kernel / "lib/modules").iterdir()).name


def _fill_root(root: Path, kernel: Path) -> None:
    for name in ("bin", "modules.d", "tmp"):
        (root / name).mkdir(parents=True)
    _install(Path(shutil.which("busybox") or ""), root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    ethtool = shutil.which("ethtool") or ""
    for path in {ethtool, *re.findall(r"(/\S+) \(0x", _run("ldd", ethtool))}:
        _install(Path(path), root / path.lstrip("/"))
    modules: list[str] = []
    for module in MODULES:
        steps = _run("modprobe", "-d", kernel, "-S", _release(kernel), "--show-depends", module)
        modules += [path for path in re.findall(r"insmod (\S+)", steps) if path not in modules]
    for path in modules:
        _install(Path(path), root / "modules.d" / Path(path).name)
    (root / "modules").write_text("".join(f"/modules.d/{Path(path).name}\n" for path in modules))
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)


def _install(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
