from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from frontend import fd_count

sys.path.insert(0, str(Path(__file__).parent))

from broker_thread import BrokerThread, wait_until  # noqa: E402  (needs the path above)
from fake_back_end import FakeBackEnd  # noqa: E402


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="vu") as name:
        yield Path(name)


@pytest.fixture
def back() -> FakeBackEnd:
    return FakeBackEnd()


@pytest.fixture
def broker(back: FakeBackEnd, socket_dir: Path) -> Iterator[BrokerThread]:
    """A broker over ``back``; descriptors are counted before and after."""
    before = fd_count()
    thread = BrokerThread(back, socket_dir)
    try:
        yield thread
    finally:
        thread.stop()
    wait_until(lambda: fd_count() <= before, f"{before} descriptors were open before, {fd_count()} are now")
