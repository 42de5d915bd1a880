"""PCI devices in sysfs: why DPDK cannot use one as it is."""

from __future__ import annotations

import errno
import re
from pathlib import Path

SYSFS = Path("/sys")

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")

_DPDK_DRIVERS = frozenset({"vfio-pci", "igb_uio", "uio_pci_generic"})
"""Kernel drivers through which DPDK's PCI bus works (rte_pci_kdrv)."""

_SHARING_DRIVERS = frozenset({"mlx4_core", "mlx5_core", "mana"})
"""Kernel drivers beside which DPDK's own driver works."""


def is_pci(name: str) -> bool:
    """Whether a device is named by a PCI address as sysfs spells it."""
    return _ADDRESS.match(name) is not None


def cause(name: str, error: int, sysfs: Path = SYSFS) -> str:
    """Why a PCI device could not be probed and what would be right; empty where sysfs does not tell.

    ``error`` is the positive errno of rte_dev_probe.
    """
    device = sysfs / "bus/pci/devices" / name
    if not device.is_dir():
        return f"there is no PCI device {name} (lspci -D lists them)"
    driver = (device / "driver").resolve().name if (device / "driver").exists() else ""
    first_vf = device / "virtfn0"
    if driver in _DPDK_DRIVERS:
        return _no_driver_of_dpdk(device) if error == errno.ENOTSUP else ""
    if driver in _SHARING_DRIVERS:
        return ""
    bound = f"bound to the kernel's driver {driver}" if driver else "not bound to any driver"
    if first_vf.exists():
        return f"{name} is {bound} and has VFs: add one of them, such as {first_vf.resolve().name}"
    return f"{name} is {bound}, must be vfio-pci (dpdk-devbind.py --bind=vfio-pci {name})"


def _no_driver_of_dpdk(device: Path) -> str:
    identity = ":".join((device / part).read_text().strip().removeprefix("0x") for part in ("vendor", "device"))
    return f"no driver of the installed DPDK knows {device.name} (PCI ID {identity}): install the one for this card"
