"""ovsdb-server for the tests of the OVSDB monitor."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from portctl_ovsdb.ovsdb_servers import SCHEMA, OvsdbServer


@pytest.fixture
def server() -> Iterator[OvsdbServer]:
    """A database without a server; tests start it. In /tmp, as socket paths must be short."""
    if shutil.which("ovsdb-server") is None or not SCHEMA.exists():
        pytest.skip("Open vSwitch is not installed (package openvswitch-switch)")
    directory = Path(tempfile.mkdtemp(prefix="vio4wd-ovsdb-"))
    ovsdb = OvsdbServer(directory)
    try:
        yield ovsdb
    finally:
        ovsdb.kill()
        shutil.rmtree(directory)
