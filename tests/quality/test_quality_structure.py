"""Rules about the shape of the package that no linter checks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vio4wd"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.endswith("_pb2.py"))
SHELL_SCRIPTS = sorted(
    path
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]
    if path.is_file() and re.match(rb"#!.*\b(ba)?sh\b", path.read_bytes())
)

# A layer may import itself and those with a smaller number; layers of one number do not know each other.
# The ZeroMQ services of stats and scheduler are built on the service and the messages of portctl.
LAYERS = {"dpdk_ffi": 0, "relay": 1, "portctl": 2, "vhostuser": 2, "stats": 3, "scheduler": 3, "daemon": 4, "cli": 5}


def _module_names(path: Path) -> Iterator[str]:
    """Full names of the modules that a module imports, relative ones resolved."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = parts[: len(parts) - node.level] if node.level else ()
            base = ".".join([*parents, node.module or ""]).strip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _layer(module: str) -> str | None:
    """The folder or module directly under vio4wd that holds a module of ours; None for other people's."""
    parts = module.split(".")
    return parts[1] if parts[0] == "vio4wd" and len(parts) > 1 else None


def _public_definitions(path: Path) -> Iterator[tuple[str, bool]]:
    """Public functions, methods and classes of a module, with whether each has a docstring."""
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", ast.get_docstring(node) is not None
                if isinstance(node, ast.ClassDef):
                    pending.append(node)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = _layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert own is not None or path.parent == PACKAGE
    imported = {layer for name in _module_names(path) if (layer := _layer(name)) in LAYERS} - {own}
    if own not in LAYERS:
        assert own == "__init__" or imported <= {"relay"}, f"{own} is used by all layers and may not import {imported}"
        return
    wrong = {layer for layer in imported if LAYERS[layer] >= LAYERS[own]}
    assert not wrong, f"{own} imports {', '.join(sorted(wrong))}: imports go from cli down to dpdk_ffi"


def test_dpdk_ffi_knows_only_the_errors() -> None:
    for path in (PACKAGE / "dpdk_ffi").rglob("*.py"):
        ours = {layer for name in _module_names(path) if (layer := _layer(name)) is not None}
        assert ours <= {"dpdk_ffi", "errors"}, f"{path.relative_to(ROOT)} imports {ours - {'dpdk_ffi', 'errors'}}"


def test_only_dpdk_ffi_uses_ctypes() -> None:
    users = [path for path in MODULES if "ctypes" in {name.split(".")[0] for name in _module_names(path)}]
    outside = [str(path.relative_to(ROOT)) for path in users if PACKAGE / "dpdk_ffi" not in path.parents]
    assert not outside


def test_the_public_face_is_documented() -> None:
    definitions = [definition for path in MODULES for definition in _public_definitions(path)]
    bare = [name for name, documented in definitions if not documented]
    assert len(bare) <= 0.05 * len(definitions), "without a docstring:\n" + "\n".join(bare)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
    assert ast.get_docstring(ast.parse(path.read_text())), "a module says in a sentence what it holds"


@pytest.mark.parametrize("path", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_strict_and_executable(path: Path) -> None:
    assert path.stat().st_mode & 0o111
    text = path.read_text()
    assert text.startswith("#!/bin/sh") or "set -euo pipefail" in text
