"""The tools as other programs call them: exit statuses, what they print, and that they always return."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import portctl_wire as wire
import pytest
import zmq
from zmq_forwarder import ROOT, Forwarder

from vio4wd.cli.core_pinner import read_pin

SCRIPTS = ROOT / "scripts"
MOST_S = 5


def tool(name: str, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end, which must come within 5 s."""
    command = [*prefix, sys.executable, str(SCRIPTS / f"virtioforwarder_{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=MOST_S, check=False)


def control(forwarder: Forwarder, *arguments: str) -> subprocess.CompletedProcess[str]:
    return tool("port_control", f"--zmq_ep={forwarder.endpoint('port_control')}", *arguments)


@contextmanager
def peer(endpoint: str, answer: list[bytes] | None, delay_s: float = 0) -> Iterator[None]:
    """A service that answers one request with these frames after a while, or never."""
    with zmq.Context() as context, context.socket(zmq.REP) as server:
        server.setsockopt(zmq.LINGER, 1000)
        server.bind(endpoint)

        def serve() -> None:
            if server.poll(MOST_S * 1000):
                server.recv()
                time.sleep(delay_s)
                if answer is not None:
                    server.send_multipart(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(MOST_S + 1)


def test_port_control(forwarder: Forwarder) -> None:
    query = ("query_pci", "--vhost-path", forwarder.socket_path)
    steps = [
        (("add", "--virtio-id=1", "--devargs=net_null0,size=60"), 0, ""),
        (("add", "--virtio-id", "1", "--devargs", "net_null0,size=60", "--conditional"), 0, ""),
        (query, 0, "net_null0,size=60\n"),
        (("remove", "--virtio-id=1", "--devargs=net_null0"), 0, ""),
        (query, 0, ""),
        (
            ("add", "--virtio-id=2", "--name=net_bonding0", "--devargs=net_null1", "--devargs=net_null2", "--mode=0"),
            0,
            "",
        ),
        (("remove", "--virtio-id=2", "--name=net_bonding0"), 0, ""),
    ]
    for arguments, status, output in steps:
        done = control(forwarder, *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (status, output, ""), arguments
    for arguments, code, source in [
        (("add", "--virtio-id=64", "--devargs=net_null0"), 1, "virtio_forwarder_add_vf2()"),
        (("remove", "--virtio-id=1", "--devargs=net_null0"), 4, "virtio_forwarder_remove_vf2()"),
        (("query_pci", "--vhost-path=/nowhere"), 2, "virtio_query_pci()"),
    ]:
        done = control(forwarder, *arguments)
        assert (done.returncode, done.stdout) == (1, ""), arguments
        assert f"(error {code} from {source})" in done.stderr


def test_port_control_sends_what_clients_send(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/x"
    with zmq.Context() as context, context.socket(zmq.REP) as server:
        server.setsockopt(zmq.LINGER, 0)
        server.bind(endpoint)
        for arguments, sent in [
            (
                ("add", "--virtio-id=1", "--pci-addr=5:08.1"),
                wire.request(wire.ADD, addresses=("0:5:8.1",), virtio_id=1, conditional=False, patience_ms=2600),
            ),
            (
                ("remove", "--virtio-id=0", "--conditional"),
                wire.request(wire.REMOVE, virtio_id=0, conditional=True, patience_ms=2600),
            ),
            (("query_pci", "--vhost-path=/a b"), wire.request(wire.QUERY_PCI, conditional=False, path="/a b")),
        ]:
            command = [
                sys.executable,
                str(SCRIPTS / "virtioforwarder_port_control.py"),
                f"--zmq_ep={endpoint}",
                *arguments,
            ]
            with subprocess.Popen(command) as process:
                assert server.poll(MOST_S * 1000)
                received = server.recv()
                server.send(b"\x20\x01")
                assert process.wait(MOST_S) == 0
            assert wire.decode(received) == wire.decode(sent)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("plug",),
        ("add", "--virtio-id=one"),
        ("add", "--virtio-id=-1"),
        ("add", "--mode=7"),
        ("add", "--no-such-option"),
        ("add", "remove"),
        ("add", "--curve-server-key=/x"),
    ],
)
def test_port_control_used_wrongly(arguments: tuple[str, ...]) -> None:
    assert tool("port_control", *arguments).returncode == 2


def test_bad_addresses_and_endpoints(tmp_path: Path) -> None:
    for arguments in (
        ("add", "--virtio-id=1", "--pci-addr=05:08.9"),
        ("add", "--virtio-id=1", "--pci-addr=eth0"),
        ("add", "--virtio-id=1", "--zmq_ep=nonsense"),
        ("add", "--virtio-id=1", f"--zmq_ep=ipc://{tmp_path}/{'x' * 200}"),
        ("add", "--virtio-id=1", "--curve-server-key=/missing", "--curve-client-key=/missing"),
    ):
        done = tool("port_control", *arguments)
        assert done.returncode == 1 and done.stderr and "Traceback" not in done.stderr, arguments


@pytest.mark.parametrize(
    "option", ["--vhost-path=/tmp/caf", "--devargs=net_null", "--name=net_bonding", "--zmq_ep=ipc://"]
)
def test_arguments_that_are_not_utf8(option: str) -> None:
    done = tool("port_control", "add_sock", f"{option}\udce9")  # the byte 0xe9
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.endswith("\\udce9' cannot be written as utf-8\n")


def test_test_aids(forwarder: Forwarder) -> None:
    assert control(forwarder, "add", "--send-garbage").returncode == 1
    assert control(forwarder, "add", "--virtio-id=1", "--devargs=net_null0", "--crash-after-send").returncode == 1
    assert control(forwarder, "query_pci", f"--vhost-path={forwarder.socket_path}").stdout == "net_null0\n"
    forwarder.check_alive()


QUESTIONS = {
    "port_control": ("add", "--virtio-id=1", "--pci-addr=05:08.1", "--zmq_ep={}"),
    "stats": ("--stats-ep={}",),
    "core_pinner": ("--stats-ep={}", "--sched-ep={}"),
    "monitor_load": ("--stats-ep={}", "--sched-ep={}", "--count=1", "--poll-interval=0.05"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_no_daemon(name: str, tmp_path: Path) -> None:
    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    for path in (tmp_path / "absent", dead) if name == "port_control" else (dead,):
        done = tool(name, *(argument.format(f"ipc://{path}") for argument in QUESTIONS[name]))
        assert done.returncode == 1 and "no answer within" in done.stderr


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize(
    "answer",
    [None, [b"\xff" * 9], [b""], [b"a", b"b"], [b"\xff" * 2**20], [b"x"] * 1000],
    ids=["none", "garbage", "empty", "two frames", "1 MiB", "1000 frames"],
)
def test_peers_that_are_no_daemon(name: str, answer: list[bytes] | None, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/peer"
    with peer(endpoint, answer):
        done = tool(name, *(argument.format(endpoint) for argument in QUESTIONS[name]))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert len(done.stderr) < 300


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("remove", "--virtio-id=1"), 0),
        (("add_sock", "--vhost-path=/a", "--devargs=net_null0"), 0),
        (("query_pci",), 1),
    ],
)
def test_changes_may_take_longer_than_questions(arguments: tuple[str, ...], status: int, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/slow"
    with peer(endpoint, [b"\x20\x01"], delay_s=2.5):
        assert tool("port_control", *arguments, f"--zmq_ep={endpoint}").returncode == status


def test_a_listener_that_never_speaks(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mute"))
        listener.listen()
        done = tool("port_control", "add", "--virtio-id=1", "--pci-addr=05:08.1", f"--zmq_ep=ipc://{tmp_path}/mute")
    assert done.returncode == 1


def unprivileged() -> tuple[str, ...]:
    """How to run a command with only the capabilities NET_ADMIN and SYS_ADMIN."""
    setpriv = shutil.which("setpriv")
    if setpriv is None or os.getuid() != 0:
        pytest.skip("needs root and setpriv")
    only = "-all,+net_admin,+sys_admin"
    return (setpriv, f"--inh-caps={only}", f"--bounding-set={only}", "--no-new-privs", "--")


def test_the_contract_with_openstack(dynamic_forwarder: Forwarder, tmp_path: Path) -> None:
    """Plug and unplug with two capabilities: only 0 and 1 come back, within 5 s, whatever the daemon does."""
    forwarder, prefix = dynamic_forwarder, unprivileged()
    endpoint = f"--zmq_ep={forwarder.endpoint('port_control')}"
    plug = ("add_sock", "--pci-addr=0000:08:08.5", f"--vhost-path={tmp_path}/vhub679325f-ca", endpoint)
    unplug = ("remove_sock", *plug[1:])
    unknown = ("add_sock", "--devargs=net_missing0", f"--vhost-path={tmp_path}/vhub", endpoint)
    absent = (*plug[:-1], f"--zmq_ep=ipc://{tmp_path}/absent")
    assert tool("port_control", *plug, prefix=prefix).returncode == 0
    assert tool("port_control", *plug, prefix=prefix).returncode == 1
    assert tool("port_control", *unknown, prefix=prefix).returncode == 1
    assert tool("port_control", *absent, prefix=prefix).returncode == 1
    os.kill(forwarder.pid, signal.SIGSTOP)
    try:
        assert tool("port_control", *unplug, prefix=prefix).returncode == 1
    finally:
        os.kill(forwarder.pid, signal.SIGCONT)
    forwarder.check_alive()
    assert tool("port_control", *plug, "--conditional", prefix=prefix).returncode == 0
    assert tool("port_control", *unplug, prefix=prefix).returncode == 0


def test_stats_tool(forwarder: Forwarder) -> None:
    assert control(forwarder, "add", "--virtio-id=1", "--devargs=net_null0").returncode == 0
    stats = (f"--stats-ep={forwarder.endpoint('stats')}", "--delay=10")
    done = tool("stats", *stats, "--include-inactive")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for line in (
        "relay_1.active=False",
        "relay_1.cpu.vf_to_vm=1",
        "relay_1.vf.pci_addr_str=net_null0",
        f"relay_1.vhost.vhost_socket_name={forwarder.socket_path}",
        "relay_1.vf_to_vm.active=True",
        "relay_1.vf_to_vm.internal_state=DPDK_ADDED",
        "relay_1.vf_to_vm.cpu_1.pkts_rx_from_vf=0",
        "relay_1.vm_to_vf.internal_state=VIRTIO_UNINIT",
        "relay_1.vm_to_vf.pkts_rx_from_vm=0",
        "relay_63.active=False",
    ):
        assert line in lines
    assert tool("stats", *stats).stdout == ""
    assert "pkts_rx" not in tool("stats", *stats, "--include-inactive", "-z").stdout
    text = tool("stats", *stats, "--include-inactive", "--output-format", "protobuf").stdout
    assert text.startswith("status: OK\nrelay {\n  id: 0\n")
    assert tool("stats", "--delay=x").returncode == 2


def test_output_that_cannot_be_written(forwarder: Forwarder) -> None:
    command = [sys.executable, str(SCRIPTS / "virtioforwarder_stats.py"), "--include-inactive"]
    with Path("/dev/full").open("w") as full:
        arguments = [*command, f"--stats-ep={forwarder.endpoint('stats')}"]
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, timeout=MOST_S, check=False)
    assert done.returncode == 1 and b"No space left" in done.stderr


@pytest.mark.parametrize("option", ["--check-config", "--version", "--help"])
def test_output_of_the_daemon_s_command_that_cannot_be_written(option: str) -> None:
    command = [sys.executable, str(SCRIPTS / "virtio-forwarder"), "--config=/dev/null", option]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    errors = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert (done.returncode, errors) == (1, ["virtio-forwarder: [Errno 28] No space left on device"])


def test_core_pinner(forwarder: Forwarder) -> None:
    endpoints = (f"--stats-ep={forwarder.endpoint('stats')}", f"--sched-ep={forwarder.endpoint('core_sched')}")
    assert tool("core_pinner", *endpoints).stdout == ""
    done = tool("core_pinner", *endpoints, "--virtio-cpu=1:2,1", "--virtio-cpu", "3:2")
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["relay 1: VF-to-virtio CPU 2, virtio-to-VF CPU 1", "relay 3: VF-to-virtio CPU 2, virtio-to-VF CPU 2"],
    )
    config = wire.decode(forwarder.ask("config", b""))[5]
    assert config[0] == wire.number(1, 1) + wire.number(2, 2) + wire.number(3, 1)
    assert control(forwarder, "add", "--virtio-id=1", "--devargs=net_null0").returncode == 0
    done = tool("core_pinner", *endpoints, "--print-core-map")
    assert done.stdout == "relay 1: VF-to-virtio CPU 2, virtio-to-VF CPU none\n"
    refused = tool("core_pinner", *endpoints, "--virtio-cpu=1:99")
    assert refused.returncode == 1 and "CPU 99 is no worker CPU" in refused.stderr
    assert tool("core_pinner", *endpoints, "--virtio-cpu=1").returncode == 2


@pytest.mark.parametrize("wrong", ["1", "1:", "a:1", "1:2,3,4", "64:1", "1:-2", "1:4294967296", "1:" + "9" * 5000])
def test_pins_that_are_none(wrong: str) -> None:
    with pytest.raises(click.BadParameter, match="must be RN:Ci"):
        read_pin(wrong)


def test_monitor_load(forwarder: Forwarder) -> None:
    endpoints = (f"--stats-ep={forwarder.endpoint('stats')}", f"--sched-ep={forwarder.endpoint('core_sched')}")
    done = tool("monitor_load", *endpoints, "--poll-interval=0.1", "--count=2")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 4
    assert lines[0].startswith("CPU   1 [") and lines[1].startswith("CPU   2 [")


def test_monitor_load_ends_on_ctrl_c(forwarder: Forwarder) -> None:
    command = [sys.executable, str(SCRIPTS / "virtioforwarder_monitor_load.py"), "--poll-interval=0.1"]
    command += [f"--stats-ep={forwarder.endpoint('stats')}", f"--sched-ep={forwarder.endpoint('core_sched')}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=MOST_S)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")


def test_tools_start_light() -> None:
    modules = "port_control, stats, core_pinner, monitor_load, core_scheduler"
    code = f"import sys; from vio4wd.cli import {modules}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
    )
    assert not {"numba", "numpy", "asyncio", "ovs"} & set(done.stdout.split())
