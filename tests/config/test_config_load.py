"""Values of keys: what is read, what is refused and how it is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vio4wd.config import Account, Config, Host, PortControl, RingEngine, StaticVf, VfioBinding, dump, load, loads
from vio4wd.config.host import parse_cpu_list
from vio4wd.config.keys import KEYS
from vio4wd.devices import Bond, BondMode, Device, PciAddress
from vio4wd.errors import ConfigError
from vio4wd.relay.interface import RelayCpus


def problems(text: str, host: Host, overrides: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loads(text, "/etc/conf", overrides, host=host)
    return str(caught.value).splitlines()


def test_no_file_is_the_defaults(host: Host) -> None:
    accounts = {
        "socket_owner_account": Account("libvirt-qemu", 64055),
        "socket_group_account": Account("kvm", 108),
    }
    config = load(None, host=host)
    assert config == dataclasses.replace(Config(), **accounts)
    assert config.warnings == ()
    assert (config.socket_owner, config.socket_group, config.zmq_group) == (64055, 108, None)


def test_defaults_that_the_machine_lacks_are_replaced_with_warnings(bare_host: Host) -> None:
    config = load(None, host=bare_host)
    assert config.worker_cpus == (1,)
    assert (config.socket_owner, config.socket_group) == (None, None)
    mask, owner, group = config.warnings
    assert "only CPU 0,1" in mask and "'libvirt-qemu'" in owner and "'kvm'" in group
    spelled = loads(
        "VIRTIOFWD_CPU_MASK=1,2\nVIRTIOFWD_SOCKET_OWNER=libvirt-qemu\nVIRTIOFWD_SOCKET_GROUP=kvm\n",
        "f",
        host=bare_host,
    )
    assert spelled == config
    assert loads("", "f", host=Host(frozenset({4}), {}.get, {}.get)).worker_cpus == (4,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("VIRTIOFWD_CPU_MASK=0,2", "this machine has no CPU 2, only 0,1"),
        ("VIRTIOFWD_CPU_MASK=0x7", "this machine has no CPU 2, only 0,1"),
        ("VIRTIOFWD_MASTER_LCORE=5", "this machine has no CPU 5, only 0,1"),
        ("VIRTIOFWD_SOCKET_OWNER=nemo", "there is no such user here"),
        ("VIRTIOFWD_SOCKET_GROUP=nemo", "there is no such group here"),
    ],
)
def test_what_is_asked_for_and_missing_is_an_error(text: str, said: str, bare_host: Host) -> None:
    (problem,) = problems(text, bare_host)
    assert said in problem


@pytest.mark.parametrize("key", ["VIRTIOFWD_CPU_MASK", "VIRTIOFWD_SOCKET_OWNER", "VIRTIOFWD_SOCKET_GROUP"])
def test_defaults_asked_for_on_the_command_line_must_exist(key: str, bare_host: Host) -> None:
    problem, *_ = problems("", bare_host, {key: KEYS[key].default})
    assert problem.startswith(f"command line: {key} (--")


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("VIRTIOFWD_CPU_MASK=3,1,3", "worker_cpus", (1, 3)),
        ("VIRTIOFWD_CPU_MASK='1, 2'", "worker_cpus", (1, 2)),
        ("VIRTIOFWD_CPU_MASK=0x0", "worker_cpus", None),
        ("VIRTIOFWD_CPU_MASK=0x15", "worker_cpus", (0, 2, 4)),
        ("VIRTIOFWD_CPU_MASK=0XE", "worker_cpus", (1, 2, 3)),
        ("VIRTIOFWD_CPU_MASK=", "worker_cpus", (1, 2)),
        ("VIRTIOFWD_CPU_MASK=1,,2", "worker_cpus", None),
        ("VIRTIOFWD_CPU_MASK=1-2", "worker_cpus", None),
        ("VIRTIOFWD_CPU_MASK=-1", "worker_cpus", None),
        ("VIRTIOFWD_MASTER_LCORE=3", "master_cpu", 3),
        ("VIRTIOFWD_MASTER_LCORE=16", "master_cpu", None),
        ("VIRTIOFWD_MASTER_LCORE=one", "master_cpu", None),
        ("VIRTIOFWD_LOG_LEVEL=7", "log_level", 7),
        ("VIRTIOFWD_LOG_LEVEL=", "log_level", 6),
        ("VIRTIOFWD_LOG_LEVEL=8", "log_level", None),
        ("VIRTIOFWD_LOG_LEVEL=-1", "log_level", None),
        ("VIRTIOFWD_LOG_LEVEL=debug", "log_level", None),
        pytest.param(f"VIRTIOFWD_LOG_LEVEL={'1' * 5000}", "log_level", None, id="5000 digits"),
        ("VIRTIOFWD_LOG_LEVEL=(5)", "log_level", 5),
        ("VIRTIOFWD_LOG_LEVEL=(5 6)", "log_level", None),
        ("VIRTIOFWD_HUGETLBFS_MOUNT_POINT=/dev/hugepages", "huge_dir", Path("/dev/hugepages")),
        ("VIRTIOFWD_HUGETLBFS_MOUNT_POINT='/a b'", "huge_dir", Path("/a b")),
        ("VIRTIOFWD_HUGETLBFS_MOUNT_POINT=dev", "huge_dir", None),
        ("VIRTIOFWD_SOCKET_DIR=", "socket_dir", Path("/tmp/virtio-forwarder")),
        ("VIRTIOFWD_SOCKET_FNAME_PATTERN=vm%u", "socket_pattern", "vm%u"),
        ("VIRTIOFWD_SOCKET_FNAME_PATTERN=vm", "socket_pattern", None),
        ("VIRTIOFWD_SOCKET_FNAME_PATTERN=%u%u", "socket_pattern", None),
        ("VIRTIOFWD_SOCKET_FNAME_PATTERN=%u%s", "socket_pattern", None),
        ("VIRTIOFWD_SOCKET_FNAME_PATTERN=a/%u", "socket_pattern", None),
        ("VIRTIOFWD_SOCKET_OWNER=qemu", "socket_owner", 107),
        ("VIRTIOFWD_SOCKET_OWNER=1234", "socket_owner", 1234),
        ("VIRTIOFWD_SOCKET_OWNER=", "socket_owner", None),
        ("VIRTIOFWD_SOCKET_GROUP=vio", "socket_group", 500),
        ("VIRTIOFWD_OVSDB_SOCK_PATH=/run/db.sock", "ovsdb_socket", Path("/run/db.sock")),
        ("VIRTIOFWD_BIND_VFIO_PCI=01:02.3,eth0,ens1f0:4", "bind_vfio_pci",
         (VfioBinding(PciAddress(0, 1, 2, 3)), VfioBinding("eth0"), VfioBinding("ens1f0", 4))),
        ("VIRTIOFWD_BIND_VFIO_PCI=eth0:0", "bind_vfio_pci", None),
        ("VIRTIOFWD_BIND_VFIO_PCI=0000:01:2f.3", "bind_vfio_pci", None),
        ("VIRTIOFWD_VFIO_VF_TOKEN=14D63F20-8445-11EA-8900-1F9CE7D5650D", "vfio_vf_token",
         "14d63f20-8445-11ea-8900-1f9ce7d5650d"),
        ("VIRTIOFWD_VFIO_VF_TOKEN=secret", "vfio_vf_token", None),
        ("VIRTIOFWD_ZMQ_STATS_EP=ipc:///run/x", "zmq_stats_ep", "ipc:///run/x"),
        ("VIRTIOFWD_ZMQ_STATS_EP=ipc://x", "zmq_stats_ep", None),
        ("VIRTIOFWD_ZMQ_STATS_EP=/run/x", "zmq_stats_ep", None),
        ("VIRTIOFWD_ZMQ_STATS_EP=tcp://127.0.0.1", "zmq_stats_ep", None),
        ("VIRTIOFWD_ZMQ_STATS_EP=tcp://127.0.0.1:70000", "zmq_stats_ep", None),
        (f"VIRTIOFWD_ZMQ_STATS_EP=ipc:///{'x' * 107}", "zmq_stats_ep", None),
        (f"VIRTIOFWD_SOCKET_DIR=/{'x' * 100}", "socket_dir", None),
        ("VIRTIOFWD_RING_ENGINE=library", "ring_engine", RingEngine.LIBRARY),
        ("VIRTIOFWD_RING_ENGINE=fast", "ring_engine", None),
        ("VIRTIOFWD_IDLE_SLEEP_MAX_US=100", "idle_sleep_max_us", 100),
        ("VIO4WD_CORE_SCHED_SENSITIVITY=0.5", "scheduler_sensitivity", 0.5),
        ("VIO4WD_CORE_SCHED_SENSITIVITY=nan", "scheduler_sensitivity", None),
        ("VIO4WD_CORE_SCHED_POLL_INTERVAL=2", "scheduler_poll_interval_s", 2.0),
        ("VIO4WD_CORE_SCHED_POLL_INTERVAL=0", "scheduler_poll_interval_s", None),
        ("VIO4WD_CORE_SCHED_ENABLE=true", "core_sched_enabled", True),
        ("VIO4WD_CORE_SCHED_ENABLE=false", "core_sched_enabled", False),
    ],
)  # fmt: skip
def test_value(line: str, field: str, value: object, host: Host) -> None:
    blank = line.endswith("=")
    if value is None and not blank:
        (problem,) = problems(f"# first\n{line}\n", host)
        assert problem.startswith(f"/etc/conf:2: {line.partition('=')[0]} ")
        assert "; allowed: " in problem
    else:
        assert getattr(loads(line, "f", host=host), field) == value


ON_UNLESS_BLANK = {"VIRTIOFWD_JUMBO", "VIRTIOFWD_MRGBUF", "VIRTIOFWD_TSO", "VIRTIOFWD_IPC_PORT_CONTROL"}
OFF_WORDS = ["0", "n", "no", "off", "false", "False", "NO"]


@pytest.mark.parametrize("key", [key for key, spec in KEYS.items() if isinstance(getattr(Config(), spec.field), bool)])
def test_flags(key: str, host: Host) -> None:
    def value(text: str) -> bool:
        return bool(getattr(loads(f"{key}={text}", "f", host=host), KEYS[key].field))

    assert not any(map(value, ["", "''", "()", " # y"]))
    assert [value(word) for word in OFF_WORDS] == [key in ON_UNLESS_BLANK] * len(OFF_WORDS)
    assert value("true")
    assert all(map(value, ["y", "yes", "1", "on", "Y", "anything"])) == (key != "VIO4WD_CORE_SCHED_ENABLE")


@pytest.mark.parametrize("key", sorted(ON_UNLESS_BLANK))
def test_a_word_for_off_that_turns_on_is_warned_of(key: str, host: Host) -> None:
    for word in OFF_WORDS:
        assert (
            f"f:1: {key}: {word!r} is on: only a blank value is off" in loads(f"{key}={word}", "f", host=host).warnings
        )
    for word in ("", "1", "y"):
        assert "only a blank" not in "".join(loads(f"{key}={word}", "f", host=host).warnings)


def test_only_true_turns_core_scheduling_on_and_others_are_warned_of(host: Host) -> None:
    config = loads("VIO4WD_CORE_SCHED_ENABLE=yes", "f", host=host)
    assert not config.core_sched_enabled and "only 'true' is on" in config.warnings[0]


@pytest.mark.parametrize(
    "value",
    [
        "0000:05:08.1=1",
        "(0000:05:08.1=1)",
        "( 05:08.1=1 )",
        "(\n  0000:05:08.1=1  # the first\n)",
        "'0000:05:08.1=1 0000:05:08.1=1'",
    ],
)
def test_one_static_vf(value: str, host: Host) -> None:
    config = loads(f"VIRTIOFWD_STATIC_VFS={value}\n", "f", host=host)
    assert config.static_vfs == (StaticVf(1, Device("0000:05:08.1")),)


def test_static_vfs_of_all_kinds(host: Host) -> None:
    text = """\
