"""The daemon's and its workers' lives: start, death, stop, reload, and hosts that it cannot run on."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from frontend import FrontEnd
from harness.daemon import ROOT, Daemon
from harness.process import wait_for
from harness.testpmd import Testpmd
from vio4wd.daemon.host import PidFile
from vio4wd.errors import StartupError

pytestmark = pytest.mark.dpdk


def hugepages_kb(pid: int) -> int:
    """Hugepage memory that a process has mapped."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "_Hugetlb:" in line)


def test_one_relay_takes_little_memory(daemon: Daemon) -> None:
    daemon.settled_workers()
    before = {process.pid: hugepages_kb(process.pid) for process in daemon.workers()}
    daemon.add(0, "net_null0")
    used = max(hugepages_kb(process.pid) - before[process.pid] for process in daemon.workers())
    assert 0 < used < 12 * 1024
    assert psutil.Process(daemon.child.pid).memory_info().rss < 120e6


def packets_to_vf(daemon: Daemon, relay: int) -> int:
    return int(daemon.stats()[f"relay_{relay}.vm_to_vf.pkts_tx_to_vf"])


def test_sockets_of_all_relays_are_there(shared_daemon: Daemon) -> None:
    for relay in range(64):
        assert stat.S_ISSOCK(shared_daemon.socket(relay).stat().st_mode)
    assert len(list(shared_daemon.sockets.iterdir())) == 64


@pytest.mark.parametrize(("rings", "deaths"), [("", 3), ("packed_vq=1,in_order=0", 6)], ids=["split", "packed"])
def test_a_killed_worker_s_guest_goes_on(
    daemon: Daemon, guest: Callable[..., Testpmd], rings: str, deaths: int
) -> None:
    daemon.add(7, "net_null0,size=60,copy=0")
    testpmd = guest(daemon.socket(7), options=rings)
    testpmd.command("start", "io packet forwarding")
    daemon.wait_active(7)
    for round_ in range(deaths):
        daemon.settled_workers()
        before = packets_to_vf(daemon, 7)
        worker = daemon.workers()[0]
        worker.kill()
        wait_for(lambda before=before: packets_to_vf(daemon, 7) > before + 50_000, 10, f"traffic after death {round_}")
        seen = testpmd.counters()["RX-packets"]
        wait_for(lambda seen=seen: testpmd.counters()["RX-packets"] > seen, 10, "traffic at the front end")
    assert daemon.child.log.count("front end connected") == 1
    testpmd.stop()
    daemon.remove(7, "net_null0")


def test_front_end_that_leaves_while_no_worker_lives(daemon: Daemon) -> None:
    with FrontEnd(daemon.socket(3)) as vm:
        vm.handshake()
        vm.barrier()
        for process in reversed(daemon.settled_workers()):  # the spare one first, so that it cannot take over
            process.kill()
    with FrontEnd(daemon.socket(3), timeout=60) as vm:
        vm.handshake()
        vm.barrier()


def test_front_end_that_workers_die_of_is_cut_off(daemon: Daemon) -> None:
    """Here they die by a signal, each as soon as it has been given the session; another guest's session goes on."""
    culprit, other = 4, 5
    with FrontEnd(daemon.socket(culprit)) as vm, FrontEnd(daemon.socket(other)) as innocent:
        for front in (vm, innocent):
            front.handshake()
            front.barrier()
        daemon.settled_workers()
        deadline = time.monotonic() + 90
        while not vm.wire.is_closed(0.01):
            assert time.monotonic() < deadline
            replays = daemon.child.log.count(f"relay {culprit}: session replayed")
            daemon.workers()[0].kill()
            wait_for(
                lambda n=replays: (
                    daemon.child.log.count(f"relay {culprit}: session replayed") > n or vm.wire.is_closed(0.01)
                ),
                60,
                "the next worker",
            )
        daemon.child.wait_for_log("workers in a row died at once with its session", 5)
        innocent.barrier()
    assert daemon.child.log.count("is cut off") == 1


def test_workers_end_with_the_supervisor(daemon: Daemon) -> None:
    workers = daemon.workers()
    assert workers
    daemon.child.process.kill()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


@pytest.mark.parametrize("state", ["idle", "vf", "guest", "traffic"])
def test_stop_is_clean_and_quick(daemon: Daemon, guest: Callable[..., Testpmd], state: str) -> None:
    if state != "idle":
        daemon.add(1, "net_null0,size=60,copy=0")
    if state in ("guest", "traffic"):
        testpmd = guest(daemon.socket(1))
        daemon.wait_active(1)
        if state == "traffic":
            testpmd.command("start", "io packet forwarding")
    daemon.settled_workers()
    workers = daemon.workers()
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 3  # of a worker that hangs; the usual time is the benchmark's matter
    assert "is killed" not in daemon.child.log
    assert not any(process.is_running() for process in workers)
    assert not list(daemon.sockets.iterdir())
    assert not (daemon.directory / "virtio-forwarder.pid").exists()
    assert all(not (daemon.directory / name).exists() for name in ("config", "stats", "port_control"))


