"""From the name of a network interface to the PCI address of the VF behind it, through sysfs."""

from __future__ import annotations

import re
from pathlib import Path

from vio4wd.devices import DeviceNameError, PciAddress
from vio4wd.errors import ForwarderError

SYSFS = Path("/sys")

NETDEV_NAME_MAX = 15
"""IFNAMSIZ of linux/if.h without the terminating zero."""

_VF_PORT = re.compile(r"(?:c\d+)?pf(?P<pf>\d+)vf(?P<vf>\d+)\Z")
"""phys_port_name of a VF representor, as devlink_port names it; ``c`` is the controller of a SmartNIC's host."""

_OTHER_FUNCTION_PORT = re.compile(r"(?:c\d+)?pf\d+(?:sf\d+)?\Z")


class NetdevError(ForwarderError):
    """A network interface that does not lead to a PCI function; the message names it."""


def netdev_exists(name: str, sysfs: Path = SYSFS) -> bool:
    """Whether there is a network interface of this name in the daemon's network namespace."""
    return _is_netdev_name(name) and (sysfs / "class/net" / name).is_dir()


def pci_address(name: str, sysfs: Path = SYSFS) -> PciAddress:
    """The PCI function behind a network interface: its own, or the VF that it represents.

    A VF representor is known by its ``phys_port_name`` (``pf0vf3``). Its PF is the interface's own parent device,
    or the PCI function of an interface with the same ``phys_switch_id``; the VF is that PF's ``virtfn3``.

    Raises:
        NetdevError: no such interface, or it has no PCI function.
    """
    if not _is_netdev_name(name):
        raise NetdevError(f"{name!r} cannot be the name of a network interface")
    netdev = sysfs / "class/net" / name
    if not netdev.is_dir():
        raise NetdevError(f"there is no network interface {name}")
    port = _attribute(netdev, "phys_port_name")
    representor = _VF_PORT.match(port)
    if representor is not None:
        return _represented_vf(netdev, int(representor["pf"]), int(representor["vf"]))
    if _OTHER_FUNCTION_PORT.match(port):
        raise NetdevError(f"network interface {name} represents {port}, which is not a VF")
    device = _pci_parent(netdev)
    if device is None:
        raise NetdevError(f"network interface {name} has no PCI device")
    return PciAddress.parse(device.name)


def virtual_function(pf: PciAddress, number: int, sysfs: Path = SYSFS) -> PciAddress:
    """VF ``number`` of a PF.

    Raises:
        NetdevError: the PF does not exist or does not have that VF.
    """
    return _virtfn(sysfs / "bus/pci/devices" / pf.sysfs_name, number)


def _is_netdev_name(name: str) -> bool:
    """Whether the kernel would take the name (dev_valid_name); what fails this must not become part of a path."""
    if not 0 < len(name.encode(errors="surrogatepass")) <= NETDEV_NAME_MAX or name in (".", ".."):
        return False
    return not any(character in "/:\0" or character.isspace() for character in name)


def _attribute(netdev: Path, name: str) -> str:
    """A sysfs attribute; empty where the driver does not have it (reading then fails with EOPNOTSUPP)."""
    try:
        return (netdev / name).read_text(errors="replace").strip()
    except OSError:
        return ""


def _pci_parent(netdev: Path) -> Path | None:
    """The directory of the PCI function of an interface, through a virtio device where there is one."""
    link = netdev / "device"
    if not link.exists():
        return None
    device = link.resolve()
    if re.fullmatch(r"virtio\d+", device.name):
        device = device.parent
    try:
        PciAddress.parse(device.name)
    except DeviceNameError:
        return None
    return device


def _represented_vf(netdev: Path, pf_number: int, vf_number: int) -> PciAddress:
    parent = _pci_parent(netdev)
    if parent is not None and _has_vfs(parent):
        return _virtfn(parent, vf_number)
    pfs = _pfs_of_switch(netdev)
    if len(pfs) > 1:
        pfs = {pf for pf in pfs if PciAddress.parse(pf.name).function == pf_number}
    if len(pfs) != 1:
        raise NetdevError(f"network interface {netdev.name} represents VF {vf_number}, but its PF cannot be found")
    return _virtfn(pfs.pop(), vf_number)


def _pfs_of_switch(netdev: Path) -> set[Path]:
    """PCI functions with VFs behind the interfaces that report the same embedded switch."""
    switch = _attribute(netdev, "phys_switch_id")
    if not switch:
        return set()
    same = (other for other in netdev.parent.iterdir() if _attribute(other, "phys_switch_id") == switch)
    return {device for device in map(_pci_parent, same) if device is not None and _has_vfs(device)}


def _has_vfs(device: Path) -> bool:
    return next(device.glob("virtfn*"), None) is not None


def _virtfn(pf: Path, number: int) -> PciAddress:
    link = pf / f"virtfn{number}"
    if not link.exists():
        raise NetdevError(f"PCI device {pf.name} has no VF {number}")
    return PciAddress.parse(link.resolve().name)
