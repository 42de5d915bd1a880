"""What a configuration is checked against: the CPUs, users and groups of the machine."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_ONLINE_CPUS = Path("/sys/devices/system/cpu/online")


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def parse_cpu_list(text: str) -> frozenset[int]:
    """Read the kernel's CPU list format, as in ``0-3,8`` (Documentation/admin-guide/cputopology.rst)."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def _online_cpus() -> frozenset[int]:
    try:
        return parse_cpu_list(_ONLINE_CPUS.read_text(encoding="ascii"))
    except OSError:
        return frozenset(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class Host:
    """Online CPUs, and functions from a user or group name to its number (None where there is no such name)."""

    cpus: frozenset[int]
    uid: Callable[[str], int | None] = _uid
    gid: Callable[[str], int | None] = _gid

    @classmethod
    def here(cls) -> Host:
        """This machine."""
        return cls(_online_cpus())
