"""Kinds of values: for each, how the words of an assignment become a value and how the value is written again."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vio4wd.config.host import Host
from vio4wd.config.model import Account, RingEngine
from vio4wd.errors import ConfigError

SOCKET_PATH_MAX = 107
"""Longest path of a unix socket in bytes (sun_path of unix(7), less its end)."""

_OFF = {"", "0", "n", "no", "off", "false"}
_MOST_ID = 2**32 - 2
_INTEGER = re.compile(r"[0-9]{1,10}\Z")
_TCP = re.compile(r"tcp://(\*|[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})\Z")


class BadValueError(ConfigError):
    """Why a value cannot be used; the key and what is allowed are added where it is caught."""


@dataclass(frozen=True)
class Reading:
    """The words of one assignment on their way to a value. ``is_default``: nobody asked for something else."""

    words: tuple[str, ...]
    is_default: bool
    host: Host
    warn: Callable[[str], None]

    @property
    def word(self) -> str:
        """The only word, empty where there is none."""
        if len(self.words) > 1:
            raise BadValueError("is one value, not an array of several")
        return self.words[0].strip() if self.words else ""

    @property
    def entries(self) -> tuple[str, ...]:
        """All words, split further at blanks."""
        return tuple(entry for word in self.words for entry in word.split())


@dataclass(frozen=True)
class Kind:
    """How values are read and written, and what is allowed.

    Blank values mean the default where ``blank_is_default``.
    """

    read: Callable[[Reading], Any]
    write: Callable[[Any], tuple[str, ...]]
    allowed: str
    blank_is_default: bool = False


def _text(value: object) -> tuple[str, ...]:
    return ("" if value is None else str(value),)


def _number_text(value: float) -> tuple[str, ...]:
    return (repr(value).removesuffix(".0"),)


def _read_flag(reading: Reading) -> bool:
    return reading.word.lower() not in _OFF


def _read_not_blank(reading: Reading) -> bool:
    if reading.word and reading.word.lower() in _OFF:
        reading.warn(f"{reading.word!r} is on: only a blank value is off")
    return bool(reading.word)


def _read_only_true(reading: Reading) -> bool:
    word = reading.word
    if word != "true" and word.lower() not in _OFF:
        reading.warn(f"{word!r} is taken as off: only 'true' is on")
    return word == "true"


def _write_true(value: bool) -> tuple[str, ...]:
    return ("true" if value else "",)


def integer(least: int, most: int, unit: str = "") -> Kind:
    """Whole numbers within bounds, both included."""

    def read(reading: Reading) -> int:
        if not _INTEGER.match(reading.word) or not least <= int(reading.word) <= most:
            raise BadValueError("is not such a number")
        return int(reading.word)

    return Kind(read, _text, f"a number {least} to {most}{unit and ' ' + unit}", blank_is_default=True)


def decimal(least: float, most: float, unit: str = "") -> Kind:
    """Decimal numbers within bounds, both included."""

    def read(reading: Reading) -> float:
        try:
            value = float(reading.word)
        except ValueError:
            raise BadValueError("is not a number") from None
        if not least <= value <= most:
            raise BadValueError("is out of bounds")
        return value

    return Kind(read, _number_text, f"a number {least:g} to {most:g}{unit and ' ' + unit}", blank_is_default=True)


def _absolute(word: str) -> Path:
    if not word.startswith("/") or "\0" in word:
        raise BadValueError("is not an absolute path")
    return Path(word)


def _read_path(reading: Reading) -> Path:
    return _absolute(reading.word)


def _read_optional_path(reading: Reading) -> Path | None:
    return _absolute(reading.word) if reading.word else None


def _read_socket_pattern(reading: Reading) -> str:
    word = reading.word
    if word.count("%u") != 1 or word.count("%") != 1:
        raise BadValueError("must contain %u exactly once and no other %")
    if "/" in word or "\0" in word:
        raise BadValueError("is a file name, not a path")
    return word


def _read_endpoint(reading: Reading) -> str | None:
    word = reading.word
    if word.startswith("ipc://"):
        path = _absolute(word.removeprefix("ipc://"))
        if len(bytes(path)) > SOCKET_PATH_MAX:
            raise BadValueError(f"is too long for a unix socket, {SOCKET_PATH_MAX} bytes of path at most")
        return word
    if word and not ((match := _TCP.match(word)) and 1 <= int(match[2]) <= 65535):
        raise BadValueError("is not a ZeroMQ endpoint")
    return word or None


def _account(find: Callable[[Host], Callable[[str], int | None]], what: str) -> Kind:
    def read(reading: Reading) -> Account:
        name = reading.word
        if not name:
            return Account()
        number = int(name) if _INTEGER.match(name) else find(reading.host)(name)
        if number is not None and number <= _MOST_ID:
            return Account(name, number)
        if not reading.is_default:
            raise BadValueError(f"there is no such {what} here" if number is None else f"is no {what} id")
        reading.warn(f"there is no {what} {name!r} here: the daemon's own {what} is used")
        return Account()

    return Kind(read, lambda account: (account.name,), f"a {what}'s name or number, blank for the daemon's own")


def _read_uuid(reading: Reading) -> str | None:
    try:
        return str(uuid.UUID(reading.word)) if reading.word else None
    except ValueError:
        raise BadValueError("is not a UUID") from None


def _read_ring_engine(reading: Reading) -> RingEngine:
    try:
        return RingEngine(reading.word.lower())
    except ValueError:
        raise BadValueError("is no ring engine") from None


FLAG = Kind(_read_flag, _write_true, "blank, 0, n, no, off and false are off, anything else is on")
NOT_BLANK = Kind(_read_not_blank, _write_true, "blank is off, anything else is on, be it 0 or no")
ONLY_TRUE = Kind(_read_only_true, _write_true, "'true' is on, anything else is off")
PATH = Kind(_read_path, _text, "an absolute path", blank_is_default=True)
OPTIONAL_PATH = Kind(_read_optional_path, _text, "an absolute path, blank for none")
SOCKET_PATTERN = Kind(
    _read_socket_pattern, _text, "a file name with exactly one %u, the relay's number", blank_is_default=True
)
ENDPOINT = Kind(
    _read_endpoint,
    _text,
    "ipc:///path/of/socket, or tcp://address:port (with CURVE keys only), blank for no such service",
)
USER = _account(lambda host: host.uid, "user")
GROUP = _account(lambda host: host.gid, "group")
UUID = Kind(_read_uuid, _text, "a UUID, blank for none")
RING_ENGINE = Kind(_read_ring_engine, lambda engine: (engine.value,), "auto, direct or library", blank_is_default=True)
