"""Linux for QEMU guests: Debian's kernels, each with a small initramfs whose init carries out what a test sends it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path

from harness.agent import AGENT

CACHE = Path("/var/cache/virtio-forwarder-tests")
TOOLS = ("qemu-system-x86_64", "apt-get", "dpkg-deb", "depmod", "modprobe", "cpio", "busybox", "ethtool")

START = """#!/bin/sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod "$module"; done
ip link set lo up
"""


@dataclass(frozen=True)
class Recipe:
    """What a guest is made of: a kernel package of Debian, modules that init loads in order, and what it does then.

    ``tools`` are programs that it has beside busybox.
    """

    package: str
    modules: tuple[str, ...]
    init: str
    tools: tuple[str, ...] = ()


VIRTIO_GUEST = Recipe("linux-image-cloud-amd64", ("virtio_pci", "virtio_net"), START + AGENT, ("ethtool",))
"""A guest with virtio network cards and nothing else."""


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


def guest_image(recipe: Recipe = VIRTIO_GUEST) -> GuestImage:
    """A guest's kernel and initramfs; made once and kept.

    Raises:
        ImageUnavailable: they cannot be made on this host.
    """
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        raise ImageUnavailable(f"{', '.join(missing)} not installed (scripts/setup --dev installs them)")
    if os.geteuid() != 0:
        raise ImageUnavailable("needs root")
    digest = hashlib.sha256(Path(__file__).read_bytes() + repr(recipe).encode()).hexdigest()[:12]
    CACHE.mkdir(parents=True, exist_ok=True)
    directory = CACHE / f"guest-{digest}"
    with (CACHE / "guest-lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if not directory.exists():
            _make(directory, recipe)
    return GuestImage(directory / "vmlinuz", directory / "initramfs")


def _make(directory: Path, recipe: Recipe) -> None:
    work = directory.with_suffix(".new")
    shutil.rmtree(work, ignore_errors=True)
    kernel = _unpack_kernel(work / "kernel", recipe.package)
    root = work / "root"
    _fill_root(root, kernel, recipe)
    (work / "vmlinuz").write_bytes(next((kernel / "boot").glob("vmlinuz-*")).read_bytes())
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    _run("cpio", "--quiet", "-o", "-H", "newc", "-F", work / "initramfs", cwd=root, stdin=names)
    shutil.rmtree(kernel)
    shutil.rmtree(root)
    work.rename(directory)


def _unpack_kernel(kernel: Path, name: str) -> Path:
    """The current kernel behind a name such as linux-image-amd64, unpacked and with its modules' dependencies."""
    kernel.mkdir(parents=True)
    package = re.search(r"Depends: (linux-image-\d\S+)", _run("apt-cache", "depends", name))
    if package is None:
        raise ImageUnavailable(f"apt knows no kernel {name} (apt-get update)")
    _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package[1], cwd=kernel)
    _run("dpkg-deb", "-x", next(kernel.glob("*.deb")), kernel)
    _run("depmod", "-b", kernel, _release(kernel))
    return kernel


def _release(kernel: Path) -> str:
    return next((kernel / "lib/modules").iterdir()).name


def _fill_root(root: Path, kernel: Path, recipe: Recipe) -> None:
    for name in ("bin", "modules.d", "tmp"):
        (root / name).mkdir(parents=True)
    _install(Path(shutil.which("busybox") or ""), root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    for tool in recipe.tools:
        program = shutil.which(tool) or ""
        for path in {program, *re.findall(r"(/\S+) \(0x", _run("ldd", program))}:
            _install(Path(path), root / path.lstrip("/"))
    modules: list[str] = []
    for module in recipe.modules:
        steps = _run("modprobe", "-d", kernel, "-S", _release(kernel), "--show-depends", module)
        modules += re.findall(r"insmod (\S+)", steps)
    modules = list(dict.fromkeys(modules))
    for path in modules:
        _install(Path(path), root / "modules.d" / Path(path).name)
    (root / "modules").write_text("".join(f"/modules.d/{Path(path).name}\n" for path in modules))
    (root / "init").write_text(recipe.init)
    (root / "init").chmod(0o755)


def _install(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
