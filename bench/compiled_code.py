"""Tells which line of Python a sampled address of a worker's compiled code comes from.

LLVM keeps the object files that it has loaded in a list for debuggers (GDB's JIT compilation interface). With
``NUMBA_DEBUGINFO=1`` in its environment a worker's objects have line tables, which addr2line reads.
"""

from __future__ import annotations

import ast
import collections
import functools
import re
import struct
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

_DESCRIPTOR = struct.Struct("<IIQQ")  # version, action, relevant entry, first entry
_ENTRY = struct.Struct("<QQQQ")  # next, previous, address, size
_TEXT = re.compile(r"\] \.l?text\S*\s+PROGBITS\s+([0-9a-f]+) [0-9a-f]+ ([0-9a-f]+)")
_LINE = re.compile(r"(.+\.py):(\d+)")


def save_objects(pid: int, directory: Path) -> list[Path]:
    """Write the object files that a process has compiled and loaded to a directory."""
    found = []
    for number, image in enumerate(_images(pid)):
        path = directory / f"compiled{number}.o"
        path.write_bytes(image)
        found.append(path)
    return found


def functions(objects: list[Path], samples: Mapping[int, int]) -> collections.Counter[str]:
    """Samples by function of ours, as ``file:function``, from samples by address."""
    found: collections.Counter[str] = collections.Counter()
    for path in objects:
        for begin, size in _sections(path):
            inside = [address for address in samples if begin <= address < begin + size]
            for address, line in zip(inside, _lines(path, inside), strict=True):
                found[_function(line)] += samples[address]
    return found


def _images(pid: int) -> Iterator[bytes]:
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    first = next(line.split() for line in maps if line.endswith("libllvmlite.so"))
    symbols = _run("nm", first[-1])
    offset = int(re.findall(r"^([0-9a-f]+) \w __jit_debug_descriptor$", symbols, re.MULTILINE)[0], 16)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:

        def read(address: int, size: int) -> bytes:
            memory.seek(address)
            return memory.read(size)

        entry = _DESCRIPTOR.unpack(read(int(first[0].split("-")[0], 16) + offset, _DESCRIPTOR.size))[3]
        while entry:
            entry, _, address, size = _ENTRY.unpack(read(entry, _ENTRY.size))
            yield read(address, size)


def _sections(path: Path) -> list[tuple[int, int]]:
    """Address and size of the sections of code."""
    return [(int(begin, 16), int(size, 16)) for begin, size in _TEXT.findall(_run("readelf", "-SW", str(path)))]


def _lines(path: Path, addresses: list[int]) -> list[str]:
    text = _run("addr2line", "-e", str(path), *map(hex, addresses)) if addresses else ""
    return text.splitlines()


def _function(line: str) -> str:
    """The innermost function around a line ``file:number``."""
    match = _LINE.match(line)
    if match is None or not Path(match[1]).is_file():
        return "(no line)"
    return f"{Path(match[1]).name}:{_names(Path(match[1])).get(int(match[2]), '(module)')}"


@functools.cache
def _names(path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for node in ast.walk(ast.parse(path.read_text())):  # breadth first: inner functions come later
        if isinstance(node, ast.FunctionDef):
            names.update(dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), node.name))
    return names


def _run(*arguments: str) -> str:
    return subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=60).stdout
