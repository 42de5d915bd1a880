"""Directories that sockets and other files of the daemon are in: making them, and whether others could interfere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vio4wd.errors import StartupError

MODE = 0o755


def make_directory(directory: Path, *, parents: bool = True) -> bool:
    """Make a directory, with missing parents, of mode 0755 whatever the umask is; False where something is there.

    Raises:
        OSError: the system refuses it.
    """
    try:
        directory.mkdir(MODE)
    except FileExistsError:
        return False
    except FileNotFoundError:
        if not parents:
            raise
        make_directory(directory.parent)
        return make_directory(directory, parents=False)
    directory.chmod(MODE)
    return True


def check_directory(
    name: str, directory: Path, *, owner: int | None = None, group: int | None = None, sticky: bool = False
) -> None:
    """Make sure that only root, the daemon's user, and ``owner`` and ``group`` can put files there or replace them.

    With ``sticky`` a directory like /tmp will do, where everybody can put files, but replace only his own.

    Raises:
        StartupError: others can, or it is no directory; ``name`` is what the message calls it.
    """
    owners, groups = sorted({0, os.geteuid(), owner or 0}), sorted({0, group or 0})
    try:
        problem = _link_problem(directory, owners) or _problem(directory.stat(), owners, groups, sticky=sticky)
    except OSError as error:
        raise StartupError(f"{name} {directory}: {error.strerror}") from error
    if problem:
        raise StartupError(f"{name} {directory}: {problem}")


def _link_problem(directory: Path, owners: list[int]) -> str:
    """What is wrong with a symbolic link on the way: anybody may have put it there."""
    found = directory.lstat()
    if stat.S_ISLNK(found.st_mode) and found.st_uid not in owners and directory.parent.stat().st_mode & stat.S_IWOTH:
        return f"is a symbolic link that user {found.st_uid} made, must be a directory"
    return ""


def _problem(found: os.stat_result, owners: list[int], groups: list[int], *, sticky: bool) -> str:
    """What is wrong with a directory, empty if nothing is."""
    if not stat.S_ISDIR(found.st_mode):
        return "is not a directory"
    if found.st_uid not in owners:
        return f"belongs to user {found.st_uid}, must belong to {_either('user', owners)}"
    if sticky and found.st_mode & stat.S_ISVTX:
        return ""
    if found.st_mode & stat.S_IWOTH:
        return f"everybody can write it (mode {stat.S_IMODE(found.st_mode):04o}), must not: chmod o-w"
    if found.st_mode & stat.S_IWGRP and found.st_gid not in groups:
        return f"group {found.st_gid} can write it, must not (but {_either('group', groups)} could): chmod g-w"
    return ""


def _either(what: str, numbers: list[int]) -> str:
    return f"{what} {' or '.join(map(str, numbers))}"
