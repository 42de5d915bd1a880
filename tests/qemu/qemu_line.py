"""What the tests with one guest on one relay share."""

from __future__ import annotations

from dataclasses import dataclass

from harness.daemon import Daemon
from harness.qemu import LinuxGuest
from harness.wire import Wire


@dataclass
class Line:
    """A daemon, a VF on its relay 0, and a guest there that answers pings."""

    daemon: Daemon
    wire: Wire
    guest: LinuxGuest
