"""Forwarders for the tests of the ZeroMQ services."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from zmq_forwarder import Forwarder, start_memory


@pytest.fixture
def forwarder() -> Iterator[Forwarder]:
    """A forwarder with default sockets."""
    yield from start_memory()


@pytest.fixture
def dynamic_forwarder() -> Iterator[Forwarder]:
    """A forwarder with dynamic sockets."""
    yield from start_memory(dynamic=True)
