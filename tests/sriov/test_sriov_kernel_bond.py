"""A bond in mode 802.3ad against the bonding driver of the machine's kernel, over veth pairs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sriov_daemon import PYTHON, SriovDaemon

from harness.debian_root import CHECKOUT
from harness.process import wait_for

pytestmark = [pytest.mark.dpdk, pytest.mark.slow, pytest.mark.timeout(300)]

RELAY = 5
FRAMES = 100
WIRES = range(2)
NAMESPACE = "lag"
IN_NAMESPACE = f"ip netns exec {NAMESPACE}"
KERNEL_BOND = "\n".join(
    [
        f"ip netns add {NAMESPACE}",
        f"ip -n {NAMESPACE} link add bond0 type bond mode 802.3ad lacp_rate fast miimon 100",
        *(
            f"ip link add near{wire} type veth peer name far{wire} netns {NAMESPACE}\n"
            f"ip link set near{wire} up\n"
            f"ip -n {NAMESPACE} link set far{wire} master bond0\n"
            f"ip -n {NAMESPACE} link set far{wire} up"
            for wire in WIRES
        ),
        f"ip -n {NAMESPACE} link set bond0 up",
    ]
)


@pytest.fixture
def lag(sriov: SriovDaemon) -> Iterator[SriovDaemon]:
    """The kernel's bond in a namespace, ours on a relay, and a VM that answers."""
    sriov.machine.run(f"set -e\n{KERNEL_BOND}")
    members = [f"--devargs=net_af_packet{wire},iface=near{wire}" for wire in WIRES]
    status, text = sriov.port_control("add", f"--virtio-id={RELAY}", f"--name=net_bonding{RELAY}", "--mode=4", *members)
    assert status == 0, text + sriov.log[-3000:]
    sriov.start_vm(RELAY)
    yield sriov
    status, text = sriov.port_control("remove", f"--virtio-id={RELAY}", f"--name=net_bonding{RELAY}")
    sriov.machine.run(f"ip netns delete {NAMESPACE}; pkill -f virtio-forwarder{RELAY}.sock")
    assert status == 0, text


def wait_members(daemon: SriovDaemon, count: int) -> None:
    """Wait until the kernel has so many members in the aggregator that it uses, and knows our end of it."""

    def negotiated() -> bool:
        state = daemon.machine.run(f"{IN_NAMESPACE} cat /proc/net/bonding/bond0")
        return f"Number of ports: {count}\n" in state and "Partner Mac Address: 00:00:00:00:00:00" not in state

    wait_for(negotiated, 60, f"{count} members in the kernel's aggregator")


def exchange(daemon: SriovDaemon) -> str:
    """Send frames on the kernel's bond; how many came back, and how often."""
    script = f"{PYTHON} {CHECKOUT}/tests/sriov/sriov_lag.py bond0 {FRAMES}"
    return daemon.machine.run(f"{IN_NAMESPACE} {script}", 60).strip()


def test_8023ad_with_the_kernel_s_bond(lag: SriovDaemon) -> None:
    all_once = f"{FRAMES} {FRAMES}"
    wait_members(lag, 2)
    wait_for(lambda: exchange(lag) == all_once, 60, "traffic over the bond")
    lag.machine.run(f"ip -n {NAMESPACE} link set far0 down")
    wait_members(lag, 1)
    wait_for(lambda: exchange(lag) == all_once, 60, "traffic over one member")
    lag.machine.run(f"ip -n {NAMESPACE} link set far0 up")
    wait_members(lag, 2)
    wait_for(lambda: exchange(lag) == all_once, 60, "traffic over both members again")
