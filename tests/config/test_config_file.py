"""The file parser, against bash where a shell reads the same."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vio4wd.config.file import ParsedFile, parse

PRINT_KEY = 'n=${#K[@]}; builtin printf "%s\\0" "$n" "${K[@]}"'
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def bash_reads(text: str) -> tuple[str, ...] | None:
    """The values of K after a shell has sourced the text, None where the shell complains."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        file.write_bytes(text.encode())
        result = subprocess.run(
            ["/bin/bash", "--norc", "-c", f"enable -n : . [; source ./file || exit 1; {PRINT_KEY}"],
            cwd=folder, env={"PATH": "/nonexistent", "LC_ALL": "C", "HOME": "/home/someone"},
            capture_output=True, timeout=20, check=False,
        )  # fmt: skip
    if result.returncode or result.stderr:
        return None
    _, *values = result.stdout.decode().split("\0")[:-1]
    return tuple(values)


def values(parsed: ParsedFile, key: str = "K") -> tuple[str, ...]:
    assert parsed.problems == ()
    assert parsed.assignments[key].problem is None
    return parsed.assignments[key].values


def one(text: str) -> str:
    (value,) = values(parse(text, "f"))
    return value


TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs"), include_characters="\n\t"), max_size=12)
BARE = "abcXYZ019_,.:/-+=@%^]}!"


@st.composite
def written(draw: st.DrawFn) -> tuple[str, str]:
    """A value and one of the ways in which a shell lets it be written."""
    value, source = "", ""
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["bare", "single", "double", "backslash", "continued"]))
        if kind == "bare":
            piece = draw(st.text(BARE, max_size=8))
            source += piece
        elif kind == "single":
            piece = draw(TEXT).replace("'", "")
            source += f"'{piece}'"
        elif kind == "double":
            piece = draw(TEXT)
            escaped = piece
            for special in '\\"$`':
                escaped = escaped.replace(special, "\\" + special)
            source += f'"{escaped}"'
        elif kind == "backslash":
            piece = draw(TEXT).replace("\n", "")
            source += "".join("\\" + char for char in piece)
        else:
            piece = ""
            source += "\\\n"
        value += piece
    return value, source


@QUICK
@given(written(), st.sampled_from(["", "\n", "  \n", " # comment\n", "\t#\n", ";", " ; # x\n", " L=b", "; L=b\n"]))
def test_scalar_is_what_a_shell_reads(item: tuple[str, str], end: str) -> None:
    value, source = item
    text = f"# start\nK={source}{end}"
    assert (one(text),) == bash_reads(text) == (value,)


@QUICK
@given(
    st.lists(written().filter(lambda item: not item[1].startswith(("[", "\\\n"))), max_size=4),
    st.sampled_from([" ", "\n", "\t", "  \n ", " # a comment, with ' and )\n"]),
    st.sampled_from(["", "\n", " # end\n", " ;"]),
)
def test_array_is_what_a_shell_reads(items: list[tuple[str, str]], between: str, end: str) -> None:
    items = [item for item in items if item[1]]
    text = f"K=({between.join(source for _, source in items)}{between}){end}"
    assert values(parse(text, "f")) == bash_reads(text) == tuple(value for value, _ in items)


@QUICK
@given(st.text("ab1 '\"\\#;=,:./-[]%\n\tK", max_size=16))
def test_any_scalar_line_that_a_shell_accepts_is_read_the_same(soup: str) -> None:
    text = f"K={soup}\n"
    expected = bash_reads(text)
    assume(expected is not None)
    assert values(parse(text, "f")) == expected


@QUICK
@given(st.text("ab '\"\\#,:./-]%\n\t=", max_size=16))
def test_any_array_line_that_a_shell_accepts_is_read_the_same(soup: str) -> None:
    text = f"K=({soup})\n"
    expected = bash_reads(text)
    assume(expected is not None)
    assert values(parse(text, "f")) == expected


@QUICK
@given(st.booleans(), st.text("ab $`~{}*?!()'\"\\,:=[]", max_size=14))
def test_what_a_shell_expands_is_never_read_differently(in_array: bool, soup: str) -> None:
    text = f"K=({soup})\n" if in_array else f"K={soup}\n"
    expected = bash_reads(text)
    parsed = parse(text, "f")
    assume(expected is not None and not parsed.problems and parsed.assignments["K"].problem is None)
    assert parsed.assignments["K"].values == expected


@given(st.text())
def test_no_text_stops_the_parser(text: str) -> None:
    parse(text, "f")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("K=1,2", "1,2"),
        ("K=1,2   \t\n", "1,2"),
        ("K=1,2\r\n", "1,2"),
        ("K=1,2  \r\n", "1,2"),
        ("\ufeffK=1", "1"),
        ("  K=1", "1"),
        ("K=", ""),
        ("K=   \n", ""),
        ("K=''", ""),
        ('K="a b"', "a b"),
        ("K='a'\\''b'", "a'b"),
        ("K=a#b", "a#b"),
        ("K=a # b", "a"),
        ("#K=0\nK=1\n#K=2\n", "1"),
        ("K=1\nK=2\n", "2"),
        ("K='1'\nK=\n", ""),
        ("K=1:2;3:4", "1:2;3:4"),
        ("K=--virtio-cpu=1:2;--virtio-cpu=2:3  # pins", "--virtio-cpu=1:2;--virtio-cpu=2:3"),
        ("K=5$", "5$"),
    ],
)
def test_scalar(text: str, value: str) -> None:
    assert one(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "K=(a b c)",
        "K=( a b\n  c )\n",
        "K=(\n# first\na # one\n'b'\n\n\"c\"\n)\nL=1\n",
        "K=(a\r\nb\r\nc)\r\n",
        "K=(x)\nK=(a b c)  # later wins",
    ],
)
def test_array(text: str) -> None:
    parsed = parse(text, "f")
    assert values(parsed) == ("a", "b", "c")
    assert parsed.assignments["K"].is_array


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("K=a b", "'b' follows the value"),
        ("K= a", "'a' follows the value"),
        ("K=$HOME", "nothing is expanded"),
        ('K="${HOME}"', "nothing is expanded"),
        ("K=$(id)", "nothing is expanded"),
        ("K=`id`", "nothing is expanded"),
        ("K=$'a'", "plain quotes"),
        ("K=~/x", "~ is not expanded"),
        ("K=a&b", "'&' has a meaning"),
        ("K=a>b", "'>' has a meaning"),
        ("K=(a;b)", "';' has a meaning"),
        ("K=({a,b})", "'{' has a meaning"),
        ("K=([1]=a)", "no [index]"),
        ("K='a", "single quote is not closed"),
        ('K="a', "double quote is not closed"),
        ("K=(a", "array is not closed"),
    ],
)
def test_what_is_not_read_is_said_and_the_next_line_is_read(text: str, problem: str) -> None:
    parsed = parse(f"# one\n{text}\nNEXT=1\n", "f")
    assert problem in str(parsed.assignments["K"].problem)
    assert parsed.assignments["K"].line == 2
    assert values(parsed, "NEXT") == ("1",)
    assert parsed.problems == ()


@pytest.mark.parametrize("line", ["K", "K = 1", "source /etc/x", "if true; then", "-K=1", "export K=1", "K+=1"])
def test_lines_that_are_no_assignments(line: str) -> None:
    parsed = parse(f"A=1\n{line}\nB=2\n", "dir/file")
    assert [problem.partition(": ")[0] for problem in parsed.problems] == ["dir/file:2"]
    assert set(parsed.assignments) == {"A", "B"}
