from __future__ import annotations

import functools
from pathlib import Path

import pytest
from dpdk_ffi_process import RunDpdk, run_in_process


@pytest.fixture
def run_dpdk(tmp_path: Path) -> RunDpdk:
    """``run_in_process`` with the test's scratch directory."""
    return functools.partial(run_in_process, tmp_path)
