"""Bonds in a worker: opening them, and keeping their members in step with the kernel's interfaces behind them.

DPDK's bonding driver watches the links of its members, but some drivers (net_af_packet before DPDK 25.03, net_af_xdp)
always call theirs up. A member whose kernel interface lost its carrier, or is gone, is therefore taken out of the bond
here, and opened afresh when its interface is back. Members whose driver tells are left to the bonding driver.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vio4wd.devices import Bond, BondMode, Device
from vio4wd.dpdk_ffi.bond import BondPort, XmitPolicy
from vio4wd.dpdk_ffi.errors import DpdkError
from vio4wd.dpdk_ffi.ethdev import EthPort
from vio4wd.errors import ForwarderError

log = logging.getLogger(__name__)

CHECK_PERIOD_S = 0.1
"""How often members' interfaces are looked at."""

LINK_PERIOD_MS = 100
"""How often the bonding driver looks at the links of members that do not tell by interrupt."""

RETRY_S = 1.0
"""Wait after a member could not be put back."""

_SYS_NET = Path("/sys/class/net")


@dataclass
class Member:
    """One device of a bond; ``port`` is None while it is out of it. ``interface`` is the kernel's, if it has one."""

    device: Device
    port: EthPort | None
    interface: str = ""
    index: int = 0
    retry_at: float = 0.0
    fault: str = ""

    def open(self) -> EthPort:
        """Open the device.

        Raises:
            DpdkError: it cannot be opened.
        """
        return EthPort.probe(self.device.devargs)

    def attach(self, bond: BondPort, port: EthPort) -> None:
        """Put the opened device into the bond.

        Raises:
            DpdkError: the bond refuses it; then it is closed again.
        """
        try:
            bond.add_member(port)
        except DpdkError:
            port.remove()
            raise
        self.port, self.fault = port, ""
        self.index = port.info().interface_index
        if self.index:
            with contextlib.suppress(OSError):  # it went away meanwhile
                self.interface = socket.if_indextoname(self.index)

    def detach(self, bond: BondPort, heir: EthPort | None) -> None:
        """Take the device out of the bond, which makes ``heir`` its primary, and close it.

        The bonding driver would go on to use a primary port that has left it (modes 5 and 6 read its address).
        """
        port, self.port = self.port, None
        assert port is not None
        with contextlib.ExitStack() as steps:
            steps.callback(port.remove)
            if heir is not None:
                bond.set_primary(heir)
            bond.remove_member(port)

    @property
    def may_return(self) -> bool:
        """It is out, and it is time to try it again."""
        return self.port is None and self.retry_at <= time.monotonic() and (not self.interface or self.carrier)

    def failed(self, error: DpdkError) -> None:
        """It could not be put into the bond and is to be tried again; each reason is logged once."""
        self.retry_at = time.monotonic() + RETRY_S
        if self.fault != str(error):
            self.fault = str(error)
            log.error("bond member %s cannot be used and is tried again: %s", self.device, error)

    @property
    def carrier(self) -> bool:
        """The kernel says that the interface has a link."""
        try:
            return (_SYS_NET / self.interface / "carrier").read_text().strip() == "1"
        except OSError:  # ENOENT: it is gone; EINVAL: it is set down
            return False

    @property
    def replaced(self) -> bool:
        """The interface that the port was opened on is gone, or another one has its name now."""
        try:
            return socket.if_nametoindex(self.interface) != self.index
        except OSError:
            return True

    @property
    def dead(self) -> bool:
        """The port is of no use, and its driver does not know."""
        assert self.port is not None
        if self.port.trouble:
            return True
        return bool(self.interface) and (self.replaced or (not self.carrier and self.port.link().up))


