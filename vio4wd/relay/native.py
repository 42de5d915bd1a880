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

_I64 = ir.IntType(64)

compiled: Any = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Decorator for functions that only compiled code calls."""


def _caller(signature: Any, generate: Any, parameters: int) -> Any:
    """An intrinsic of so many parameters, 1 to 6."""

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

    return intrinsic((call1, call2, call3, call4, call5, call6)[parameters - 1])


def native(result: Any, *parameters: Any) -> Any:
    """Make ``call(address, *arguments)`` for compiled code: a C call through a function's address.

    ``result`` and ``parameters`` are numba types (``types.void`` for no result). One to five parameters.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        returned = ir.VoidType() if result is types.void else context.get_value_type(result)
        function = ir.FunctionType(returned, [context.get_value_type(p) for p in parameters])
        answer = builder.call(builder.inttoptr(values[0], function.as_pointer()), list(values[1:]))
        return context.get_dummy_value() if result is types.void else answer

    return _caller(result(types.intp, *parameters), generate, 1 + len(parameters))


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

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            kind = ir.FunctionType(_I64, [_I64] * self.parameters)
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, self.name), list(values))

        return _caller(types.intp(*[types.intp] * self.parameters), generate, self.parameters)

    def compile(self, *, cached: bool) -> Any:
        """Compile it and make it callable by its name; the result must be kept alive."""
        signature = types.intp(*[types.intp] * self.parameters)
        made = compile_function(signature, self.function, cached=cached)
        llvm.add_symbol(self.name, made.address)
        return made


def loader(bits: int, *, acquire: bool = False, once: bool = False) -> Any:
    """Make ``load(address)`` for compiled code: an unsigned integer of ``bits``, widened to intp.

    With ``acquire`` the load is atomic, never moved or merged by the compiler, and orders what follows it. With
    ``once`` it is atomic without an order: the compiler may move it, but never does it a second time.
    """
    width = ir.IntType(bits)
    ordering = "acquire" if acquire else "monotonic"

    def load(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            pointer = builder.inttoptr(values[0], width.as_pointer())
            atomic = acquire or once
            value = builder.load_atomic(pointer, ordering, bits // 8) if atomic else builder.load(pointer, align=1)
            return builder.zext(value, _I64) if bits < 64 else value

        return types.intp(types.intp), generate

    return intrinsic(load)


def storer(bits: int, *, release: bool = False) -> Any:
    """Make ``store(address, value)`` for compiled code: the low ``bits`` of the value.

    With ``release`` the store is atomic and comes after everything before it.
    """
    width = ir.IntType(bits)

    def store(typing: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            pointer = builder.inttoptr(values[0], width.as_pointer())
            narrow = builder.trunc(values[1], width) if bits < 64 else values[1]
            if release:
                builder.store_atomic(narrow, pointer, "release", bits // 8)
            else:
                builder.store(narrow, pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return intrinsic(store)


def record_at(record: Any) -> Any:
    """Make ``at(address)`` for compiled code: the record (a numba record type) that lies at an address, not a copy."""

    def at(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(record))

        return record(types.intp), generate

    return intrinsic(at)


def _read_tsc(typing: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.readcyclecounter", (), ir.FunctionType(_I64, ()))
        return builder.call(function, ())

    return types.uint64(), generate


read_tsc: Any = intrinsic(_read_tsc)
"""``read_tsc()`` for compiled code: the time stamp counter, in cycles."""


def _global(module: Any, name: str) -> Any:
    if name in module.globals:
        return module.globals[name]
    return ir.GlobalVariable(module, _I64, name)


def external_address(name: str) -> Any:
    """Make ``address()`` for compiled code: where the data of that name lies, which ``llvm.add_symbol`` told."""

    def address(typing: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.ptrtoint(_global(builder.module, name), _I64)

        return types.intp(), generate

    return intrinsic(address)


def _thread_id(typing: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.sext(builder.call(cgutils.get_or_insert_function(builder.module, kind, "gettid"), ()), _I64)

    return types.intp(), generate


thread_id: Any = intrinsic(_thread_id)
"""``thread_id()`` for compiled code: Linux's id of the calling thread (gettid(2))."""


def _raise_signal(typing: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32)])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "raise"), list(values))
        return context.get_dummy_value()

    return types.void(types.int32), generate


raise_signal: Any = intrinsic(_raise_signal)
"""``raise_signal(number)`` for compiled code: send a signal to the calling thread (raise(3))."""


def _fence(typing: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


fence = intrinsic(_fence)
"""A full barrier, ``fence()``: stores before it are seen before loads after it are done."""


def _prefetcher(*, write: bool) -> Any:
    def prefetch(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            byte_pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte_pointer, word, word, word])
            function = builder.module.declare_intrinsic("llvm.prefetch", (byte_pointer,), kind)
            builder.call(function, [builder.inttoptr(values[0], byte_pointer), word(int(write)), word(3), word(1)])
            return context.get_dummy_value()

        return types.void(types.intp), generate

    return intrinsic(prefetch)


prefetch = _prefetcher(write=False)
"""``prefetch(address)``: ask for the cache line at an address; never faults."""

prefetch_to_write = _prefetcher(write=True)
"""The same for a line that will be written: it is taken from the other CPUs at once, instead of shared first."""


def stack_space(size: int) -> Any:
    """Make ``space()`` for compiled code: the address of ``size`` bytes that live as long as the calling function runs.

    They hold anything at first. Each call in the source has bytes of its own, the same ones each time it is reached.
    """

    def space(typing: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            with builder.goto_entry_block():
                memory = builder.alloca(ir.ArrayType(ir.IntType(8), size))
                memory.align = 64
            return builder.ptrtoint(memory, _I64)

        return types.intp(), generate

    return intrinsic(space)


load16 = loader(16)
load32 = loader(32)
load64 = loader(64)
load16_acquire = loader(16, acquire=True)
load32_acquire = loader(32, acquire=True)
load64_acquire = loader(64, acquire=True)
store16 = storer(16)
store32 = storer(32)
store64 = storer(64)
store16_release = storer(16, release=True)
store64_release = storer(64, release=True)
