"""scripts/install --root: it fills a directory, and leaves the machine that it runs on as it was."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from harness.debian_root import CHECKOUT

pytestmark = [pytest.mark.slow]

NO_HUGEPAGES = """
mount --bind "$0" /sys/kernel/mm/hugepages/hugepages-2048kB || exit 77
while umount -q -t hugetlbfs /dev/hugepages; do :; done
"$@" && ! grep hugetlbfs /proc/mounts
"""
"""Runs a command where no hugepage is reserved or mounted, and fails if one is mounted afterwards."""


def test_an_image_is_made_without_hugepages(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a private view of the machine needs root")
    root, pool = tmp_path / "image", tmp_path / "pool"
    pool.mkdir()
    for name in ("free_hugepages", "nr_hugepages"):
        (pool / name).write_text("0\n")
    install = [str(CHECKOUT / "scripts" / "install"), "--root", str(root)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", NO_HUGEPAGES, str(pool), *install],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(f"hugepages cannot be hidden here: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (pool / "nr_hugepages").read_text() == "0\n"
    for path in (
        "usr/lib/virtio-forwarder/virtio-forwarder",
        "usr/lib/systemd/system/virtio-forwarder.service",
        "etc/default/virtioforwarder",
        "usr/share/man/man5/virtioforwarder.5",
        "usr/share/man/man8/virtio-forwarder.8",
    ):
        assert (root / path).is_file(), path
    subprocess.run([CHECKOUT / "scripts" / "uninstall", "--root", root, "--purge"], check=True, timeout=20)
    assert [str(path) for path in root.rglob("*") if not path.is_dir()] == []
