"""Daemons, clients, front ends and network interfaces for the tests of port control against the real daemon."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from control.control_client import Client
from harness.daemon import Daemon
from harness.netns import VethPair

# The tests of the services that are run here as well find their aids by plain names.
sys.path.append(str(Path(__file__).parent.parent / "portctl"))


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a short path, since those of unix sockets are limited."""
    directory = Path(tempfile.mkdtemp(prefix="v4c"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons that end, cleanly and without an unexpected error in their logs, with the test."""
    started: list[Daemon] = []

    def start(directory: Path = tmp_path, **settings: str) -> Daemon:
        started.append(Daemon(directory, **settings))
        return started[-1]

    yield start
    statuses = [daemon.stop() for daemon in started]
    assert statuses == [0] * len(started)
    assert not any("Traceback" in daemon.child.log for daemon in started)


@pytest.fixture
def client_of() -> Iterator[Callable[..., Client]]:
    """Makes clients that are closed with the test."""
    made: list[Client] = []

    def make(daemon: Daemon, **options: object) -> Client:
        made.append(Client(daemon, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def veth() -> Iterator[Callable[[], VethPair]]:
    """Makes veth pairs that are removed with the test."""
    made: list[VethPair] = []

    def make() -> VethPair:
        made.append(VethPair())
        return made[-1]

    yield make
    for pair in made:
        pair.remove()
