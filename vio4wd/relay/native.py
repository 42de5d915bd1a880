"""What compiled Python needs and numba lacks: calls through addresses, raw loads and stores, records in place, TSC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vio4wd.dpdk_ffi.compiled import compile_function

_I32, _I64 = ir.IntType(32), ir.IntType(64)

compiled: Any = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Decorator for functions that only compiled code calls."""


Emit = Callable[..., Any]
"""Writes an intrinsic's code: gets the compiler's context, a builder and the arguments, answers the result or None."""


def intrinsic_of(signature: Any, emit: Emit) -> Any:
    """Make a function for compiled code: its numba signature, with up to six parameters, and what writes its code."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        answer = emit(context, builder, *values)
        return context.get_dummy_value() if signature.return_type is types.void else answer

    def call0(typing: Any) -> Any:
        return signature, generate

    def call1(typing: Any, a: Any) -> Any:
        return signature, generate

    def call2(typing: Any, a: Any, b: Any) -> Any:
        return signature, generate

    def call3(typing: Any, a: Any, b: Any, c: Any) -> Any:
        return signature, generate

    def call4(typing: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        return signature, generate

    def call5(typing: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
        return signature, generate

    def call6(typing: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
        return signature, generate

    return intrinsic((call0, call1, call2, call3, call4, call5, call6)[len(signature.args)])


def native(result: Any, *parameters: Any) -> Any:
    """Make ``call(address, *arguments)`` for compiled code: a C call through a function's address.

    ``result`` and ``parameters`` are numba types (``types.void`` for no result). One to five parameters.
    """

    def emit(context: Any, builder: Any, address: Any, *arguments: Any) -> Any:
        returned = ir.VoidType() if result is types.void else context.get_value_type(result)
        function = ir.FunctionType(returned, [context.get_value_type(p) for p in parameters])
        return builder.call(builder.inttoptr(address, function.as_pointer()), arguments)

    return intrinsic_of(result(types.intp, *parameters), emit)


def _known_function(builder: Any, name: str, result: Any, parameters: list[Any]) -> Any:
    """A function that the linker finds by its name."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, parameters), name)


@dataclass(frozen=True)
class Part:
    """Compiled code that stands by itself: ``function`` of so many intp ``parameters``, answering intp.

    This keeps large or rare code out of the functions that call it, and out of the time that their compilation takes.
    """

    name: str
    function: Callable[..., Any]
    parameters: int

    @property
    def call(self) -> Any:
        """For compiled code: a call of this part, which must be compiled before the caller is."""

        def emit(context: Any, builder: Any, *arguments: Any) -> Any:
            return builder.call(_known_function(builder, self.name, _I64, [_I64] * self.parameters), arguments)

        return intrinsic_of(self._signature, emit)

    @property
    def _signature(self) -> Any:
        return types.intp(*[types.intp] * self.parameters)

    def compile(self, *, cached: bool) -> Any:
        """Compile it and make it callable by its name; the result must be kept alive."""
        made = compile_function(self._signature, self.function, cached=cached)
        llvm.add_symbol(self.name, made.address)
        return made


