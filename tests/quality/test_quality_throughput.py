"""What ``bench/throughput`` concludes from its figures; these are made up."""

from __future__ import annotations

import pytest

from bench.machine import Conditions
from bench.throughput_main import DEFAULT_RINGS, IMIX, MIN_SAMPLES, TARGETS, Comparison, Figure, Pair, Sample

NEAR, FAR, SHARED = Conditions(100, 10), Conditions(300, 10), Conditions(100, 13)
NAMES = ["direct", "library", "testpmd"]
PACKED = "packed_vq=1"

Rates = tuple[float, float, float]
"""Of the contestants, in packets per second both ways together."""


def figure(
    name: str, rate: float, conditions: Conditions = NEAR, *, frame: str = "64", rings: str = DEFAULT_RINGS
) -> Figure:
    """A run at this rate, a third of it towards the VM; one sample in between is far off."""
    rates = [rate] * MIN_SAMPLES + [0.0]
    return Figure(name, frame, rings, tuple(Sample(r / 3, r * 2 / 3, conditions, conditions) for r in rates))


def pair(rates: Rates, conditions: Conditions = NEAR, frame: str = "64", rings: str = DEFAULT_RINGS) -> Pair:
    return Pair(tuple(figure(n, r, conditions, frame=frame, rings=rings) for n, r in zip(NAMES, rates, strict=True)))


def unlike(frame: str = "64", rings: str = DEFAULT_RINGS) -> Pair:
    """A pair with a good ratio that says nothing: the CPUs were far apart for the peer only."""
    runs = [("direct", 90.0, NEAR), ("library", 10.0, NEAR), ("testpmd", 10.0, FAR)]
    return Pair(tuple(figure(name, rate, where, frame=frame, rings=rings) for name, rate, where in runs))


def compare(*pairs: Pair, frames: tuple[str, ...] = ("64",), modes: tuple[str, ...] = (DEFAULT_RINGS,)) -> Comparison:
    return Comparison(NAMES, list(frames), list(modes), list(pairs))


def test_ratios_are_medians_over_pairs() -> None:
    comparison = compare(pair((20, 16, 10)), pair((50, 10, 10)), pair((21, 20, 10)))
    assert list(comparison.lines()) == [
        "default, 64: direct to library 1.25",  # of 1.25, 5 and 1.05
        "default, 64: library to testpmd 1.60",  # of 1.6, 1 and 2
        "ratio-64: 2.10",  # of 2, 5 and 2.1
        "ratio: 2.10",
    ]
    assert list(comparison.shortfalls()) == list(comparison.incomparable()) == []


def test_both_ways_count() -> None:
    ways = [("direct", 10, 20), ("library", 10, 10), ("testpmd", 5, 5)]
    runs = (Figure(n, "64", DEFAULT_RINGS, (Sample(a, b, NEAR, NEAR),) * MIN_SAMPLES) for n, a, b in ways)
    assert compare(Pair(tuple(runs))).ratio("direct", "testpmd", "64", DEFAULT_RINGS) == 3


def test_pairs_under_unlike_conditions_do_not_count() -> None:
    comparison = compare(pair((20, 10, 10)), unlike(), unlike())
    assert list(comparison.lines())[-1] == "ratio: 2.00"
    assert list(comparison.incomparable()) == []


@pytest.mark.parametrize("conditions", [FAR, SHARED])
def test_pairs_that_were_all_far_apart_or_shared_do(conditions: Conditions) -> None:
    comparison = compare(pair((20, 10, 10)), pair((24, 10, 10), conditions), pair((30, 10, 10), conditions))
    assert list(comparison.lines())[-1] == "ratio: 2.40"


def test_calm_samples_go_before_more_frequent_ones() -> None:
    calm, far = pair((20, 10, 10)), pair((40, 10, 10), FAR)
    runs = (
        Figure(few.contestant, "64", DEFAULT_RINGS, few.samples + 3 * many.samples)
        for few, many in zip(calm.figures, far.figures, strict=True)
    )
    assert compare(Pair(tuple(runs))).ratio("direct", "testpmd", "64", DEFAULT_RINGS) == 2


