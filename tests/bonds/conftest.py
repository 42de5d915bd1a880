from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bond_wires import Wires

from harness.daemon import Daemon
from harness.testpmd import Testpmd


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests of a module; each test uses relays of its own and leaves them empty."""
    daemon = Daemon(tmp_path_factory.mktemp("daemon"))
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of the test's own."""
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.stop()


@pytest.fixture
def wires() -> Iterator[Wires]:
    """Two veth pairs."""
    made = Wires()
    yield made
    made.remove()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Callable[..., Testpmd]]:
    """Starts testpmd front ends that end with the test."""
    started: list[Testpmd] = []

    def start(sock: Path, **options: object) -> Testpmd:
        started.append(Testpmd(sock, tmp_path, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for testpmd in started:
        testpmd.stop()
