"""Errors of DPDK and of finding it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vio4wd.errors import ForwarderError, StartupError


class DpdkError(ForwarderError):
    """A call of DPDK that failed: ``rte_eth_dev_start(net_null0): Device or resource busy (16)``.

    Attributes:
        function: the DPDK function.
        errno: a positive errno, 0 where DPDK gave no reason.
        subject: what the call was about: a port, path, mempool; may be empty.
        reasons: what DPDK logged at level error or worse during the call, oldest first.
    """

    def __init__(self, function: str, errno: int, subject: str = "", reasons: Sequence[str] = ()) -> None:
        why = f"{os.strerror(errno)} ({errno})" if errno else "failed"
        text = f"{function}({subject}): {why}"
        if reasons:
            text += f"; DPDK says: {' / '.join(reasons)}"
        super().__init__(text)
        self.function = function
        self.errno = errno
        self.subject = subject
        self.reasons = tuple(reasons)


class DeviceError(DpdkError):
    """A device that DPDK cannot use as it is; the message names it and says what would be right."""

    def __init__(self, error: DpdkError, message: str) -> None:
        super().__init__(error.function, error.errno, error.subject, error.reasons)
        self.args = (message,)


class DpdkMissingError(StartupError):
    """DPDK's shared libraries are not installed, are incomplete, or are of a release that is not supported."""


class DpdkStartError(DpdkError, StartupError):
    """The environment abstraction layer does not start here; the message says why and what would help."""

    def __init__(self, errno: int, subject: str, reasons: Sequence[str] = (), hint: str = "") -> None:
        super().__init__("rte_eal_init", errno, subject, reasons)
        if hint:
            self.args = (f"{self.args[0]}; {hint}",)
