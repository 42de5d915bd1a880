from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vio4wd.devices import MAX_BOND_MEMBERS, MAX_DEVARGS_BYTES, Bond, Device, DeviceNameError, PciAddress
from vio4wd.relay.messages import Command, attachment_to_json, decode, encode

_addresses = st.builds(
    PciAddress,
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFF),
    st.integers(0, 0x1F),
    st.integers(0, 7),
)


@given(_addresses)
def test_addresses_are_compared_by_value(address: PciAddress) -> None:
    assert PciAddress.parse(str(address)) == address
    assert PciAddress.parse(str(address).lower()) == address
    assert Device.parse(str(address)) == Device.parse(address.sysfs_name)
    assert Device.parse(str(address)).pci == address


def test_the_domain_may_be_left_out() -> None:
    assert PciAddress.parse("11:1f.3") == PciAddress(0, 0x11, 0x1F, 3)
    assert str(PciAddress.parse("11:1f.3")) == "0000:11:1F.3"


@pytest.mark.parametrize(
    "text", ["", "1", "0000:11:22", "0000:11:20.3", "0000:11:12.8", "g000:11:12.1", "0:1:2:3.4", "11:12.3 "]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(DeviceNameError):
        PciAddress.parse(text)


@pytest.mark.parametrize("text", ["", "-", "Net_null0", "net null", "../x", ",size=60"])
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(DeviceNameError):
        Device.parse(text)


def test_devargs_that_are_too_long_are_refused_in_one_short_line() -> None:
    longest = "net_null0," + "é" * ((MAX_DEVARGS_BYTES - len("net_null0,")) // 2)
    assert Device.parse(longest).devargs == longest
    with pytest.raises(DeviceNameError, match=r"devargs of 4098 bytes, must be at most 4096") as refused:
        Device.parse(longest + "é")
    assert len(str(refused.value)) < 200


def test_a_bond_of_the_longest_devargs_fits_into_a_command() -> None:
    members = [Device.parse(f"net_null{i}," + "x" * (MAX_DEVARGS_BYTES - 10)) for i in range(MAX_BOND_MEMBERS)]
    bond = Bond("net_bonding0", tuple(members))
    assert decode(encode(Command(1, "add_port", attachment_to_json(bond))))


def test_arguments_do_not_make_another_device() -> None:
    one, other = Device.parse("net_null0,size=60"), Device.parse("net_null0")
    assert one.name == other.name
    assert one.devargs == "net_null0,size=60"


@pytest.mark.parametrize("name", ["net_bonding", "net_bonding0", "net_bonding_A", "net_bonding-vif1.2", "net_bondingX"])
def test_names_of_bonds(name: str) -> None:
    assert Bond(name, (Device("net_null0"), Device("net_null1"))).name == name


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("bond0", ("net_null0", "net_null1")),
        *(
            (f"net_bonding{end}", ("net_null0", "net_null1"))
            for end in (",mode=1", "=0", "[0]", " 0", "0\n", "ü", "/0")
        ),
        ("net_bonding0", ("net_null0",)),
        ("net_bonding0", ("net_null0", "net_null0,size=60")),
        ("net_bonding0", tuple(f"net_null{number}" for number in range(9))),
    ],
)
def test_bonds_that_cannot_be(name: str, members: tuple[str, ...]) -> None:
    with pytest.raises(DeviceNameError):
        Bond(name, tuple(Device.parse(member) for member in members))
