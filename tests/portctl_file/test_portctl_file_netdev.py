"""netdev and resolver against sysfs trees made in a temporary directory, and the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vio4wd.devices import DeviceNameError, PciAddress
from vio4wd.portctl.netdev import NetdevError, netdev_exists, pci_address, virtual_function
from vio4wd.portctl.resolver import DeviceResolver


class FakeSysfs:
    """A tree with the parts of /sys that are looked at."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.netdevs = root / "class/net"
        self.by_address = root / "bus/pci/devices"
        self.netdevs.mkdir(parents=True)
        self.by_address.mkdir(parents=True)

    def pci(self, address: str) -> Path:
        device = self.root / "devices/pci0000:00" / address
        device.mkdir(parents=True)
        (self.by_address / address).symlink_to(device)
        return device

    def pf(self, address: str, vfs: list[str]) -> Path:
        device = self.pci(address)
        for number, vf in enumerate(vfs):
            (device / f"virtfn{number}").symlink_to(self.pci(vf))
        return device

    def netdev(self, name: str, device: Path | None, **attributes: str) -> None:
        directory = self.netdevs / name
        directory.mkdir()
        if device is not None:
            (directory / "device").symlink_to(device)
        for key, value in attributes.items():
            (directory / key).write_text(value + "\n")


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path / "sys")


def test_own_pci_function(sysfs: FakeSysfs) -> None:
    sysfs.netdev("eth100", sysfs.pci("0000:05:08.1"), phys_port_name="")
    assert pci_address("eth100", sysfs.root) == PciAddress.parse("0000:05:08.1")


def test_wide_pci_domain(sysfs: FakeSysfs) -> None:
    sysfs.netdev("eth1", sysfs.pci("10000:01:00.0"))
    assert str(pci_address("eth1", sysfs.root)) == "10000:01:00.0"


def test_virtio_device_leads_to_its_pci_function(sysfs: FakeSysfs) -> None:
    virtio = sysfs.pci("0000:00:03.0") / "virtio2"
    virtio.mkdir()
    sysfs.netdev("eth0", virtio)
    assert pci_address("eth0", sysfs.root) == PciAddress.parse("0000:00:03.0")


@pytest.mark.parametrize("port", ["pf0vf1", "c1pf0vf1"])
def test_representor_whose_parent_is_the_pf(sysfs: FakeSysfs, port: str) -> None:
    pf = sysfs.pf("0000:03:00.0", ["0000:03:00.2", "0000:03:00.3"])
    sysfs.netdev("rep1", pf, phys_port_name=port, phys_switch_id="aabb")
    assert pci_address("rep1", sysfs.root) == PciAddress.parse("0000:03:00.3")


def test_representor_without_parent_by_switch_id(sysfs: FakeSysfs) -> None:
    pf = sysfs.pf("0000:05:00.0", ["0000:05:08.0", "0000:05:08.1", "0000:05:08.2", "0000:05:08.3"])
    other = sysfs.pf("0000:81:00.0", ["0000:81:08.0"])
    sysfs.netdev("nfp_p0", pf, phys_port_name="p0", phys_switch_id="0015")
    sysfs.netdev("nfp_p1", pf, phys_port_name="p1", phys_switch_id="0015")
    sysfs.netdev("other", other, phys_port_name="p0", phys_switch_id="0016")
    sysfs.netdev("eth100", None, phys_port_name="pf0vf3", phys_switch_id="0015")
    assert pci_address("eth100", sysfs.root) == PciAddress.parse("0000:05:08.3")


def test_representor_with_two_pfs_on_one_switch(sysfs: FakeSysfs) -> None:
    for function, vf in ((0, "0000:03:00.2"), (1, "0000:03:01.2")):
        pf = sysfs.pf(f"0000:03:00.{function}", [vf])
        sysfs.netdev(f"p{function}", pf, phys_port_name=f"p{function}", phys_switch_id="77")
        sysfs.netdev(f"rep{function}", None, phys_port_name=f"pf{function}vf0", phys_switch_id="77")
    assert str(pci_address("rep0", sysfs.root)) == "0000:03:00.2"
    assert str(pci_address("rep1", sysfs.root)) == "0000:03:01.2"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent", "there is no network interface absent"),
        ("veth0", "veth0 has no PCI device"),
        ("usb0", "usb0 has no PCI device"),
        ("repx", "has no VF 9"),
        ("lost", "its PF cannot be found"),
        ("pfrep", "represents pf0, which is not a VF"),
        ("sfrep", "represents pf0sf88, which is not a VF"),
        ("", "cannot be the name"),
        ("..", "cannot be the name"),
        ("../../devices", "cannot be the name"),
        ("a b", "cannot be the name"),
        ("sixteen-letters-", "cannot be the name"),
    ],
)
def test_no_pci_function(sysfs: FakeSysfs, name: str, says: str) -> None:
    pf = sysfs.pf("0000:03:00.0", ["0000:03:00.2"])
    usb = sysfs.pci("0000:00:14.0") / "usb1/1-1:1.0"
    usb.mkdir(parents=True)
    sysfs.netdev("veth0", None)
    sysfs.netdev("usb0", usb)
    sysfs.netdev("repx", pf, phys_port_name="pf0vf9")
    sysfs.netdev("lost", None, phys_port_name="pf0vf0", phys_switch_id="99")
    sysfs.netdev("pfrep", pf, phys_port_name="pf0")
    sysfs.netdev("sfrep", pf, phys_port_name="pf0sf88")
    with pytest.raises(NetdevError, match=says.replace("..", r"\.\.")):
        pci_address(name, sysfs.root)


