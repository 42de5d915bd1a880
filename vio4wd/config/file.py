"""Reads ``KEY=value`` files as a shell that sources them would, without executing anything.

Understood: comments, single and double quotes, backslashes, arrays ``KEY=(a b)`` over any number of lines, several
assignments on a line; later assignments win. Lines may end in CR LF.

What a shell would expand or execute (``$NAME``, backquotes, ``~``, braces and wildcards in arrays, redirections,
commands) is never guessed at: it is a problem of that assignment. The one thing read that a shell would not read so is
an unquoted ``;`` in the middle of a value (``1:2;3:4``), which stands for itself as it does for systemd.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")
_EXPANSION = re.compile(r"\$[A-Za-z0-9_{(\[@*#?$!-]")
_AFTER_END = re.compile(r"(?:[ \t;]|\\\n)*(?:#|\n|\Z|[A-Za-z_][A-Za-z0-9_]*=)")
_BLANK = " \t"
_OPERATORS = "&|<>()"


@dataclass(frozen=True)
class Assignment:
    """One assignment: its values (exactly one unless it is an array), and why it cannot be read, if it cannot."""

    key: str
    line: int
    values: tuple[str, ...]
    is_array: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class ParsedFile:
    """The last assignment of each key, and lines that are no assignments as ``file:line: why``."""

    assignments: Mapping[str, Assignment]
    problems: tuple[str, ...] = ()


def parse(text: str, filename: str) -> ParsedFile:
    """Read the text of a file; ``filename`` is for messages only. Never raises: what is wrong is in the result."""
    scanner = _Scanner(text.removeprefix("\ufeff").replace("\r\n", "\n"))
    assignments: dict[str, Assignment] = {}
    problems: list[str] = []
    while scanner.skip_to_statement():
        match = scanner.match(_ASSIGNMENT)
        if match is None:
            line, statement = scanner.line, scanner.skip_line()
            problems.append(
                f"{filename}:{line}: {statement!r} is not KEY=value or a # comment; the file is not executed"
            )
            continue
        assignment = scanner.assignment(match)
        assignments[assignment.key] = assignment
    return ParsedFile(assignments, tuple(problems))


class _Scanner:
    """A position in the text, and the first problem met in the assignment that is being read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._problem: str | None = None

    @property
    def line(self) -> int:
        """Number of the line at the position, from 1."""
        return self._text.count("\n", 0, self._at) + 1

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Match a pattern at the position."""
        return pattern.match(self._text, self._at)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def skip_to_statement(self) -> bool:
        """Go over blanks, ``;``, line ends and comments; False at the end of the text."""
        self._skip(_BLANK + ";\n")
        return self._at < len(self._text)

    def _skip(self, characters: str) -> None:
        while char := self._peek():
            if char == "#":
                self.skip_line()
            elif char in characters:
                self._at += 1
            elif self._text.startswith("\\\n", self._at):
                self._at += 2
            else:
                return

    def skip_line(self) -> str:
        """Go to the end of the line; answers what was skipped."""
        start = self._at
        end = self._text.find("\n", start)
        self._at = len(self._text) if end < 0 else end
        return self._text[start : self._at].rstrip()

    def assignment(self, match: re.Match[str]) -> Assignment:
        """Read the assignment that ``match`` is the beginning of."""
        line = self.line
        self._problem = None
        self._at = match.end()
        is_array = self._peek() == "("
        try:
            values = self._array() if is_array else (self._word(in_array=False),)
            if self._problem is None and not self.match(_AFTER_END):
                self._note(f"{self.skip_line().strip()!r} follows the value: put the whole value in quotes")
        except _Unclosed as unclosed:
            values = ()
            self._at = match.end()
            self._problem = f"{unclosed} is not closed"
        if self._problem is not None:
            self.skip_line()
        return Assignment(match[1], line, values, is_array, self._problem)

    def _note(self, problem: str) -> None:
        if self._problem is None:
            self._problem = problem

    def _array(self) -> tuple[str, ...]:
        words: list[str] = []
        self._at += 1
        while True:
            self._skip(_BLANK + "\n")
            char = self._peek()
            if char == "":
                raise _Unclosed("the array")
            if char == ")":
                self._at += 1
                return tuple(words)
            if char == "[":
                self._note("array elements have no [index] here")
            words.append(self._word(in_array=True))

    def _word(self, *, in_array: bool) -> str:
        parts: list[str] = []
        start = self._at
        while (char := self._peek()) and char not in _BLANK + "\n" and not (in_array and char == ")"):
            if char == ";" and not in_array and _AFTER_END.match(self._text, self._at):
                break
            if char == "~" and (self._at == start or self._text[self._at - 1] in ":="):
                self._note("~ is not expanded: write the path in full or put it in quotes")
            parts.append(self._piece(char, in_array=in_array))
        return "".join(parts)

    def _piece(self, char: str, *, in_array: bool) -> str:
        """One unquoted character, one escaped character, or one quoted string."""
        if char == "'":
            return self._single_quoted()
        if char == '"':
            return self._double_quoted()
        if char == "\\":
            self._at += 2
            escaped = self._text[self._at - 1 : self._at]
            return {"\n": "", "": "\\"}.get(escaped, escaped)
        self._check_unquoted(char, in_array=in_array)
        self._at += 1
        return char

    def _check_unquoted(self, char: str, *, in_array: bool) -> None:
        special = _OPERATORS + (";{*?" if in_array else "")
        if char in special:
            self._note(f"{char!r} has a meaning to a shell: put the value in quotes")
        elif self._text.startswith(("$'", '$"'), self._at):
            self._note("$'...' and $\"...\" are not understood: use plain quotes")
        else:
            self._check_expansion()

    def _check_expansion(self) -> None:
        if self.match(_EXPANSION) or self._peek() == "`":
            self._note(
                f"{self._text[self._at : self._at + 2]!r}: nothing is expanded or executed: write the value itself"
            )

    def _single_quoted(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise _Unclosed("a single quote")
        quoted = self._text[self._at + 1 : end]
        self._at = end + 1
        return quoted

    def _double_quoted(self) -> str:
        parts: list[str] = []
        self._at += 1
        while (char := self._peek()) != '"':
            if char == "":
                raise _Unclosed("a double quote")
            following = self._text[self._at + 1 : self._at + 2]
            if char == "\\" and following and following in '$`"\\\n':
                parts.append(following.replace("\n", ""))
                self._at += 2
                continue
            self._check_expansion()
            parts.append(char)
            self._at += 1
        self._at += 1
        return "".join(parts)


class _Unclosed(Exception):
    """A quote or an array without its end."""
