from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dpdk_ffi_process import RunDpdk

pytestmark = pytest.mark.dpdk


def test_start_and_end(run_dpdk: RunDpdk) -> None:
    """The lcores are where they were asked for, nothing is left behind."""
    output = run_dpdk(
        """
        def signals():
            lines = Path("/proc/self/status").read_text().splitlines()
            masks = [line.split()[1] for line in lines if line.startswith(("SigBlk", "SigIgn", "SigCgt"))]
            return [int(mask, 16) & 0x7FFFFFFF for mask in masks]  # those above are the C library's own
        before = signals()
        eal = Eal.init(options())
        assert signals() == before
        assert eal.worker_lcores == {CPUS[-1]: 1}
        assert 10**8 < eal.tsc_hz < 10**11
        assert os.sched_getaffinity(0) == {CPUS[0]}
        threads = {Path(f"/proc/self/task/{t}/comm").read_text().strip(): int(t) for t in os.listdir("/proc/self/task")}
        worker = [tid for name, tid in threads.items() if "worker" in name]
        assert [os.sched_getaffinity(tid) for tid in worker] == [{CPUS[-1]}], threads
        assert not list(HUGE.glob(f"ffi{os.getpid()}*"))
        assert not Path(f"/run/dpdk/ffi{os.getpid()}").exists()
        pool = Mempool.create("pool", 2047)
        assert huge_kb() >= 4096
        pool.free()
        eal.cleanup()
        assert huge_kb() == 0
        print("ended")
        """
    )
    assert output.splitlines()[-1] == "ended"
    assert "INFO dpdk.lib.eal EAL: " in output


def test_in_memory_needs_no_mount(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        eal = Eal.init(options(huge_dir=None, memory_mb=16))
        assert Mempool.create("pool", 1023).available() == 1023
        eal.cleanup()
        """
    )


def test_launch_runs_native_code_on_the_lcore(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        eal = Eal.init(options())
        eal.launch(eal.dpdk.address("sched_getcpu"), 0, 1)
        assert eal.wait(1) == CPUS[-1]
        assert not eal.running(1)
        eal.launch(eal.dpdk.address("usleep"), 300_000, 1)
        assert eal.running(1)
        assert error_of(eal.launch, eal.dpdk.address("usleep"), 1, 1).errno == 16
        assert error_of(eal.launch, eal.dpdk.address("usleep"), 1, 7).errno == 22
        error = error_of(eal.cleanup)
        assert error.errno == 16 and "lcore 1 still runs" in str(error)
        assert eal.wait(1) == 0
        eal.cleanup()
        """
    )


