"""Dynamic sockets of the real daemon: every way to add and remove them, errors, races, and packets."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from control.control_client import OK, Answer, Client
from harness.daemon import Daemon
from harness.process import wait_for
from harness.testpmd import Testpmd

pytestmark = pytest.mark.dpdk

ADD = "virtio_add_sock_dev_pair()"
REMOVE = "virtio_remove_sock_dev_pair()"
LONGEST = 107


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the module; every test leaves it without VFs and sockets."""
    daemon = Daemon(tmp_path_factory.mktemp("dynamic"), VIRTIOFWD_DYNAMIC_SOCKETS="true")
    yield daemon
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.child.log
    assert list(daemon.sockets.iterdir()) == []


@pytest.fixture
def client(daemon: Daemon, client_of: Callable[..., Client]) -> Iterator[Client]:
    client = client_of(daemon)
    yield client
    assert (client.devices(), client.sockets()) == ({}, {})


def is_socket(path: Path | str) -> bool:
    return os.path.lexists(path) and stat.S_ISSOCK(os.lstat(path).st_mode)


def test_lowest_free_relay_and_removal_by_path_device_and_both(client: Client, short_dir: Path) -> None:
    names = [str(short_dir / f"vhub{number}") for number in range(4)]
    for number, path in enumerate(names):
        assert client.add_sock(path, f"net_null{number}") == OK
        assert is_socket(path)
    assert client.sockets() == dict(enumerate(names))
    assert client.query(names[2]).text == "net_null2"
    assert client.remove_sock(names[1]) == OK
    assert client.remove_sock(None, "net_null3") == OK
    assert client.sockets() == {0: names[0], 2: names[2]}
    assert client.query(names[1]).error == (2, "virtio_query_pci()")
    assert client.add_sock(names[3], "net_null9") == OK
    assert client.add_sock(names[1], "net_null8") == OK
    assert client.devices() == {0: "net_null0", 1: "net_null9", 2: "net_null2", 3: "net_null8"}
    for path, device in ((names[0], "net_null0"), (names[1], "net_null8"), (names[2], "net_null2")):
        assert client.remove_sock(path, device) == OK
        assert not os.path.lexists(path)
    assert client.remove_sock(names[3]) == OK


def test_a_bond_behind_a_socket(client: Client, short_dir: Path) -> None:
    path = short_dir / "bond"
    assert client.add_sock(path, "net_null0", "net_null1", name="net_bonding0", mode=0) == OK
    assert client.add_sock(short_dir / "b", "net_null1").error == (-17, ADD)
    assert client.query(path).text == "net_bonding0"
    assert client.remove_sock(path, name="net_bonding1").error == (2, REMOVE)
    assert client.remove_sock(None, name="net_bonding0") == OK
    assert client.add_sock(path, "net_missing0", "net_null1", name="net_bonding0").error == (4, ADD)
    assert client.add_sock(path, "net_null1") == OK
    assert client.remove_sock(path) == OK


def test_conditional_requests(client: Client, short_dir: Path) -> None:
    path = short_dir / "a"
    assert client.add_sock(path, "net_null0") == OK
    assert client.add_sock(path, "net_null0", conditional=True) == OK
    assert client.add_sock(path, "net_null0").error == (1, ADD)
    assert client.add_sock(path, "net_null1", conditional=True).error == (1, ADD)
    assert client.add_sock(short_dir / "b", "net_null0", conditional=True).error == (-17, ADD)
    assert client.remove_sock(path, "net_null1", conditional=True).error == (2, REMOVE)
    for conditional in (True, False):
        answer = client.remove_sock(short_dir / "b", "net_null0", conditional=conditional)
        assert answer.error == (2, REMOVE)
    assert client.remove_sock(short_dir / "b", "net_null1", conditional=True) == OK
    assert client.remove_sock(short_dir / "b", conditional=True) == OK
    assert client.remove_sock(short_dir / "b").error == (1, REMOVE)
    assert client.remove_sock(path) == OK
    assert client.remove_sock(path, conditional=True) == OK
    assert client.remove_sock(path).error == (1, REMOVE)


