from __future__ import annotations

import pytest
from dpdk_ffi_process import RunDpdk

pytestmark = pytest.mark.dpdk


def test_life_of_a_bond_in_every_mode(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        eal = Eal.init(options())
        pool = Mempool.create("pool", 4095)
        for MODE in [*range(7), *range(7)]:
            bond = BondPort.create("net_bonding0", MODE)
            members = [EthPort.probe(f"net_null{number},no-rx=1") for number in range(3)]
            bond.configure(1, 1)
            bond.setup_rx(0, 512, pool)
            bond.setup_tx(0, 512)
            for member in members:
                bond.add_member(member)
            bond.set_link_monitoring(50)
            bond.set_primary(members[1])
            if MODE in (2, 4):
                bond.set_xmit_policy(XmitPolicy.LAYER34)
            bond.start()
            assert bond.mode() == MODE and bond.info().driver == "net_bonding"
            assert bond.members() == tuple(member.port_id for member in members)
            assert set(bond.active_members()) <= set(bond.members())
            assert bond.primary() == members[1].port_id
            assert bond.burst(0).rx_function
            bond.remove_member(members[0])
            assert bond.members() == tuple(member.port_id for member in members[1:])
            members[0].remove()
            bond.remove()
            for member in members[1:]:
                member.remove()
            assert ports(load()) == [] and pool.in_use() == 0
        eal.cleanup()
        """
    )


def test_refusals(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        eal = Eal.init(options())
        assert "bond7" in str(error_of(BondPort.create, "bond7", 1))
        error_of(BondPort.create, "net_bonding0", 9)
        bond = BondPort.create("net_bonding0", 1)
        assert error_of(BondPort.create, "net_bonding0", 1).errno == 17
        other = BondPort.create("net_bonding1", 1)
        member = EthPort.probe("net_null0")
        bond.add_member(member)
        error = error_of(other.add_member, member)
        assert "net_bonding1, net_null0" in str(error)
        bond.remove()
        other.remove()
        member.remove()
        assert ports(load()) == []
        eal.cleanup()
        """
    )
