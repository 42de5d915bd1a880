"""Names of the devices that a relay can carry: PCI addresses, DPDK devargs and bonds of them."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from vio4wd.errors import ForwarderError

MAX_BOND_MEMBERS = 8
MAX_DEVARGS_BYTES = 4096
"""More than any device takes; a worker must be able to take in a bond of them in one message."""
BOND_PREFIX = "net_bonding"

_SHOWN = 60  # characters of devargs that are too long

_PCI = re.compile(r"(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2})\.([0-7])\Z")
_VDEV = re.compile(r"[a-z][a-z0-9_]*[a-z0-9_]\Z")
_BOND = re.compile(BOND_PREFIX + r"[A-Za-z0-9_.-]*\Z")


class DeviceNameError(ForwarderError):
    """A device, bond or PCI address that is not written as one."""


@dataclass(frozen=True, order=True)
class PciAddress:
    """A PCI function: domain (32 bits), bus (8), slot (5), function (3)."""

    domain: int
    bus: int
    slot: int
    function: int

    def __post_init__(self) -> None:
        limits = {"domain": 0xFFFFFFFF, "bus": 0xFF, "slot": 0x1F, "function": 7}
        for field, most in limits.items():
            if not 0 <= getattr(self, field) <= most:
                raise DeviceNameError(f"PCI address: {field} {getattr(self, field):#x} is not in 0..{most:#x}")

    @classmethod
    def parse(cls, text: str) -> PciAddress:
        """Read ``0000:11:22.3`` or ``11:22.3``.

        Raises:
            DeviceNameError: the text is not a PCI address.
        """
        match = _PCI.match(text)
        if match is None:
            raise DeviceNameError(f"{text!r} is not a PCI address such as 0000:05:08.1 or 05:08.1")
        domain, bus, slot, function = match.groups()
        return cls(int(domain or "0", 16), int(bus, 16), int(slot, 16), int(function, 16))

    def __str__(self) -> str:
        return f"{self.domain:04X}:{self.bus:02X}:{self.slot:02X}.{self.function:X}"

    @property
    def sysfs_name(self) -> str:
        """The address as Linux's sysfs and DPDK spell it: lower case, four-digit domain."""
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function:x}"


@dataclass(frozen=True)
class Device:
    """One DPDK port by its devargs: a PCI address or a virtual device, with optional ``,key=value`` arguments.

    Two devices are the same device when their ``name`` is the same.
    """

    name: str
    arguments: str = ""

    @classmethod
    def parse(cls, devargs: str) -> Device:
        """Read ``0000:05:08.1``, ``05:08.1,key=value`` or ``net_null0,size=60``.

        Raises:
            DeviceNameError: neither a PCI address nor the name of a DPDK virtual device, or longer than is taken.
        """
        size = len(devargs.encode(errors="surrogatepass"))
        if size > MAX_DEVARGS_BYTES:
            start = devargs[:_SHOWN]
            raise DeviceNameError(f"{start!r}...: devargs of {size} bytes, must be at most {MAX_DEVARGS_BYTES}")
        name, _, arguments = devargs.strip().partition(",")
        if _PCI.match(name):
            return cls(PciAddress.parse(name).sysfs_name, arguments)
        if not _VDEV.match(name):
            raise DeviceNameError(
                f"{devargs!r} is neither a PCI address such as 0000:05:08.1 nor devargs such as net_tap0,iface=tap0"
            )
        return cls(name, arguments)

    @property
    def pci(self) -> PciAddress | None:
        """The PCI address, or None for a virtual device."""
        return PciAddress.parse(self.name) if _PCI.match(self.name) else None

    @property
    def devargs(self) -> str:
        """The string that DPDK probes."""
        return f"{self.name},{self.arguments}" if self.arguments else self.name

    def __str__(self) -> str:
        return str(self.pci or self.devargs)


class BondMode(enum.IntEnum):
    """Modes of DPDK's bonding PMD (rte_eth_bond.h), which are also those on the wire."""

    ROUND_ROBIN = 0
    ACTIVE_BACKUP = 1
    BALANCE = 2
    BROADCAST = 3
    LACP = 4
    TLB = 5
    ALB = 6


@dataclass(frozen=True)
class Bond:
    """A bonding port named ``net_bonding...`` over 2 to 8 member devices."""

    name: str
    members: tuple[Device, ...]
    mode: BondMode = BondMode.ACTIVE_BACKUP

    def __post_init__(self) -> None:
        if not _BOND.match(self.name):
            allowed = f"must be {BOND_PREFIX} and then letters, digits, '_', '.' or '-', as in {BOND_PREFIX}0"
            raise DeviceNameError(f"bond name {self.name!r}: {allowed}")
        if not 2 <= len(self.members) <= MAX_BOND_MEMBERS:
            count = len(self.members)
            raise DeviceNameError(f"bond {self.name}: has {count} members, must have 2 to {MAX_BOND_MEMBERS}")
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise DeviceNameError(f"bond {self.name}: the same device is given twice")

    def __str__(self) -> str:
        return self.name


Attachment = Device | Bond
"""What a relay can carry on its VF side."""
