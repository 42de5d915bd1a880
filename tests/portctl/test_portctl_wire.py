"""The port control, config and core_sched services as clients in the field see them: byte by byte."""

from __future__ import annotations

from collections.abc import Iterator

import portctl_wire as wire
import pytest
from portctl_wire import ADD, ADD_SOCK, ERROR, QUERY_PCI, REMOVE, REMOVE_SOCK, request
from zmq_forwarder import Forwarder, start_daemon, start_memory

OK_BYTES = b"\x20\x01"
ADD_VF = b"virtio_forwarder_add_vf2()"
ADD_BOND = b"virtio_forwarder_bond_add()"
REMOVE_VF = b"virtio_forwarder_remove_vf2()"
ADD_PAIR = b"virtio_add_sock_dev_pair()"
REMOVE_PAIR = b"virtio_remove_sock_dev_pair()"
QUERY = b"virtio_query_pci()"
VF = "0000:05:08.1"
VF2 = "0000:05:08.2"
NULL = "net_null101"
NULL2 = "net_null102"


STARTERS = [pytest.param(start_memory, id="memory"), pytest.param(start_daemon, id="daemon", marks=pytest.mark.dpdk)]


@pytest.fixture(params=STARTERS)
def forwarder(request: pytest.FixtureRequest) -> Iterator[Forwarder]:
    """Each forwarder that must answer these bytes alike, with default sockets."""
    yield from request.param()


@pytest.fixture(params=STARTERS)
def dynamic_forwarder(request: pytest.FixtureRequest) -> Iterator[Forwarder]:
    """Each forwarder with dynamic sockets."""
    yield from request.param(dynamic=True)


def error(fields: wire.Fields) -> tuple[int | bytes, int | bytes | None, int | bytes | None]:
    """Status, code (int32) and source of a response."""
    code = wire.only(fields, 5) if 5 in fields else None
    if isinstance(code, int) and code >= 1 << 63:
        code -= 1 << 64
    return wire.only(fields, 4), code, wire.only(fields, 6) if 6 in fields else None


REFUSED = (ERROR, None, None)


def test_add_query_and_remove_a_vf() -> None:
    """With a PCI address and the three fields that the oldest clients know; no machine has this VF."""
    for forwarder in start_memory():
        check_add_query_and_remove(forwarder)


def check_add_query_and_remove(forwarder: Forwarder) -> None:
    add = b"\x08\x00\x12\x08\x08\x00\x10\x05\x18\x08\x20\x01\x18\x01"
    assert add == request(ADD, addresses=(VF,), virtio_id=1)
    query = request(QUERY_PCI, path=forwarder.socket_path)
    assert forwarder.ask("port_control", query) == OK_BYTES + b"\x3a\x00"
    assert forwarder.ask("port_control", add) == OK_BYTES
    assert forwarder.ask("port_control", query) == OK_BYTES + b"\x3a\x0c0000:05:08.1"
    assert forwarder.ask("port_control", request(REMOVE, addresses=(VF,), virtio_id=1)) == OK_BYTES
    assert forwarder.ask("port_control", query) == OK_BYTES + b"\x3a\x00"


def test_conditional_is_the_default(forwarder: Forwarder) -> None:
    add = {"devargs": (NULL,), "virtio_id": 1}
    assert forwarder.ask("port_control", request(ADD, **add)) == OK_BYTES
    assert forwarder.ask("port_control", request(ADD, **add)) == OK_BYTES
    assert forwarder.ask("port_control", request(ADD, **add, conditional=True)) == OK_BYTES
    assert error(forwarder.control(request(ADD, **add, conditional=False))) == (ERROR, 8, ADD_VF)
    assert forwarder.ask("port_control", request(REMOVE, **add, conditional=False)) == OK_BYTES
    assert error(forwarder.control(request(REMOVE, **add, conditional=False))) == (ERROR, 4, REMOVE_VF)
    assert forwarder.ask("port_control", request(REMOVE, **add)) == OK_BYTES


def test_a_relay_has_one_vf_and_a_vf_one_relay(forwarder: Forwarder) -> None:
    assert forwarder.ask("port_control", request(ADD, devargs=(NULL,), virtio_id=1)) == OK_BYTES
    assert error(forwarder.control(request(ADD, devargs=(NULL2,), virtio_id=1))) == (ERROR, 8, ADD_VF)
    assert error(forwarder.control(request(REMOVE, devargs=(NULL2,), virtio_id=1))) == (ERROR, 3, REMOVE_VF)
    other_relay = forwarder.control(request(ADD, devargs=(NULL,), virtio_id=2))
    assert wire.only(other_relay, 4) == ERROR
    assert error(forwarder.control(request(ADD, devargs=(NULL2,), virtio_id=64))) == (ERROR, 1, ADD_VF)
    assert error(forwarder.control(request(ADD, devargs=(NULL2,), virtio_id=2**32 - 1))) == (ERROR, 1, ADD_VF)
    assert error(forwarder.control(request(REMOVE, devargs=(NULL2,), virtio_id=64))) == (ERROR, 1, REMOVE_VF)