@pytest.mark.parametrize("hung", [(0,), (1,), (0, 1)], ids=["worker", "spare", "both"])
def test_stop_is_quick_where_workers_hang(daemon: Daemon, hung: tuple[int, ...]) -> None:
    """Also with a guest, a request that waits for the worker, and a spare that is just being started."""
    daemon.add(1, "net_ring1")
    workers = daemon.settled_workers()
    with FrontEnd(daemon.socket(1)) as vm:
        vm.handshake()
        vm.barrier()
        for number in hung:
            workers[number].send_signal(signal.SIGSTOP)
        request = threading.Thread(target=daemon.port_control, args=("add", "--virtio-id=2", "--devargs=net_null2"))
        request.start()
        time.sleep(0.5)
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 3
        request.join()
    assert not any(process.is_running() for process in workers)
    assert "Traceback" not in daemon.child.log


def test_stop_is_quick_where_a_worker_hangs_in_its_start(daemon: Daemon) -> None:
    workers = daemon.settled_workers()
    workers[1].kill()
    workers[0].kill()
    wait_for(lambda: any(worker not in workers for worker in daemon.workers()), 5, "a new worker process")
    (new,) = [worker for worker in daemon.workers() if worker not in workers]
    new.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < 3
    assert not new.is_running()


def test_add_and_remove_leave_nothing(daemon: Daemon) -> None:
    daemon.settled_workers()
    daemon.add(0, "net_null0")
    daemon.remove(0, "net_null0")
    worker = daemon.workers()[0]

    def footprint() -> tuple[int, int, int]:
        return psutil.Process(daemon.child.pid).num_fds(), worker.num_fds(), hugepages_kb(worker.pid)

    before = footprint()
    for number in range(20):
        daemon.add(number, f"net_null{number}")
        daemon.remove(number, f"net_null{number}")
    assert footprint() == before


def test_it_may_have_as_many_descriptors_as_its_host_allows(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, prefix=["sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh"])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = {resource.prlimit(process.pid, resource.RLIMIT_NOFILE) for process in (daemon.child, *daemon.workers())}
    assert daemon.stop() == 0
    assert limits == {(most, most)}


def test_sighup_reloads(daemon: Daemon) -> None:
    daemon.config.write_text(
        daemon.config.read_text()
        + "VIRTIOFWD_LOG_LEVEL=7\nVIRTIOFWD_STATIC_VFS=net_null9=9\nVIRTIOFWD_SOCKET_DIR=/nowhere\n"
    )
    daemon.child.process.send_signal(signal.SIGHUP)
    daemon.child.wait_for_log("relay 9: net_null9 added")
    daemon.child.wait_for_log("need a restart: VIRTIOFWD_SOCKET_DIR")
    daemon.config.write_text("VIRTIOFWD_CPU_MASK=nonsense\n")
    daemon.child.process.send_signal(signal.SIGHUP)
    daemon.child.wait_for_log("the configuration is not reloaded")
    assert daemon.stats()["relay_9.vf.pci_addr_str"] == "net_null9"


def test_a_second_daemon_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "virtio-forwarder", "--nodaemon", "--config", daemon.config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"another virtio-forwarder is running (PID file {tmp_path}/virtio-forwarder.pid" in done.stderr
    assert daemon.stats()["relay_0.id"] == "0"


@pytest.fixture
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The daemon's runtime directory, empty and root's."""
    directory = tmp_path / "runtime"
    directory.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(directory))
    return directory


def assert_refuses_to_run(daemon: Daemon, message: str) -> None:
    """A daemon ends with status 1, tells why in one line, and leaves nothing."""
    assert daemon.child.process.wait(60) == 1
    log = daemon.child.log
    daemon.stop()
    errors = [line for line in log.splitlines() if "ERROR" in line or "CRITICAL" in line or "EAL" in line]
    assert len(errors) == 1, log
    assert message in errors[0]
    assert "Traceback" not in log
    left = {path.name for path in daemon.directory.iterdir()} - {"libraries", "free_hugepages"}
    assert left == {"virtioforwarder", "daemon.log", "sockets", "runtime"}
    assert not list(daemon.sockets.iterdir())
    assert {path.name for path in (daemon.directory / "runtime").rglob("*")} <= {"dpdk"}  # DPDK's, empty
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if f"vio4wd-1-{daemon.child.pid}" in command]


@pytest.mark.usefixtures("runtime_directory")
@pytest.mark.parametrize(
    ("settings", "environment", "message"),
    [
        ({"VIRTIOFWD_SOCKET_DIR": "/nowhere/at/all"}, {}, "socket directory /nowhere/at/all: there is no directory"),
        ({"VIRTIOFWD_SOCKET_DIR": "/proc"}, {}, "/proc"),
        ({}, {"VIO4WD_DPDK_LIBDIR": "/nowhere"}, "/nowhere"),
    ],
)
def test_hosts_that_it_cannot_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert_refuses_to_run(Daemon(tmp_path, ready=False, **settings), message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"VIRTIOFWD_CPU_MASK": "977"}, "977"),
        ({"VIRTIOFWD_ZMQ_STATS_EP": "tcp://127.0.0.1:5555"}, "CURVE"),
    ],
)
def test_configurations_that_it_cannot_run_with(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    daemon = Daemon(tmp_path, ready=False, **settings)
    assert daemon.child.process.wait(60) == 1
    assert message in daemon.child.log
    assert "Traceback" not in daemon.child.log
    daemon.stop()


@pytest.mark.usefixtures("runtime_directory")
def test_dpdk_of_another_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libraries" / "librte_eal.so.22"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setenv("VIO4WD_DPDK_LIBDIR", str(library.parent))
    daemon = Daemon(tmp_path, ready=False)
    assert_refuses_to_run(daemon, f"DPDK of an unsupported release: {library}; supported: ")


@pytest.mark.usefixtures("runtime_directory")
def test_no_free_hugepages(tmp_path: Path) -> None:
    """The daemon is shown a kernel's file that says so; other programs need their pages."""
    count = tmp_path / "free_hugepages"
    count.write_text("0\n")
    shown = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"
    prefix = ["unshare", "--mount", "sh", "-c", f'mount --bind "{count}" {shown} && exec "$@"', "sh"]
    assert_refuses_to_run(Daemon(tmp_path, ready=False, prefix=prefix), "no free hugepages of 2048 kB: reserve some")


