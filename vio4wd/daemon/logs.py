"""The daemon's log: standard error with systemd's priority prefixes or time stamps, or syslog."""

from __future__ import annotations

import logging
import logging.handlers
import os
from pathlib import Path

_DEV_LOG = "/dev/log"

LEVELS = (
    logging.CRITICAL, logging.CRITICAL, logging.CRITICAL, logging.ERROR,
    logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG,
)  # fmt: skip
"""Python's level for each syslog threshold 0..7."""

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))


class _JournalFormatter(logging.Formatter):
    """``<priority>logger: message``, as sd-daemon(3) describes for services' standard error."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        lines = super().format(record).splitlines() or [""]
        return "\n".join(f"<{priority}>{line}" for line in lines)


def configure(level: int, *, syslog: bool) -> bool:
    """Set up logging for a threshold of 0 (least) to 7 (most verbose); where no syslog listens, to standard error.

    Answers whether the log goes to syslog.
    """
    handler: logging.Handler
    to_syslog = syslog and Path(_DEV_LOG).is_socket()
    if to_syslog:
        handler = logging.handlers.SysLogHandler(_DEV_LOG, facility=logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.setFormatter(logging.Formatter("virtio-forwarder[%(process)d]: %(name)s: %(message)s"))
    elif "JOURNAL_STREAM" in os.environ:
        handler = logging.StreamHandler()
        handler.setFormatter(_JournalFormatter("%(name)s: %(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=LEVELS[level], handlers=[handler], force=True)
    return to_syslog


def set_level(level: int) -> None:
    """Change the threshold, 0..7."""
    logging.getLogger().setLevel(LEVELS[level])
