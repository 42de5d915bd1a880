"""Endpoints: which are allowed, what happens to the socket file, and who may connect."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
import zmq.auth

from vio4wd.errors import ConfigError, StartupError
from vio4wd.portctl.curve import CurveAuthority
from vio4wd.portctl.zmq_service import Service


class Echo:
    """Answers with what it is asked."""

    refusal = b"refused"

    async def __call__(self, request: bytes) -> bytes:
        return request


Scenario = Callable[[zmq.asyncio.Context], Awaitable[None]]


def run(scenario: Scenario) -> None:
    """Run a scenario in an event loop with a ZeroMQ context of its own."""

    async def whole() -> None:
        context = zmq.asyncio.Context()
        try:
            await asyncio.wait_for(scenario(context), 20)
        finally:
            context.destroy(linger=0)

    asyncio.run(whole())


async def ask(context: zmq.asyncio.Context, endpoint: str, request: bytes, timeout_s: float = 5) -> bytes:
    with context.socket(zmq.REQ) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.connect(endpoint)
        await client.send(request)
        return await asyncio.wait_for(client.recv(), timeout_s)


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_directory_and_socket_are_made_and_the_socket_removed(tmp_path: Path) -> None:
    path = tmp_path / "run" / "deeper" / "stats"
    group = os.getgid() if os.getuid() else 12345

    async def scenario(context: zmq.asyncio.Context) -> None:
        service = Service(f"ipc://{path}", Echo(), context=context, group_gid=group)
        await service.start()
        found = path.stat()
        assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o660
        assert (found.st_uid, found.st_gid) == (os.getuid(), group)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
        assert await ask(context, service.endpoint, b"hello") == b"hello"
        await service.stop()
        assert not path.exists()
        await service.stop()

    old = os.umask(0)
    try:
        run(scenario)
    finally:
        os.umask(old)


def test_a_directory_where_others_could_replace_the_socket_is_refused(tmp_path: Path) -> None:
    async def scenario(context: zmq.asyncio.Context) -> None:
        service = Service(f"ipc://{tmp_path}/stats", Echo(), context=context)
        tmp_path.chmod(0o777)
        with pytest.raises(StartupError, match=f"directory {tmp_path}: everybody can write it .*: chmod o-w"):
            await service.start()
        tmp_path.chmod(0o1777)
        await service.start()
        assert await ask(context, service.endpoint, b"hello") == b"hello"
        await service.stop()

    run(scenario)


def test_services_start_and_stop_without_leaking(tmp_path: Path) -> None:
    async def scenario(context: zmq.asyncio.Context) -> None:
        service = Service(f"ipc://{tmp_path}/x", Echo(), context=context)
        counts = []
        for _ in range(20):
            await service.start()
            assert await ask(context, service.endpoint, b"hello") == b"hello"
            await service.stop()
            await asyncio.sleep(0.05)
            counts.append(open_fds())
        assert counts[-1] <= counts[2]

    run(scenario)


def test_nothing_is_left_of_a_socket_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)

    async def scenario(context: zmq.asyncio.Context) -> None:
        service = Service(f"ipc://{tmp_path}/x", Echo(), context=context, group_gid=1)
        with pytest.raises(StartupError, match="cannot listen: Operation not permitted"):
            await service.start()

    run(scenario)
    assert list(tmp_path.iterdir()) == []


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "stats"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def scenario(context: zmq.asyncio.Context) -> None:
        service = Service(f"ipc://{path}", Echo(), context=context)
        await service.start()
        assert await ask(context, service.endpoint, b"hello") == b"hello"
        await service.stop()

    run(scenario)


def test_a_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    async def scenario(context: zmq.asyncio.Context) -> None:
        first = Service(f"ipc://{tmp_path}/stats", Echo(), context=context)
        second = Service(f"ipc://{tmp_path}/stats", Echo(), context=context)
        await first.start()
        with pytest.raises(StartupError, match="another process listens there"):
            await second.start()
        await second.stop()
        assert await ask(context, first.endpoint, b"hello") == b"hello"
        await first.stop()

    run(scenario)


def test_another_process_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "stats"

    async def scenario(context: zmq.asyncio.Context) -> None:
        service = Service(f"ipc://{path}", Echo(), context=context)
        await service.start()
        path.unlink()
        path.write_text("somebody else's")
        await service.stop()
        assert path.read_text() == "somebody else's"

    run(scenario)


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("ipc://{dir}/file", "is not a socket"),
        ("ipc://{dir}/link", "is not a socket"),
        ("ipc://{dir}/file/below", "is not a directory"),
        ("ipc://{dir}/" + "x" * 108, "has at most 107"),
        ("ipc://relative", "absolute path"),
        ("ipc://@abstract", "absolute path"),
        ("ipc://*", "absolute path"),
        ("ipc://", "absolute path"),
        ("tcp://127.0.0.1:*", "needs CURVE keys"),
        ("ws://127.0.0.1:1", "must be ipc:///path, or tcp"),
        ("inproc://stats", "must be ipc:///path, or tcp"),
        ("nonsense", "must be ipc:///path, or tcp"),
    ],
)
def test_endpoints_that_are_refused(tmp_path: Path, endpoint: str, message: str) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "file")

    async def scenario(context: zmq.asyncio.Context) -> None:
        service = Service(endpoint.format(dir=tmp_path), Echo(), context=context)
        counts = []
        for _ in range(5):
            with pytest.raises(StartupError, match=message):
                await service.start()
            await asyncio.sleep(0.02)
            counts.append(open_fds())
        await service.stop()
        assert counts[-1] <= counts[1]

    run(scenario)
    assert (tmp_path / "file").read_text() == "precious"


def test_tcp_serves_known_keys_only(tmp_path: Path) -> None:
    clients = tmp_path / "clients"
    for directory in (clients, tmp_path / "strangers"):
        directory.mkdir()
    _, server_key = zmq.auth.create_certificates(tmp_path, "server")
    _, known = zmq.auth.create_certificates(clients, "operator")
    _, stranger = zmq.auth.create_certificates(tmp_path / "strangers", "stranger")
    server_public, _ = zmq.auth.load_certificate(server_key)

    async def ask_as(context: zmq.asyncio.Context, key: str | None, endpoint: str, timeout_s: float) -> bytes:
        with context.socket(zmq.REQ) as client:
            client.setsockopt(zmq.LINGER, 0)
            if key is not None:
                public, secret = zmq.auth.load_certificate(key)
                assert secret is not None
                client.curve_serverkey, client.curve_publickey, client.curve_secretkey = server_public, public, secret
            client.connect(endpoint)
            await client.send(b"hello")
            return await asyncio.wait_for(client.recv(), timeout_s)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"

    async def scenario(context: zmq.asyncio.Context) -> None:
        authority = CurveAuthority(context, Path(server_key), clients)
        authority.start()
        service = Service(endpoint, Echo(), context=context, curve=authority)
        await service.start()
        assert await ask_as(context, known, endpoint, 5) == b"hello"
        for key in (stranger, None):
            with pytest.raises(TimeoutError):
                await ask_as(context, key, endpoint, 0.5)
        assert await ask_as(context, known, endpoint, 5) == b"hello"
        await service.stop()
        authority.stop()

    run(scenario)


def test_curve_needs_a_secret_key_and_clients(tmp_path: Path) -> None:
    public, secret = zmq.auth.create_certificates(tmp_path, "server")
    (tmp_path / "empty").mkdir()

    async def scenario(context: zmq.asyncio.Context) -> None:
        with pytest.raises(ConfigError, match="has no secret-key"):
            CurveAuthority(context, Path(public), tmp_path)
        with pytest.raises(ConfigError, match="missing"):
            CurveAuthority(context, tmp_path / "missing", tmp_path)
        with pytest.raises(StartupError, match="holds no client certificate"):
            CurveAuthority(context, Path(secret), tmp_path / "empty").start()

    run(scenario)


def test_a_handler_that_fails_is_answered_for(tmp_path: Path) -> None:
    class Broken(Echo):
        async def __call__(self, request: bytes) -> bytes:
            raise ZeroDivisionError

    async def scenario(context: zmq.asyncio.Context) -> None:
        service = Service(f"ipc://{tmp_path}/x", Broken(), context=context)
        await service.start()
        assert await ask(context, service.endpoint, b"hello") == b"refused"
        assert await ask(context, service.endpoint, b"hello") == b"refused"
        await service.stop()

    run(scenario)


def test_stop_gives_up_requests_under_way(tmp_path: Path) -> None:
    class Stuck(Echo):
        async def __call__(self, request: bytes) -> bytes:
            await asyncio.sleep(3600)
            return request

    async def scenario(context: zmq.asyncio.Context) -> None:
        service = Service(f"ipc://{tmp_path}/x", Stuck(), context=context)
        await service.start()
        with pytest.raises(TimeoutError):
            await ask(context, service.endpoint, b"hello", 0.2)
        await asyncio.wait_for(service.stop(), 2)

    run(scenario)
