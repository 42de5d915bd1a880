"""Commands in a QEMU guest: its init takes them from a serial line that is a unix socket here."""

from __future__ import annotations

import base64
import re
import socket
import time
from pathlib import Path

from harness.process import Child

AGENT = """
exec 3<>/dev/ttyS1
stty raw -echo <&3
printf '%%ready\\n' >&3
while read -r job <&3; do
    echo "$job" | base64 -d >/tmp/job
    sh /tmp/job >/tmp/output 2>&1 </dev/null 3<&-
    status=$?
    cat /tmp/output >&3
    printf '\\n%%exit %d\\n' $status >&3
done
"""
"""What init does in the end. The second serial line carries one job in base64 a line, and back its output and
``%exit STATUS``."""


def connect(path: Path, seconds: float = 10) -> socket.socket:
    """A connection to a unix socket that may not be there yet; AssertionError if it does not come."""
    sock = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + seconds
    while True:
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < deadline, f"no {path} within {seconds} s"
            time.sleep(0.01)
        else:
            return sock


class Agent:
    """The shell of a guest whose QEMU is ``child`` and has its second serial line at ``path``."""

    def __init__(self, child: Child, path: Path) -> None:
        self._child = child
        self._sock = connect(path)

    def wait_booted(self, seconds: float) -> None:
        """Wait for the shell; also after a restart of the guest."""
        self._read_until(rb"%ready\n", seconds)

    def send(self, command: str) -> None:
        """Begin a command; ``finish`` waits for it."""
        self._sock.sendall(base64.b64encode(command.encode()) + b"\n")

    def finish(self, seconds: float = 20) -> str:
        """The output of the command that ``send`` began; AssertionError if it fails."""
        found = self._read_until(rb"(?s)\A(.*)\n%exit (\d+)\n", seconds)
        output = found[1].decode(errors="replace")
        assert found[2] == b"0", f"exit status {found[2].decode()} in the guest:\n{output}"
        return output

    def run(self, command: str, seconds: float = 20) -> str:
        """Run a shell command in the guest; answers its output, AssertionError if it fails."""
        self.send(command)
        return self.finish(seconds)

    def close(self) -> None:
        """Leave the guest alone."""
        self._sock.close()

    def _read_until(self, pattern: bytes, seconds: float) -> re.Match[bytes]:
        deadline = time.monotonic() + seconds
        text = b""
        while (found := re.search(pattern, text)) is None:
            self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self._sock.recv(65536)
            except TimeoutError:
                raise AssertionError(f"no {pattern!r} in {seconds} s:\n{text!r}\n{self._child.log[-2000:]}") from None
            assert received, f"QEMU ended:\n{self._child.log[-2000:]}"
            text += received
        return found
