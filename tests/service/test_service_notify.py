"""The service notifier against a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vio4wd.errors import StartupError
from vio4wd.notify import ServiceNotifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A stand-in for the manager's end: its NOTIFY_SOCKET value and its socket."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@vio4wd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(5)
        receiver.bind("\0" + address[1:] if address[0] == "@" else address)
        yield address, receiver


def test_messages_reach_the_manager(manager: tuple[str, socket.socket]) -> None:
    address, receiver = manager
    with ServiceNotifier.from_environment({"NOTIFY_SOCKET": address}) as notifier:
        notifier.ready("64 relays")
        assert receiver.recv(1000).decode().split("\n") == ["READY=1", f"MAINPID={os.getpid()}", "STATUS=64 relays"]
        notifier.reloading()
        assert receiver.recv(1000) == b"RELOADING=1"
        notifier.status("two\nlines")
        assert receiver.recv(1000) == b"STATUS=two lines"
        notifier.watchdog()
        assert receiver.recv(1000) == b"WATCHDOG=1"
        notifier.stopping()
        assert receiver.recv(1000) == b"STOPPING=1"


def test_without_a_manager_nothing_happens() -> None:
    with ServiceNotifier.from_environment({"WATCHDOG_USEC": "1000"}) as notifier:
        notifier.ready()
        notifier.stopping()
        assert notifier.watchdog_interval_s is None


def test_a_manager_that_went_away_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ServiceNotifier(str(tmp_path / "gone")) as notifier:
        notifier.status("still here")
    assert "cannot reach the service manager" in caplog.text


def test_an_address_that_is_no_socket_is_refused() -> None:
    with pytest.raises(StartupError, match="NOTIFY_SOCKET is 'vsock:2:1'"):
        ServiceNotifier("vsock:2:1")


@pytest.mark.parametrize(
    ("pid", "usec", "interval"),
    [(None, "3000000", 1.5), (str(os.getpid()), "10000000", 5.0), ("1", "3000000", None), (None, "soon", None)],
)
def test_watchdog_interval(tmp_path: Path, pid: str | None, usec: str, interval: float | None) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": usec}
    if pid is not None:
        environment["WATCHDOG_PID"] = pid
    with ServiceNotifier.from_environment(environment) as notifier:
        assert notifier.watchdog_interval_s == interval
