"""Writes a Config as the lines of a file that reads back to the same Config."""

from __future__ import annotations

import shlex

from vio4wd.config.keys import KEYS, KeySpec
from vio4wd.config.model import Config


def assignment(spec: KeySpec, words: tuple[str, ...]) -> str:
    """One ``KEY=value`` line, an array where there are several words."""
    quoted = [shlex.quote(word) if word else "" for word in words]
    return f"{spec.key}=({' '.join(quoted)})" if len(quoted) > 1 else f"{spec.key}={''.join(quoted)}"


def dump(config: Config) -> str:
    """All keys of a configuration, one line each."""
    lines = (assignment(spec, spec.kind.write(getattr(config, spec.field))) for spec in KEYS.values())
    return "".join(f"{line}\n" for line in lines)
