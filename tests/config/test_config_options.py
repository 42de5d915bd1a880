"""The daemon's command line."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
from click.testing import CliRunner, Result

from vio4wd import __version__
from vio4wd.cli import daemon_options
from vio4wd.cli.daemon_options import Invocation, make_command
from vio4wd.config import Config, Host, dump, loads
from vio4wd.config.keys import KEYS
from vio4wd.devices import Device
from vio4wd.relay.interface import RelayCpus

EMPTY = ["--config", "/dev/null"]


class Daemon:
    """Stands where the daemon would run: keeps what it is given and ends with a status of its own."""

    def __init__(self) -> None:
        self.invocation: Invocation | None = None

    def run(self, invocation: Invocation) -> int:
        self.invocation = invocation
        return 7

    def call(self, *args: str) -> Result:
        self.invocation = None
        return CliRunner().invoke(make_command(self.run, version=lambda: "DPDK 1.2.3"), list(args))

    def invoke(self, *args: str) -> Invocation:
        result = self.call(*EMPTY, *args)
        assert result.exit_code == 7, result.output
        assert self.invocation is not None
        return self.invocation

    def config(self, *args: str) -> Config:
        return self.invoke(*args).config


@pytest.fixture
def daemon(host: Host, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setattr(Host, "here", lambda: host)
    return Daemon()


@pytest.mark.parametrize(
    ("short", "long", "value", "field", "expected"),
    [
        ("-C", "--cpus", "3,4", "worker_cpus", (3, 4)),
        ("-M", "--master-lcore", "5", "master_cpu", 5),
        ("-l", "--loglevel", "7", "log_level", 7),
        ("-p", "--pid-path", "/run/x", "pid_path", Path("/run/x")),
        ("-H", "--huge-dir", "/dev/hugepages", "huge_dir", Path("/dev/hugepages")),
        ("-O", "--ovsdb-sock", "/run/db.sock", "ovsdb_socket", Path("/run/db.sock")),
        ("-V", "--vhost-path", "/run/socks", "socket_dir", Path("/run/socks")),
        ("-S", "--vhost-socket", "vm%u", "socket_pattern", "vm%u"),
        ("-c", "--virtio-cpu", "1:1,2", "cpu_pins", {1: RelayCpus(1, 2)}),
        ("-t", "--vfio-vf-token", "14d63f20-8445-11ea-8900-1f9ce7d5650d", "vfio_vf_token",
         "14d63f20-8445-11ea-8900-1f9ce7d5650d"),
    ],
)  # fmt: skip
def test_options_with_a_value(daemon: Daemon, short: str, long: str, value: str, field: str, expected: object) -> None:
    for args in ([short, value], [short + value], [long, value], [f"{long}={value}"]):
        assert getattr(daemon.config(*args), field) == expected


@pytest.mark.parametrize(
    ("short", "long", "field"),
    [
        ("-I", "--ipc", "ipc_port_control"),
        ("-J", "--enable-jumbo", "jumbo"),
        ("-R", "--enable-mrgbuf", "mergeable_rx"),
        ("-i", "--vhostuser-client", "vhost_client"),
        ("-0", "--zero-copy", "zero_copy"),
        ("-T", "--enable-tso", "tso"),
        ("-d", "--dynamic-sockets", "dynamic_sockets"),
        ("-a", "--same-numa", "same_numa"),
    ],
)
def test_flags(daemon: Daemon, short: str, long: str, field: str) -> None:
    assert not getattr(daemon.config(), field)
    assert getattr(daemon.config(short), field)
    assert getattr(daemon.config(long), field)


@pytest.mark.parametrize("service", ["config", "port_control", "stats", "core_sched"])
def test_endpoints_take_a_value_only_after_an_equals_sign(daemon: Daemon, service: str) -> None:
    option, field = f"--zmq-{service.replace('_', '-')}-ep", f"zmq_{service}_ep"
    assert getattr(daemon.config(), field) is None
    assert getattr(daemon.config(option), field) == f"ipc:///var/run/virtio-forwarder/{service}"
    assert getattr(daemon.config(f"{option}=ipc:///run/x"), field) == "ipc:///run/x"
    assert getattr(daemon.config(f"{option}="), field) is None
    assert getattr(daemon.config(option, "-J"), field) == f"ipc:///var/run/virtio-forwarder/{service}"
    assert daemon.call(option, "ipc:///run/x").exit_code == 2


def test_owner_and_group(daemon: Daemon) -> None:
    def owners(*args: str) -> tuple[int | None, int | None]:
        config = daemon.config(*args)
        return config.socket_owner, config.socket_group

    assert owners() == (64055, 108)
    assert owners("-u", "-g") == (None, None)
    assert owners("--vhost-username", "--vhost-groupname") == (None, None)
    assert owners("-uqemu", "-gvio") == (107, 500)
    assert owners("--vhost-username=qemu", "--vhost-groupname=12") == (107, 12)
    assert daemon.call("-u", "qemu").exit_code == 2


@pytest.mark.parametrize(
    ("args", "nodaemon", "syslog"),
    [
        ([], False, False),
        (["-n"], True, False),
        (["--nodaemon"], True, False),
        (["--nodaemon="], True, False),
        (["--nodaemon=log_syslog"], True, True),
        (["-nlog_syslog"], True, True),
        (["-Jn"], True, False),
        (["-Jnlog_syslog"], True, True),
        (["-n", "-J"], True, False),
    ],
)
def test_nodaemon(daemon: Daemon, args: list[str], nodaemon: bool, syslog: bool) -> None:
    invocation = daemon.invoke(*args)
    assert (invocation.nodaemon, invocation.log_syslog) == (nodaemon, syslog)


def test_static_vfs_and_pins_repeat(daemon: Daemon) -> None:
    config = daemon.config("-Pnet_null0,size=60,copy=0=1", "--add-pci-vf", "05:08.1=2", "-c", "1:1", "-c2:2,1")
    assert [(vf.relay, vf.attachment) for vf in config.static_vfs] == [
        (1, Device("net_null0", "size=60,copy=0")),
        (2, Device("0000:05:08.1")),
    ]
    assert config.cpu_pins == {1: RelayCpus(1, 1), 2: RelayCpus(2, 1)}


def test_values_that_look_like_options_stay_values(daemon: Daemon) -> None:
    assert daemon.config("-S", "-n%u").socket_pattern == "-n%u"
    assert daemon.config("--vhost-socket", "--nodaemon%u").socket_pattern == "--nodaemon%u"
    assert daemon.call("--", "-n").exit_code == 2


@pytest.mark.parametrize(
    "args", [["--nodaemon=yes"], ["--no-such-option"], ["-Z"], ["stray"], ["-C"], ["-nC", "1"], ["--enable-jumbo=1"]]
)
def test_wrong_use_exits_2(daemon: Daemon, args: list[str]) -> None:
    result = daemon.call(*args)
    assert result.exit_code == 2 and "Error: " in result.stderr
    assert daemon.invocation is None


def test_command_line_wins_over_the_file_also_on_reload(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_text("VIRTIOFWD_LOG_LEVEL=3\nVIRTIOFWD_CPU_MASK=5\n")
    assert daemon.call("--config", str(file), "-l", "7").exit_code == 7
    assert daemon.invocation is not None
    assert (daemon.invocation.config.log_level, daemon.invocation.config.worker_cpus) == (7, (5,))
    assert daemon.invocation.config_path == file
    file.write_text("VIRTIOFWD_LOG_LEVEL=4\nVIRTIOFWD_CPU_MASK=6\n")
    again = daemon.invocation.reload()
    assert (again.log_level, again.worker_cpus) == (7, (6,))


def test_bad_values_exit_1_with_a_line_for_each(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_text("VIRTIOFWD_LOG_LEVEL=9\n")
    result = daemon.call("--config", str(file), "--cpus=99")
    assert result.exit_code == 1 and result.stdout == ""
    mask, level = result.stderr.splitlines()
    assert mask.startswith("virtio-forwarder: command line: VIRTIOFWD_CPU_MASK (--cpus) '99': ")
    assert level.startswith(f"virtio-forwarder: {file}:1: VIRTIOFWD_LOG_LEVEL '9': ")
    assert daemon.invocation is None


def test_only_the_default_file_may_be_missing(daemon: Daemon, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with patch.object(daemon_options, "DEFAULT_PATH", missing):
        assert daemon.call().exit_code == 7
    result = daemon.call("--config", str(missing))
    assert result.exit_code == 1 and result.stderr.startswith(f"virtio-forwarder: {missing}: ")


def test_check_config_prints_what_reads_back(daemon: Daemon, host: Host, tmp_path: Path) -> None:
    file = tmp_path / "conf"
    file.write_text("VIRTIOFWD_STATIC_VFS=(05:08.1=1\n'net_tap0,iface=a=2')\nNOISE=1\n")
    result = daemon.call("--config", str(file), "--check-config", "-l2", "-c3:1,2", "-c4:2")
    assert result.exit_code == 0 and daemon.invocation is None
    assert result.stderr == f"virtio-forwarder: warning: {file}:3: NOISE is not a known key and is ignored\n"
    config = loads(result.stdout, "printed", host=host)
    assert config.log_level == 2 and len(config.static_vfs) == 2 and len(config.cpu_pins) == 2
    assert dump(config) == result.stdout
    assert [line.partition("=")[0] for line in result.stdout.splitlines()] == list(KEYS)
    assert daemon.call(*EMPTY, "--check-config", "-l9").exit_code == 1


def test_relative_paths_are_those_of_the_shell(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = daemon.config("-V", "socks", "-p", "x.pid")
    assert (config.socket_dir, config.pid_file) == (tmp_path / "socks", tmp_path / "x.pid")


def test_version_needs_no_configuration(daemon: Daemon) -> None:
    for option in ("-v", "--version"):
        result = daemon.call("--config", "/none", option)
        assert (result.exit_code, result.stdout) == (0, f"virtio-forwarder {__version__}\nDPDK 1.2.3\n")


def test_help_names_every_key_that_has_an_option(daemon: Daemon) -> None:
    for option in ("-h", "--help"):
        result = daemon.call(option)
        text = "".join(result.stdout.split())
        assert result.exit_code == 0
        assert all(f"[{spec.key}]" in text for spec in KEYS.values() if spec.option)
        assert "--nodaemon[=log_syslog]" in text