@given(name=st.text())
def test_no_name_is_an_unexpected_error(name: str) -> None:
    with pytest.raises(NetdevError):
        pci_address(name, Path("/nonexistent"))


def test_loopback_of_this_machine_has_no_pci_device() -> None:
    assert netdev_exists("lo")
    with pytest.raises(NetdevError, match="no PCI device"):
        pci_address("lo")


def test_pci_netdevs_of_this_machine() -> None:
    found = [path for path in Path("/sys/class/net").iterdir() if ":" in (path / "device").resolve().name]
    found += [
        path for path in Path("/sys/class/net").iterdir() if (path / "device").resolve().name.startswith("virtio")
    ]
    if not found:
        pytest.skip("no network interface of this machine has a PCI device")
    for path in found:
        address = pci_address(path.name)
        assert address.sysfs_name in str((path / "device").resolve())


def test_resolver_remembers_a_vf_whose_netdev_has_gone(sysfs: FakeSysfs) -> None:
    resolver = DeviceResolver(sysfs.root)
    sysfs.netdev("eth100", sysfs.pci("0000:05:08.1"))
    assert resolver.netdev("eth100").name == "0000:05:08.1"
    (sysfs.netdevs / "eth100/device").unlink()
    (sysfs.netdevs / "eth100").rmdir()
    assert resolver.netdev("eth100").name == "0000:05:08.1"
    resolver.keep_only(set())
    with pytest.raises(NetdevError):
        resolver.netdev("eth100")


def test_resolver_does_not_confuse_a_new_netdev_with_the_old(sysfs: FakeSysfs) -> None:
    resolver = DeviceResolver(sysfs.root)
    sysfs.netdev("eth100", sysfs.pci("0000:05:08.1"))
    resolver.netdev("eth100")
    (sysfs.netdevs / "eth100/device").unlink()
    with pytest.raises(NetdevError, match="no PCI device"):
        resolver.netdev("eth100")
    (sysfs.netdevs / "eth100/device").symlink_to(sysfs.pci("0000:05:08.2"))
    assert resolver.netdev("eth100").name == "0000:05:08.2"


@pytest.mark.parametrize("value", ["1", "[1]", "vf1", "vf[1]"])
def test_devargs_of_a_representor_mean_the_vf(sysfs: FakeSysfs, value: str) -> None:
    sysfs.pf("0000:03:00.0", ["0000:03:00.2", "0000:03:00.3"])
    resolver = DeviceResolver(sysfs.root)
    assert resolver.devargs(f"0000:03:00.0,representor={value},dv_flow_en=1").devargs == "0000:03:00.3"


@pytest.mark.parametrize("value", ["[0-1]", "[0,1]", "sf1", "pf1vf0", "", "[7]"])
def test_devargs_of_other_representors_are_refused(sysfs: FakeSysfs, value: str) -> None:
    sysfs.pf("0000:03:00.0", ["0000:03:00.2", "0000:03:00.3"])
    with pytest.raises(NetdevError):
        DeviceResolver(sysfs.root).devargs(f"0000:03:00.0,representor={value}")


def test_vf_of_a_pf_that_is_not_there(sysfs: FakeSysfs) -> None:
    with pytest.raises(NetdevError, match=r"0000:aa:00\.0 has no VF 1"):
        virtual_function(PciAddress.parse("0000:aa:00.0"), 1, sysfs.root)


@pytest.mark.parametrize(
    ("text", "devargs"),
    [
        ("eth100", "0000:05:08.1"),
        ("05:08.2", "0000:05:08.2"),
        ("0000:05:08.2,a=1", "0000:05:08.2,a=1"),
        ("net_null0,size=60", "net_null0,size=60"),
        ("net_null0", "net_null0"),
        ("eth_af_packet0,iface=x", "eth_af_packet0,iface=x"),
        ("net_x", "0000:05:08.7"),
    ],
)
def test_any_form(sysfs: FakeSysfs, text: str, devargs: str) -> None:
    sysfs.netdev("eth100", sysfs.pci("0000:05:08.1"))
    sysfs.netdev("net_x", sysfs.pci("0000:05:08.7"))
    assert DeviceResolver(sysfs.root).any(text).devargs == devargs


@pytest.mark.parametrize("text", ["eth7", "nonsense!", "a:b:c", "x,y", "lo\x00"])
def test_any_form_refused(sysfs: FakeSysfs, text: str) -> None:
    with pytest.raises((NetdevError, DeviceNameError)):
        DeviceResolver(sysfs.root).any(text)
