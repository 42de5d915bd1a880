from __future__ import annotations

from collections.abc import Iterator

import pytest
from bond_wires import Wires


@pytest.fixture
def wires() -> Iterator[Wires]:
    """Two veth pairs."""
    made = Wires()
    yield made
    made.remove()
