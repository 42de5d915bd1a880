"""Client mode: front ends listen, the daemon connects and reconnects, over restarts of either."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from control.control_client import OK, Client
from frontend import FrontEnd
from frontend.wire import listen
from harness.daemon import Daemon
from harness.process import Child, wait_for
from harness.testpmd import Testpmd
from vio4wd.vhostuser.requests import Request

pytestmark = pytest.mark.dpdk

CLIENT = {"VIRTIOFWD_VHOST_CLIENT": "y"}
VF = "net_null0,size=60,copy=0"


@dataclass(frozen=True)
class Offer:
    """What a back end offers to a front end."""

    features: int
    protocol_features: int
    queues: int


def serve_once(path: Path) -> tuple[Offer, float]:
    """Listen, let the daemon connect, bring the device up and leave; what was offered, and the wait in seconds."""
    path.unlink(missing_ok=True)
    with listen(path) as listener:
        begun = time.monotonic()
        sock, _ = listener.accept()
        waited = time.monotonic() - begun
        with FrontEnd(sock=sock) as front:
            features = front.ask_u64(Request.GET_FEATURES)
            front.handshake()
            offer = Offer(features, front.ask_u64(Request.GET_PROTOCOL_FEATURES), front.ask_u64(Request.GET_QUEUE_NUM))
            front.post_rx()
            assert len(front.receive(5).data) == 60
    path.unlink()
    return offer, waited


def test_the_same_is_offered_after_every_restart(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client]
) -> None:
    daemon = start_daemon(**CLIENT)
    assert list(daemon.sockets.iterdir()) == []
    path = daemon.socket(0)
    assert client_of(daemon).add(0, VF) == OK
    offers = []
    for pause in (0.0, 0.0, 2.5):  # the last is long enough for the longest wait between attempts
        time.sleep(pause)
        offer, waited = serve_once(path)
        offers.append(offer)
        assert waited < 1
    daemon.workers()[0].kill()
    offers.append(serve_once(path)[0])
    assert daemon.stop() == 0
    daemon = start_daemon(**CLIENT)
    assert client_of(daemon).add(0, VF) == OK
    offers.append(serve_once(path)[0])
    assert offers == offers[:1] * 5
    assert offers[0].features and offers[0].protocol_features and offers[0].queues


LISTEN_AS = """
import os, socket, sys
uid, path = int(sys.argv[1]), sys.argv[2]
os.setgroups([]), os.setgid(uid), os.setuid(uid)
listener = socket.socket(socket.AF_UNIX)
listener.settimeout(10)
listener.bind(path)
listener.listen()
listener.accept()
print("the daemon has connected")
"""


def test_a_server_of_another_user_in_the_directory_that_the_daemon_makes(
    start_daemon: Callable[..., Daemon], tmp_path: Path, short_dir: Path
) -> None:
    short_dir.chmod(0o755)
    owner = {"VIRTIOFWD_SOCKET_OWNER": "65534", "VIRTIOFWD_SOCKET_GROUP": "65534"}
    start_daemon(**CLIENT, **owner, VIRTIOFWD_SOCKET_DIR=f"{short_dir}/made")
    path = short_dir / "made" / "virtio-forwarder0.sock"
    server = Child([sys.executable, "-c", LISTEN_AS, "65534", path], tmp_path / "server.log")
    try:
        server.wait_for_log("the daemon has connected")
    finally:
        server.stop()


def test_a_server_that_refuses_and_files_that_are_no_sockets(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon(**CLIENT)
    daemon.socket(1).write_text("precious")
    with listen(daemon.socket(2)) as listener:
        for _ in range(5):
            listener.accept()[0].close()
    daemon.child.wait_for_log("it is not a socket; trying again")
    assert daemon.child.log.count("it is not a socket") == 1
    daemon.socket(1).unlink()
    with listen(daemon.socket(1)) as listener:
        listener.accept()[0].close()


def test_traffic_over_restarts_of_front_end_and_daemon(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], guest: Callable[..., Testpmd]
) -> None:
    daemon = start_daemon(**CLIENT)
    path = daemon.socket(0)
    client = client_of(daemon)
    assert client.add(0, VF) == OK
    seen = 0
    for _ in range(2):
        path.unlink(missing_ok=True)
        testpmd = guest(path, options="server=1")
        testpmd.command("start", "io packet forwarding")
        wait_for(lambda seen=seen: client.relay(0).vm_to_vf.pkts_tx_to_vf > seen + 50_000, 10, "packets")
        if seen == 0:
            testpmd.child.process.kill()
            testpmd.stop()
            wait_for(lambda: client.relay(0).vm_to_vf.internal_state == "VIRTIO_UNINIT", 5, "the front end to be gone")
            seen = client.relay(0).vm_to_vf.pkts_tx_to_vf
    assert daemon.stop() == 0
    daemon = start_daemon(**CLIENT)
    client = client_of(daemon)
    assert client.add(0, VF) == OK
    wait_for(lambda: client.relay(0).vm_to_vf.pkts_tx_to_vf > 50_000, 10, "packets after the daemon's restart")


def test_a_dynamic_socket_whose_server_comes_later(
    start_daemon: Callable[..., Daemon], client_of: Callable[..., Client], short_dir: Path
) -> None:
    daemon = start_daemon(**CLIENT, VIRTIOFWD_DYNAMIC_SOCKETS="true")
    client = client_of(daemon)
    path = short_dir / "vhub679325f-ca"
    assert client.add_sock(path, VF) == OK
    assert not path.exists()
    time.sleep(0.3)
    assert serve_once(path)[1] < 1
    assert client.remove_sock(path) == OK
    with listen(path) as listener:
        listener.settimeout(1)
        with pytest.raises(TimeoutError):
            listener.accept()