class OpenBond:
    """A bond and its members."""

    def __init__(self, bond: Bond, port: BondPort) -> None:
        self.bond = bond
        self.port = port
        self.members = [Member(device, None) for device in bond.members]

    def open_members(self, *, degraded: bool) -> None:
        """Put the members in; with ``degraded`` one is enough, and the others follow when they can.

        Raises:
            DpdkError: a member cannot be used; with ``degraded``: none can.
        """
        errors = []
        for member in self.members:
            try:
                member.attach(self.port, member.open())
            except DpdkError as error:
                if not degraded:
                    raise
                member.failed(error)
                errors.append(error)
        if len(errors) == len(self.members):
            raise errors[0]

    def close(self) -> None:
        """Remove the bond, then its members, each even where the one before failed.

        Raises:
            DpdkError: one of them could not be removed.
        """
        with contextlib.ExitStack() as steps:
            for member in self.members:
                if member.port is not None:
                    steps.callback(member.port.remove)
            self.port.remove()

    def set_options(self) -> None:
        """What every bond of ours has: link monitoring, and flows that stay on one member."""
        self.port.set_link_monitoring(LINK_PERIOD_MS)
        if self.bond.mode in (BondMode.BALANCE, BondMode.LACP):
            self.port.set_xmit_policy(XmitPolicy.LAYER23)

    def stale(self, *, replaced: bool) -> list[Member]:
        """Members to take out. The last one stays until another can take its place, as with ``replaced`` one can."""
        inside = [member for member in self.members if member.port is not None]
        dead = [member for member in inside if member.dead]
        if replaced or len(dead) < len(inside) or any(member.carrier for member in dead):
            return dead
        return dead[1:]


class BondKeeper:
    """Watches the members of a worker's bonds on a thread of its own.

    ``busy(relay, on)`` switches the relay's lanes off while its bond's members change. ``lock`` is held meanwhile, and
    by whoever else opens or closes ports: DPDK does not promise that two threads may.
    """

    def __init__(self, busy: Callable[[int, bool], None]) -> None:
        self._busy = busy
        self._bonds: dict[int, OpenBond] = {}
        self.lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, relay: int, bond: OpenBond) -> None:
        """Begin to watch a relay's bond."""
        with self.lock:
            self._bonds[relay] = bond
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bonds", daemon=True)
                self._thread.start()

    def forget(self, relay: int) -> None:
        """Leave a relay's bond alone from here on."""
        with self.lock:
            self._bonds.pop(relay, None)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(CHECK_PERIOD_S):
            with self.lock:
                for relay, bond in self._bonds.items():
                    try:
                        self._check(relay, bond)
                    except ForwarderError as error:
                        log.error("relay %d: %s: %s", relay, bond.bond, error)
                    except Exception:
                        log.exception("relay %d: %s: members cannot be checked", relay, bond.bond)

    def _check(self, relay: int, bond: OpenBond) -> None:
        opened = _opened([member for member in bond.members if member.may_return])
        stale = bond.stale(replaced=bool(opened))
        if not stale and not opened:
            return
        heir = next((member.port for member in bond.members if member.port is not None and member not in stale), None)
        self._busy(relay, True)
        try:
            with contextlib.ExitStack() as steps:  # the last is run first, each even if one fails
                steps.callback(bond.port.refresh_promiscuous)
                for member, port in opened:
                    log.info("relay %d: %s: member %s is back", relay, bond.bond, member.device)
                    steps.callback(_put_back, member, bond.port, port)
                for member in stale:
                    log.warning("relay %d: %s: member %s lost its link", relay, bond.bond, member.device)
                    steps.callback(member.detach, bond.port, heir)
        finally:
            # Without members the bond's burst functions use a port number that may be another relay's by now.
            self._busy(relay, all(member.port is None for member in bond.members))


def _opened(members: list[Member]) -> list[tuple[Member, EthPort]]:
    found = []
    for member in members:
        try:
            found.append((member, member.open()))
        except DpdkError as error:
            member.failed(error)
    return found


def _put_back(member: Member, bond: BondPort, port: EthPort) -> None:
    try:
        member.attach(bond, port)
    except DpdkError as error:
        member.failed(error)
