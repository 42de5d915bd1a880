"""What the relay loop is compiled to."""

from __future__ import annotations

import re

import pytest

from vio4wd.relay.loop import MEASURED_ROUNDS, compile_loop, is_measured

pytestmark = pytest.mark.dpdk


def test_the_loop_counts_in_integers() -> None:
    """numba makes floating point of signed and unsigned integers together: slow, and wrong beyond 2^53."""
    for part in compile_loop(cached=False).parts:
        floating = re.findall(
            r"^.*\b(?:f(?:add|sub|mul|div)|[su]itofp|fpto[su]i)\b.*$", part.inspect_llvm(), re.MULTILINE
        )
        assert not floating, part


@pytest.mark.parametrize("period", [1, 2, 3, 4, 8, 16, 17, 32, 64])
def test_one_round_in_so_many_is_measured_whatever_the_rhythm_of_the_work(period: int) -> None:
    """A guest may have the lcore work in one round of each period only."""
    for phase in range(period):
        epochs = range(-1024 * period + phase, 1024 * period, period)
        measured = sum(is_measured(epoch) for epoch in epochs)
        assert 0.8 < measured * MEASURED_ROUNDS / len(epochs) < 1.25
