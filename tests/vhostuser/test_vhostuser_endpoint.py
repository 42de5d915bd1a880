"""Socket paths: ownership, stale sockets, and paths that cannot be used."""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from broker_thread import BrokerThread, wait_until
from fake_back_end import FakeBackEnd

from frontend import FrontEnd, Wire
from frontend.wire import listen as listen_as_vm
from vio4wd.vhostuser import Broker, Endpoint, EndpointError, SocketMode
from vio4wd.vhostuser import broker as broker_module
from vio4wd.vhostuser.endpoint import connect, listen
from vio4wd.vhostuser.requests import Request


def refused(broker: BrokerThread, path: Path, words: str, **more: object) -> None:
    with pytest.raises(EndpointError, match=words) as caught:
        broker.call(broker.broker.open(0, Endpoint(path, **more)))  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
    assert broker.do(broker.broker.path, 0) is None


def test_owner_group_and_mode(broker: BrokerThread) -> None:
    path = broker.open(uid=12345, gid=54321)
    status = path.stat()
    assert (status.st_uid, status.st_gid) == (12345, 54321)
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert stat.S_IMODE((broker.directory / "private").stat().st_mode) == 0o700


def test_own_user_by_default(broker: BrokerThread) -> None:
    status = broker.open().stat()
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())


def test_stale_socket_is_replaced(broker: BrokerThread, socket_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_dir / "vm0.sock"))
    with FrontEnd(broker.open()) as vm:
        vm.handshake()


def test_socket_of_a_living_process_is_left_alone(broker: BrokerThread, socket_dir: Path) -> None:
    path = socket_dir / "taken.sock"
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen(1)
        refused(broker, path, "another process listens")
        assert path.is_socket()


def test_file_that_is_no_socket_is_left_alone(broker: BrokerThread, socket_dir: Path) -> None:
    path = socket_dir / "precious"
    path.write_text("data")
    refused(broker, path, "not a socket")
    assert path.read_text() == "data"
    link = socket_dir / "link"
    link.symlink_to(path)
    refused(broker, link, "not a socket")


@pytest.mark.parametrize("mode", SocketMode)
def test_unusable_paths(broker: BrokerThread, socket_dir: Path, mode: SocketMode) -> None:
    refused(broker, Path("relative.sock"), "must be absolute", mode=mode)
    refused(broker, socket_dir / ("x" * 108), "at most 107", mode=mode)
    refused(broker, socket_dir / "missing" / "vm.sock", "no directory", mode=mode)


def test_longest_and_unusual_paths(broker: BrokerThread, socket_dir: Path) -> None:
    room = 107 - len(str(socket_dir)) - 1
    for relay, name in enumerate(("x" * room, "sp ace,comma=%u", "ü\U0001f600", "new\nline", "-dash")):
        broker.call(broker.broker.open(relay, Endpoint(socket_dir / name)))
        with FrontEnd(socket_dir / name) as vm:
            vm.handshake()


def test_path_taken_by_another_relay(broker: BrokerThread) -> None:
    path = broker.open(1)
    refused(broker, path, "relay 1 has it")
    with pytest.raises(EndpointError, match="already has the socket"):
        broker.call(broker.broker.open(1, Endpoint(broker.directory / "other.sock")))


def test_removed_socket_of_somebody_else_stays(socket_dir: Path) -> None:
    path = socket_dir / "vm.sock"
    ours = listen(Endpoint(path))
    path.unlink()
    theirs = listen(Endpoint(path))
    ours.close()
    assert path.is_socket()
    theirs.close()
    assert not path.exists()


def test_long_private_directory(back: FakeBackEnd, socket_dir: Path) -> None:
    with pytest.raises(EndpointError, match="too long"):
        Broker(back, socket_dir / ("x" * 90))


def test_restarted_broker_replaces_its_sockets(back: FakeBackEnd, socket_dir: Path) -> None:
    for _ in range(2):
        back.dead = False
        thread = BrokerThread(back, socket_dir)
        try:
            wire = Wire.connect(thread.open())
            assert wire.ask(Request.GET_FEATURES).u64 == back.features
            wire.close()
        finally:
            thread.stop()
    assert list(socket_dir.iterdir()) == []


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing meanwhile."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_without_descriptors_paths_are_refused(broker: BrokerThread, socket_dir: Path) -> None:
    with no_descriptors():
        refused(broker, socket_dir / "vm.sock", "Too many open files")
        with pytest.raises(EndpointError, match="Too many open files"):
            connect(socket_dir / "vm.sock")


def serve_as_vm(path: Path) -> None:
    """Listen, and be a front end for the broker when it connects."""
    with listen_as_vm(path) as listener:
        sock, _ = listener.accept()
        with FrontEnd(sock=sock) as vm:
            vm.handshake()


def test_client_mode_goes_on_when_there_are_descriptors_again(
    broker: BrokerThread, caplog: pytest.LogCaptureFixture
) -> None:
    with no_descriptors():
        path = broker.open(mode=SocketMode.CLIENT)
        wait_until(lambda: "Too many open files; trying again" in caplog.text, "an attempt to connect")
    serve_as_vm(path)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("mode", SocketMode)
def test_what_nobody_expects_ends_no_socket(
    broker: BrokerThread, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: SocketMode
) -> None:
    """Awaiting front ends goes on after an error, and says so."""
    with monkeypatch.context() as patch:
        patch.setattr(broker_module, "connect", lambda path: 1 // 0)
        patch.setattr(broker_module._Port, "_is_free", lambda port: 1 // 0)
        path = broker.open(mode=mode)
        if mode is SocketMode.SERVER:
            wire = Wire.connect(path)
            assert wire.is_closed()
            wire.close()
        wait_until(lambda: "of relay 0 failed: ZeroDivisionError" in caplog.text, "an error in the log")
    if mode is SocketMode.CLIENT:
        serve_as_vm(path)
    else:
        with FrontEnd(path) as vm:
            vm.handshake()
