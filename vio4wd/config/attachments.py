"""Values that name VFs: static VFs with their relays, and devices to bind to vfio-pci."""

from __future__ import annotations

import re

from vio4wd.config.kinds import BadValueError, Kind, Reading
from vio4wd.config.model import StaticVf, VfioBinding
from vio4wd.devices import BOND_PREFIX, Attachment, Bond, BondMode, Device, DeviceNameError, PciAddress
from vio4wd.relay.interface import RELAYS

_NETDEV = re.compile(r"([^\s/:,]{1,15})(?::([0-9]{1,4}))?\Z")


def parse_static_vf(text: str) -> StaticVf:
    """Read ``<PCI address or devargs>=<relay>``; the last ``=`` divides. A bond's devargs are read by ``parse_bond``.

    Raises:
        BadValueError: not written so, or no such relay.
    """
    name, equals, relay = text.rpartition("=")
    if not equals or not name:
        raise BadValueError(f"{text!r} is not <device>=<relay>")
    if not re.fullmatch("[0-9]{1,9}", relay) or int(relay) >= RELAYS:
        raise BadValueError(f"{text!r}: {relay!r} is not a relay, which are 0 to {RELAYS - 1}")
    try:
        attachment = parse_bond(name) if name.startswith(BOND_PREFIX) else Device.parse(name)
    except DeviceNameError as error:
        raise BadValueError(str(error)) from None
    return StaticVf(int(relay), attachment)


def parse_bond(text: str) -> Bond:
    """Read ``net_bonding0,mode=1,member=0000:05:08.1,member=[net_tap0,iface=tap0]``.

    A member whose devargs have arguments of their own stands in square brackets.

    Raises:
        DeviceNameError: not a bond of 2 to 8 distinct devices.
    """
    name, *arguments = _split_outside_brackets(text)
    mode = BondMode.ACTIVE_BACKUP
    members: list[Device] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "member":
            inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
            members.append(Device.parse(inner))
        elif key == "mode":
            mode = _bond_mode(name, value)
        else:
            raise DeviceNameError(f"bond {name}: {argument!r} is neither mode=0..6 nor member=<device>")
    return Bond(name, tuple(members), mode)


def _bond_mode(name: str, text: str) -> BondMode:
    if not re.fullmatch("[0-6]", text):
        raise DeviceNameError(f"bond {name}: mode {text!r} is not 0 to 6")
    return BondMode(int(text))


def _split_outside_brackets(text: str) -> list[str]:
    parts = [""]
    depth = 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if depth < 0:
            break
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    if depth != 0:
        raise DeviceNameError(f"{text!r}: the square brackets do not match")
    return parts


def format_attachment(attachment: Attachment) -> str:
    """Write a device or bond as ``parse_static_vf`` reads it."""
    if isinstance(attachment, Device):
        return attachment.devargs
    members = (f"[{member.devargs}]" if member.arguments else member.devargs for member in attachment.members)
    return ",".join([attachment.name, f"mode={attachment.mode.value}", *(f"member={member}" for member in members)])


def devices_of(attachment: Attachment) -> tuple[Device, ...]:
    """The devices that an attachment takes: itself or a bond's members."""
    return attachment.members if isinstance(attachment, Bond) else (attachment,)


def _read_static_vfs(reading: Reading) -> tuple[StaticVf, ...]:
    vfs = tuple(dict.fromkeys(parse_static_vf(entry) for entry in reading.entries))
    on_relay: dict[int, Attachment] = {}
    relay_of: dict[str, int] = {}
    for vf in vfs:
        if vf.relay in on_relay:
            raise BadValueError(f"relay {vf.relay} is given both {on_relay[vf.relay]} and {vf.attachment}")
        on_relay[vf.relay] = vf.attachment
        for name in {vf.attachment.name, *(device.name for device in devices_of(vf.attachment))}:
            if name in relay_of:
                raise BadValueError(f"{name} is given to relay {relay_of[name]} and to relay {vf.relay}")
            relay_of[name] = vf.relay
    return vfs


def _write_static_vfs(vfs: tuple[StaticVf, ...]) -> tuple[str, ...]:
    return tuple(f"{format_attachment(vf.attachment)}={vf.relay}" for vf in vfs)


def _read_bindings(reading: Reading) -> tuple[VfioBinding, ...]:
    parts = (part for word in reading.entries for part in word.split(","))
    return tuple(dict.fromkeys(_parse_binding(part) for part in parts if part))


def _parse_binding(text: str) -> VfioBinding:
    try:
        return VfioBinding(PciAddress.parse(text))
    except DeviceNameError:
        match = _NETDEV.match(text)
    if match is None or match[1] in (".", ".."):
        raise BadValueError(f"{text!r} is neither a PCI address nor a netdev")
    if match[2] == "0":
        raise BadValueError(f"{text!r}: the number of VFs is 1 or more")
    return VfioBinding(match[1], int(match[2]) if match[2] else None)


STATIC_VFS = Kind(
    _read_static_vfs,
    _write_static_vfs,
    "<PCI address or DPDK devargs>=<relay> with relay 0 to 63, one VF to a relay; several as an array",
)
VFIO_BINDINGS = Kind(
    _read_bindings,
    lambda bindings: (",".join(map(str, bindings)),),
    "0000:01:02.3, 01:02.3, netdev or netdev:count, with commas between",
)
