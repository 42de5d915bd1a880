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
    """One device of a bond; ``port`` is None while it is out of it. ``interface`` is the kernel's, if it has one.

    ``left`` is the port that it had when it was taken out, until that is closed.
    """

    device: Device
    port: EthPort | None
    left: EthPort | None = None
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
        """Take the device out of the bond, which makes ``heir`` its primary; its port stays open until ``close``.

        The bonding driver would go on to use a primary port that has left it (modes 5 and 6 read its address).
        """
        port = self.port
        assert port is not None
        try:
            if heir is not None:
                bond.set_primary(heir)
            bond.remove_member(port)
        finally:
            self.left, self.port = port, None

    def close(self) -> None:
        """Close the port with which the device left the bond, if it is still open.

        Raises:
            DpdkError: the device could not be detached.
        """
        port, self.left = self.left, None
        if port is not None:
            port.remove()

    @property
    def may_return(self) -> bool:
        """It is out, and it is time to try it again."""
        out = self.port is None and self.left is None
        return out and self.retry_at <= time.monotonic() and (not self.interface or self.carrier)

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
        self.lock = threading.Lock()
        """Held while members are put in or taken out."""

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
                steps.callback(member.close)
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
    """Watches the members of a worker's bonds, on two threads of its own.

    The first takes out members that are of no use, which touches the ports of their bond alone. The second closes
    these, and opens what can return. ``hotplug`` is held for that, and by whoever else opens or closes ports: DPDK does
    not promise that two threads may. It can take seconds, which no bond's fail-over must wait for.

    ``busy(relay, on)`` switches the relay's lanes off while its bond's members change.
    """

    def __init__(self, busy: Callable[[int, bool], None]) -> None:
        self._busy = busy
        self._bonds: dict[int, OpenBond] = {}
        self.hotplug = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def watch(self, relay: int, bond: OpenBond) -> None:
        """Begin to watch a relay's bond."""
        self._bonds[relay] = bond
        if not self._threads:
            for work in (self._fail_over, self._restore):
                self._threads.append(threading.Thread(target=self._run, args=[work], name="bonds", daemon=True))
                self._threads[-1].start()

    def forget(self, relay: int) -> None:
        """Leave a relay's bond alone from here on: its ports are the caller's to close, with ``hotplug`` held."""
        bond = self._bonds.pop(relay, None)
        if bond is not None:
            with bond.lock:  # a change that is under way comes to its end
                pass

    def close(self) -> None:
        """End the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, work: Callable[[int, OpenBond], None]) -> None:
        while not self._stop.wait(CHECK_PERIOD_S):
            for relay, bond in list(self._bonds.items()):
                try:
                    work(relay, bond)
                except ForwarderError as error:
                    log.error("relay %d: %s: %s", relay, bond.bond, error)
                except Exception:
                    log.exception("relay %d: %s: members cannot be checked", relay, bond.bond)

    def _watched(self, relay: int, bond: OpenBond) -> bool:
        return self._bonds.get(relay) is bond

    def _fail_over(self, relay: int, bond: OpenBond) -> None:
        if bond.lock.acquire(blocking=False):  # else a member is being put in: other bonds do not wait for that
            try:
                if self._watched(relay, bond):
                    self._change(relay, bond, [])
            finally:
                bond.lock.release()

    def _restore(self, relay: int, bond: OpenBond) -> None:
        if not any(member.left or member.may_return for member in bond.members):
            return
        with self.hotplug, contextlib.ExitStack() as unused:
            if not self._watched(relay, bond):
                return
            for member in bond.members:
                member.close()
            opened = _opened([member for member in bond.members if member.may_return])
            for _, port in opened:
                unused.callback(port.remove)
            with bond.lock:
                if self._watched(relay, bond):
                    unused.pop_all()
                    self._change(relay, bond, opened)

    def _change(self, relay: int, bond: OpenBond, opened: list[tuple[Member, EthPort]]) -> None:
        """Take out members that are of no use and put in those that were opened."""
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
