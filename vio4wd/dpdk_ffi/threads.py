"""What the standard library lacks for threads that are not Python's: interrupting one, and signals that kill."""

from __future__ import annotations

import ctypes
import os

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.tgkill.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
_LIBC.sysv_signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
_LIBC.sysv_signal.restype = ctypes.c_void_p
_SIG_ERR = ctypes.c_void_p(-1).value


def interrupt(thread: int, number: int) -> None:
    """Send a signal to one thread of this process (by its id in Linux); nothing happens where it has ended."""
    _LIBC.tgkill(os.getpid(), thread, number)


def note_fatal(number: int, handler: int) -> None:
    """Have the C function ``void handler(int)`` at an address called once, on the thread that raises a signal.

    The signal has its default action again by then, and is not held back: the handler may raise it to end the process.

    Raises:
        OSError: the signal cannot be caught.
    """
    if _LIBC.sysv_signal(number, handler) == _SIG_ERR:
        raise OSError(ctypes.get_errno(), f"sysv_signal({number})")
