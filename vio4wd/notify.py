"""State messages for the service manager (sd_notify(3)): ready, stopping, status text, watchdog."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from vio4wd.errors import StartupError

_log = logging.getLogger(__name__)
_SEND_TIMEOUT_S = 5.0


class ServiceNotifier:
    """Tells the service manager how the daemon is; does nothing where there is none.

    Messages are those of sd_notify(3). Use it as a context manager, or ``close`` it.
    """

    def __init__(self, address: str | None = None, watchdog_us: int = 0) -> None:
        """Send to ``address`` (a path, or ``@name`` in the abstract namespace); None sends nowhere.

        Raises:
            StartupError: the address is not one of a Unix socket.
        """
        self._address: str | None = None
        self._watchdog_us = watchdog_us if address else 0
        if not address:
            return
        if address[0] not in "/@":
            raise StartupError(f"NOTIFY_SOCKET is {address!r}: must be an absolute path or @ and an abstract name")
        self._address = "\0" + address[1:] if address[0] == "@" else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_SEND_TIMEOUT_S)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ServiceNotifier:
        """Read NOTIFY_SOCKET, and WATCHDOG_USEC unless WATCHDOG_PID is another process (sd_watchdog_enabled(3))."""
        watchdog_us = 0
        if environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            text = environment.get("WATCHDOG_USEC", "0")
            watchdog_us = int(text) if text.isdecimal() else 0
        return cls(environment.get("NOTIFY_SOCKET"), watchdog_us)

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often to call ``watchdog``, in seconds (half of what the manager allows); None: it does not watch."""
        return self._watchdog_us / 2e6 if self._watchdog_us else None

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is complete."""
        self._send("READY=1", f"MAINPID={os.getpid()}", f"STATUS={status}" if status else "")

    def reloading(self) -> None:
        """The configuration is being read again; ``ready`` ends it."""
        self._send("RELOADING=1")

    def status(self, text: str) -> None:
        """Set the one line that ``systemctl status`` shows."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """The daemon has begun to stop."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The daemon is alive."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Send nothing from now on."""
        if self._address is not None:
            self._address = None
            self._socket.close()

    def __enter__(self) -> ServiceNotifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, *assignments: str) -> None:
        """One datagram; a manager that is gone must not stop the daemon, so its absence is not an error."""
        if self._address is None:
            return
        lines = [assignment.replace("\n", " ") for assignment in assignments if assignment]
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except (FileNotFoundError, ConnectionError, TimeoutError) as error:
            _log.warning("cannot reach the service manager: %s", error)
