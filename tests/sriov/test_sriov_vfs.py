"""VFs of an emulated SR-IOV card by their PCI addresses, from the card's cable to a VM and back.

The tests share a machine and a daemon, in this order: all but the last leave VF 0 on relay 1 with a VM, and VFs that
nobody uses on vfio-pci.
"""

from __future__ import annotations

import os
import random
import time

import pytest
from sriov_daemon import SriovDaemon
from sriov_machine import PF, VF_MACS, VFS, SriovMachine

from harness.debian_root import CHECKOUT
from harness.process import wait_for

pytestmark = [pytest.mark.dpdk, pytest.mark.slow, pytest.mark.timeout(300)]

SENDER = bytes.fromhex("020000000001")
ETHERTYPE = b"\x88\xb5"
RELAY = 1


def frames(vf: int, sizes: range | list[int]) -> list[bytes]:
    source = random.Random(vf)
    return [VF_MACS[vf] + SENDER + ETHERTYPE + source.randbytes(size - 14) for size in sizes]


def answers(machine: SriovMachine, count: int, seconds: float = 10) -> list[bytes]:
    """So many frames of ours that the card sends, fewer if they do not come; the kernel's own are left out."""
    found: list[bytes] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and (frame := machine.receive(deadline - time.monotonic())):
        if frame[12:14] == ETHERTYPE:
            found.append(frame)
    return found


def echo(machine: SriovMachine, sent: list[bytes]) -> None:
    """Send frames and get them back."""
    for start in range(0, len(sent), 32):
        part = sent[start : start + 32]
        for frame in part:
            machine.send(frame)
        returned = [SENDER + frame[:6] + frame[12:] for frame in part]
        assert sorted(answers(machine, len(part))) == sorted(returned)


def wait_echo(machine: SriovMachine, vf: int = 0, seconds: float = 30) -> float:
    """Wait until frames pass; answers after how many seconds."""
    begun = time.monotonic()
    mark = os.urandom(50)  # frames that were under way before do not count

    def passed() -> bool:
        machine.send(VF_MACS[vf] + SENDER + ETHERTYPE + mark)
        return any(mark in frame for frame in answers(machine, 1, 0.1))

    wait_for(passed, seconds, "a frame to come back")
    needed = time.monotonic() - begun
    while answers(machine, 1, 0.5):  # and these must not disturb what comes next
        pass
    return needed


@pytest.fixture(scope="module")
def relayed(sriov: SriovDaemon) -> SriovDaemon:
    """VF 0 is on a relay that has a VM."""
    sriov.add(RELAY, VFS[0])
    sriov.start_vm(RELAY)
    wait_echo(sriov.machine)
    return sriov


def test_frames_come_back_and_are_counted(relayed: SriovDaemon) -> None:
    before = relayed.stats()
    sent = frames(0, [*range(64, 1514, 7), 1513, 1514])
    echo(relayed.machine, sent)
    after = relayed.stats()
    assert after[f"relay_{RELAY}.vf.pci_addr_str"] == VFS[0]
    octets = sum(map(len, sent))
    for key in ("vf_to_vm.%s_rx_from_vf", "vf_to_vm.%s_tx_to_vm", "vm_to_vf.%s_rx_from_vm", "vm_to_vf.%s_tx_to_vf"):
        for unit, more in (("pkts", len(sent)), ("bytes", octets)):
            name = f"relay_{RELAY}.{key % unit}"
            assert int(after[name]) - int(before[name]) == more, name


def test_refusals_say_what_would_be_right(relayed: SriovDaemon) -> None:
    machine, vf = relayed.machine, VFS[3]
    machine.bind(vf, "igbvf")
    text = relayed.refusal(2, vf)
    assert f"{vf} is bound to the kernel's driver igbvf, must be vfio-pci" in text
    machine.bind(vf, "")
    text = relayed.refusal(2, vf)
    assert f"{vf} is not bound to any driver, must be vfio-pci (dpdk-devbind.py --bind=vfio-pci {vf})" in text
    machine.bind(vf, "vfio-pci")
    assert f"there is no PCI device {PF[:-1]}7" in relayed.refusal(2, f"{PF[:-1]}7")
    text = relayed.refusal(2, PF)
    assert f"{PF} is bound to the kernel's driver igb and has VFs: add one of them, such as {VFS[0]}" in text
    assert f"{VFS[0]} is in use by relay {RELAY}" in relayed.refusal(2, VFS[0])
    assert f"relay {RELAY} has {VFS[0]} already" in relayed.refusal(RELAY, vf)
    echo(machine, frames(0, [64, 1514]))