def test_devargs_beside_addresses(forwarder: Forwarder) -> None:
    assert forwarder.ask("port_control", request(ADD, devargs=("net_null0,size=60",), virtio_id=1)) == OK_BYTES
    answer = forwarder.control(request(QUERY_PCI, path=forwarder.socket_path))
    assert wire.only(answer, 7) == b"net_null0,size=60"
    assert error(forwarder.control(request(ADD, devargs=("net_missing0",), virtio_id=2))) == (ERROR, 2, ADD_VF)
    mixed = request(ADD, devargs=(NULL, "net_null1"), name="net_bonding0", virtio_id=2)
    assert forwarder.ask("port_control", mixed) == OK_BYTES


def test_bonds(forwarder: Forwarder) -> None:
    pair = {"devargs": (NULL, NULL2), "name": "net_bonding7"}
    assert forwarder.ask("port_control", request(ADD, **pair, virtio_id=1, mode=0)) == OK_BYTES
    assert error(forwarder.control(request(ADD, **pair, virtio_id=1, conditional=False))) == (ERROR, 8, ADD_BOND)
    other = request(ADD, devargs=(NULL, "net_null103"), name="net_bonding8", virtio_id=2)
    assert error(forwarder.control(other)) == (ERROR, 3, ADD_BOND)
    assert error(forwarder.control(request(ADD, **pair, virtio_id=64))) == (ERROR, 1, ADD_BOND)
    assert error(forwarder.control(request(REMOVE, name="net_bonding8", virtio_id=1))) == (ERROR, 3, REMOVE_VF)
    assert forwarder.ask("port_control", request(REMOVE, name="net_bonding7", virtio_id=1)) == OK_BYTES
    assert forwarder.ask("port_control", request(ADD, **pair, virtio_id=1)) == OK_BYTES
    assert forwarder.ask("port_control", request(REMOVE, **pair, virtio_id=1)) == OK_BYTES
    eight = tuple(f"net_null{number}" for number in range(8))
    assert forwarder.ask("port_control", request(ADD, devargs=eight, name="net_bonding9", virtio_id=1)) == OK_BYTES


NINE = tuple(f"0000:06:01.{function}" for function in range(8)) + (VF,)
INVALID = {
    "name with one address": request(ADD, addresses=(VF,), name="net_bonding0", virtio_id=1),
    "name with no address": request(ADD, name="net_bonding0", virtio_id=1),
    "two addresses without a name": request(ADD, addresses=(VF, VF2), virtio_id=1),
    "two devices without a name": request(ADD, addresses=(VF,), devargs=("net_null0",), virtio_id=1),
    "removal of two addresses without a name": request(REMOVE, addresses=(VF, VF2), virtio_id=1),
    "add_sock with a name and one address": request(ADD_SOCK, addresses=(VF,), name="net_bonding0", path="/tmp/a"),
    "add_sock of two addresses without a name": request(ADD_SOCK, addresses=(VF, VF2), path="/tmp/a"),
    "remove_sock of two addresses without a name": request(REMOVE_SOCK, addresses=(VF, VF2), path="/tmp/a"),
    "add without virtio_id": request(ADD, addresses=(VF,)),
    "remove without virtio_id": request(REMOVE, addresses=(VF,)),
    "add without a device": request(ADD, virtio_id=1),
    "query_pci without a path": request(QUERY_PCI),
    "nine addresses": request(ADD, addresses=NINE, name="net_bonding0", virtio_id=1),
    "nine devices": request(ADD, addresses=NINE[:8], devargs=("net_null0",), name="net_bonding0", virtio_id=1),
    "bond name": request(ADD, addresses=(VF, VF2), name="bond0", virtio_id=1),
    "bond mode": request(ADD, addresses=(VF, VF2), name="net_bonding0", mode=7, virtio_id=1),
    "the same member twice": request(ADD, addresses=(VF, VF), name="net_bonding0", virtio_id=1),
    "bus too large": request(ADD, addresses=("0000:100:08.1",), virtio_id=1),
    "function too large": request(ADD, addresses=("0000:05:08.8",), virtio_id=1),
    "devargs that are none": request(ADD, devargs=("../etc/passwd",), virtio_id=1),
    "devargs with a control character": request(ADD, devargs=("net_null0,a=\n",), virtio_id=1),
    "path with a zero byte": request(QUERY_PCI, path="/tmp/a\0b"),
}


def test_invalid_requests_have_neither_code_nor_source(forwarder: Forwarder) -> None:
    answers = {what: error(forwarder.control(invalid)) for what, invalid in INVALID.items()}
    assert answers == dict.fromkeys(INVALID, REFUSED)
    forwarder.check_alive()