def test_many_lcores_may_share_the_main_cpu(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        eal = Eal.init(options(worker_cpus=CPUS))
        assert eal.worker_lcores == {cpu: lcore for lcore, cpu in enumerate(CPUS, 1)}
        for cpu, lcore in eal.worker_lcores.items():
            eal.launch(eal.dpdk.address("sched_getcpu"), 0, lcore)
            assert eal.wait(lcore) == cpu
        eal.cleanup()
        """
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param("main_cpu=4000", ["CPU 4000 does not exist", "CPUs of this process: [0"], id="main CPU"),
        pytest.param("worker_cpus=[1023]", ["CPU 1023 does not exist"], id="worker CPU"),
        pytest.param("worker_cpus=[CPUS[0], CPUS[0]]", ["have one twice"], id="CPU twice"),
        pytest.param("huge_dir=Path('/tmp')", ["/tmp is not a hugetlbfs mount", "/dev/hugepages"], id="no mount"),
        pytest.param("memory_mb=1_000_000", ["Not enough memory available"], id="too much memory"),
        pytest.param("vfio_vf_token='no-uuid'", ["'no-uuid' is not a UUID"], id="VF token"),
    ],
)
def test_what_keeps_it_from_starting_is_named(run_dpdk: RunDpdk, changes: str, words: list[str]) -> None:
    output = run_dpdk(
        f"""
        before = os.sched_getaffinity(0)
        error = error_of(Eal.init, options({changes}))
        assert isinstance(error, DpdkStartError)
        for word in {words!r}:
            assert word in str(error), word
        assert not Path(f"/run/dpdk/ffi{{os.getpid()}}").exists()
        """
    )
    assert "ERROR-OF DpdkStartError" in output


@pytest.fixture
def no_pages(tmp_path: Path) -> Iterator[Path]:
    """A hugetlbfs mount of a page size of which the kernel has no page."""
    pools = Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB")
    empty = [pool for pool in pools if (pool / "free_hugepages").read_text().strip() == "0"]
    if not empty:
        pytest.skip("the kernel has free pages of every size that it supports")
    mount = tmp_path / "huge"
    mount.mkdir()
    size = empty[0].name.removeprefix("hugepages-").removesuffix("kB")
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", f"pagesize={size}K", "none", str(mount)], check=True)
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_no_hugepages(run_dpdk: RunDpdk, no_pages: Path) -> None:
    run_dpdk(
        f"""
        error = error_of(Eal.init, options(huge_dir=Path({str(no_pages)!r})))
        assert isinstance(error, DpdkStartError)
        assert "no hugepage is free: reserve some with echo NUMBER > /sys/kernel/mm/hugepages/" in str(error)
        """
    )


@pytest.fixture
def gigabyte_page() -> Iterator[Path]:
    """The kernel's file that tells the free pages of 1 GiB, of which there is one at least."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-1048576kB")
    if not pool.exists():
        pytest.skip("the kernel has no pages of 1 GiB")
    reserved = int((pool / "nr_hugepages").read_text())
    (pool / "nr_hugepages").write_text(str(reserved + 1))
    try:
        if int((pool / "nr_hugepages").read_text()) == reserved:
            pytest.skip("no page of 1 GiB can be reserved")
        yield pool / "free_hugepages"
    finally:
        (pool / "nr_hugepages").write_text(str(reserved))


def test_only_pages_of_the_given_mount_are_taken(run_dpdk: RunDpdk, gigabyte_page: Path) -> None:
    """Pages of 1 GiB belong to the VMs."""
    free = gigabyte_page.read_text()
    run_dpdk(
        f"""
        eal = Eal.init(options(memory_mb=8))
        pool = Mempool.create("pool", 8191)
        assert Path({str(gigabyte_page)!r}).read_text() == {free!r}
        eal.cleanup()
        """
    )


def test_log_lines_carry_type_and_level(run_dpdk: RunDpdk) -> None:
    output = run_dpdk(
        """
        eal = Eal.init(options(log_level=LogLevel.NOTICE))
        error_of(EthPort.probe, "net_null0,nonsense=1")
        eal.cleanup()
        """
    )
    lines = output.splitlines()
    assert any(line.startswith("ERROR dpdk.lib.eal EAL: ") for line in lines), output
    assert not any(line.startswith(("INFO dpdk", "DEBUG dpdk")) for line in lines), output


def test_debug_log(run_dpdk: RunDpdk) -> None:
    output = run_dpdk("Eal.init(options(log_level=LogLevel.DEBUG)).cleanup()")
    assert "DEBUG dpdk.lib.eal EAL: " in output


def test_a_flood_of_log_lines_is_cut_and_counted(run_dpdk: RunDpdk) -> None:
    """An lcore logs without end: it is not held up, what is left out is told, and the reader does not starve others."""
    output = run_dpdk(
        """
        import ctypes
        eal = Eal.init(options())
        log = ctypes.CDLL(None).rte_log
        log.argtypes = [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p]
        start = time.perf_counter()
        def flood():
            for number in range(25_000):
                log(4, 0, b"flood %d\\n", number)
        threads = [threading.Thread(target=flood) for _ in range(2)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert time.perf_counter() - start < 20
        time.sleep(1.1)
        log(4, 0, b"after it\\n")
        eal.log.drain()
        assert eal.log.mark() > 25_000, "stdio gives at most what both threads put into it since the last flush at once"
        print("LINES", flush=True)
        eal.cleanup()
        """
    )
    lines = output.splitlines()
    assert sum("flood " in line for line in lines) <= 25 * 1000
    assert any("messages of DPDK were left out" in line for line in lines)
    assert any(line.endswith("after it") for line in lines)


def test_logging_threads_do_not_lock_up_with_the_interpreter(run_dpdk: RunDpdk) -> None:
    """A native thread logs while this thread keeps the interpreter busy and asks for the errors in between."""
    run_dpdk(
        """
        eal = Eal.init(options())
        for turn in range(50):
            mark = eal.log.mark()
            eal.launch(eal.dpdk.address("rte_eth_dev_stop"), 999, 1)
            assert sum(range(20_000)) > 0
            eal.log.errors_since(mark)
            assert eal.wait(1) == -19
            assert "Invalid port_id=999" in eal.log.errors_since(mark)[0]
        eal.cleanup()
        """
    )
