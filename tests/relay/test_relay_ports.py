from __future__ import annotations

import pytest

from vio4wd.relay.lanes import BURST, QUEUE_PAIRS
from vio4wd.relay.ports import DESCRIPTORS, MEMPOOL_CACHE, pool_buffers


@pytest.mark.parametrize(
    ("ports", "rx_descriptors", "tx_descriptors", "buffers"),
    [
        (1, 0, 0, 1824),  # what lanes hold and lcores' caches keep
        (1, 512, 512, 2848),
        (1, 1024, 512, 3360),
        (1, 512, 1024, 3360),
        (1, 64, 4096, 5984),
        (2, 512, 512, 3872),
        (8, 512, 1024, 14112),
    ],
)
def test_buffers_of_a_relay(ports: int, rx_descriptors: int, tx_descriptors: int, buffers: int) -> None:
    assert pool_buffers(ports, rx_descriptors, tx_descriptors) == buffers


def test_none_ever_waits_for_a_buffer() -> None:
    """All rings of the VF full, a burst held in each lane of the relay, two caches as full as they get."""
    lanes = 1 + QUEUE_PAIRS  # one VF queue, and all that a guest may have
    most_cached = MEMPOOL_CACHE * 3 // 2
    assert pool_buffers(1, DESCRIPTORS, DESCRIPTORS) >= 2 * DESCRIPTORS + lanes * BURST + 2 * most_cached
