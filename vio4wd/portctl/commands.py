"""The commands of the command file: ``add_port`` and ``del_port``, read and carried out."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from vio4wd.devices import Bond, Device
from vio4wd.errors import ForwarderError
from vio4wd.portctl.resolver import DeviceResolver
from vio4wd.relay.interface import RELAYS, RelayController

log = logging.getLogger(__name__)

USAGE = "'add_port NETDEV [RELAY]' or 'del_port NETDEV', where a PCI address or DPDK devargs may stand for NETDEV"

_RELAY = re.compile(r"[0-9]{1,2}\Z")


class CommandFailed(ForwarderError):
    """A line of the command file that is no command, or one that cannot be carried out."""


@dataclass(frozen=True)
class AddPort:
    """``add_port eth100`` or ``add_port eth100 7``. Without a number the lowest free relay is taken."""

    device: str
    relay: int | None = None


@dataclass(frozen=True)
class DelPort:
    """``del_port eth100``."""

    device: str


def parse_command(line: str) -> AddPort | DelPort | None:
    """Read one line; None for a blank line or a comment (``#``).

    Raises:
        CommandFailed: the line is not a command.
    """
    words = line.split()
    if not words or words[0].startswith("#"):
        return None
    match words:
        case ["add_port", device]:
            return AddPort(device)
        case ["add_port", device, number]:
            if not _RELAY.match(number) or int(number) >= RELAYS:
                raise CommandFailed(f"relay {number[:20]!r} is not a number in 0..{RELAYS - 1}")
            return AddPort(device, int(number))
        case ["del_port", device]:
            return DelPort(device)
    raise CommandFailed(f"not a command; {USAGE}")


class CommandRunner:
    """Carries commands out. Holds no state of its own: what is where is asked of the controller each time.

    Args:
        controller: what is driven.
        resolver: finds the device behind a name.
        reserved: relays that ``add_port`` without a number leaves alone, because a static VF is still to come there.
    """

    def __init__(
        self,
        controller: RelayController,
        resolver: DeviceResolver,
        reserved: Callable[[], Collection[int]] = frozenset,
    ) -> None:
        self._controller = controller
        self._resolver = resolver
        self._reserved = reserved

    async def run(self, command: AddPort | DelPort) -> None:
        """Carry out one command.

        Raises:
            ForwarderError: it could not be done; the message says why.
        """
        # In a thread: reading sysfs waits while somebody holds the kernel's network configuration lock.
        device = await asyncio.to_thread(self._resolver.any, command.device)
        if isinstance(command, AddPort):
            await self._add(device, command.relay)
        else:
            await self._remove(device)

    async def _add(self, device: Device, relay: int | None) -> None:
        holder = self._relay_of(device)
        if holder is not None and relay in (None, holder):
            log.info("add_port: %s is on relay %d already", device, holder)
            return
        number = self._lowest_free() if relay is None else relay
        await self._controller.add_vf(number, device)
        log.info("add_port: %s is on relay %d", device, number)

    async def _remove(self, device: Device) -> None:
        relay = self._relay_of(device)
        if relay is None:
            raise CommandFailed(f"{device} is on no relay")
        await self._controller.remove_vf(relay, device)
        log.info("del_port: %s is off relay %d", device, relay)

    def _relay_of(self, device: Device) -> int | None:
        for snapshot in self._controller.snapshot():
            attachment = snapshot.attachment
            if attachment is not None and not isinstance(attachment, Bond) and attachment.name == device.name:
                return snapshot.relay
        return None

    def _lowest_free(self) -> int:
        reserved = self._reserved()
        for snapshot in self._controller.snapshot():
            if snapshot.attachment is None and snapshot.relay not in reserved:
                return snapshot.relay
        raise CommandFailed(f"none of the {RELAYS} relays is free")
