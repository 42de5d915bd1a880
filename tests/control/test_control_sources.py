"""Port control by OVSDB, command file and configuration with the real daemon; one of them at a time."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from control.control_client import OK, Client
from harness.daemon import Daemon
from harness.process import wait_for
from harness.testpmd import Testpmd
from portctl_ovsdb.ovsdb_servers import SCHEMA, OvsdbServer

pytestmark = pytest.mark.dpdk

NO_ZMQ = {"VIRTIOFWD_ZMQ_PORT_CONTROL_EP": ""}


@pytest.fixture
def server(short_dir: Path) -> Iterator[OvsdbServer]:
    """A database whose server tests start."""
    if shutil.which("ovsdb-server") is None or not SCHEMA.exists():
        pytest.skip("Open vSwitch is not installed (package openvswitch-switch)")
    server = OvsdbServer(short_dir)
    yield server
    server.kill()


def becomes(client: Client, devices: dict[int, str]) -> None:
    """Wait until exactly these devices are on exactly these relays, and served."""

    def there() -> dict[int, str]:
        states = client.stats().items()
        return {n: r.vf.pci_addr_str for n, r in states if r.vf_to_vm.internal_state != "DPDK_UNINIT"}

    wait_for(lambda: client.devices() == there() == devices, 10, f"{devices}, there is {client.devices()}")


def test_ovsdb(
    start_daemon: Callable[..., Daemon],
    client_of: Callable[..., Client],
    guest: Callable[..., Testpmd],
    server: OvsdbServer,
) -> None:
    """Static VFs beside it, one of them also in the database; changes, deaths on both sides, packets."""
    server.start()
    server.add("both", 7, "net_null7,size=60,copy=0")
    server.add("early", 3, "net_null3,size=60")
    daemon = start_daemon(
        **NO_ZMQ,
        VIRTIOFWD_OVSDB_SOCK_PATH=str(server.socket),
        VIRTIOFWD_STATIC_VFS="(net_null7,size=60,copy=0=7\n net_null8=8)",
    )
    assert "port control by ovsdb; not by zmq or command file" in daemon.child.log
    client = client_of(daemon, services=("stats",))
    fixed = {7: "net_null7,size=60,copy=0", 8: "net_null8"}
    becomes(client, fixed | {3: "net_null3,size=60"})
    server.add("legacy", 5, "net_null5", key="virtio_relay")
    server.tag("early", 4)
    becomes(client, fixed | {4: "net_null3,size=60", 5: "net_null5"})
    testpmd = guest(daemon.socket(7))
    testpmd.command("start", "io packet forwarding")
    wait_for(lambda: client.relay(7).vm_to_vf.pkts_tx_to_vf > 10_000, 10, "packets")
    daemon.settled_workers()[0].kill()
    becomes(client, fixed | {4: "net_null3,size=60", 5: "net_null5"})
    server.stop()
    server.start()
    server.untag("both")
    server.vsctl("del-port", "early")
    server.add("bad", 99, "net_null9")
    server.add("nothing", 9)
    becomes(client, fixed | {5: "net_null5"})
    wait_for(lambda: client.relay(7).active, 5, "the guest")
    wait_for(lambda: "interface bad" in daemon.child.log and "interface nothing" in daemon.child.log, 10, "warnings")
    packets = client.relay(7).vm_to_vf.pkts_tx_to_vf
    wait_for(lambda: client.relay(7).vm_to_vf.pkts_tx_to_vf > packets + 10_000, 10, "packets")
    log = re.findall(r"relay 7: (?:net_null7\S* added|VF removed)", daemon.child.log)
    assert len([line for line in log if "vio4wd.relay" not in line]) <= 3  # by the supervisor once, by two workers


def test_a_static_bond(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], guest: Callable[..., Testpmd]
) -> None:
    """It forwards with the members' packets, and comes back with the next worker."""
    members = "member=[net_null1,size=60,copy=0],member=[net_null2,size=60,copy=0]"
    daemon = start_daemon(VIRTIOFWD_STATIC_VFS=f"(net_bonding0,mode=0,{members}=5\n net_null6=6)")
    client = client_of(daemon)
    becomes(client, {5: "net_bonding0", 6: "net_null6"})
    taken = (2, "virtio_forwarder_add_vf2()")
    assert client.add(7, "net_null2").error == taken
    testpmd = guest(daemon.socket(5))
    testpmd.command("start", "io packet forwarding")
    wait_for(lambda: client.relay(5).vm_to_vf.pkts_tx_to_vf > 10_000, 10, "packets")
    daemon.settled_workers()[0].kill()
    becomes(client, {5: "net_bonding0", 6: "net_null6"})
    packets = client.relay(5).vm_to_vf.pkts_tx_to_vf
    wait_for(lambda: client.relay(5).vm_to_vf.pkts_tx_to_vf > packets + 10_000, 10, "packets")
    assert client.remove(5, name="net_bonding0") == OK
    assert client.add(7, "net_null2") == OK


