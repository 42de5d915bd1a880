"""The same rings through rte_vhost and through the direct engine: same frames, same used entries, same counters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from player import (
    ANY_LAYOUT,
    EVENT_INDEX,
    IN_ORDER,
    INDIRECT,
    MERGEABLE,
    MODERN,
    PACKED,
    PROTOCOL,
    WRAP,
    Case,
    Outcome,
    play,
)

from harness.daemon import Daemon

pytestmark = pytest.mark.dpdk

JUMBO = 9014
CASES = [
    Case("simple", MODERN, simple=True),
    Case("simple, mergeable, wrapping", MODERN | MERGEABLE, start=0xFFE0, simple=True),
    Case("legacy", PROTOCOL | ANY_LAYOUT, simple=True),
    Case("legacy, mergeable, chains", PROTOCOL | ANY_LAYOUT | MERGEABLE),
    Case("chains", MODERN),
    Case("chains, indirect, several regions", MODERN | INDIRECT, regions=4),
    Case("several buffers a packet", MODERN | MERGEABLE | INDIRECT | EVENT_INDEX, start=250),
    Case("in order", MODERN | MERGEABLE | IN_ORDER, simple=True),
    Case("calls not wanted", MODERN | MERGEABLE, simple=True, calls=False),
    Case("calls not wanted yet", MODERN | MERGEABLE | EVENT_INDEX, calls=False),
    Case("packed", MODERN | PACKED, start=WRAP, simple=True),
    Case("packed, mergeable, chains, wrapping", MODERN | PACKED | MERGEABLE | EVENT_INDEX, start=WRAP | 240),
    Case("packed, indirect, several regions, calls not wanted", MODERN | PACKED | INDIRECT, 250, 4, calls=False),
    Case("several segments", MODERN | MERGEABLE, simple=True, longest_in=JUMBO),
    Case("packed, several segments", MODERN | PACKED | MERGEABLE, start=WRAP, simple=True, longest_in=JUMBO),
]
JUMBO_CASES = [
    Case("jumbo", MODERN | MERGEABLE, simple=True, longest_in=JUMBO, longest_out=JUMBO),
    Case("packed, jumbo", MODERN | PACKED | MERGEABLE, start=WRAP, simple=True, longest_in=JUMBO, longest_out=JUMBO),
]

ENGINES = ("library", "direct")


@pytest.mark.parametrize(("cases", "jumbo"), [(CASES, ""), (JUMBO_CASES, "y")], ids=["usual VF", "jumbo VF"])
@pytest.mark.parametrize("engine", ENGINES)
def test_outcomes_of_an_engine(
    engine: str, cases: list[Case], jumbo: str, tmp_path: Path, outcomes: dict[tuple[str, str], Outcome]
) -> None:
    """Plays all cases; the second engine is compared with the first."""
    daemon = Daemon(tmp_path, VIRTIOFWD_RING_ENGINE=engine, VIRTIOFWD_JUMBO=jumbo)
    try:
        for number, case in enumerate(cases):
            outcomes[case.name, engine] = play(daemon, engine, case, tmp_path, number)
    finally:
        daemon.stop()
    if engine == "direct":
        for case in cases:
            assert outcomes[case.name, "direct"] == outcomes[case.name, "library"], case.name


def build_case(kind: int, features: frozenset[int], start: int, regions: int, simple: bool, calls: bool) -> Case:
    if kind != MODERN or not simple:
        features -= {IN_ORDER}
    return Case("random", kind | sum(features), start, regions, simple, calls)


CASE = st.builds(
    build_case,
    st.sampled_from([PROTOCOL | ANY_LAYOUT, MODERN, MODERN | PACKED]),
    st.frozensets(st.sampled_from([MERGEABLE, INDIRECT, EVENT_INDEX, IN_ORDER])),
    start=st.sampled_from([0, 1, 250, 0x7FFF, 0xFFE0, 0xFFFF]),
    regions=st.integers(1, 4),
    simple=st.booleans(),
    calls=st.booleans(),
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    """A daemon for each engine."""
    daemons = [Daemon(tmp_path_factory.mktemp(engine), VIRTIOFWD_RING_ENGINE=engine) for engine in ENGINES]
    yield daemons[0], daemons[1]
    for daemon in daemons:
        daemon.stop()


@given(case=CASE, seed=st.integers(0, 1 << 32))
@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_random_rings(both: tuple[Daemon, Daemon], case: Case, seed: int) -> None:
    library, direct = (
        play(daemon, engine, case, daemon.directory, seed) for daemon, engine in zip(both, ENGINES, strict=True)
    )
    assert direct == library


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, str], Outcome]:
    return {}