def loader(bits: int, *, acquire: bool = False, once: bool = False) -> Any:
    """Make ``load(address)`` for compiled code: an unsigned integer of ``bits``, widened to intp.

    With ``acquire`` the load is atomic, never moved or merged by the compiler, and orders what follows it. With
    ``once`` it is atomic without an order: the compiler may move it, but never does it a second time.
    """
    width = ir.IntType(bits)
    ordering = "acquire" if acquire else "monotonic"

    def emit(context: Any, builder: Any, address: Any) -> Any:
        pointer = builder.inttoptr(address, width.as_pointer())
        atomic = acquire or once
        value = builder.load_atomic(pointer, ordering, bits // 8) if atomic else builder.load(pointer, align=1)
        return builder.zext(value, _I64) if bits < 64 else value

    return intrinsic_of(types.intp(types.intp), emit)


def storer(bits: int, *, release: bool = False) -> Any:
    """Make ``store(address, value)`` for compiled code: the low ``bits`` of the value.

    With ``release`` the store is atomic and comes after everything before it.
    """
    width = ir.IntType(bits)

    def emit(context: Any, builder: Any, address: Any, value: Any) -> None:
        pointer = builder.inttoptr(address, width.as_pointer())
        narrow = builder.trunc(value, width) if bits < 64 else value
        if release:
            builder.store_atomic(narrow, pointer, "release", bits // 8)
        else:
            builder.store(narrow, pointer, align=1)

    return intrinsic_of(types.void(types.intp, types.intp), emit)


def record_at(record: Any) -> Any:
    """Make ``at(address)`` for compiled code: the record (a numba record type) that lies at an address, not a copy."""

    def emit(context: Any, builder: Any, address: Any) -> Any:
        return builder.inttoptr(address, context.get_value_type(record))

    return intrinsic_of(record(types.intp), emit)


def _read_tsc(context: Any, builder: Any) -> Any:
    return builder.call(builder.module.declare_intrinsic("llvm.readcyclecounter", (), ir.FunctionType(_I64, ())), ())


read_tsc = intrinsic_of(types.uint64(), _read_tsc)
"""``read_tsc()`` for compiled code: the time stamp counter, in cycles."""


def external_address(name: str) -> Any:
    """Make ``address()`` for compiled code: where the data of that name lies, which ``llvm.add_symbol`` told."""

    def emit(context: Any, builder: Any) -> Any:
        known = builder.module.globals.get(name) or ir.GlobalVariable(builder.module, _I64, name)
        return builder.ptrtoint(known, _I64)

    return intrinsic_of(types.intp(), emit)


def _thread_id(context: Any, builder: Any) -> Any:
    return builder.sext(builder.call(_known_function(builder, "gettid", _I32, []), ()), _I64)


thread_id = intrinsic_of(types.intp(), _thread_id)
"""``thread_id()`` for compiled code: Linux's id of the calling thread (gettid(2))."""


def _raise_signal(context: Any, builder: Any, number: Any) -> None:
    builder.call(_known_function(builder, "raise", _I32, [_I32]), [number])


raise_signal = intrinsic_of(types.void(types.int32), _raise_signal)
"""``raise_signal(number)`` for compiled code: send a signal to the calling thread (raise(3))."""


def _fence(context: Any, builder: Any) -> None:
    builder.fence("seq_cst")


fence = intrinsic_of(types.void(), _fence)
"""A full barrier, ``fence()``: stores before it are seen before loads after it are done."""


def _prefetcher(*, write: bool) -> Any:
    def emit(context: Any, builder: Any, address: Any) -> None:
        byte_pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, _I32, _I32, _I32])
        function = builder.module.declare_intrinsic("llvm.prefetch", (byte_pointer,), kind)
        builder.call(function, [builder.inttoptr(address, byte_pointer), _I32(int(write)), _I32(3), _I32(1)])

    return intrinsic_of(types.void(types.intp), emit)


prefetch = _prefetcher(write=False)
"""``prefetch(address)``: ask for the cache line at an address; never faults."""

prefetch_to_write = _prefetcher(write=True)
"""The same for a line that will be written: it is taken from the other CPUs at once, instead of shared first."""


def stack_space(size: int) -> Any:
    """Make ``space()`` for compiled code: the address of ``size`` bytes that live as long as the calling function runs.

    They hold anything at first. Each call in the source has bytes of its own, the same ones each time it is reached.
    """

    def emit(context: Any, builder: Any) -> Any:
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(ir.IntType(8), size))
            memory.align = 64
        return builder.ptrtoint(memory, _I64)

    return intrinsic_of(types.intp(), emit)


def vector_copier(vector_bytes: int, vectors: int = 1) -> Any:
    """Make ``copy(destination, source)`` for compiled code: all of so many vectors are loaded before one is stored."""
    vector = ir.VectorType(_I64, vector_bytes // 8).as_pointer()

    def emit(context: Any, builder: Any, destination: Any, source: Any) -> None:
        steps = [_I64(vector_bytes * i) for i in range(vectors)]
        loaded = [builder.load(builder.inttoptr(builder.add(source, step), vector), align=1) for step in steps]
        for step, value in zip(steps, loaded, strict=True):
            builder.store(value, builder.inttoptr(builder.add(destination, step), vector), align=1)

    return intrinsic_of(types.void(types.intp, types.intp), emit)


load16 = loader(16)
load32 = loader(32)
load64 = loader(64)
load32_acquire = loader(32, acquire=True)
load64_acquire = loader(64, acquire=True)
store16 = storer(16)
store32 = storer(32)
store64 = storer(64)
store16_release = storer(16, release=True)
store64_release = storer(64, release=True)
