"""DPDK's log stream into Python's logging: logger ``dpdk.<logtype>``, such as ``dpdk.lib.eal``, levels carried over."""

from __future__ import annotations

import collections
import ctypes
import enum
import functools
import logging
import os
import re
import select
import struct
import threading
import time

from vio4wd.dpdk_ffi.errors import DpdkError
from vio4wd.dpdk_ffi.loader import Dpdk

LINES_PER_SECOND = 1000
"""Lines that are passed on in one second; a guest can make DPDK log for every packet. What is left out is counted.
DPDK's start at level DEBUG is 550 lines."""

_HEADER = struct.Struct("qqqq")
_TROUBLES_KEPT = 64
_REASONS = 4


class LogLevel(enum.IntEnum):
    """RTE_LOG_* of rte_log.h."""

    EMERGENCY = 1
    ALERT = 2
    CRITICAL = 3
    ERROR = 4
    WARNING = 5
    NOTICE = 6
    INFO = 7
    DEBUG = 8

    @property
    def python(self) -> int:
        """The level of Python's logging."""
        by_level = {4: logging.ERROR, 5: logging.WARNING, 6: logging.INFO, 7: logging.INFO, 8: logging.DEBUG}
        return by_level.get(int(self), logging.CRITICAL)


class _CookieFunctions(ctypes.Structure):
    """cookie_io_functions_t of stdio.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("read", "write", "seek", "close")]


class LogStream:
    """The stream, open for the rest of the process: any thread may log through it at any time."""

    def __init__(self, dpdk: Dpdk) -> None:
        # imported here: numba takes 0.3 s, which those who only ask for DPDK's version need not spend
        from vio4wd.dpdk_ffi import log_writer

        self._dpdk = dpdk
        self._words = log_writer
        self._writer = log_writer.compile_writer()
        self._cookie = (ctypes.c_int64 * log_writer.WORDS)()
        self._reader, self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lock = threading.RLock()
        self._types: dict[int, str] = {}
        self._troubles: collections.deque[tuple[int, LogLevel, str]] = collections.deque(maxlen=_TROUBLES_KEPT)
        self._window = (0, 0)
        self._suppressed = 0
        self._dropped = 0
        self._fill_cookie()
        dpdk.call("", "rte_openlog_stream", self._open_stream())
        dpdk.error_log = self
        threading.Thread(target=self._read_forever, name="dpdk-log", daemon=True).start()

    @classmethod
    def open(cls, dpdk: Dpdk) -> LogStream:
        """The process's stream; the first call makes it and turns DPDK's messages into it."""
        return _open(dpdk)

    def _fill_cookie(self) -> None:
        words = self._words
        write = ctypes.cast(ctypes.CDLL(None).write, ctypes.c_void_p).value or 0
        self._cookie[words.FD] = self._pipe
        self._cookie[words.WRITE] = write
        self._cookie[words.LEVEL] = self._dpdk.address("rte_log_cur_msg_loglevel")
        self._cookie[words.LOGTYPE] = self._dpdk.address("rte_log_cur_msg_logtype")

    def _open_stream(self) -> int:
        """A FILE that writes through the compiled function."""
        fopencookie = ctypes.CDLL(None, use_errno=True).fopencookie
        fopencookie.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _CookieFunctions]
        fopencookie.restype = ctypes.c_void_p
        functions = _CookieFunctions(write=self._writer.address)
        stream = fopencookie(ctypes.addressof(self._cookie), b"w", functions)
        if not stream:
            raise DpdkError("fopencookie", ctypes.get_errno())
        return int(stream)

    def set_level(self, level: LogLevel) -> None:
        """What DPDK may log at most, from now on; each type of message has a limit of its own besides."""
        self._dpdk.call("", "rte_log_set_global_level", int(level))

    def mark(self) -> int:
        """The number of records so far: a message each, or two that threads logged at the same time."""
        return int(self._cookie[self._words.SEQUENCE])

    def errors_since(self, mark: int) -> list[str]:
        """The last messages of level error or worse after ``mark``, oldest first; warnings where there are none."""
        self.drain()
        with self._lock:
            found = [(level, text) for sequence, level, text in self._troubles if sequence > mark]
        errors = [text for level, text in found if level <= LogLevel.ERROR] or [text for _level, text in found]
        return list(dict.fromkeys(errors))[-_REASONS:]

    def drain(self) -> None:
        """Pass on all that was logged until now."""
        with self._lock:
            while self._read_some():
                pass

    def _read_forever(self) -> None:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        while True:
            poll.poll()
            self.drain()

    def _read_some(self) -> bool:
        try:
            data = os.read(self._reader, 1 << 16)
        except BlockingIOError:
            return False
        position = 0
        while position < len(data):
            if len(data) - position < _HEADER.size:
                data += os.read(self._reader, _HEADER.size)
            length, level, logtype, sequence = _HEADER.unpack_from(data, position)
            position += _HEADER.size
            if len(data) - position < length:
                data += os.read(self._reader, length)
            text = data[position : position + length].decode(errors="replace")
            position += length
            self._pass_on(text, LogLevel(min(max(level, 1), 8)), logtype, sequence)
        self._report_lost()
        return True

    def _pass_on(self, text: str, level: LogLevel, logtype: int, sequence: int) -> None:
        for line in filter(None, (part.strip() for part in text.splitlines())):
            if level <= LogLevel.WARNING:
                self._troubles.append((sequence, level, line))
            second, lines = self._window
            now = int(time.monotonic())
            self._window = (now, lines + 1 if now == second else 1)
            if self._window[1] > LINES_PER_SECOND:
                self._suppressed += 1
                continue
            logging.getLogger(f"dpdk.{self._type_name(logtype)}").log(level.python, "%s", line)

    def _report_lost(self) -> None:
        dropped = int(self._cookie[self._words.DROPPED])
        lost = self._suppressed + dropped - self._dropped
        if lost and self._window[1] <= LINES_PER_SECOND:
            logging.getLogger("dpdk").warning("%d messages of DPDK were left out: too many at once", lost)
            self._suppressed, self._dropped = 0, dropped

    def _type_name(self, logtype: int) -> str:
        if logtype not in self._types:
            self._types.update(self._dump_types())
        return self._types.setdefault(logtype, f"type{logtype}")

    def _dump_types(self) -> dict[int, str]:
        """All log types by number, from the text of rte_log_dump."""
        libc = ctypes.CDLL(None)
        libc.open_memstream.restype = ctypes.c_void_p
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
        self._dpdk.call("", "rte_log_dump", stream)
        libc.fclose(stream)
        dump = ctypes.string_at(text.value or 0, size.value).decode(errors="replace")
        libc.free(text)
        return {int(number): name for number, name in re.findall(r"^id (\d+): (\S+), level", dump, re.MULTILINE)}


@functools.cache
def _open(dpdk: Dpdk) -> LogStream:
    return LogStream(dpdk)