def test_without_root_it_says_so(tmp_path: Path, runtime_directory: Path) -> None:
    """Its own directories may be a user's; the one for private sockets is root's."""
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(0o755)
    os.chown(tmp_path, 65534, 65534)
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    os.chown(sockets, 65534, 65534)
    prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    daemon = Daemon(tmp_path, ready=False, prefix=prefix)
    message = f"cannot run here as uid 65534: [Errno 13] Permission denied: '{runtime_directory}/"
    assert_refuses_to_run(daemon, message)


def test_a_pid_file_that_cannot_be_written(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "small", tmp_path], check=True, timeout=10)
    try:
        (tmp_path / "filler").write_bytes(bytes(4096))
        with pytest.raises(StartupError, match=f"PID file {tmp_path}/pid: No space left on device"):
            PidFile(tmp_path / "pid")
        assert [path.name for path in tmp_path.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", tmp_path], check=True, timeout=10)


def test_a_pid_file_that_is_removed_before_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon that ended just then takes its file along; the next has one that others find, and removes no other."""
    path, lock = tmp_path / "pid", fcntl.flock
    ending = [PidFile(path)]

    def lock_later(descriptor: int, operation: int) -> None:
        if ending:
            ending.pop().remove()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_later)
    ours = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(StartupError, match=f"another virtio-forwarder is running .*{os.getpid()}"):
        PidFile(path)
    path.unlink()
    another = PidFile(path)
    ours.remove()
    assert path.exists()
    another.remove()
    assert not path.exists()


def start_in_background(directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the daemon's command without --nodaemon, in a directory, with its output read to the end through pipes."""
    (directory / "sockets").mkdir()
    defaults = {
        "VIRTIOFWD_PID_DIR": str(directory),
        "VIRTIOFWD_SOCKET_DIR": f"{directory}/sockets",
        "VIRTIOFWD_CPU_MASK": "0",
        "VIRTIOFWD_SOCKET_OWNER": "",
        "VIRTIOFWD_SOCKET_GROUP": "",
        "VIRTIOFWD_OVSDB_SOCK_PATH": "",
    }
    lines = [f"{key}={value}\n" for key, value in (defaults | settings).items()]
    (directory / "virtioforwarder").write_text("".join(lines))
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "virtio-forwarder", "--config", "virtioforwarder"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=directory, timeout=60, check=False,
    )  # fmt: skip


def test_the_background_daemon_answers_when_ready(tmp_path: Path) -> None:
    """Without --nodaemon the command returns when the daemon serves, and the PID file names the daemon.

    Neither the daemon nor a worker keeps the caller's directory, or its pipes, which would then not end.
    """
    pid_file = tmp_path / "virtio-forwarder.pid"
    try:
        done = start_in_background(tmp_path)
        assert done.returncode == 0, done.stderr
        daemon = psutil.Process(int(pid_file.read_text()))
        assert len(list((tmp_path / "sockets").iterdir())) == 64
        for process in (daemon, *daemon.children()):
            assert process.cwd() == "/"
            streams = [Path(f"/proc/{process.pid}/fd/{stream}").readlink() for stream in (0, 1, 2)]
            assert streams == [Path(os.devnull)] * 3
    finally:
        if pid_file.exists():
            daemon = psutil.Process(int(pid_file.read_text()))
            daemon.terminate()
            daemon.wait(10)


def test_the_background_daemon_tells_why_it_cannot_start(tmp_path: Path) -> None:
    done = start_in_background(tmp_path, VIRTIOFWD_SOCKET_DIR="/nowhere/at/all")
    assert done.returncode == 1
    assert done.stderr.count("socket directory /nowhere/at/all: there is no directory") == 1
    assert not (tmp_path / "virtio-forwarder.pid").exists()
