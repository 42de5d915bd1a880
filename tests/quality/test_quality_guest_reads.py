"""The rule that guest memory is read by the fetch helpers only: the compiler may repeat any other load.

What is decided upon is what was checked only if it was read once (``vio4wd.relay.direct.guest_memory``).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

DIRECT = Path(__file__).resolve().parents[2] / "vio4wd" / "relay" / "direct"
NATIVE = "vio4wd.relay.native"
"""Where plain loads are from."""

WITHOUT_LOADS = ("chains", "notify")
"""Modules that read nothing but guest memory."""

WITH_BOTH = ("split", "packed", "simple", "general", "engine")
"""Modules that also read memory of ours: packets, plans, records."""

RING_PARTS = {"descriptors", "available", "used", "region_host"}
"""Fields of the ring's record that are addresses in guest memory."""

NAMES = {"table", "entries", "descriptor", "source", "destination", "host"}
"""What locals and parameters with such an address are called."""

PLAN = "plan"
"""Memory of ours that holds such addresses."""


def is_load(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id.startswith("load")


def parts(node: ast.expr) -> Iterator[ast.expr]:
    """An expression and what it is made of, but for arguments: a call's result is something else."""
    yield node
    if not isinstance(node, ast.Call):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from parts(child)


def is_guests(node: ast.expr, names: set[str]) -> bool:
    """Whether an expression has an address in guest memory in it."""
    for part in parts(node):
        if isinstance(part, ast.Attribute) and part.attr in RING_PARTS:
            return True
        if isinstance(part, ast.Name) and part.id in names:
            return True
        if isinstance(part, ast.Call) and is_load(part.func):
            inner = {each.id for each in parts(part.args[0]) if isinstance(each, ast.Name)}
            if PLAN in inner:
                return True
    return False


def assignments(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    """Names that a function assigns to, with what they get."""
    for node in ast.walk(function):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.value
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=True)
                yield from ((each.id, value) for each, value in pairs if isinstance(each, ast.Name))


def stray_loads(source: str) -> list[str]:
    """Plain loads from guest memory in a module's source."""
    found = []
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        names, known = set(NAMES), -1
        while known != len(names):
            known = len(names)
            names |= {name for name, value in assignments(function) if is_guests(value, names)}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and is_load(node.func) and is_guests(node.args[0], names):
                found.append(f"{function.name}, line {node.lineno}: {ast.unparse(node)}")
    return found


def imported_loads(source: str) -> list[str]:
    """What a module imports that is or gives a plain load, or all of the module that has them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found += [module + alias.name for alias in node.names if re.match(r"_?load|\*", alias.name)]
            found += [NATIVE for alias in node.names if module + alias.name == NATIVE]
    return found


def source_of(module: str) -> str:
    return (DIRECT / f"{module}.py").read_text()


@pytest.mark.parametrize("module", WITHOUT_LOADS)
def test_no_plain_loads_at_all(module: str) -> None:
    assert not imported_loads(source_of(module))


@pytest.mark.parametrize("module", WITH_BOTH)
def test_no_plain_loads_from_guest_memory(module: str) -> None:
    assert not stray_loads(source_of(module))


@pytest.mark.parametrize("module", WITH_BOTH)
def test_loads_go_by_their_own_names(module: str) -> None:
    """So that they are found."""
    source = source_of(module)
    assert set(imported_loads(source)) <= {f"{NATIVE}.load{bits}" for bits in (16, 32, 64)}
    tree = ast.parse(source)
    imports = [alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert not [alias.name for alias in imports if alias.name.startswith("load") and alias.asname]
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not [
        node for node in ast.walk(tree) if isinstance(node, ast.Name) and is_load(node) and id(node) not in called
    ]


@pytest.mark.parametrize("module", WITH_BOTH[:-1])
def test_a_fetch_that_became_a_load_is_found(module: str) -> None:
    source = source_of(module)
    fetches = list(re.finditer(r"\bfetch(?=\d+(_acquire)?\()", source))
    assert fetches
    for fetch in fetches:
        changed = f"{source[: fetch.start()]}load{source[fetch.end() :]}"
        assert stray_loads(changed), source[fetch.start() : fetch.end() + 60]


@pytest.mark.parametrize(
    "line",
    [
        "from vio4wd.relay.native import compiled, load64 as fetch64",
        "from vio4wd.relay.native import loader",
        "from vio4wd.relay.native import *",
        "from vio4wd.relay import native",
        "import vio4wd.relay.native",
        "from vio4wd.relay.direct.guest_memory import _load8",
    ],
)
def test_an_import_of_a_load_is_found(line: str) -> None:
    assert imported_loads(line)
