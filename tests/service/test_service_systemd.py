"""The installed service under a real systemd: install, configure with sed, start, use, reload, crash, uninstall."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine, wait_until

from harness.debian_root import CHECKOUT

pytestmark = [pytest.mark.dpdk, pytest.mark.slow, pytest.mark.timeout(600)]

UNIT = "virtio-forwarder"
BALANCER = "vio4wd_core_scheduler"
TOOLS = "/usr/lib64/virtio-forwarder"
CONFIG = "/etc/default/virtioforwarder"
ENDPOINTS = "ipc:///var/run/virtio-forwarder"


def set_key(machine: Machine, key: str, value: str) -> None:
    """Change one line of the configuration as field scripts do."""
    machine.run("sed", "-i", f"s|^#*{key}=.*|{key}={value}|", CONFIG)
    machine.run("grep", "-qxF", f"{key}={value}", CONFIG)


def show_stats(machine: Machine) -> set[str]:
    """What the installed stats tool prints, by line."""
    return set(machine.run(f"{TOOLS}/virtioforwarder_stats.py", "--delay=10", "--include-inactive").stdout.splitlines())


def free_hugepages() -> int:
    """Free 2 MiB hugepages of the host, which the machine shares."""
    return int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())


@pytest.fixture(scope="module")
def configured(installed: Machine) -> Machine:
    """The machine with a configuration that its hardware can serve."""
    cpus = sorted(os.sched_getaffinity(0))
    set_key(installed, "VIRTIOFWD_CPU_MASK", str(cpus[-1]))
    set_key(installed, "VIRTIOFWD_SOCKET_OWNER", "")
    set_key(installed, "VIRTIOFWD_SOCKET_GROUP", "")
    set_key(installed, "VIRTIOFWD_HUGETLBFS_MOUNT_POINT", "/dev/hugepages")
    set_key(installed, "VIRTIOFWD_ZMQ_PORT_CONTROL_EP", f"{ENDPOINTS}/port_control")
    set_key(installed, "VIRTIOFWD_ZMQ_STATS_EP", f"{ENDPOINTS}/stats")
    return installed


@pytest.fixture
def running(configured: Machine) -> Iterator[Machine]:
    """The machine with the service freshly started; stopped after the test."""
    configured.run("systemctl", "reset-failed")
    configured.run("systemctl", "start", UNIT)
    yield configured
    configured.run("systemctl", "stop", UNIT)


def test_everything_is_in_its_place(installed: Machine) -> None:
    for path in (
        "/usr/bin/virtio-forwarder",
        f"{TOOLS}/virtioforwarder_port_control.py",
        f"{TOOLS}/virtioforwarder_stats.py",
        f"{TOOLS}/virtioforwarder_core_pinner.py",
        f"{TOOLS}/virtioforwarder_monitor_load.py",
        f"{TOOLS}/virtioforwarder_core_scheduler.py",
        "/usr/lib/virtio-forwarder/virtioforwarder_stats.py",
    ):
        installed.run("test", "-x", path)
    assert installed.run("find", "/usr/lib/virtio-forwarder", "-lname", f"{CHECKOUT}*").stdout == ""
    assert installed.run("grep", "-rlIF", str(CHECKOUT), "/usr/lib/virtio-forwarder", check=False).stdout == ""
    installed.run("cmp", CONFIG, str(CHECKOUT / "etc/default/virtioforwarder"))
    for page in ("man8/virtio-forwarder.8", "man5/virtioforwarder.5"):
        installed.run("cmp", f"/usr/share/man/{page}", str(CHECKOUT / "docs/man" / Path(page).name))
    installed.run("systemd-analyze", "verify", "--man=no", f"{UNIT}.service", f"{BALANCER}.service")
    installed.run("virtio-forwarder", "--help")


def test_an_edited_configuration_survives_an_update(installed: Machine) -> None:
    pristine = "/usr/lib/virtio-forwarder/virtioforwarder.default"
    saved = installed.run("cat", CONFIG).stdout
    installed.run("sh", "-c", f"echo '# an older version' >{pristine}; echo '# mine' >>{CONFIG}")
    said = installed.run(str(CHECKOUT / "scripts" / "install"), timeout=120).stdout
    assert f"{CONFIG}.new" in said
    assert installed.run("tail", "-n1", CONFIG).stdout == "# mine\n"
    installed.run("cmp", f"{CONFIG}.new", str(CHECKOUT / "etc/default/virtioforwarder"))
    installed.run("sh", "-c", f"rm {CONFIG}.new; sed -i '$d' {CONFIG}")
    assert installed.run("cat", CONFIG).stdout == saved


def test_start_add_a_vf_and_look_at_it(running: Machine) -> None:
    wait_until(lambda: "relays active" in running.unit_property(UNIT, "StatusText"), "the status text", 5)
    status = running.run("systemctl", "status", "--no-pager", UNIT).stdout
    assert "Active: active (running)" in status
    assert "Status: " in status
    assert "READY" in running.journal(UNIT)
    tool = f"{TOOLS}/virtioforwarder_port_control.py"
    added = running.run(tool, "add", "--virtio-id=1", "--devargs=net_null0", f"--zmq_ep={ENDPOINTS}/port_control")
    assert added.stdout == ""
    lines = show_stats(running)
    assert "relay_1.vf_to_vm.internal_state=DPDK_ADDED" in lines
    assert "net_null0" in running.journal(UNIT)
    running.run("test", "-S", "/tmp/virtio-forwarder/virtio-forwarder1.sock")
    running.run(tool, "remove", "--virtio-id=1", "--devargs=net_null0", f"--zmq_ep={ENDPOINTS}/port_control")


def test_start_is_quick_once_the_loop_is_compiled(configured: Machine) -> None:
    configured.run("systemctl", "start", UNIT)
    begun = time.monotonic()
    configured.run("systemctl", "restart", UNIT)
    taken = time.monotonic() - begun
    configured.run("systemctl", "stop", UNIT)
    assert taken < 6, f"a restart took {taken:.1f} s (stop in under 2 s, start in under 2 s on an idle machine)"


def test_reload_keeps_the_process(running: Machine) -> None:
    before = running.unit_property(UNIT, "MainPID")
    set_key(running, "VIRTIOFWD_LOG_LEVEL", "7")
    running.run("systemctl", "reload", UNIT)
    wait_until(lambda: "reload" in running.journal(UNIT).lower(), "the reload in the journal", 10)
    set_key(running, "VIRTIOFWD_LOG_LEVEL", "6")
    assert running.unit_property(UNIT, "MainPID") == before
    assert running.unit_property(UNIT, "ActiveState") == "active"
    assert show_stats(running)


def test_an_update_leaves_the_daemon_running(running: Machine) -> None:
    before = running.unit_property(UNIT, "MainPID")
    said = running.run(str(CHECKOUT / "scripts" / "install"), timeout=120).stdout
    assert f"systemctl restart {UNIT} puts the new version to use" in said
    assert running.unit_property(UNIT, "MainPID") == before
    assert show_stats(running)


def test_the_load_balancer_runs_beside_the_daemon(configured: Machine) -> None:
    """It starts the daemon with it, ends with it, and once enabled starts with it."""
    set_key(configured, "VIO4WD_CORE_SCHED_ENABLE", "true")
    set_key(configured, "VIO4WD_CORE_SCHED_POLL_INTERVAL", "0.5")
    configured.run("systemctl", "start", BALANCER)
    for unit in (BALANCER, UNIT):
        assert configured.unit_property(unit, "ActiveState") == "active"
    wait_until(lambda: "no relay moved" in configured.unit_property(BALANCER, "StatusText"), "the status text", 10)
    configured.run("systemctl", "stop", UNIT)
    assert configured.unit_property(BALANCER, "ActiveState") == "inactive"
    assert configured.unit_property(BALANCER, "Result") == "success"
    configured.run("systemctl", "enable", BALANCER)
    configured.run("systemctl", "start", UNIT)
    wait_until(lambda: configured.unit_property(BALANCER, "ActiveState") == "active", "its start with the daemon", 10)
    configured.run("systemctl", "disable", "--now", BALANCER)
    configured.run("systemctl", "stop", UNIT)
    assert "Traceback" not in configured.journal(BALANCER)
    set_key(configured, "VIO4WD_CORE_SCHED_ENABLE", "")
    set_key(configured, "VIO4WD_CORE_SCHED_POLL_INTERVAL", "5")


def test_a_killed_daemon_is_started_again(running: Machine) -> None:
    before = running.unit_property(UNIT, "MainPID")
    running.run("kill", "-KILL", before)
    wait_until(
        lambda: (
            running.unit_property(UNIT, "MainPID") not in (before, "0")
            and running.unit_property(UNIT, "ActiveState") == "active"
        ),
        "the restart by systemd",
    )
    assert running.unit_property(UNIT, "NRestarts") == "1"
    assert show_stats(running)


def test_stop_leaves_nothing(configured: Machine) -> None:
    free = free_hugepages()
    configured.run("systemctl", "start", UNIT)
    configured.run("systemctl", "stop", UNIT)
    assert configured.unit_property(UNIT, "Result") == "success"
    assert configured.unit_property(UNIT, "ActiveState") == "inactive"
    assert configured.run("pgrep", "-af", "virtio-forwarder|vio4wd", check=False).stdout == ""
    assert configured.run("find", "/tmp/virtio-forwarder", "-type", "s").stdout == ""
    wait_until(lambda: free_hugepages() >= free, "the return of all hugepages", 5)


def test_a_bad_value_is_one_clear_error(configured: Machine) -> None:
    set_key(configured, "VIRTIOFWD_LOG_LEVEL", "loud")
    begun = configured.run("date", "+%s").stdout.strip()
    failed = configured.run("systemctl", "start", UNIT, check=False)
    configured.run("systemctl", "stop", UNIT)
    configured.run("systemctl", "reset-failed")
    set_key(configured, "VIRTIOFWD_LOG_LEVEL", "6")
    assert failed.returncode == 1
    journal = configured.run("journalctl", "--output=cat", f"--unit={UNIT}", f"--since=@{begun}").stdout
    assert "VIRTIOFWD_LOG_LEVEL" in journal
    assert "Traceback" not in journal


def test_uninstall_takes_all_away_but_the_configuration(configured: Machine) -> None:
    configured.run("systemctl", "start", UNIT)
    configured.run(str(CHECKOUT / "scripts" / "uninstall"))
    assert configured.run("systemctl", "is-active", UNIT, check=False).stdout.strip() == "inactive"
    left = configured.run(
        "find", "/usr", "/var/cache", "/run", "-xdev", "-iname", "*virtio*forwarder*", "-o", "-name", "vio4wd*"
    ).stdout
    assert left == ""
    configured.run("test", "-e", CONFIG)
    configured.run(str(CHECKOUT / "scripts" / "uninstall"), "--purge")
    configured.run("test", "!", "-e", CONFIG)