def test_names_of_interfaces_lead_to_their_vfs(relayed: SriovDaemon) -> None:
    machine, vf = relayed.machine, VFS[3]
    machine.bind(vf, "igbvf")
    name = machine.run(f"ls /sys/bus/pci/devices/{vf}/net").strip()
    answer = machine.run(
        f"cd {CHECKOUT} && .venv/bin/python - {name} {PF} <<'END'\n"
        "import sys\n"
        "from vio4wd.devices import PciAddress\n"
        "from vio4wd.portctl.netdev import pci_address, virtual_function\n"
        "print(pci_address(sys.argv[1]).sysfs_name)\n"
        "for number in range(4):\n"
        "    print(virtual_function(PciAddress.parse(sys.argv[2]), number).sysfs_name)\n"
        "END"
    )
    machine.bind(vf, "vfio-pci")
    assert answer.split() == [vf, *VFS]


def test_a_killed_worker_is_replaced_under_traffic(relayed: SriovDaemon) -> None:
    machine = relayed.machine
    relayed.wait_for_log("stands by", 60)
    for frame in frames(0, [100] * 16):
        machine.send(frame)
    machine.run(f"kill -9 {relayed.workers()[0]}")
    print(f"\nframes flow again after {wait_echo(machine):.1f} s")
    echo(machine, frames(0, [64, 700, 1514] * 10))
    assert relayed.log.count(f"relay {RELAY}: front end connected") == 1
    relayed.wait_for_log("stands by", 90, count=2)


def test_a_removed_vf_is_free_at_once(relayed: SriovDaemon) -> None:
    machine = relayed.machine
    assert relayed.vfio_devices() == 1
    relayed.remove(RELAY, VFS[0])
    assert relayed.vfio_devices() == 0
    machine.bind(VFS[0], "igbvf")
    machine.bind(VFS[0], "vfio-pci")
    relayed.add(RELAY, VFS[0])
    wait_echo(machine)
    echo(machine, frames(0, [64, 1514]))


def test_a_vf_that_the_kernel_wants_is_let_go_and_taken_back(relayed: SriovDaemon) -> None:
    machine = relayed.machine
    begun = time.monotonic()
    machine.bind(VFS[0], "igbvf")
    print(f"\nunbound after {time.monotonic() - begun:.1f} s")
    relayed.wait_for_log("must be vfio-pci", 20)
    assert relayed.vfio_devices() == 0
    machine.bind(VFS[0], "vfio-pci")
    relayed.wait_for_log(f"{VFS[0]} is back", 30)
    wait_echo(machine)
    echo(machine, frames(0, [64, 1514]))


def test_two_vfs_do_not_mix(relayed: SriovDaemon) -> None:
    machine = relayed.machine
    relayed.add(2, VFS[1])
    relayed.start_vm(2)
    wait_echo(machine, 1)
    mixed = zip(frames(0, range(64, 1514, 31)), frames(1, range(64, 1514, 31)), strict=True)
    echo(machine, [frame for pair in mixed for frame in pair])


def test_the_vfs_go_away_under_the_daemon(relayed: SriovDaemon) -> None:
    """Relays 1 and 2 lose their VFs to sriov_numvfs=0; the first gets its own back."""
    machine = relayed.machine
    begun = time.monotonic()
    machine.run(f"echo 0 >/sys/bus/pci/devices/{PF}/sriov_numvfs")
    print(f"\nno VFs after {time.monotonic() - begun:.1f} s")
    relayed.wait_for_log("there is no PCI device", 20, count=2)
    relayed.remove(2, VFS[1])
    machine.run(f"echo 1 >/sys/bus/pci/devices/{PF}/sriov_numvfs")
    machine.run(f"ip link set eth0 vf 0 mac {VF_MACS[0].hex(':')}")
    machine.bind(VFS[0], "vfio-pci")
    relayed.wait_for_log(f"{VFS[0]} is back", 30, count=2)
    wait_echo(machine)


def test_the_daemon_stops_and_leaves_nothing_behind(relayed: SriovDaemon) -> None:
    machine = relayed.machine
    print(f"\nstopped after {relayed.stop():.1f} s")
    assert "Traceback" not in relayed.log
    assert machine.run("ls /dev/hugepages /run/dpdk /tmp/daemon/sockets | grep -v :; true").strip() == ""
    assert machine.run("awk '/HugePages_(Total|Free)/ {print $2}' /proc/meminfo | uniq | wc -l").strip() == "1"
    machine.bind(VFS[0], "igbvf")
