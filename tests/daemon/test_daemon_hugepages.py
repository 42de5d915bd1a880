"""Where the daemon takes its hugepages from."""

from __future__ import annotations

from pathlib import Path

import pytest

from vio4wd.config.model import Config
from vio4wd.daemon import host

OURS, LARGE = Path("/mnt/ours"), Path("/mnt/large")
MOUNTS = f"""\
proc /proc proc rw,relatime 0 0
nodev {LARGE} hugetlbfs rw,relatime,pagesize=1024M 0 0
nodev /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0
nodev {OURS} hugetlbfs rw,relatime,pagesize=2M 0 0
"""


@pytest.fixture(autouse=True)
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with hugetlbfs in three places."""
    file = tmp_path / "mounts"
    file.write_text(MOUNTS)
    monkeypatch.setattr(host, "_MOUNTS", file)
    host._warn_of_other_directory.cache_clear()
    return file


def test_the_configured_mount_is_used(caplog: pytest.LogCaptureFixture) -> None:
    assert host.huge_directory(OURS) == OURS
    assert caplog.messages == []


@pytest.mark.parametrize("configured", [LARGE, Path("/dev/hugepages/vms"), Path("/none")])
def test_another_mount_is_used_with_one_warning(configured: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _worker in range(3):
        assert host.huge_directory(configured) == Path("/dev/hugepages")
    (warning,) = caplog.messages
    assert warning.startswith(f"VIRTIOFWD_HUGETLBFS_MOUNT_POINT {configured} is no ")
    assert warning.endswith(" from /dev/hugepages")


def test_nobody_asked_for_the_default(caplog: pytest.LogCaptureFixture) -> None:
    assert host.huge_directory(Config().huge_dir) == Path("/dev/hugepages")
    assert caplog.messages == []


def test_a_machine_without_a_mount(mounts: Path, caplog: pytest.LogCaptureFixture) -> None:
    mounts.write_text(MOUNTS.splitlines()[0] + "\n")
    assert host.huge_directory(OURS) is None
    assert "without a mount" in caplog.messages[0]
