"""Compiles Python functions to C functions, and keeps them in a folder on disk for the processes that come later.

The folder is a convenience: where it cannot be written, or what is in it cannot be read, it is given up.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

_LOG = logging.getLogger(__name__)
_NB: Any = numba

_folder: Path | None = None


def keep_compiled(folder: Path) -> None:
    """Keep what this process compiles from now on in a folder that holds nothing else, and load what is there.

    Raises:
        OSError: the folder cannot be made or written.
    """
    global _folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    tempfile.TemporaryFile(dir=folder).close()  # root may always write, as far as access(2) knows
    _NB.config.CACHE_DIR = str(folder)
    _NB.config.CACHE_LOCATOR_CLASSES = "UserProvidedCacheLocator"  # no place whose name does not say what is current
    _folder = folder


def kept() -> bool:
    """Whether what is compiled is kept: a folder was chosen, and nothing has gone wrong with it since."""
    return _folder is not None


def compile_function(signature: Any, function: Callable[..., Any], *, cached: bool = True) -> Any:
    """Compile a function to a C function of a numba signature, or load it from the folder, if one was chosen.

    The result has its ``address``, which is good for as long as the result lives.
    """
    if cached and _folder is not None:
        try:
            return _NB.cfunc(signature, error_model="numpy", cache=True)(function)
        except Exception as error:  # what unpickling damaged files raises can be anything
            _give_up(error)
    return _NB.cfunc(signature, error_model="numpy")(function)


def _give_up(error: Exception) -> None:
    """Remove the folder, so that the next process makes it anew, and keep nothing from now on."""
    global _folder
    _LOG.warning(
        "compiled code cannot be kept in %s (%s: %s): the folder is removed, and this process compiles in memory",
        _folder, type(error).__name__, error,
    )  # fmt: skip
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)
    _folder = None