def test_samples_during_which_conditions_changed_do_not_count() -> None:
    steady = figure("direct", 20)
    moved = tuple(Sample(900, 900, NEAR, FAR) for _ in range(20))
    mixed = Pair((Figure("direct", "64", DEFAULT_RINGS, steady.samples + moved), *pair((20, 10, 10)).figures[1:]))
    assert compare(mixed).ratio("direct", "testpmd", "64", DEFAULT_RINGS) == 2


def test_a_pair_with_too_few_samples_is_unlike() -> None:
    few = figure("direct", 20)
    few = Figure("direct", "64", DEFAULT_RINGS, few.samples[: MIN_SAMPLES - 1])
    comparison = compare(Pair((few, *pair((20, 10, 10)).figures[1:])))
    assert len(list(comparison.incomparable())) == 1


def test_what_has_no_like_pair_is_named() -> None:
    frames, modes = ("64", "256"), (DEFAULT_RINGS, PACKED)
    comparison = compare(
        pair((20, 10, 10)),
        unlike(),
        unlike("256"),
        pair((20, 10, 10), frame="64", rings=PACKED),
        unlike("256", PACKED),
        frames=frames,
        modes=modes,
    )
    text = "no pair had like conditions, so its ratios are worth nothing; run more pairs"
    assert list(comparison.incomparable()) == [f"default, 256: {text}", f"{PACKED}, 256: {text}"]
    assert "ratio-256: 9.00" in comparison.lines(), "there is nothing better"


@pytest.mark.parametrize("frame", TARGETS)
def test_a_target_that_is_missed_is_named(frame: str) -> None:
    target = TARGETS[frame]
    assert not list(compare(pair((10 * target, 10, 10), frame=frame), frames=(frame,)).shortfalls())
    missed = compare(pair((10 * target - 0.1, 10, 10), frame=frame), frames=(frame,))
    assert list(missed.shortfalls()) == [f"{frame}: direct to testpmd {target - 0.01:.2f}, the target is {target:.2f}"]


def test_targets_are_for_the_first_kind_of_rings_and_some_frames() -> None:
    good, poor = (20.0, 10.0, 10.0), (11.0, 10.0, 10.0)
    comparison = compare(
        pair(good), pair(poor, frame=IMIX), pair(poor, rings=PACKED), pair(poor, frame=IMIX, rings=PACKED),
        frames=("64", IMIX), modes=(DEFAULT_RINGS, PACKED),
    )  # fmt: skip
    assert list(comparison.shortfalls()) == []


def test_being_behind_the_library_is_named_for_all_rings() -> None:
    frames, modes = ("64", IMIX), (DEFAULT_RINGS, PACKED)
    comparison = compare(
        pair((20, 10, 10)), pair((20, 25, 10), frame=IMIX),
        pair((20, 21, 10), rings=PACKED), pair((20, 20, 10), frame=IMIX, rings=PACKED),
        frames=frames, modes=modes,
    )  # fmt: skip
    assert list(comparison.shortfalls()) == [
        "default, imix: direct to library 0.80",
        f"{PACKED}, 64: direct to library 0.95",
    ]


def test_lines_of_several_frames_and_rings() -> None:
    """The mix comes first among the ratios; the last line is for the first frame and the first kind of rings."""
    rates: dict[tuple[str, str], Rates] = {
        ("64", DEFAULT_RINGS): (20, 10, 10),
        (IMIX, DEFAULT_RINGS): (18, 10, 10),
        ("64", PACKED): (22, 11, 10),
        (IMIX, PACKED): (15, 12, 10),
    }
    pairs = [pair(each, frame=frame, rings=rings) for (frame, rings), each in rates.items()]
    assert list(compare(*pairs, frames=("64", IMIX), modes=(DEFAULT_RINGS, PACKED)).lines()) == [
        "default, 64: direct to library 2.00",
        "default, 64: library to testpmd 1.00",
        "default, imix: direct to library 1.80",
        "default, imix: library to testpmd 1.00",
        f"{PACKED}, 64: direct to library 2.00",
        f"{PACKED}, 64: library to testpmd 1.10",
        f"{PACKED}, 64: direct to testpmd 2.20",
        f"{PACKED}, imix: direct to library 1.25",
        f"{PACKED}, imix: library to testpmd 1.20",
        f"{PACKED}, imix: direct to testpmd 1.50",
        "ratio-imix: 1.80",
        "ratio-64: 2.00",
        "ratio: 2.00",
    ]
