from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.daemon import Daemon
from harness.guest_image import GuestImage, ImageUnavailable, guest_image
from harness.qemu import LinuxGuest
from harness.wire import Wire


@pytest.fixture(scope="session")
def image() -> GuestImage:
    try:
        return guest_image()
    except ImageUnavailable as reason:
        pytest.skip(f"no Linux guest can be made here: {reason}")


@pytest.fixture(params=["library", "direct"])
def engine(request: pytest.FixtureRequest) -> str:
    """What works the guests' rings, as VIRTIOFWD_RING_ENGINE."""
    return str(request.param)


@pytest.fixture
def daemon(tmp_path: Path, engine: str) -> Iterator[Daemon]:
    """A daemon of the test's own."""
    daemon = Daemon(tmp_path, VIRTIOFWD_RING_ENGINE=engine)
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.remove()


@pytest.fixture
def start_guest(image: GuestImage, tmp_path: Path) -> Iterator[Callable[..., LinuxGuest]]:
    """Starts guests that end with the test."""
    started: list[LinuxGuest] = []

    def start(*nics: object, **options: object) -> LinuxGuest:
        started.append(LinuxGuest(image, tmp_path, *nics, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for guest in started:
        guest.stop()
