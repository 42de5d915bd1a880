"""The machine with SR-IOV, its VFs ready for DPDK, and a daemon in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from sriov_daemon import SriovDaemon
from sriov_machine import PF, VF_MACS, VFS, SriovMachine

from harness.debian_root import MachineUnavailable
from harness.guest_image import ImageUnavailable

UNLOAD_VFIO = "for module in $(tac /modules | grep vfio); do rmmod $(basename $module .ko | tr - _); done"
LOAD_VFIO = "for module in $(grep vfio /modules); do insmod $module; done"
MAKE_VFS = f"echo 0 >/sys/bus/pci/devices/{PF}/sriov_drivers_autoprobe\nip link set eth0 up\n" + (
    f"echo {len(VFS)} >/sys/bus/pci/devices/{PF}/sriov_numvfs\n"
)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SriovMachine]:
    """The booted machine; its VFs are on no driver."""
    try:
        machine = SriovMachine(tmp_path_factory.mktemp("sriov"))
    except (MachineUnavailable, ImageUnavailable) as reason:
        pytest.skip(f"no machine with SR-IOV can be made here: {reason}")
    machine.run(MAKE_VFS)
    for number, mac in enumerate(VF_MACS):
        machine.run(f"ip link set eth0 vf {number} mac {mac.hex(':')}")
    yield machine
    machine.stop()


@pytest.fixture(scope="session")
def sriov(machine: SriovMachine) -> SriovDaemon:
    """The daemon, started before vfio-pci was loaded and the VFs were bound to it."""
    machine.run(UNLOAD_VFIO)
    compiled = machine.run("ls -R /var/cache/virtio-forwarder")
    daemon = SriovDaemon(machine)
    assert machine.run("ls -R /var/cache/virtio-forwarder") == compiled, "the machine has compiled something itself"
    machine.run(LOAD_VFIO)
    for vf in VFS:
        machine.bind(vf, "vfio-pci")
    return daemon
