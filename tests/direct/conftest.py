from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rig import Rig


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    """Makes rigs, and at the end checks that their buffers are all there."""
    made: list[Rig] = []

    def make(direction: int, **options: object) -> Rig:
        made.append(Rig(direction, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()
