"""dpdk-testpmd's net_vhost as the back end: one process for each session, that sends every frame back."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from pathlib import Path

from vio4wd.errors import WorkerError
from vio4wd.relay.direct.ring_record import SavedPosition

_numbers = itertools.count()
_START_S = 20.0


class TestpmdBackEnd:
    """Implements ``BackEnd`` for any number of relays; testpmd polls, so there is nothing that could be paused."""

    __test__ = False

    def __init__(self, cpu: int = 0) -> None:
        self.calls: list[str] = []
        self._cpu = cpu
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    async def attach(self, relay: int, path: Path) -> None:
        self.calls.append("attach")
        name = f"vu{os.getpid()}x{next(_numbers)}"
        arguments = (
            *("dpdk-testpmd", "--lcores", f"0@{self._cpu},1@{self._cpu}", "--no-pci", f"--file-prefix={name}"),
            *("--huge-unlink", "-m", "128", "--vdev", f"net_vhost0,iface={path},queues=2,client=1", "--"),
            *("--forward-mode=io", "--port-topology=loop", "--nb-cores=1", "--total-num-mbufs=4096", "--no-mlockall"),
            *("--rxq=2", "--txq=2", "--stats-period=60"),
        )
        with (path.parent / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._processes[relay] = process
        await self._connected(process, path)

    async def _connected(self, process: subprocess.Popen[bytes], path: Path) -> None:
        """Wait until the process has the socket open; it connects while it starts."""
        async with asyncio.timeout(_START_S):
            while f"{path}" not in Path("/proc/net/unix").read_text() or not _waits(path):
                if process.poll() is not None:
                    raise WorkerError(f"testpmd ended with {process.returncode}")
                await asyncio.sleep(0.02)

    async def detach(self, relay: int, path: Path) -> None:
        self.calls.append("detach")
        await self._end(relay, stop=True)

    async def pause(self, relay: int) -> None:
        self.calls.append("pause")

    async def resume(self, relay: int, *, interrupt: bool = False) -> None:
        self.calls.append("resume")

    def saved_position(self, relay: int, ring: int) -> SavedPosition | None:
        return None

    async def kill(self, relay: int) -> None:
        """kill -9."""
        await self._end(relay, stop=False)

    async def stop(self) -> None:
        for relay in list(self._processes):
            await self._end(relay, stop=False)

    async def _end(self, relay: int, *, stop: bool) -> None:
        process = self._processes.pop(relay, None)
        if process is None:
            return
        if stop:
            process.terminate()
        else:
            process.kill()
        async with asyncio.timeout(_START_S):
            while process.poll() is None:
                await asyncio.sleep(0.01)


def _waits(path: Path) -> bool:
    """Whether a connection has been made: an entry of /proc/net/unix beside the listener's (state 01)."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(str(path))]
    return len(lines) > 1
