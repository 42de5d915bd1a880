from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qemu_line import Line

from harness.daemon import Daemon
from harness.guest_image import GuestImage, ImageUnavailable, guest_image
from harness.qemu import LinuxGuest, Nic
from harness.wire import Wire


@pytest.fixture(scope="session")
def image() -> GuestImage:
    try:
        return guest_image()
    except ImageUnavailable as reason:
        pytest.skip(f"no Linux guest can be made here: {reason}")


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.remove()


@pytest.fixture
def start_guest(image: GuestImage, tmp_path: Path) -> Iterator[Callable[..., LinuxGuest]]:
    """Starts guests that end with the test."""
    started: list[LinuxGuest] = []

    def start(*nics: Nic, incoming: Path | None = None) -> LinuxGuest:
        started.append(LinuxGuest(image, tmp_path, *nics, incoming=incoming))
        return started[-1]

    yield start
    for guest in started:
        guest.stop()


@pytest.fixture(scope="module", params=["library", "direct"])
def line(request: pytest.FixtureRequest, image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """One guest for a module's tests, for each engine; each test leaves it reachable."""
    directory: Path = tmp_path_factory.mktemp("line")
    wire = Wire()
    daemon = Daemon(directory, VIRTIOFWD_RING_ENGINE=str(request.param))
    try:
        daemon.add(0, wire.devargs)
        line = Line(daemon, wire, LinuxGuest(image, directory, Nic(daemon.socket(0))))
        try:
            wire.configure(line.guest)
            yield line
        finally:
            line.guest.stop()
        assert daemon.stop() == 0
    finally:
        daemon.stop()
        wire.remove()