def test_command_file(start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], tmp_path: Path) -> None:
    file = tmp_path / "private" / "vio_cmd"
    file.parent.mkdir(mode=0o700)
    daemon = start_daemon(
        **NO_ZMQ,
        VIRTIOFWD_IPC_PORT_CONTROL="y",
        VIRTIOFWD_IPC_PATH=str(file),
        VIRTIOFWD_STATIC_VFS="net_null9=0",
    )
    assert "port control by command file; not by zmq or ovsdb" in daemon.child.log
    client = client_of(daemon, services=("stats",))
    becomes(client, {0: "net_null9"})

    def write(text: str) -> None:
        with file.open("a") as command:
            command.write(text)

    write("add_port net_null0\n")
    becomes(client, {0: "net_null9", 1: "net_null0"})
    write("add_port net_null1 40\nadd_port\n\0\xff garbage\nadd_port net_null2\n")
    becomes(client, {0: "net_null9", 1: "net_null0", 40: "net_null1", 2: "net_null2"})
    daemon.settled_workers()[0].kill()
    becomes(client, {0: "net_null9", 1: "net_null0", 40: "net_null1", 2: "net_null2"})
    write("del_port net_null1\ndel_port net_null0\n")
    becomes(client, {0: "net_null9", 2: "net_null2"})


def test_zmq_excludes_the_others(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], server: OvsdbServer, tmp_path: Path
) -> None:
    server.start()
    server.add("eth100", 1, "net_null1")
    file = tmp_path / "vio_cmd"
    daemon = start_daemon(
        VIRTIOFWD_OVSDB_SOCK_PATH=str(server.socket),
        VIRTIOFWD_IPC_PORT_CONTROL="y",
        VIRTIOFWD_IPC_PATH=str(file),
    )
    assert "port control by zmq; not by command file or ovsdb" in daemon.child.log
    assert "VIRTIOFWD_IPC_PORT_CONTROL is not used" in daemon.child.log
    client = client_of(daemon)
    assert client.add(2, "net_null2") == OK
    assert client.devices() == {2: "net_null2"}
    assert not os.path.lexists(file)
    assert "OVSDB:" not in daemon.child.log


def test_the_command_file_excludes_ovsdb(
    start_daemon: Callable[..., Daemon], server: OvsdbServer, tmp_path: Path
) -> None:
    server.start()
    daemon = start_daemon(
        **NO_ZMQ,
        VIRTIOFWD_OVSDB_SOCK_PATH=str(server.socket),
        VIRTIOFWD_IPC_PORT_CONTROL="y",
        VIRTIOFWD_IPC_PATH=str(tmp_path / "vio_cmd"),
    )
    assert "port control by command file; not by zmq or ovsdb" in daemon.child.log
    assert "OVSDB:" not in daemon.child.log
