"""The compiled function that stdio calls for every message that DPDK logs.

It runs on whatever thread logs, lcores in their loop included, so it must not need the interpreter: it puts the
message with its level and type into a pipe that does not block, and counts it as dropped when the pipe is full.
stdio holds the stream's lock meanwhile, so there is one writer at a time.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from vio4wd.dpdk_ffi.compiled import compile_function

_NB: Any = numba
types = _NB.types

FD, WRITE, LEVEL, LOGTYPE, SEQUENCE, DROPPED = range(6)
"""Words of the cookie: descriptor of the pipe; addresses of write(2), rte_log_cur_msg_loglevel and
rte_log_cur_msg_logtype; records so far; records lost."""
HEADER = 8
"""First word of the record, behind those: bytes of text, level, type, sequence; then the text."""
TEXT_BYTES = 4000
"""Longest text of a record; a record is smaller than PIPE_BUF (4096), so it is written whole or not at all."""
TEXT = HEADER + 4
WORDS = TEXT + TEXT_BYTES // 8


@intrinsic
def _call_int(_context: Any, _address: Any) -> Any:
    """``int f(void)`` at an address."""

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [])

    return types.int32(types.int64), build


@intrinsic
def _call_write(_context: Any, _address: Any, _fd: Any, _data: Any, _size: Any) -> Any:
    """``ssize_t write(int, const void *, size_t)`` at an address."""
    word = ir.IntType(64)

    def build(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(word, [ir.IntType(32), word, word])
        function = builder.inttoptr(arguments[0], kind.as_pointer())
        return builder.call(function, [builder.trunc(arguments[1], ir.IntType(32)), *arguments[2:]])

    return types.int64(types.int64, types.int64, types.int64, types.int64), build


_CALL_INT: Any = _call_int
_CALL_WRITE: Any = _call_write


def _write(cookie: Any, text: Any, size: int) -> int:
    """cookie_write_function_t of fopencookie(3)."""
    words = _NB.carray(cookie, WORDS)
    length = min(size, TEXT_BYTES)
    words[HEADER] = length
    words[HEADER + 1] = _CALL_INT(words[LEVEL])
    words[HEADER + 2] = _CALL_INT(words[LOGTYPE])
    words[SEQUENCE] += 1
    words[HEADER + 3] = words[SEQUENCE]
    target = words.view(np.uint8)
    source = _NB.carray(text, length)
    for index in range(length):
        target[TEXT * 8 + index] = source[index]
    total = (TEXT - HEADER) * 8 + length
    if _CALL_WRITE(words[WRITE], words[FD], words.ctypes.data + HEADER * 8, total) != total:
        words[DROPPED] += 1
    return size


_SIGNATURE = types.int64(types.CPointer(types.int64), types.CPointer(types.uint8), types.int64)


def compile_writer() -> Any:
    """The compiled function, from disk where it was kept there."""
    return compile_function(_SIGNATURE, _write)
