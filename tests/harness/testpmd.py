"""dpdk-testpmd as a virtio-user front end: a guest that loops, generates or answers packets."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

from harness.process import Child, wait_for

HUGE, RUN = Path("/dev/hugepages"), Path("/run/dpdk")
_numbers = itertools.count()


class Testpmd:
    """testpmd with one net_virtio_user port on ``sock``, polling on ``cpu``; ``options`` are virtio-user's devargs."""

    __test__ = False  # the name begins like a test's

    def __init__(
        self,
        sock: Path,
        directory: Path,
        *,
        mode: str = "io",
        cpu: int = 0,
        options: str = "",
        extra: tuple[str, ...] = (),
    ) -> None:
        self._prefix = f"testpmd{os.getpid()}x{next(_numbers)}"
        devargs = f"net_virtio_user0,path={sock},queues=1,queue_size=1024"
        arguments = [
            "stdbuf", "-o0", "dpdk-testpmd", "--lcores", f"0@{cpu},1@{cpu}", "--no-pci", "-m", "256",
            f"--file-prefix={self._prefix}", "--no-telemetry", "--single-file-segments",
            "--vdev", ",".join(filter(None, (devargs, options))), "--",
            "--interactive", f"--forward-mode={mode}", "--nb-cores=1", "--total-num-mbufs=8192", "--no-mlockall",
            *extra,
        ]  # fmt: skip
        self.child = Child(arguments, directory / f"{self._prefix}.log", stdin=subprocess.PIPE)
        try:
            self.child.wait_for_log("testpmd>", 30)
        except BaseException:
            self.stop()
            raise

    def command(self, text: str, answer: str = "") -> str:
        """Type a command; wait for ``answer`` in what it prints, if given, and answer what it printed so far."""
        assert self.child.process.stdin is not None
        before = len(self.child.log)
        self.child.process.stdin.write(f"{text}\n".encode())
        self.child.process.stdin.flush()
        if answer:
            wait_for(
                lambda: answer in self.child.log[before:], 10, f"{answer!r} after {text!r} in {self.child.log[before:]}"
            )
        return self.child.log[before:]

    def counters(self) -> dict[str, int]:
        """Port statistics by testpmd's names, e.g. ``RX-packets``, ``TX-bytes``."""
        text = self.command("show port stats 0", "Tx-bps")
        return {name: int(value) for name, value in re.findall(r"([RT]X-\w+):\s+(\d+)", text)}

    def stop(self) -> None:
        """End it and remove its hugepage and run-time files."""
        self.child.stop()
        if self.child.process.stdin is not None:
            self.child.process.stdin.close()
        for left in HUGE.glob(f"{self._prefix}map_*"):
            left.unlink()
        shutil.rmtree(RUN / self._prefix, ignore_errors=True)
