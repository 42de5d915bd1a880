"""Finds the Python and the package for the executables beside this file, in a checkout and where they are installed."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def run(module: str) -> None:
    """Call ``main()`` of a module of ours, in ``.venv`` beside or above this directory where there is one, and exit.

    Without a ``.venv`` the running Python is taken, which then has our dependencies.
    """
    for environment in (ROOT / ".venv", HERE / ".venv"):
        python = environment / "bin" / "python"
        if python.exists():
            if Path(sys.prefix).resolve() != environment.resolve():
                os.execv(python, [str(python), *sys.argv])
            break
    for directory in (ROOT, HERE):
        if (directory / "vio4wd").is_dir():
            sys.path.insert(0, str(directory))
            break
    sys.exit(importlib.import_module(module).main())
