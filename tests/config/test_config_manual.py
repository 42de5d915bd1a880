"""The manual pages: complete, and clean for the programs that show them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import pytest

from vio4wd.cli.daemon_options import make_command
from vio4wd.config.keys import KEYS
from vio4wd.config.manual import manual_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs/man").iterdir())
needs_groff = pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")


def _shown(page: Path) -> tuple[str, str]:
    """A page as people see it, and what is wrong with it."""
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-rLL=200n", "-P-cbou", page],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


@needs_groff
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_no_faults(page: Path) -> None:
    text, faults = _shown(page)
    assert faults == ""
    assert text.splitlines()[0].startswith(page.stem.upper())


@needs_groff
def test_the_daemon_s_page_tells_every_option() -> None:
    text, _ = _shown(ROOT / "docs/man/virtio-forwarder.8")
    command = make_command(lambda _invocation: 0)
    params = command.get_params(click.Context(command, help_option_names=["-h", "--help"]))
    assert [name for param in params for name in param.opts if f" {name}" not in text] == []
    for spec in KEYS.values():
        if spec.option is not None:
            entry = text.partition(f"[{spec.key}]")[0].rpartition(spec.option.long)[2]
            assert len(entry) < len(text) / 10 and ("no effect" in entry) != spec.works, spec.key


@needs_groff
def test_the_file_s_page_tells_every_key() -> None:
    text = " ".join(_shown(ROOT / "docs/man/virtioforwarder.5")[0].split())
    for spec in KEYS.values():
        assert f"{spec.key} (default: {spec.default or 'blank'}" in text
        assert spec.explanation in text


def test_the_file_s_page_is_current() -> None:
    assert (ROOT / "docs/man/virtioforwarder.5").read_text() == manual_page(), "run scripts/config-docs"
