"""What the rows of OVSDB's Interface table ask for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vio4wd.devices import Device
from vio4wd.errors import ForwarderError
from vio4wd.portctl.claims import Claim
from vio4wd.portctl.resolver import DeviceResolver
from vio4wd.relay.interface import RELAYS

log = logging.getLogger(__name__)

RELAY_KEYS = ("virtio_forwarder", "virtio_relay")
"""Keys of external_ids that hold the relay's number; the first one that is there counts."""

DEVARGS_KEY = "virtio_forwarder_devargs"
"""Key of external_ids that holds DPDK devargs, for an interface whose VF sysfs cannot tell, or that has none."""

DPDK_DEVARGS_OPTION = "dpdk-devargs"
"""Key of options by which Open vSwitch itself is told an interface's DPDK device."""

_NUMBER = re.compile(r"[0-9]{1,4}\Z")


class InterfaceError(ForwarderError):
    """An interface whose external_ids ask for something impossible."""


@dataclass(frozen=True)
class Interface:
    """One row: its name and the columns that concern us."""

    name: str
    external_ids: Mapping[str, str]
    options: Mapping[str, str]

    @property
    def tagged(self) -> bool:
        """Whether the interface asks for a relay."""
        return any(key in self.external_ids for key in RELAY_KEYS)


class InterfaceReader:
    """Turns rows into claims, and warns of the rows that it cannot use: once, until they change.

    Calls are made one at a time, from the thread that follows the database.
    """

    def __init__(self, resolver: DeviceResolver) -> None:
        self._resolver = resolver
        self._complaints: dict[str, str] = {}

    def claims(self, interfaces: Iterable[Interface]) -> tuple[Claim, ...]:
        """The claims of all tagged interfaces that can be used, by name of the interface."""
        claims = []
        complaints = {}
        tagged = sorted((row for row in interfaces if row.tagged), key=lambda row: row.name)
        for row in tagged:
            try:
                claims.append(self._claim(row))
            except ForwarderError as error:
                complaints[row.name] = str(error)
        for name, complaint in complaints.items():
            if self._complaints.get(name) != complaint:
                log.warning("OVSDB: interface %s: %s; ignored until that changes", name, complaint)
        self._complaints = complaints
        self._resolver.keep_only({row.name for row in tagged})
        return tuple(claims)

    @property
    def complete(self) -> bool:
        """Whether the last call could use every tagged interface; if not, it is worth while to look again."""
        return not self._complaints

    def _claim(self, row: Interface) -> Claim:
        return Claim(_relay(row), self._device(row), f"OVSDB interface {row.name}")

    def _device(self, row: Interface) -> Device:
        devargs = row.external_ids.get(DEVARGS_KEY) or row.options.get(DPDK_DEVARGS_OPTION)
        return self._resolver.devargs(devargs) if devargs else self._resolver.netdev(row.name)


def _relay(row: Interface) -> int:
    key = next(key for key in RELAY_KEYS if key in row.external_ids)
    text = row.external_ids[key].strip()
    if not _NUMBER.match(text) or int(text) >= RELAYS:
        raise InterfaceError(f"external_ids:{key} is {text!r}, must be the number of a relay, 0 to {RELAYS - 1}")
    return int(text)
