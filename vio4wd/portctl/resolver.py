"""From what an operator calls a device (a network interface, a PCI address, devargs) to the device."""

from __future__ import annotations

import re
from pathlib import Path

from vio4wd.devices import Device, PciAddress
from vio4wd.portctl.netdev import SYSFS, NetdevError, netdev_exists, pci_address, virtual_function

_VDEV_NAME = re.compile(r"(?:net|eth)_[a-z0-9_]+\Z")
"""Names of DPDK's virtual devices for networks; ``eth_`` is the older form."""

_REPRESENTOR = re.compile(r"(?:vf)?\[?(\d+)\]?\Z")
"""The value of ``representor=`` that names a single VF (DPDK's ethdev devargs): ``3``, ``[3]``, ``vf3``."""


class DeviceResolver:
    """Finds devices, and remembers the address of each interface that it found.

    The memory is needed because a VF's own interface goes away once vfio has the VF, which must not look as if
    the VF had gone. Calls are made one at a time: each front end has its own resolver.
    """

    def __init__(self, sysfs: Path = SYSFS) -> None:
        self._sysfs = sysfs
        self._known: dict[str, PciAddress] = {}

    def netdev(self, name: str) -> Device:
        """The PCI function behind an interface that exists, or that existed when it was last asked for.

        Raises:
            NetdevError: no PCI function is known for the name.
        """
        try:
            self._known[name] = pci_address(name, self._sysfs)
        except NetdevError:
            if name not in self._known or netdev_exists(name, self._sysfs):
                raise
        return Device(self._known[name].sysfs_name)

    def devargs(self, text: str) -> Device:
        """The device of DPDK devargs; those of a VF representor mean the VF.

        Raises:
            DeviceNameError: the text is neither a PCI address nor a virtual device.
            NetdevError: the representor's VF does not exist, or more than one is meant.
        """
        device = Device.parse(text)
        representor = re.search(r"(?:^|,)representor=((?:\[[^\]]*\]|[^,])*)", device.arguments)
        if device.pci is None or representor is None:
            return device
        number = _REPRESENTOR.match(representor[1])
        if number is None:
            raise NetdevError(f"devargs {text!r}: representor must name one VF, as in representor=[3]")
        return Device(virtual_function(device.pci, int(number[1]), self._sysfs).sysfs_name)

    def any(self, text: str) -> Device:
        """The device of an interface's name, a PCI address or devargs, in this order.

        Raises:
            DeviceNameError: devargs that are not well formed.
            NetdevError: neither an interface with a PCI function nor written like a PCI address or devargs.
        """
        if not netdev_exists(text, self._sysfs) and _is_devargs(text):
            return self.devargs(text)
        return self.netdev(text)

    def keep_only(self, names: set[str]) -> None:
        """Forget all interfaces but these."""
        for name in self._known.keys() - names:
            del self._known[name]


def _is_devargs(text: str) -> bool:
    name = text.partition(",")[0]
    return "," in text or ":" in name or _VDEV_NAME.match(name) is not None
