"""DPDK's environment abstraction layer: its start, its lcores, its end. Once in a process."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vio4wd.dpdk_ffi.errors import DpdkError, DpdkStartError
from vio4wd.dpdk_ffi.loader import Dpdk, load
from vio4wd.dpdk_ffi.log import LogLevel, LogStream

NO_DEVICE = "ffff:ff:1f.7"
"""A PCI address at which there is no device. Allowing only it keeps the EAL from probing any device when it starts.

``--no-pci`` would do that too, but the PCI bus then never scans again, and no device can be probed later. In allow-list
mode rte_dev_probe adds the device that it is given to the list and scans.
"""

_MAIN_LCORE = 0
_LCORE_WAITS = 0


@dataclass(frozen=True)
class EalOptions:
    """How the EAL starts.

    Attributes:
        main_cpu: CPU of the calling thread and of those that it starts later, DPDK's control threads included.
        worker_cpus: CPU of lcore 1, 2, ...; may have ``main_cpu`` in it too.
        file_prefix: names the process's hugepage files, unique on the host.
        huge_dir: the hugetlbfs mount to take pages from, only of its page size; files in it are unlinked at once.
            None takes pages of any size without a mount (--in-memory).
        memory_mb: hugepage memory to take at the start, in MiB; None takes pages as they are needed.
        log_level: what DPDK may log at most; DEBUG also turns on the debug messages of all of DPDK.
        vfio_vf_token: UUID that opens VFs of a PF that is itself bound to vfio-pci.
        iova_mode: "va" or "pa"; None lets DPDK choose.
        allow_pci: False switches the PCI bus off for good.
    """

    main_cpu: int
    worker_cpus: Sequence[int]
    file_prefix: str
    huge_dir: Path | None = None
    memory_mb: int | None = None
    log_level: LogLevel = LogLevel.INFO
    vfio_vf_token: str | None = None
    iova_mode: str | None = None
    allow_pci: bool = True

    def arguments(self, has_pci: bool) -> list[str]:
        """The EAL's command line, without the program's name; ``has_pci``: the PCI bus driver is loaded."""
        lcores = ",".join(f"{lcore}@{cpu}" for lcore, cpu in enumerate([self.main_cpu, *self.worker_cpus]))
        arguments = ["--lcores", lcores, "--main-lcore", str(_MAIN_LCORE), "--no-telemetry"]
        arguments += [f"--file-prefix={self.file_prefix}", f"--log-level={int(self.log_level)}"]
        if self.log_level is LogLevel.DEBUG:
            arguments.append(f"--log-level=*:{int(self.log_level)}")
        if self.huge_dir is None:
            arguments.append("--in-memory")
        else:
            arguments += ["--no-shconf", "--huge-unlink", f"--huge-dir={self.huge_dir}"]
        arguments += ["-a", NO_DEVICE] if self.allow_pci and has_pci else ["--no-pci"]
        if self.memory_mb is not None:
            arguments += ["-m", str(self.memory_mb)]
        if self.vfio_vf_token is not None:
            arguments.append(f"--vfio-vf-token={self.vfio_vf_token}")
        if self.iova_mode is not None:
            arguments.append(f"--iova-mode={self.iova_mode}")
        return arguments


class Eal:
    """The running EAL of this process.

    Attributes:
        dpdk: the libraries.
        log: DPDK's log stream.
        worker_lcores: CPU -> lcore.
        tsc_hz: cycles of the time stamp counter in a second.
    """

    def __init__(self, dpdk: Dpdk, options: EalOptions, log: LogStream) -> None:
        self.dpdk = dpdk
        self.log = log
        self.worker_lcores: Mapping[int, int] = {cpu: lcore for lcore, cpu in enumerate(options.worker_cpus, 1)}
        self.tsc_hz = int(dpdk.call("", "rte_get_tsc_hz"))

    @classmethod
    def init(cls, options: EalOptions) -> Eal:
        """Start the EAL; the calling thread becomes lcore 0 and is bound to ``options.main_cpu``.

        Raises:
            DpdkMissingError: DPDK is not installed or of an unsupported release.
            DpdkStartError: a CPU, the hugepages or an option cannot be used; the process cannot try again.
        """
        _check_cpus(options)
        _check_huge_dir(options.huge_dir)
        _check_token(options.vfio_vf_token)
        os.sched_setaffinity(0, {options.main_cpu})  # for threads that are made before the EAL binds this one
        dpdk = load()
        log = LogStream.open(dpdk)
        arguments = ["virtio-forwarder", *options.arguments("bus_pci" in dpdk.drivers)]
        vector = (ctypes.c_char_p * (len(arguments) + 1))(*(text.encode() for text in arguments), None)
        try:
            dpdk.call(options.file_prefix, "rte_eal_init", len(arguments), ctypes.cast(vector, ctypes.c_void_p))
        except DpdkError as error:
            raise DpdkStartError(error.errno, error.subject, error.reasons, _hint(options.huge_dir)) from None
        finally:
            _remove_runtime_dir(dpdk)
        return cls(dpdk, options, log)

    def launch(self, function: int, argument: int, lcore: int) -> None:
        """Run the C function ``int function(void *argument)`` on a worker lcore; both are addresses.

        Raises:
            DpdkError: EBUSY, the lcore runs something; EINVAL, it is no worker lcore.
        """
        if lcore not in self.worker_lcores.values():
            raise DpdkError("rte_eal_remote_launch", errno.EINVAL, f"lcore {lcore}")
        self.dpdk.call(f"lcore {lcore}", "rte_eal_remote_launch", function, argument, lcore)

    def wait(self, lcore: int) -> int:
        """Wait until the lcore's function has returned (at once where none runs); its result."""
        return int(self.dpdk.call(f"lcore {lcore}", "rte_eal_wait_lcore", lcore))

    def running(self, lcore: int) -> bool:
        """Whether the lcore runs a function, or has run one that was not waited for."""
        return int(self.dpdk.call(f"lcore {lcore}", "rte_eal_get_lcore_state", lcore)) != _LCORE_WAITS

    def cleanup(self) -> None:
        """End the EAL: remove all devices, give back the hugepages. Nothing of DPDK may be used afterwards.

        Raises:
            DpdkError: EBUSY, an lcore still runs; nothing was done then.
        """
        for lcore in self.worker_lcores.values():
            if self.running(lcore):
                raise DpdkError("rte_eal_cleanup", errno.EBUSY, f"lcore {lcore} still runs")
        try:
            self.dpdk.call("", "rte_eal_cleanup")
        finally:
            self.log.drain()


