"""What a generated layout module says, and how memory is read and written by it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Field:
    """A member of a struct: ``offset`` and ``size`` in bytes, ``signed`` for signed integers.

    A bit-field has ``bits`` > 0 and starts at bit ``shift`` of the unsigned integer of ``size`` bytes at ``offset``.
    ``size`` is that of the whole array for an array.
    """

    offset: int
    size: int
    signed: bool = False
    shift: int = 0
    bits: int = 0


@dataclass(frozen=True, slots=True)
class Struct:
    """A C struct: ``size`` in bytes and members by name; members of members are named ``rxmode.mtu``."""

    size: int
    fields: Mapping[str, Field]

    def offset(self, name: str) -> int:
        """Offset of a member in bytes.

        Raises:
            KeyError: this release of DPDK has no such member.
        """
        return self.fields[name].offset


@dataclass(frozen=True)
class Layout:
    """Structs and constants of one ABI of DPDK, on one machine type (``platform.machine()``)."""

    abi: int
    release: str
    machine: str
    structs: Mapping[str, Struct]
    constants: Mapping[str, int]


class View:
    """A struct in memory: ``view["mtu"]`` reads a member as an integer, assignment writes it.

    The memory behind a view of a foreign address must stay mapped while the view is used.
    """

    def __init__(self, struct: Struct, address: int) -> None:
        self.struct = struct
        self.address = address
        self._buffer: ctypes.Array[ctypes.c_char] | None = None

    @classmethod
    def allocate(cls, struct: Struct, tail: int = 0) -> View:
        """A zeroed struct of our own, with ``tail`` more bytes behind it."""
        buffer = ctypes.create_string_buffer(struct.size + tail)
        view = cls(struct, ctypes.addressof(buffer))
        view._buffer = buffer
        return view

    def __getitem__(self, name: str) -> int:
        field = self.struct.fields[name]
        raw = ctypes.string_at(self.address + field.offset, field.size)
        value = int.from_bytes(raw, sys.byteorder, signed=field.signed)
        return (value >> field.shift) & ((1 << field.bits) - 1) if field.bits else value

    def __setitem__(self, name: str, value: int) -> None:
        field = self.struct.fields[name]
        if field.bits:
            raise TypeError(f"{name} is a bit-field; these are only read")
        raw = value.to_bytes(field.size, sys.byteorder, signed=field.signed)
        ctypes.memmove(self.address + field.offset, raw, field.size)

    def text(self, name: str) -> str:
        """A member that is a NUL-terminated array of char."""
        field = self.struct.fields[name]
        raw = ctypes.string_at(self.address + field.offset, field.size)
        return raw.split(b"\0", 1)[0].decode(errors="replace")
