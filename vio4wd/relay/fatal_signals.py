"""The signals by which a process dies of a fault of its own."""

from __future__ import annotations

import signal

FATAL_SIGNALS = (signal.SIGBUS, signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
