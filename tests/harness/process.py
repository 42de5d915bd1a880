"""Child processes with a log file, bounded waits and a certain end."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until the condition holds; AssertionError naming ``what`` if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


class Child:
    """A running program; its output goes to ``log``."""

    running: ClassVar[list[Child]] = []

    def __init__(self, arguments: Sequence[str | Path], log: Path, *, stdin: int = subprocess.DEVNULL) -> None:
        self.log_path = log
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [str(argument) for argument in arguments], stdin=stdin, stdout=self._log, stderr=subprocess.STDOUT
        )
        self.running.append(self)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_for_log(self, text: str, seconds: float = 20) -> None:
        """Wait for a text in the output; AssertionError with the output if the program ends before."""

        def seen() -> bool:
            found = text in self.log
            assert found or self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
            return found

        try:
            wait_for(seen, seconds, f"{text!r} in the log")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-4000:]}") from None

    def stop(self, seconds: float = 10) -> int:
        """SIGTERM, then SIGKILL; answers the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        self._log.close()
        if self in self.running:
            self.running.remove(self)
        return self.process.returncode
