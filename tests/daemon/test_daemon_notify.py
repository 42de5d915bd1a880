"""What the service manager is told, and when."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from vio4wd.config.model import Config
from vio4wd.daemon.supervisor import Supervisor
from vio4wd.errors import StartupError


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setblocking(False)
        receiver.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


@pytest.mark.parametrize("fails", [False, True])
def test_stopping_is_said_before_anything_is_taken_down(manager: socket.socket, fails: bool) -> None:
    told: list[bytes] = []

    class Short(Supervisor):
        """Has one thing to take down, and is told to stop at once or cannot start."""

        async def _start(self, stack: AsyncExitStack) -> None:
            stack.callback(lambda: told.append(manager.recv(1000)))
            if fails:
                raise StartupError("no")
            self._stop.set()

    def reload() -> Config:
        raise AssertionError

    run = Short(Config(), reload, lambda: None).run()
    if fails:
        with pytest.raises(StartupError):
            asyncio.run(run)
    else:
        asyncio.run(run)
    assert told == [b"STOPPING=1"]
    with pytest.raises(BlockingIOError):
        manager.recv(1000)
