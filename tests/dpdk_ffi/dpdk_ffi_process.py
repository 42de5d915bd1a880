"""Runs pieces of Python in processes of their own: DPDK's EAL starts once in a process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import logging, os, sys, threading, time
from pathlib import Path
from vio4wd.dpdk_ffi.bond import BondPort, XmitPolicy
from vio4wd.dpdk_ffi.eal import Eal, EalOptions
from vio4wd.dpdk_ffi.errors import DpdkError, DpdkMissingError, DpdkStartError
from vio4wd.dpdk_ffi.ethdev import EthPort, find_port, ports
from vio4wd.dpdk_ffi.loader import load
from vio4wd.dpdk_ffi.log import LogLevel, LogStream
from vio4wd.dpdk_ffi.mempool import Mempool
from vio4wd.dpdk_ffi.vhost import SERVER, VhostDevice, VhostDriver, VhostFlags
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
logging.getLogger("numba").setLevel(logging.WARNING)
CPUS = sorted(os.sched_getaffinity(0))
HUGE = Path("/dev/hugepages")

def options(**changes):
    given = dict(main_cpu=CPUS[0], worker_cpus=[CPUS[-1]], file_prefix=f"ffi{os.getpid()}", huge_dir=HUGE)
    return EalOptions(**given | changes)

def error_of(function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except (DpdkError, DpdkMissingError) as error:
        print("ERROR-OF", type(error).__name__, error)
        return error
    raise AssertionError(f"{function} did not fail")

def huge_kb():
    # hugepage memory that this process has mapped
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("HugetlbPages:"))

def fds():
    return len(os.listdir("/proc/self/fd"))
"""

RunDpdk = Callable[..., str]


def run_in_process(scratch: Path, source: str, **environment: str) -> str:
    """Run source after PRELUDE in a new process; its standard output. It must end with status 0.

    Nothing may be on standard error but the line with which DPDK says that it cannot start.
    """
    script = scratch / "scenario.py"
    script.write_text(PRELUDE + textwrap.dedent(source))
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "SCRATCH": str(scratch)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    strange = [line for line in done.stderr.splitlines() if not line.startswith("EAL: FATAL: ")]
    assert not [line for line in strange if line], done.stderr
    return done.stdout