def _remove_runtime_dir(dpdk: Dpdk) -> None:
    """DPDK makes /run/dpdk/PREFIX for files that we keep it from making, and would leave it behind."""
    with contextlib.suppress(OSError):
        Path(dpdk.call("", "rte_eal_get_runtime_dir").decode()).rmdir()


def _check_cpus(options: EalOptions) -> None:
    """DPDK aborts the process where a thread cannot be bound to its CPU: try each one first."""
    cpus = [options.main_cpu, *options.worker_cpus]
    if len(set(options.worker_cpus)) != len(options.worker_cpus):
        raise DpdkStartError(
            errno.EINVAL, options.file_prefix, [f"worker CPUs {list(options.worker_cpus)} have one twice"]
        )
    before = os.sched_getaffinity(0)
    try:
        for cpu in cpus:
            try:
                os.sched_setaffinity(0, {cpu})
            except (OSError, ValueError, OverflowError):
                raise DpdkStartError(
                    errno.EINVAL,
                    options.file_prefix,
                    [f"CPU {cpu} does not exist, is offline, or is not in the process's cpuset"],
                    f"CPUs of this process: {sorted(before)}",
                ) from None
    finally:
        os.sched_setaffinity(0, before)


def _check_huge_dir(huge_dir: Path | None) -> None:
    if huge_dir is None:
        return
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    hugetlbfs = [mount[1] for mount in mounts if mount[2] == "hugetlbfs"]
    if str(huge_dir) not in hugetlbfs:
        raise DpdkStartError(
            errno.ENOENT,
            str(huge_dir),
            [f"{huge_dir} is not a hugetlbfs mount"],
            f"hugetlbfs is mounted at {', '.join(hugetlbfs)}"
            if hugetlbfs
            else f"mount it: mount -t hugetlbfs -o pagesize=2M none {huge_dir}",
        )


def _check_token(token: str | None) -> None:
    try:
        uuid.UUID(token or str(uuid.UUID(int=0)))
    except ValueError:
        raise DpdkStartError(
            errno.EINVAL, "vfio-vf-token", [f"{token!r} is not a UUID"], "it is the one given to vfio-pci with the PF"
        ) from None


def _hint(huge_dir: Path | None) -> str:
    """What an operator can do where the EAL does not start: today that is hugepages and permissions."""
    pools = sorted(Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"))
    if huge_dir is not None:
        page_kb = os.statvfs(huge_dir).f_bsize // 1024
        pools = [pool for pool in pools if pool.name == f"hugepages-{page_kb}kB"]
    if not any(int((pool / "free_hugepages").read_text()) for pool in pools):
        names = " or ".join(str(pool / "nr_hugepages") for pool in pools)
        return f"no hugepage is free: reserve some with echo NUMBER > {names}"
    return "" if os.geteuid() == 0 else "not running as root: hugepages and devices may need it"
