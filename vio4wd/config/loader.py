"""Makes a Config of a file's text and of overrides: every key converted and checked, all problems told at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vio4wd.config import checks
from vio4wd.config.file import Assignment, ParsedFile, parse
from vio4wd.config.host import Host
from vio4wd.config.keys import IGNORED_KEYS, KEYS, KeySpec
from vio4wd.config.kinds import BadValueError, Reading
from vio4wd.config.model import Config
from vio4wd.errors import ConfigError

DEFAULT_PATH = Path("/etc/default/virtioforwarder")


def load(
    path: Path | None, overrides: Mapping[str, str | Sequence[str]] | None = None, *, host: Host | None = None
) -> Config:
    """Read the configuration of a file, None for the defaults, with overrides of keys on top.

    An override has the text that the file would have, or the texts of an array, and replaces the file's value.
    ``host`` is what CPUs, users and groups are checked against, this machine unless given.

    Raises:
        ConfigError: the file cannot be read, or values cannot be used; one line for each problem.
    """
    if path is None:
        return loads("", "", overrides, host=host)
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise ConfigError(f"{path}: the configuration file cannot be read: {error.strerror}") from error
    return loads(text, str(path), overrides, host=host)


def loads(
    text: str, filename: str, overrides: Mapping[str, str | Sequence[str]] | None = None, *, host: Host | None = None
) -> Config:
    """Read the configuration of a text as ``load`` does of a file; ``filename`` is for messages."""
    loading = _Loading(filename, parse(text, filename), dict(overrides or {}), host or Host.here())
    return loading.config()


@dataclass(frozen=True)
class _Source:
    """Where the value of a key comes from, and its words."""

    place: str
    words: tuple[str, ...]
    is_default: bool = False
    problem: str | None = None


class _Loading:
    """One run over all keys, which collects problems and warnings."""

    def __init__(
        self, filename: str, parsed: ParsedFile, overrides: Mapping[str, str | Sequence[str]], host: Host
    ) -> None:
        self._filename = filename
        self._assignments = parsed.assignments
        self._overrides = overrides
        self._host = host
        self._problems = list(parsed.problems)
        self._warnings: list[str] = []

    def config(self) -> Config:
        """Convert and check all keys."""
        self._warn_of_unknown()
        values = {spec.field: self._value(spec) for spec in KEYS.values()}
        if not self._problems:
            config = Config(**values)
            for key, problem in checks.problems(config):
                self._add_problem(KEYS[key], self._source(KEYS[key]), problem)
            self._warnings.extend(checks.warnings(config))
        if self._problems:
            raise ConfigError("\n".join(self._problems))
        return Config(**values, warnings=tuple(self._warnings))

    def _warn_of_unknown(self) -> None:
        unknown = sorted(self._overrides.keys() - KEYS.keys())
        if unknown:
            raise ConfigError(f"no such configuration key: {', '.join(unknown)}")
        for key, assignment in self._assignments.items():
            if key in IGNORED_KEYS and any(assignment.values):
                self._warnings.append(f"{self._place(assignment)}: {key} is {IGNORED_KEYS[key]}")
            elif key not in KEYS and key not in IGNORED_KEYS:
                self._warnings.append(f"{self._place(assignment)}: {key} is not a known key and is ignored{_hint(key)}")

    def _place(self, assignment: Assignment) -> str:
        return f"{self._filename}:{assignment.line}"

    def _source(self, spec: KeySpec) -> _Source:
        default = _Source("default", spec.default_words, is_default=True)
        if (override := self._overrides.get(spec.key)) is not None:
            words = (override,) if isinstance(override, str) else tuple(override)
            place = "command line"
            is_default = False
            problem = None
        elif (assignment := self._assignments.get(spec.key)) is not None:
            words, place, problem = assignment.values, self._place(assignment), assignment.problem
            is_default = words == spec.default_words
        else:
            return default
        if spec.kind.blank_is_default and problem is None and not any(word.strip() for word in words):
            return default
        return _Source(place, words, is_default, problem)

    def _value(self, spec: KeySpec) -> Any:
        source = self._source(spec)
        try:
            if source.problem is not None:
                raise BadValueError(source.problem)
            return spec.kind.read(Reading(source.words, source.is_default, self._host, self._warner(spec, source)))
        except BadValueError as error:
            self._add_problem(spec, source, str(error))
            return None

    def _warner(self, spec: KeySpec, source: _Source) -> Any:
        return lambda warning: self._warnings.append(f"{source.place}: {spec.key}: {warning}")

    def _add_problem(self, spec: KeySpec, source: _Source, problem: str) -> None:
        option = f" ({spec.option.long})" if spec.option and source.place == "command line" else ""
        shown = " " + _shown(source.words) if source.problem is None else ""
        self._problems.append(f"{source.place}: {spec.key}{option}{shown}: {problem}; allowed: {spec.kind.allowed}")


def _shown(words: Iterable[str]) -> str:
    return " ".join(repr(word) for word in words) or "()"


def _hint(key: str) -> str:
    close = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.8)
    return f": did you mean {close[0]}?" if close else ""