def test_conditional_additions_of_something_else(client: Client, short_dir: Path) -> None:
    """The name is not all: other arguments, another mode and other members are told, as is a relay that is taken."""
    path = short_dir / "a"
    assert client.add_sock(path, "net_null0,size=60") == OK
    assert client.add_sock(path, "net_null0", conditional=True) == OK
    assert client.add_sock(path, "net_null0,size=60", conditional=True) == OK
    assert client.add_sock(path, "net_null0,size=64", conditional=True).error == (1, ADD)
    assert client.add(0, "net_null0,size=64", conditional=True).error == (8, "virtio_forwarder_add_vf2()")
    assert client.remove_sock(path, "net_null0,size=64") == OK
    bond: dict[str, Any] = {"name": "net_bonding-Vif.1_a", "conditional": True}
    taken = (8, "virtio_forwarder_bond_add()")
    assert client.add(1, "net_null0,size=60", "net_null1", mode=0, **bond) == OK
    assert client.add(1, "net_null1", "net_null0", mode=0, **bond) == OK
    assert client.add(1, "net_null0", "net_null1", mode=1, **bond).error == taken
    assert client.add(1, "net_null0", "net_null2", mode=0, **bond).error == taken
    assert client.add(1, "net_null0", "net_null1", "net_null2", mode=0, **bond).error == taken
    assert client.add(1, "net_null0,size=64", "net_null1", mode=0, **bond).error == taken
    assert client.add(1, "net_bonding0", conditional=True).error == (8, "virtio_forwarder_add_vf2()")
    assert client.devices() == {1: "net_bonding-Vif.1_a"}
    assert client.remove(1, name="net_bonding-Vif.1_a") == OK


@pytest.mark.parametrize("name", ["with blanks and 'quotes\"", "größe-端口", "%u$(x);*", "-", "new\nline", "a" * 60])
def test_unusual_names(client: Client, short_dir: Path, name: str) -> None:
    path = short_dir / name
    assert client.add_sock(path, "net_null0") == OK
    assert is_socket(path)
    assert client.sockets() == {0: str(path)}
    assert client.query(path).text == "net_null0"
    assert client.remove_sock(path) == OK
    assert not os.path.lexists(path)


