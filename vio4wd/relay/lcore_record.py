"""The record that one lcore's loop runs from: what it polls, the functions it calls, and how it is stopped."""

from __future__ import annotations

import numpy as np

from vio4wd.relay.lanes import LANES

FUNCTIONS = {
    "enqueue": "rte_vhost_enqueue_burst",
    "dequeue": "rte_vhost_dequeue_burst",
    "available": "rte_vhost_avail_entries",
    "free_bulk": "rte_pktmbuf_free_bulk",
    "set_vring_base": "rte_vhost_set_vring_base",
    "get_vring_base": "rte_vhost_get_vring_base",
    "vring_call": "rte_vhost_vring_call",
    "mempool_operations": "rte_mempool_ops_table",
    "eventfd_write": "eventfd_write",
    "sleep": "usleep",
}
"""Field of the record -> function (or table, of DPDK or of libc) whose address it holds."""

LCORE = np.dtype(
    [
        ("stop", "i4"),
        ("epoch", "i4"),  # rounds that the loop has begun, wrapping
        ("list", "i8"),  # address of the list of lanes in force: count, then indexes, i4 each
        ("lanes", "i8"),  # address of the lane table
        ("idle_sleep_max_us", "i4"),  # longest sleep while lanes are ready and idle; 0: always spin
        ("sleep_us", "i4"),  # current sleep
        ("own_address", "i8"),  # where this record lies
        ("lcore", "i8"),  # EAL's number of the lcore
        ("note", "i8"),  # where the loop notes its thread and the lane that it is in, see blame
        *[(name, "i8") for name in FUNCTIONS],
    ],
    align=True,
)

LIST_LENGTH = 1 + LANES
"""Entries (i4) of a list of lanes: its count and room for all lanes."""