VIRTIOFWD_STATIC_VFS=(0000:05:08.1=1
    net_null0,size=60,copy=0=63  # devargs
    net_bonding0,mode=4,member=0000:05:08.2,member=05:08.3=0
    'net_bonding-B.1,member=[net_af_packet0,iface=veth0],member=[0000:05:08.4,representor=[0-3]],member=net_tap0=2'
)
"""
    assert loads(text, "f", host=host).static_vfs == (
        StaticVf(1, Device("0000:05:08.1")),
        StaticVf(63, Device("net_null0", "size=60,copy=0")),
        StaticVf(0, Bond("net_bonding0", (Device("0000:05:08.2"), Device("0000:05:08.3")), BondMode.LACP)),
        StaticVf(
            2,
            Bond(
                "net_bonding-B.1",
                (
                    Device("net_af_packet0", "iface=veth0"),
                    Device("0000:05:08.4", "representor=[0-3]"),
                    Device("net_tap0"),
                ),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0000:05:08.1", "is not <device>=<relay>"),
        ("0000:05:08.1=64", "'64' is not a relay, which are 0 to 63"),
        ("0000:05:08.1=-1", "'-1' is not a relay"),
        ("0000:05:08.1=", "'' is not a relay"),
        ("0000:05:08.9=1", "neither a PCI address"),
        ("0000:05:08.1=1 0000:05:08.1=2", "0000:05:08.1 is given to relay 1 and to relay 2"),
        ("0000:05:0a.1=1 05:0A.1=2", "0000:05:0a.1 is given to relay 1 and to relay 2"),
        ("0000:05:08.1=1 0000:05:08.2=1", "relay 1 is given both 0000:05:08.1 and 0000:05:08.2"),
        ("net_bonding0,member=05:08.1=1", "has 1 members"),
        ("net_bonding0=1", "has 0 members"),
        ("net_bonding0,mode=7,member=05:08.1,member=05:08.2=1", "mode '7' is not 0 to 6"),
        ("net_bonding0,slave=05:08.1,member=05:08.2=1", "neither mode=0..6 nor member=<device>"),
        ("net_bonding0,member=[net_tap0,iface=a,member=05:08.2=1", "square brackets do not match"),
        ("net_bonding0,member=05:08.1],member=05:08.2=1", "square brackets do not match"),
        ("net_bonding0,member=05:08.1,member=05:08.2=1 05:08.2=2", "0000:05:08.2 is given to relay 1 and to relay 2"),
    ],
)
def test_static_vfs_that_cannot_be(value: str, said: str, host: Host) -> None:
    (problem,) = problems(f"VIRTIOFWD_STATIC_VFS='{value}'", host)
    assert said in problem


@pytest.mark.parametrize(
    "value",
    [
        "(1:1,2 5:2)",
        "'1:1,2;5:2'",
        "1:1,2;5:2",
        "'--virtio-cpu=1:1,2;--virtio-cpu=5:2'",
        "--virtio-cpu=1:1,2;--virtio-cpu=5:2",
        "'--virtio-cpu=1:1,2 --virtio-cpu=5:2'",
        "(--virtio-cpu=1:1,2\n--virtio-cpu=5:2)",
        "('1:1,2; 5:2,2')",
    ],
)
def test_cpu_pins(value: str, host: Host) -> None:
    config = loads(f"VIRTIOFWD_CPU_PINS={value}\n", "f", host=host)
    assert config.cpu_pins == {1: RelayCpus(vf_to_vm=1, vm_to_vf=2), 5: RelayCpus(2, 2)}
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1", "is not <relay>:<cpu>[,<cpu>]"),
        ("1:1,2,3", "is not <relay>:<cpu>[,<cpu>]"),
        ("64:1", "relays are 0 to 63"),
        ("1:3", "relay 1: CPU 3 is not one of VIRTIOFWD_CPU_MASK, 1,2"),
        ("1:1,0", "relay 1: CPU 0 is not one of VIRTIOFWD_CPU_MASK, 1,2"),
    ],
)
def test_cpu_pins_that_cannot_be(value: str, said: str, host: Host) -> None:
    (problem,) = problems(f"VIRTIOFWD_CPU_PINS={value}", host)
    assert said in problem and problem.startswith("/etc/conf:1: VIRTIOFWD_CPU_PINS")


def test_a_relay_pinned_twice_has_the_later_pin(host: Host) -> None:
    config = loads("VIRTIOFWD_CPU_PINS=(1:1 1:2)", "f", host=host)
    assert config.cpu_pins == {1: RelayCpus(2, 2)}
    assert "relay 1 is pinned twice: '1:2' is used" in config.warnings[0]


def test_all_problems_are_told_at_once_each_on_one_line(host: Host) -> None:
    text = "VIRTIOFWD_CPU_MASK=x\nVIRTIOFWD_LOG_LEVEL='a\nb'\nrubbish\nVIRTIOFWD_SOCKET_DIR=$HOME\nFOO=$BAR\n"
    said = problems(text, host, {"VIRTIOFWD_MASTER_LCORE": "99"})
    assert sorted(line.split(": ")[0] for line in said) == [
        "/etc/conf:1", "/etc/conf:2", "/etc/conf:4", "/etc/conf:5", "command line",
    ]  # fmt: skip
    assert "VIRTIOFWD_MASTER_LCORE (--master-lcore) '99': this machine has no CPU 99" in "\n".join(said)


def test_unknown_and_outdated_keys_are_warned_of(host: Host) -> None:
    config = loads("VIRTIOFWD_CPU_MAKS=1\nLANG=C\nVIRTIOFWD_BINARY=/x\n", "f", host=host)
    maks, lang, binary = config.warnings
    assert maks.startswith("f:1: ") and "did you mean VIRTIOFWD_CPU_MASK?" in maks
    assert lang.startswith("f:2: LANG is not a known key")
    assert binary.startswith("f:3: VIRTIOFWD_BINARY is ignored")


def test_keys_that_do_nothing_yet_are_warned_of(host: Host) -> None:
    text = "VIRTIOFWD_TSO=1\nVIRTIOFWD_ZERO_COPY=\nVIRTIOFWD_BIND_VFIO_PCI=eth0\n"
    assert loads(text, "f", {"VIRTIOFWD_CPU_NIC_SAME_NUMA": "true"}, host=host).warnings == tuple(
        f"VIRTIOFWD_{key} is set, but has no effect in this version"
        for key in ("CPU_NIC_SAME_NUMA", "BIND_VFIO_PCI", "TSO")
    )


def test_overrides_win_and_replace_lists(host: Host) -> None:
    config = loads(
        "VIRTIOFWD_LOG_LEVEL=3\nVIRTIOFWD_STATIC_VFS=(05:08.1=1)\nVIRTIOFWD_JUMBO=y\n",
        "f",
        {"VIRTIOFWD_LOG_LEVEL": "7", "VIRTIOFWD_STATIC_VFS": ("net_null0,size=60=2", "net_null1=3")},
        host=host,
    )
    assert config.log_level == 7 and config.jumbo
    assert [vf.relay for vf in config.static_vfs] == [2, 3]
    with pytest.raises(ConfigError, match="no such configuration key: NO_KEY"):
        loads("", "f", {"NO_KEY": ""}, host=host)


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("", PortControl.OVSDB),
        ("VIRTIOFWD_IPC_PORT_CONTROL=y", PortControl.COMMAND_FILE),
        ("VIRTIOFWD_ZMQ_PORT_CONTROL_EP=ipc:///run/x", PortControl.ZMQ),
        ("VIRTIOFWD_ZMQ_PORT_CONTROL_EP=ipc:///run/x\nVIRTIOFWD_IPC_PORT_CONTROL=y", PortControl.ZMQ),
        ("VIRTIOFWD_OVSDB_SOCK_PATH=", PortControl.NONE),
    ],
)
def test_port_control(text: str, control: PortControl, host: Host) -> None:
    config = loads(text, "f", host=host)
    assert config.port_control is control
    assert len(config.warnings) == (control is PortControl.ZMQ and config.ipc_port_control)


def test_core_scheduling_endpoint(host: Host) -> None:
    endpoint = "VIRTIOFWD_ZMQ_CORE_SCHED_EP=ipc:///run/cs\n"
    enable = "VIO4WD_CORE_SCHED_ENABLE=true\n"
    assert loads(endpoint, "f", host=host).core_sched_endpoint is None
    assert loads(enable, "f", host=host).core_sched_endpoint == "ipc:///var/run/virtio-forwarder/core_sched"
    assert loads(endpoint + enable, "f", host=host).core_sched_endpoint == "ipc:///run/cs"


def test_tcp_endpoints_need_keys(host: Host) -> None:
    text = "VIRTIOFWD_ZMQ_STATS_EP=tcp://*:5555\n"
    (problem,) = problems(text, host)
    assert "so it needs VIRTIOFWD_ZMQ_CURVE_SERVER_KEY and VIRTIOFWD_ZMQ_CURVE_CLIENT_KEYS" in problem
    keys = "VIRTIOFWD_ZMQ_CURVE_SERVER_KEY=/k/server\nVIRTIOFWD_ZMQ_CURVE_CLIENT_KEYS=/k/clients\n"
    assert loads(text + keys, "f", host=host).zmq_stats_ep == "tcp://*:5555"


@pytest.mark.parametrize("endpoint", ["ipc:///run/x", "tcp://*:5555"])
@pytest.mark.parametrize("half", ["SERVER_KEY", "CLIENT_KEYS"])
def test_half_of_the_curve_keys_is_an_error(half: str, endpoint: str, host: Host) -> None:
    (other,) = {"SERVER_KEY", "CLIENT_KEYS"} - {half}
    text = f"VIRTIOFWD_ZMQ_STATS_EP={endpoint}\nVIRTIOFWD_ZMQ_CURVE_{half}=/k\n"
    (problem,) = problems(text, host)
    assert problem.startswith(f"/etc/conf:2: VIRTIOFWD_ZMQ_CURVE_{half} '/k': ")
    assert f"without VIRTIOFWD_ZMQ_CURVE_{other}: set both or neither" in problem


def test_each_service_has_its_own_endpoint(host: Host) -> None:
    (problem,) = problems("VIRTIOFWD_ZMQ_STATS_EP=ipc:///x\nVIRTIOFWD_ZMQ_CONFIG_EP=ipc:///x\n", host)
    assert problem.startswith("/etc/conf:2: ") and "each service needs its own" in problem


def test_pid_file_is_in_a_directory_or_named(host: Host) -> None:
    assert load(None, host=host).pid_file == Path("/var/run/virtio-forwarder.pid")
    assert loads("VIRTIOFWD_PID_DIR=/run/v.pid", "f", host=host).pid_file == Path("/run/v.pid")


def test_files_that_cannot_be_read(tmp_path: Path, host: Host) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match=f"{path}: the configuration file cannot be read"):
            load(path, host=host)


def test_bytes_that_are_no_text_reach_paths_unharmed(tmp_path: Path, host: Host) -> None:
    file = tmp_path / "conf"
    file.write_bytes(b"# caf\xe9\nVIRTIOFWD_SOCKET_DIR=/tmp/caf\xe9\n")
    assert bytes(load(file, host=host).socket_dir) == b"/tmp/caf\xe9"


@pytest.mark.parametrize(("text", "cpus"), [("0", {0}), ("0-2,5\n", {0, 1, 2, 5}), ("\n", set())])
def test_cpu_list_of_the_kernel(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == cpus


def test_this_machine_is_a_host() -> None:
    here = Host.here()
    assert here.cpus and here.uid("root") == 0 and here.gid("root") == 0
    assert here.uid("no-such-user-here") is None and here.gid("no-such-group-here") is None


DEVICES = st.builds(
    Device,
    st.from_regex(r"\A(0000:[0-9a-f]{2}:0[0-9a-f]\.[0-7]|net_(tap|null)[0-9]{1,3})\Z"),
    st.sampled_from(["", "iface=veth0", "size=60,copy=0", "representor=[0-3]", "a='x'"]),
)
BONDS = st.builds(
    Bond,
    st.from_regex(r"\Anet_bonding[0-9A-Za-z_.-]{0,4}\Z"),
    st.lists(DEVICES, min_size=2, max_size=8, unique_by=lambda device: device.name).map(tuple),
    st.sampled_from(BondMode),
)
PATHS = st.text(st.characters(exclude_categories=("Z", "Cc", "Cs")), max_size=9).map(lambda name: Path("/" + name))
CPUS = st.integers(0, 15)


@st.composite
def configurations(draw: st.DrawFn) -> Config:
    cpus = draw(st.sets(CPUS, min_size=1))
    worker = st.sampled_from(sorted(cpus))
    attachments = draw(st.lists(st.one_of(DEVICES, BONDS), max_size=3))
    names = [name for it in attachments for name in [it.name, *(m.name for m in getattr(it, "members", ()))]]
    if len(set(names)) != len(names):
        attachments = attachments[:1]
    return Config(
        worker_cpus=tuple(sorted(cpus)),
        master_cpu=draw(CPUS),
        cpu_pins=draw(st.dictionaries(st.integers(0, 63), st.builds(RelayCpus, worker, worker), max_size=4)),
        static_vfs=tuple(StaticVf(relay, attachment) for relay, attachment in enumerate(attachments)),
        log_level=draw(st.integers(0, 7)),
        socket_dir=draw(PATHS),
        command_file=draw(PATHS),
        ovsdb_socket=draw(st.none() | PATHS),
        zmq_stats_ep=draw(st.none() | PATHS.map(lambda path: f"ipc://{path}")),
        socket_owner_account=draw(st.sampled_from([Account(), Account("qemu", 107), Account("77", 77)])),
        jumbo=draw(st.booleans()),
        core_sched_enabled=draw(st.booleans()),
        ring_engine=draw(st.sampled_from(RingEngine)),
        scheduler_sensitivity=draw(st.floats(0, 1)),
        bind_vfio_pci=(VfioBinding("eth0", 3), VfioBinding(PciAddress(0, 1, 2, 3))),
    )


@given(configurations())
def test_a_dumped_configuration_reads_back_the_same(config: Config) -> None:
    host = Host(frozenset(range(16)), {"qemu": 107}.get, {}.get)
    assert loads(dump(config), "dump", host=host) == config
