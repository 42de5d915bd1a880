"""The record that one lcore's loop runs from: what it polls, the functions it calls, and how it is stopped."""

from __future__ import annotations

import numpy as np

from vio4wd.relay.lanes import LANES

FUNCTIONS = {
    "enqueue": "rte_vhost_enqueue_burst",
    "dequeue": "rte_vhost_dequeue_burst",
    "available": "rte_vhost_avail_entries",
    "free_bulk": "rte_pktmbuf_free_bulk",
}
"""Field of the record -> DPDK function whose address it holds."""

LCORE = np.dtype(
    [
        ("stop", "i4"),
        ("epoch", "i4"),  # rounds that the loop has begun, wrapping
        ("list", "i8"),  # address of the list of lanes in force: count, then indexes, i4 each
        ("lanes", "i8"),  # address of the lane table
        ("sleep", "i8"),  # usleep(3)
        ("idle_sleep_max_us", "i4"),  # longest sleep while lanes are ready and idle; 0: always spin
        ("sleep_us", "i4"),  # current sleep
        *[(name, "i8") for name in FUNCTIONS],
    ],
    align=True,
)

LIST_LENGTH = 1 + LANES
"""Entries (i4) of a list of lanes: its count and room for all lanes."""
