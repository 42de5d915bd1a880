"""The linters and the type checker, run as tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "format", "--check", "."], id="ruff-format"),
        pytest.param(["ruff", "check", "."], id="ruff-check"),
        pytest.param(["mypy", "--strict"], id="mypy-strict"),
    ],
)
def test_linter_is_content(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def test_the_linter_sees_scripts_whose_names_do_not_tell() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--show-files", "."]
    seen = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    folders = (ROOT / name for name in ("bench", "scripts", ".ci"))
    files = (path for folder in folders for path in folder.iterdir() if path.is_file())
    python = {str(path) for path in files if re.match(rb"#!.*\bpython", path.read_bytes())}
    assert python <= set(seen)
