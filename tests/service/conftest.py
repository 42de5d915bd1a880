"""A machine with systemd on which scripts/install has been run, for the tests of the service."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from machine import Machine, booted_machine

from harness.debian_root import CHECKOUT, MachineUnavailable


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A booted machine with virtio-forwarder installed and not yet started."""
    try:
        with booted_machine(tmp_path_factory.mktemp("machine") / "console.log") as machine:
            machine.run(str(CHECKOUT / "scripts" / "install"), timeout=120)
            yield machine
    except MachineUnavailable as reason:
        pytest.skip(f"no machine with systemd can be made here: {reason}")
