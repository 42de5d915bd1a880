"""Bonding ports: several ports behind one (DPDK's net_bonding driver)."""

from __future__ import annotations

import ctypes
import enum
import errno

from vio4wd.dpdk_ffi.errors import DpdkError
from vio4wd.dpdk_ffi.ethdev import EthPort, find_port
from vio4wd.dpdk_ffi.loader import load

_MOST_MEMBERS = 32

_MEMBER_FUNCTIONS = {
    "add": ("rte_eth_bond_member_add", "rte_eth_bond_slave_add"),
    "remove": ("rte_eth_bond_member_remove", "rte_eth_bond_slave_remove"),
    "all": ("rte_eth_bond_members_get", "rte_eth_bond_slaves_get"),
    "active": ("rte_eth_bond_active_members_get", "rte_eth_bond_active_slaves_get"),
}
"""Names from 23.11 on, and before."""


class XmitPolicy(enum.IntEnum):
    """What modes 2 and 4 choose the member by (BALANCE_XMIT_POLICY_* of rte_eth_bond.h)."""

    LAYER2 = 0
    LAYER23 = 1
    LAYER34 = 2


class BondPort(EthPort):
    """A bonding port. Make it, configure it and its queues, add members, start it: it configures and starts them.

    Modes are those of rte_eth_bond.h: 0 round robin, 1 active backup, 2 balance, 3 broadcast, 4 802.3ad, 5 TLB, 6 ALB.
    """

    @staticmethod
    def available() -> bool:
        """Whether this DPDK has the bonding driver."""
        return load().has("rte_eth_bond_create")

    @classmethod
    def create(cls, name: str, mode: int, socket_id: int = 0) -> BondPort:
        """Make a bond without members; ``name`` starts with ``net_bonding``.

        Raises:
            DpdkError: EEXIST, the name is taken; EINVAL, no such mode or not such a name.
        """
        dpdk = load()
        if find_port(dpdk, name) is not None:
            raise DpdkError("rte_eth_bond_create", errno.EEXIST, name)
        port_id = int(dpdk.call(name, "rte_eth_bond_create", name.encode(), mode, socket_id))
        return cls(dpdk, port_id, name)

    def _member_function(self, what: str) -> str:
        return next(name for name in _MEMBER_FUNCTIONS[what] if self._dpdk.has(name))

    def add_member(self, port: EthPort) -> None:
        """Put a port that is not started into the bond; the bond configures it."""
        self._dpdk.call(f"{self.name}, {port.name}", self._member_function("add"), self.port_id, port.port_id)

    def remove_member(self, port: EthPort) -> None:
        """Stop a port and take it out; it can be closed or removed then. Nobody may be in a burst function."""
        port.stop()
        self._dpdk.call(f"{self.name}, {port.name}", self._member_function("remove"), self.port_id, port.port_id)

    def refresh_promiscuous(self) -> None:
        """Pass the promiscuous mode on to members that came after it was set; nobody may be in a burst function."""
        if self.set_promiscuous(False):
            self.set_promiscuous(True)

    def _list(self, what: str) -> tuple[int, ...]:
        out = (ctypes.c_uint16 * _MOST_MEMBERS)()
        count = int(self._dpdk.call(self.name, self._member_function(what), self.port_id, out, _MOST_MEMBERS))
        return tuple(out[:count])

    def members(self) -> tuple[int, ...]:
        """The numbers of the member ports."""
        return self._list("all")

    def active_members(self) -> tuple[int, ...]:
        """The numbers of the member ports that carry traffic now."""
        return self._list("active")

    def primary(self) -> int:
        """The number of the primary member port."""
        return int(self._dpdk.call(self.name, "rte_eth_bond_primary_get", self.port_id))

    def set_primary(self, port: EthPort) -> None:
        """Prefer a member; in mode 1 it carries the traffic while its link is up."""
        self._dpdk.call(f"{self.name}, {port.name}", "rte_eth_bond_primary_set", self.port_id, port.port_id)

    def mode(self) -> int:
        """The bonding mode."""
        return int(self._dpdk.call(self.name, "rte_eth_bond_mode_get", self.port_id))

    def set_link_monitoring(self, interval_ms: int) -> None:
        """How often to look at the links of members that do not tell by interrupt."""
        self._dpdk.call(self.name, "rte_eth_bond_link_monitoring_set", self.port_id, interval_ms)

    def set_xmit_policy(self, policy: XmitPolicy) -> None:
        """What modes 2 and 4 choose the member by."""
        self._dpdk.call(self.name, "rte_eth_bond_xmit_policy_set", self.port_id, policy)

    def _detach(self, device: int) -> None:
        self._dpdk.call(self.name, "rte_eth_bond_free", self.name.encode())
