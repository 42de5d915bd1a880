"""The real daemon under what the tests of the services and the tools do to one whose relays are in memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_portctl_robust import (
    test_200_clients_at_once,
    test_a_client_that_sends_many_before_it_reads,
    test_connections_that_say_nothing_are_closed,
    test_huge_messages_are_dropped,
    test_messages_that_cannot_be_read,
    test_one_client_does_not_take_the_others_places,
    test_raw_bytes_on_the_socket,
    test_requests_that_cannot_be_read,
    test_several_frames,
    test_sockets_that_are_not_req,
)
from test_portctl_tools import test_port_control, test_test_aids, tool, unprivileged
from zmq_forwarder import Forwarder, start_daemon

from control.control_client import OK, Client
from harness.daemon import Daemon

pytestmark = pytest.mark.dpdk

__all__ = [
    "test_200_clients_at_once",
    "test_a_client_that_sends_many_before_it_reads",
    "test_connections_that_say_nothing_are_closed",
    "test_huge_messages_are_dropped",
    "test_messages_that_cannot_be_read",
    "test_one_client_does_not_take_the_others_places",
    "test_port_control",
    "test_raw_bytes_on_the_socket",
    "test_requests_that_cannot_be_read",
    "test_several_frames",
    "test_sockets_that_are_not_req",
    "test_test_aids",
]


@pytest.fixture(scope="module")
def shared() -> Iterator[Forwarder]:
    """One daemon for the module."""
    yield from start_daemon()


@pytest.fixture
def forwarder(shared: Forwarder) -> Iterator[Forwarder]:
    """The daemon, whose relays are empty again after the test."""
    yield shared
    client = Client(shared)
    for relay, device in client.devices().items():
        assert client.remove(relay, device) == OK
    client.close()


def test_the_contract_with_openstack(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], short_dir: Path
) -> None:
    """Plug and unplug with two capabilities: only 0 and 1 come back, within 5 s, whatever the daemon does."""
    daemon, prefix = start_daemon(VIRTIOFWD_DYNAMIC_SOCKETS="true"), unprivileged()
    client = client_of(daemon)
    endpoint = f"--zmq_ep={daemon.endpoint('port_control')}"
    path = short_dir / "vhub679325f-ca"

    def run(op: str, device: str, endpoint: str = endpoint) -> int:
        return tool("port_control", op, device, f"--vhost-path={path}", endpoint, prefix=prefix).returncode

    assert run("add_sock", "--pci-addr=0000:ff:1f.7") == 1  # no machine has this device
    assert run("add_sock", "--devargs=net_null0") == 0
    assert path.is_socket()
    assert run("add_sock", "--devargs=net_null0") == 1
    assert run("add_sock", "--devargs=net_null0", f"--zmq_ep=ipc://{short_dir}/absent") == 1
    os.kill(daemon.child.pid, signal.SIGSTOP)
    try:
        assert run("remove_sock", "--devargs=net_null1") == 1
    finally:
        os.kill(daemon.child.pid, signal.SIGCONT)
    assert client.sockets() == {0: str(path)}
    assert run("remove_sock", "--devargs=net_null1") == 1
    assert run("remove_sock", "--devargs=net_null0") == 0
    assert (client.sockets(), client.devices()) == ({}, {})
    assert run("remove_sock", "--devargs=net_null0") == 1
