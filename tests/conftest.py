"""What all tests share: the folder of tests on sys.path (``from frontend import FrontEnd``), daemons, front ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness.daemon import Daemon
from harness.process import Child
from harness.scheduling import no_autogroups
from harness.testpmd import Testpmd

LOG_BYTES = 6000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the programs that it ran had to say."""
    report = yield
    if report.failed:
        for child in Child.running:
            report.sections.append((f"log of {child.log_path.name}, pid {child.pid}", child.log[-LOG_BYTES:]))
    return report


@pytest.fixture(scope="session", autouse=True)
def fair_scheduling() -> Iterator[None]:
    """Poll loops leave the kernel its share of their CPU."""
    with no_autogroups():
        yield


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
def guest(tmp_path: Path) -> Iterator[Callable[..., Testpmd]]:
    """Starts testpmd front ends that end with the test."""
    started: list[Testpmd] = []

    def start(sock: Path, **options: object) -> Testpmd:
        started.append(Testpmd(sock, tmp_path, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for testpmd in started:
        testpmd.stop()
