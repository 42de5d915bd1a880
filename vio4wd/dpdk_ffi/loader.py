"""Finds DPDK's shared libraries, loads them, and calls their functions with errors as exceptions."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from vio4wd.dpdk_ffi.errors import DpdkError, DpdkMissingError
from vio4wd.dpdk_ffi.functions import LIBRARIES, Check, Signature
from vio4wd.dpdk_ffi.layouts import RELEASES, Layout, layout_of

LIBDIR_VARIABLE = "VIO4WD_DPDK_LIBDIR"
"""Environment variable: the only directory in which to look for DPDK's libraries."""

OPTIONAL_LIBRARIES = frozenset({"log", "net_bond"})

DRIVERS = (
    "bus_vdev",
    "bus_pci",
    "bus_auxiliary",
    "bus_vmbus",
    "mempool_ring",
    *(f"net_{name}" for name in ("af_packet", "af_xdp", "failsafe", "memif", "null", "pcap", "ring", "tap", "virtio")),
    *(f"net_{name}" for name in ("bnxt", "cxgbe", "e1000", "ena", "enic", "fm10k", "gve", "hns3", "i40e", "iavf")),
    *(f"net_{name}" for name in ("ice", "igc", "ionic", "ixgbe", "mana", "mlx4", "mlx5", "netvsc", "nfp", "qede")),
    *(f"net_{name}" for name in ("r8169", "sfc", "txgbe", "vmxnet3", "zxdh")),
)
"""Bus, mempool and port drivers that are loaded where they exist, before the EAL starts.

Buses and hardware drivers must be known when the EAL starts: it scans and sizes by them. All of these take 25 ms
with warm caches; a distribution's EAL then loads its own plug-in directory besides (RTE_EAL_PMD_PATH, not to be
switched off; 55 ms for the 128 plug-ins of Debian 12), in which these are found loaded already.
"""

_RTLD_DL_SYMENT = 1


class ErrorLog(Protocol):
    """Where the errors that DPDK logs are collected, so that a failed call can tell its reason."""

    def mark(self) -> int:
        """A position in the stream of log lines."""

    def errors_since(self, mark: int) -> list[str]:
        """Lines of level error or worse since a position, oldest first; warnings where there are none."""


