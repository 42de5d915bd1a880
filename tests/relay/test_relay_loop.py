"""What the relay loop is compiled to."""

from __future__ import annotations

import re

import pytest

from vio4wd.relay.loop import compile_loop

pytestmark = pytest.mark.dpdk


def test_the_loop_counts_in_integers() -> None:
    """numba makes floating point of signed and unsigned integers together: slow, and wrong beyond 2^53."""
    for part in compile_loop(cached=False).parts:
        floating = re.findall(
            r"^.*\b(?:f(?:add|sub|mul|div)|[su]itofp|fpto[su]i)\b.*$", part.inspect_llvm(), re.MULTILINE
        )
        assert not floating, part
