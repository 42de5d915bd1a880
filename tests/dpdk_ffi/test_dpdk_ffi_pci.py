"""Why a PCI device cannot be used, as far as sysfs tells it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vio4wd.dpdk_ffi.pci import cause, is_pci

PF, VF = "0000:01:00.0", "0000:01:10.0"


def device(sysfs: Path, name: str, driver: str) -> Path:
    path = sysfs / "bus/pci/devices" / name
    path.mkdir(parents=True)
    (path / "vendor").write_text("0x8086\n")
    (path / "device").write_text("0x10ca\n")
    if driver:
        (sysfs / "bus/pci/drivers" / driver).mkdir(parents=True)
        (path / "driver").symlink_to(sysfs / "bus/pci/drivers" / driver)
    return path


@pytest.mark.parametrize(
    ("driver", "error", "words"),
    [
        ("", errno.ENODEV, [f"{VF} is not bound to any driver, must be vfio-pci", f"--bind=vfio-pci {VF}"]),
        ("igbvf", errno.ENOTSUP, [f"{VF} is bound to the kernel's driver igbvf, must be vfio-pci"]),
        ("vfio-pci", errno.ENOTSUP, [f"no driver of the installed DPDK knows {VF} (PCI ID 8086:10ca)"]),
        ("vfio-pci", errno.EBUSY, []),
        ("mlx5_core", errno.ENOTSUP, []),
    ],
)
def test_the_driver_is_wrong(tmp_path: Path, driver: str, error: int, words: list[str]) -> None:
    device(tmp_path, VF, driver)
    text = cause(VF, error, tmp_path)
    assert bool(text) == bool(words)
    assert all(word in text for word in words), text


def test_a_pf_is_not_to_be_taken_from_its_driver(tmp_path: Path) -> None:
    pf = device(tmp_path, PF, "igb")
    assert "must be vfio-pci" in cause(PF, errno.ENOTSUP, tmp_path)
    (pf / "virtfn0").symlink_to(device(tmp_path, VF, ""))
    assert cause(PF, errno.ENOTSUP, tmp_path) == (
        f"{PF} is bound to the kernel's driver igb and has VFs: add one of them, such as {VF}"
    )


def test_there_is_no_device(tmp_path: Path) -> None:
    assert f"there is no PCI device {VF}" in cause(VF, errno.ENODEV, tmp_path)


def test_only_addresses_are_pci_devices() -> None:
    assert is_pci(VF) and is_pci("10000:e1:00.0")
    assert not is_pci("net_null0") and not is_pci("net_bonding0")