class _DlInfo(ctypes.Structure):
    """Dl_info of dlfcn.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("fname", "fbase", "sname", "saddr")]


class _ElfSymbol(ctypes.Structure):
    """Elf64_Sym of elf.h."""

    _fields_ = [
        ("name", ctypes.c_uint32),
        ("info", ctypes.c_uint8),
        ("other", ctypes.c_uint8),
        ("section", ctypes.c_uint16),
        ("value", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    ]


class Dpdk:
    """DPDK's loaded libraries. Use ``load`` to get one.

    Attributes:
        abi: the ABI's major number, as in the sonames.
        version: the text of rte_version().
        layout: struct layouts and constants of the ABI.
        directory: where the libraries lie.
        error_log: collects errors that DPDK logs; set by ``log.LogStream``.
    """

    def __init__(self, abi: int, directory: Path) -> None:
        self.abi = abi
        self.directory = directory
        self.layout: Layout = layout_of(abi)
        self.error_log: ErrorLog | None = None
        self._libraries: dict[str, ctypes.CDLL] = {}
        self._functions: dict[str, tuple[Any, Signature]] = {}
        for library in LIBRARIES:
            if library not in OPTIONAL_LIBRARIES or self._path(library).exists():
                self._load(library)
        for table in LIBRARIES.values():
            self._bind(table)
        self.drivers = tuple(driver for driver in DRIVERS if self._path(driver).exists())
        for driver in self.drivers:
            self._load(driver)
        self.version = self.call("", "rte_version").decode()

    def _path(self, library: str) -> Path:
        return self.directory / f"librte_{library}.so.{self.abi}"

    def _load(self, library: str) -> None:
        path = self._path(library)
        try:
            self._libraries[library] = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL | os.RTLD_NOW)
        except OSError as error:
            raise DpdkMissingError(
                f"DPDK library {path} cannot be loaded: {error}; install the package that has it "
                f"(Debian: librte-{library.replace('_', '-')}{self.abi})"
            ) from None

    def _bind(self, table: Mapping[str, Signature]) -> None:
        for name, signature in table.items():
            for library in self._libraries.values():
                function = getattr(library, name, None)
                if function is not None:
                    function.argtypes = signature.arguments
                    function.restype = signature.result
                    self._functions[name] = (function, signature)
                    break

    def has(self, function: str) -> bool:
        """Whether this release exports a function of the tables."""
        return function in self._functions

    def call(self, subject: str, function: str, *arguments: Any) -> Any:
        """Call a function of the tables in ``functions``.

        Args:
            subject: what the call is about, for the error: a port, a path, a mempool.
            function: its name.
            arguments: ctypes values, integers, bytes or None, as the table has it.

        Returns:
            What the function returns; null pointers are 0.

        Raises:
            DpdkError: the function failed, or this release does not have it (ENOSYS).
        """
        if function not in self._functions:
            raise DpdkError(function, errno.ENOSYS, subject, [f"not in DPDK {self.layout.release}"])
        entry, signature = self._functions[function]
        mark = self.error_log.mark() if self.error_log else 0
        if signature.check in (Check.MINUS_ONE, Check.NULL):
            self._rte_errno().value = 0
        result = entry(*arguments)
        error = self._error_of(signature.check, result)
        if error is not None:
            reasons = self.error_log.errors_since(mark) if self.error_log else []
            raise DpdkError(function, error, subject, reasons)
        return 0 if result is None else result

    def _error_of(self, check: Check, result: Any) -> int | None:
        """A positive errno (0: unknown) where the result says failure, else None."""
        if check is Check.NULL:
            return None if result else abs(self._rte_errno().value)
        if check is Check.NONE or result >= 0:
            return None
        if check is Check.NEGATIVE_ERRNO:
            return -result if result != -1 else 0  # drivers say -1 for "failed", hardly ever for EPERM
        return abs(self._rte_errno().value)

    def _rte_errno(self) -> ctypes.c_int:
        """The calling thread's rte_errno: dlsym of a thread-local symbol answers with that thread's copy."""
        return ctypes.c_int.in_dll(self._libraries["eal"], "per_lcore__rte_errno")

    def address(self, symbol: str) -> int:
        """The address of an exported function or variable.

        Raises:
            DpdkError: no library of this release exports it (ENOENT).
        """
        for library in self._libraries.values():
            try:
                return ctypes.addressof(ctypes.c_char.in_dll(library, symbol))
            except ValueError:
                continue
        raise DpdkError("dlsym", errno.ENOENT, symbol, [f"DPDK {self.layout.release} does not export it"])

    @functools.cached_property
    def max_ports(self) -> int:
        """Ports that one process can have, RTE_MAX_ETHPORTS of the library's build, from the size of its table."""
        return self._symbol_size("rte_eth_fp_ops") // self.layout.structs["rte_eth_fp_ops"].size

    def _symbol_size(self, symbol: str) -> int:
        info, entry = _DlInfo(), ctypes.POINTER(_ElfSymbol)()
        dladdr1 = ctypes.CDLL(None).dladdr1
        dladdr1.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        found = dladdr1(self.address(symbol), ctypes.byref(info), ctypes.byref(entry), _RTLD_DL_SYMENT)
        if not found or not entry:
            raise DpdkError("dladdr1", errno.ENOENT, symbol)
        return int(entry.contents.size)


def _directories() -> Iterator[Path]:
    """Where DPDK's libraries may lie, best first."""
    override = os.environ.get(LIBDIR_VARIABLE)
    if override:
        yield Path(override)
        return
    triplet = f"{platform.machine()}-linux-gnu"
    for prefix in ("/usr/local", "/usr", ""):
        for name in (f"lib/{triplet}", "lib64", "lib"):
            yield Path(f"{prefix}/{name}")


def _find() -> tuple[int, Path]:
    """The ABI and directory of the newest supported DPDK in the first directory that has one."""
    unsupported: list[str] = []
    directories = list(_directories())
    for directory in directories:
        found = {}
        for path in directory.glob("librte_eal.so.*"):
            match = re.fullmatch(r"librte_eal\.so\.(\d+)", path.name)
            if match:
                found[int(match[1])] = path
        supported = RELEASES.keys() & found.keys()
        if supported:
            return max(supported), directory
        unsupported += map(str, found.values())
    releases = ", ".join(f"{release} (ABI {abi})" for abi, release in RELEASES.items())
    if unsupported:
        raise DpdkMissingError(f"DPDK of an unsupported release: {', '.join(unsupported)}; supported: {releases}")
    raise DpdkMissingError(
        f"DPDK is not installed: no librte_eal.so in {', '.join(map(str, directories))}; install DPDK {releases} "
        f"(Debian: apt-get install dpdk), or set {LIBDIR_VARIABLE} to the directory that has it"
    )


@functools.cache
def load() -> Dpdk:
    """Find and load DPDK, once in a process.

    Raises:
        DpdkMissingError: not installed, incomplete, or not of a supported release.
    """
    abi, directory = _find()
    return Dpdk(abi, directory)