def test_sockets(dynamic_forwarder: Forwarder) -> None:
    forwarder = dynamic_forwarder
    first = request(ADD_SOCK, devargs=(NULL,), path=forwarder.path("vhua"), virtio_id=9)
    assert forwarder.ask("port_control", first) == OK_BYTES
    assert forwarder.ask("port_control", first) == OK_BYTES
    strict = request(ADD_SOCK, devargs=(NULL,), path=forwarder.path("vhua"), conditional=False)
    assert error(forwarder.control(strict)) == (ERROR, 1, ADD_PAIR)
    assert error(forwarder.control(request(ADD_SOCK, devargs=(NULL2,)))) == (ERROR, -1, ADD_PAIR)
    assert error(forwarder.control(request(ADD_SOCK, devargs=("net_missing0",), path=forwarder.path("y")))) == (
        ERROR,
        3,
        ADD_PAIR,
    )
    bond = request(ADD_SOCK, devargs=(NULL2, "net_null103"), name="net_bonding0", path=forwarder.path("vhub"))
    assert forwarder.ask("port_control", bond) == OK_BYTES
    states = wire.decode(forwarder.ask("stats", b""))[2]
    found = [wire.decode(state) for state in states if isinstance(state, bytes)][:3]
    names = [wire.only(wire.message(state, 5), 1) for state in found]
    assert names == [forwarder.path("vhua").encode(), forwarder.path("vhub").encode(), b"NONE"]
    assert wire.only(forwarder.control(request(QUERY_PCI, path=forwarder.path("vhua"))), 7) == NULL.encode()


def test_sockets_are_removed_by_path_device_or_both(dynamic_forwarder: Forwarder) -> None:
    forwarder = dynamic_forwarder
    members = ("net_null104", "net_null105")
    for path, vf in (("a", NULL), ("b", NULL2), ("c", "net_null103")):
        assert forwarder.ask("port_control", request(ADD_SOCK, devargs=(vf,), path=forwarder.path(path))) == OK_BYTES
    bond = request(ADD_SOCK, devargs=members, name="net_bonding0", path=forwarder.path("d"))
    assert forwarder.ask("port_control", bond) == OK_BYTES
    assert error(forwarder.control(request(REMOVE_SOCK))) == (ERROR, -1, REMOVE_PAIR)
    mismatch = request(REMOVE_SOCK, path=forwarder.path("a"), devargs=(NULL2,))
    assert error(forwarder.control(mismatch)) == (ERROR, 2, REMOVE_PAIR)
    for removal in (
        request(REMOVE_SOCK, path=forwarder.path("a"), conditional=False),
        request(REMOVE_SOCK, devargs=(NULL2,), conditional=False),
        request(REMOVE_SOCK, devargs=("net_null103",), path=forwarder.path("c"), conditional=False),
        request(REMOVE_SOCK, name="net_bonding0", path=forwarder.path("d"), conditional=False),
    ):
        assert forwarder.ask("port_control", removal) == OK_BYTES
    gone = request(REMOVE_SOCK, path=forwarder.path("a"), conditional=False)
    assert error(forwarder.control(gone)) == (ERROR, 1, REMOVE_PAIR)
    assert error(forwarder.control(request(QUERY_PCI, path=forwarder.path("a")))) == (ERROR, 2, QUERY)


def test_sockets_only_where_they_are_dynamic(forwarder: Forwarder) -> None:
    assert wire.only(forwarder.control(request(ADD_SOCK, devargs=(NULL,), path=forwarder.path("a"))), 4) == ERROR
    assert wire.only(forwarder.control(request(REMOVE_SOCK, path=forwarder.path("a"))), 4) == ERROR


def cpu_entry(field: int, relay: int, there: int, back: int) -> bytes:
    return wire.data(field, wire.number(1, relay) + wire.number(2, there) + wire.number(3, back))


def test_core_sched(forwarder: Forwarder) -> None:
    first, second = forwarder.workers
    cores = wire.number(1, 1)
    unpacked = b"\x20\x01" + b"".join(wire.number(7, cpu) for cpu in forwarder.workers)
    assert forwarder.ask("core_sched", cores) == unpacked
    update = wire.number(1, 0) + cpu_entry(2, 5, first, second) + cpu_entry(2, 3, second, second)
    assert forwarder.ask("core_sched", update) == OK_BYTES
    before = forwarder.ask("config", b"")
    assert before == b"\x08\x00" + cpu_entry(5, 3, second, second) + cpu_entry(5, 5, first, second)
    assert forwarder.ask("core_sched", wire.number(1, 0)) == OK_BYTES


@pytest.mark.parametrize("bad", [(5, 999, 1), (5, 1, -1), (64, 1, 1), (-1, 1, 1)])
def test_core_sched_changes_all_or_nothing(forwarder: Forwarder, bad: tuple[int, int, int]) -> None:
    first, _ = forwarder.workers
    before = forwarder.ask("config", b"")
    update = wire.number(1, 0) + cpu_entry(2, 3, first, first) + cpu_entry(2, *bad)
    status, code, source = error(wire.decode(forwarder.ask("core_sched", update)))
    assert status == ERROR and code and source
    assert forwarder.ask("config", b"") == before