def test_the_longest_name(client: Client, short_dir: Path) -> None:
    path = short_dir / ("x" * (LONGEST - len(f"{short_dir}/")))
    assert client.add_sock(path, "net_null0") == OK
    assert is_socket(path)
    assert client.remove_sock(path) == OK
    assert client.add_sock(f"{path}x", "net_null0").error == (5, ADD)
    wide = short_dir / ("端" * (LONGEST // 3))
    assert client.add_sock(wide, "net_null0").error == (5, ADD)


def test_paths_that_cannot_be_used(client: Client, short_dir: Path) -> None:
    (short_dir / "file").write_text("precious")
    (short_dir / "dangling").symlink_to(short_dir / "nowhere")
    (short_dir / "dir").mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(short_dir / "taken"))
        other.listen()
        unusable = [short_dir / name for name in ("missing/a", "file", "file/a", "dangling", "dir", "taken")]
        for path in [*unusable, Path("relative"), Path("/proc/a")]:
            assert client.add_sock(path, "net_null0").error == (5, ADD), path
            assert (client.devices(), client.sockets()) == ({}, {}), path
    assert (short_dir / "file").read_text() == "precious"
    assert client.add_sock(short_dir / "taken", "net_null0") == OK  # stale now
    assert client.remove_sock(short_dir / "taken") == OK


def test_a_path_whose_directory_comes_later(client: Client, short_dir: Path) -> None:
    path = short_dir / "later" / "vhub679325f-ca"
    assert client.add_sock(path, "net_null0").error == (5, ADD)
    path.parent.mkdir()
    assert client.add_sock(path, "net_null0") == OK
    assert client.remove_sock(path) == OK


def test_devices_that_cannot_be_added(client: Client, short_dir: Path) -> None:
    path = short_dir / "a"
    for device in ("net_missing0", "net_null0,size=x", "0000:ff:1f.7", "net_af_packet0,iface=nowhere"):
        assert client.add_sock(path, device).error == (3, ADD)
        assert not os.path.lexists(path)
    assert client.add_sock(path, "net_null0") == OK
    assert client.remove_sock(path) == OK


def test_a_vf_without_a_socket_is_not_a_pair(client: Client, short_dir: Path) -> None:
    assert client.add(0, "net_null0") == OK
    assert client.add_sock(short_dir / "a", "net_null1") == OK
    assert client.sockets() == {1: str(short_dir / "a")}
    assert client.remove_sock(None, "net_null0").error == (1, REMOVE)
    assert client.remove(1, "net_null1") == OK
    assert client.query(short_dir / "a") == OK
    assert client.remove_sock(short_dir / "a") == OK
    assert client.remove(0, "net_null0") == OK


def at_once(requests: list[Callable[[], Answer]]) -> list[Answer]:
    """Make requests from threads that begin together."""
    answers: list[Answer | None] = [None] * len(requests)
    gate = threading.Barrier(len(requests))

    def make(index: int) -> None:
        gate.wait(10)
        answers[index] = requests[index]()

    threads = [threading.Thread(target=make, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert None not in answers
    return [answer for answer in answers if answer is not None]


def test_sockets_added_and_removed_at_once(
    daemon: Daemon, client: Client, client_of: Callable[..., Client], short_dir: Path
) -> None:
    clients = [client_of(daemon) for _ in range(24)]
    paths = [short_dir / f"s{number}" for number in range(24)]
    adds = [
        lambda c=c, p=p, n=n: c.add_sock(p, f"net_null{n}") for n, (c, p) in enumerate(zip(clients, paths, strict=True))
    ]
    assert at_once(adds) == [OK] * 24
    assert sorted(client.sockets()) == list(range(24))
    for path, device in client.devices().items():
        assert client.sockets()[path] == str(paths[int(device.removeprefix("net_null"))])
    removals = [lambda c=c, p=p: c.remove_sock(p) for c, p in zip(clients, paths, strict=True)]
    assert at_once(removals) == [OK] * 24


def test_the_same_pair_at_once(
    daemon: Daemon, client: Client, client_of: Callable[..., Client], short_dir: Path
) -> None:
    """Of requests for one path one is carried out; conditional ones agree with it, all others are told."""
    clients = [client_of(daemon) for _ in range(12)]
    path = short_dir / "same"
    for round_ in range(5):
        same = [lambda c=c: c.add_sock(path, "net_null0", conditional=True) for c in clients]
        assert at_once(same) == [OK] * len(clients)
        assert client.sockets() == {0: str(path)}
        answers = at_once([lambda c=c: c.remove_sock(path) for c in clients])
        assert answers.count(OK) == 1, round_
        assert {answer.error for answer in answers if not answer.ok} == {(1, REMOVE)}
        answers = at_once([lambda c=c, n=n: c.add_sock(path, f"net_null{n}") for n, c in enumerate(clients)])
        assert answers.count(OK) == 1
        assert {answer.error for answer in answers if not answer.ok} == {(1, ADD)}
        assert client.remove_sock(path) == OK


def test_adding_and_removing_one_pair_at_once_leaves_all_or_nothing(
    daemon: Daemon, client: Client, client_of: Callable[..., Client], short_dir: Path
) -> None:
    clients = [client_of(daemon) for _ in range(8)]
    path = short_dir / "both"
    for _ in range(10):
        mixed = [lambda c=c: c.add_sock(path, "net_null0", conditional=True) for c in clients[:4]]
        mixed += [lambda c=c: c.remove_sock(path, conditional=True) for c in clients[4:]]
        assert at_once(mixed) == [OK] * 8
        there = bool(client.sockets())
        assert is_socket(path) == there == bool(client.devices())
        assert client.remove_sock(path, conditional=True) == OK


def test_all_relays_in_use(daemon: Daemon, client: Client, short_dir: Path) -> None:
    daemon.settled_workers()
    for number in range(64):
        assert client.add_sock(short_dir / f"s{number}", f"net_null{number}") == OK
    assert client.add_sock(short_dir / "one too many", "net_null64").error == (2, ADD)
    for number in range(64):
        assert client.remove_sock(short_dir / f"s{number}") == OK


def test_packets_through_a_dynamic_socket(
    daemon: Daemon, client: Client, guest: Callable[..., Testpmd], short_dir: Path
) -> None:
    """Twice through the same path: the counters go on, and a guest that is there when its socket goes is cut off."""
    path = short_dir / "vhub679325f-ca"
    seen = 0
    for _ in range(2):
        assert client.add_sock(path, "net_null0,size=60,copy=0") == OK
        testpmd = guest(path)
        testpmd.command("start", "io packet forwarding")
        wait_for(lambda seen=seen: client.relay(0).vm_to_vf.pkts_tx_to_vf > seen + 100_000, 10, "packets")
        assert client.remove_sock(path, "net_null0") == OK
        assert not os.path.lexists(path)
        seen = client.relay(0).vm_to_vf.pkts_tx_to_vf
        relay = client.relay(0)
        assert (relay.vf_to_vm.internal_state, relay.vm_to_vf.internal_state) == ("DPDK_UNINIT", "VIRTIO_UNINIT")
        testpmd.stop()
    assert daemon.child.log.count("front end connected") == 2


def test_sockets_belong_to_whom_the_configuration_names(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], short_dir: Path
) -> None:
    settings = {"VIRTIOFWD_SOCKET_OWNER": "nobody", "VIRTIOFWD_SOCKET_GROUP": "3"}
    daemon = start_daemon(VIRTIOFWD_DYNAMIC_SOCKETS="true", VIRTIOFWD_STATIC_VFS="net_null5=0", **settings)
    client = client_of(daemon)
    assert client.add_sock(short_dir / "a", "net_null0") == OK
    status = (short_dir / "a").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (65534, 3, 0o660)
    assert client.sockets() == {1: str(short_dir / "a")}
    assert client.devices() == {0: "net_null5", 1: "net_null0"}
