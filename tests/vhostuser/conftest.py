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


def open_files() -> list[str]:
    """What all descriptors of this process are."""
    return [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]


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
    try:
        wait_until(lambda: fd_count() <= before, f"only the {before} descriptors of before are open")
    except AssertionError as error:
        raise AssertionError(f"{error}: {open_files()}") from None
