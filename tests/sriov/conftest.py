"""The machine with SR-IOV, its VFs ready for DPDK, and a daemon in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from sriov_machine import SriovMachine

from harness.debian_root import MachineUnavailable
from harness.guest_image import ImageUnavailable


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SriovMachine]:
    """The booted machine; four VFs, of which the kernel's driver has none yet."""
    try:
        machine = SriovMachine(tmp_path_factory.mktemp("sriov"))
    except (MachineUnavailable, ImageUnavailable) as reason:
        pytest.skip(f"no machine with SR-IOV can be made here: {reason}")
    yield machine
    machine.stop()
