"""Texts made of the key table: the file that is installed, and the documentation's page about it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby

from vio4wd.config.dump import assignment
from vio4wd.config.keys import KEYS, KeySpec

_WIDTH = 100

_FILE_HEAD = """\
Configuration of virtio-forwarder and its CPU load balancer. Both read it when they start.

Lines are KEY=value; # begins a comment; of two lines for one key the later wins.
Values are quoted as in a shell, but nothing is expanded or executed.
Several values stand in an array, KEY=(one two), over as many lines as it takes.
Check changes with: virtio-forwarder --check-config
"""

_PAGE_HEAD = """\
# Configuration

<!-- Made by scripts/config-docs from vio4wd/config/keys.py: change it there. -->

"""

RULES = """\
The daemon and the load balancer read `/etc/default/virtioforwarder`, or the file given with `--config`. Options of the
command line win over the file; lists given there (`-P`, `-c`) replace the file's lists.
`virtio-forwarder --check-config` prints the configuration that would be in force, as lines of such a file, or all that
is wrong with it.

The file has lines `KEY=value` and comments that begin with `#`; of several lines for one key the last wins. It is read
as a shell reads assignments, but nothing in it is expanded or executed: single and double quotes and backslashes work,
`$NAME`, `` `command` `` and `~` are errors unless in single quotes or behind a backslash. An unquoted `;` in the middle
of a value, as in `1:2;3:4`, is part of it. A list is an array, `KEY=(one two three)`, which may
go over several lines and hold comments. Windows line ends are accepted. Unknown keys give a warning; the daemon does
not start with a bad value, and names every one of them with its line.

A blank value means the default, unless the key's own text says what blank means. A CPU, user or group that the default
names and the machine lacks is replaced with a warning, also where the file spells the default out; any other one that
the machine lacks is an error.

Only one kind of port control is in force: ZeroMQ where `VIRTIOFWD_ZMQ_PORT_CONTROL_EP` is set, else the command file
where `VIRTIOFWD_IPC_PORT_CONTROL` is on, else OVSDB. Static VFs work beside any of them.

On SIGHUP the daemon reads the file again and takes over the keys marked *reload*; for others it says that they need a
restart.
"""
"""What holds for all keys, in Markdown."""


def default_file() -> str:
    """The file that is installed as /etc/default/virtioforwarder: every key with its default."""
    lines = [*_comment(_FILE_HEAD)]
    for section, specs in groupby(KEYS.values(), lambda spec: spec.section):
        lines += ["", "", f"## {section.value}"]
        for spec in specs:
            lines += ["", *_file_entry(spec)]
    return "\n".join(lines) + "\n"


def _file_entry(spec: KeySpec) -> Iterator[str]:
    yield from _comment(spec.explanation)
    yield from _comment(f"Allowed: {spec.kind.allowed}.")
    yield assignment(spec, spec.default_words)
    if spec.example is not None:
        yield f"#{spec.key}={spec.example}"


def _comment(text: str) -> Iterator[str]:
    for paragraph in text.rstrip("\n").split("\n"):
        for line in textwrap.wrap(paragraph, _WIDTH - 2, break_long_words=False, break_on_hyphens=False) or [""]:
            yield f"# {line}".rstrip()


def page() -> str:
    """The documentation's page on configuration, in Markdown."""
    parts = [_PAGE_HEAD, RULES]
    for section, specs in groupby(KEYS.values(), lambda spec: spec.section):
        rows = "".join(map(_row, specs))
        parts.append(f"\n## {section.value}\n\n| Key | Default | Option | Meaning |\n|---|---|---|---|\n{rows}")
    return "".join(parts)


def _row(spec: KeySpec) -> str:
    meaning = f"{spec.explanation} Allowed: {spec.kind.allowed}."
    if spec.example is not None:
        meaning += f" Example: `{spec.example}`."
    if spec.reloadable:
        meaning += " *reload*"
    default = f"`{spec.default}`" if spec.default else "(blank)"
    cells = (f"`{spec.key}`", default, _option_names(spec), meaning.replace("<", "&lt;").replace("|", "\\|"))
    return f"| {' | '.join(cells)} |\n"


def _option_names(spec: KeySpec) -> str:
    if spec.option is None:
        return ""
    return " ".join(f"`{name}`" for name in (spec.option.short, spec.option.long) if name)
