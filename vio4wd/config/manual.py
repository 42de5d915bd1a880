"""The manual page of the configuration file, virtioforwarder(5), made of the key table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from vio4wd.config.document import RULES
from vio4wd.config.keys import KEYS, KeySpec

_HEAD = r"""
.\" Made by scripts/config-docs from vio4wd/config/keys.py: change it there.
.TH VIRTIOFORWARDER 5 "" virtio\-forwarder "File formats"
.nh
.ad l
.SH NAME
virtioforwarder \- configuration of virtio\-forwarder
.SH SYNOPSIS
.I /etc/default/virtioforwarder
.SH DESCRIPTION
""".lstrip()

_FOOT = r"""
.SH EXAMPLE
Two VFs that are always there, the ZeroMQ services for the tools, and CPUs 2 and 3 for the relays:
.PP
.nf
.RS 4
VIRTIOFWD_CPU_MASK=2,3
VIRTIOFWD_STATIC_VFS=(0000:05:08.1=1
                      0000:05:08.2=2)
VIRTIOFWD_ZMQ_PORT_CONTROL_EP=ipc:///var/run/virtio\-forwarder/port_control
VIRTIOFWD_ZMQ_STATS_EP=ipc:///var/run/virtio\-forwarder/stats
.RE
.fi
.SH SEE ALSO
.BR virtio\-forwarder (8)
""".lstrip()

_SPECIAL = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "~": r"\(ti", "^": r"\(ha"}
_EMPHASIS = re.compile(r"`` (?P<ticked>.*?) ``|`(?P<code>[^`]*)`|\*(?P<word>\w+)\*")


def manual_page() -> str:
    """The page, for man(7)'s macros."""
    lines = [_HEAD + "\n.PP\n".join(map(_marked, RULES.rstrip("\n").split("\n\n")))]
    for section, specs in groupby(KEYS.values(), lambda spec: spec.section):
        lines.append(f'.SH "{section.value}"')
        for spec in specs:
            lines += _entry(spec)
    return "\n".join(lines) + "\n" + _FOOT


def _entry(spec: KeySpec) -> Iterator[str]:
    facts = [f"default: {spec.default or 'blank'}"]
    if spec.option is not None:
        facts.append("option: " + ", ".join(filter(None, (spec.option.short, spec.option.long))))
    mark = r"; \fIreload\fR" if spec.reloadable else ""
    yield ".TP"
    yield rf"\fB{_plain(spec.key)}\fR ({_plain('; '.join(facts))}{mark})"
    yield _plain(f"{spec.explanation} Allowed: {spec.kind.allowed}.")
    if spec.example is not None:
        yield rf"Example: \fB{_plain(spec.example)}\fR."


def _plain(text: str) -> str:
    """Text that stands for itself; none of ours has a line that begins with a control character."""
    return "".join(_SPECIAL.get(char, char) for char in text)


def _marked(markdown: str) -> str:
    """A paragraph with its code in bold and its emphasis in italics."""
    parts = []
    end = 0
    for match in _EMPHASIS.finditer(markdown):
        font = "I" if match["word"] else "B"
        inner = match["ticked"] or match["code"] or match["word"]
        parts.append(rf"{_plain(markdown[end : match.start()])}\f{font}{_plain(inner)}\fR")
        end = match.end()
    return "".join(parts) + _plain(markdown[end:])
