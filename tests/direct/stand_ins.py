"""What the engine calls, compiled, without DPDK: a VF queue, an empty mempool, an rte_vhost that takes notes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cfunc, types

from vio4wd.relay.native import load64, store16, store64

intp = types.intp
QUEUE_LENGTH = 4096
QUEUE_WORDS = 5 + QUEUE_LENGTH
"""A VF queue, i8 words: 0 first, 1 end, 2 most packets that one burst moves, 3 calls; then a circle of pointers, and
last the least that one may ask for: vector drivers give nothing to those who want less."""

FREED = np.zeros(1 + QUEUE_LENGTH, np.int64)
"""Packets freed through rte_pktmbuf_free_bulk: their number, then pointers."""

LIBRARY = np.zeros(8, np.int64)
"""What rte_vhost saw: 0 position, 1 set_vring_base calls, 2 enqueues, 3 dequeues, 4 vring_calls. What it is to do: 5
how many buffers a burst uses (without moving packets)."""

_FREED, _LIBRARY = FREED.ctypes.data, LIBRARY.ctypes.data


@cfunc(types.uint16(intp, intp, types.uint16))
def receive(queue: Any, packets: Any, count: Any) -> Any:
    first = load64(queue)
    n = min(intp(count), load64(queue + 8) - first, load64(queue + 16))
    if intp(count) < load64(queue + 32 + 8 * QUEUE_LENGTH):
        n = intp(0)
    for i in range(n):
        store64(packets + 8 * i, load64(queue + 32 + 8 * ((first + i) % QUEUE_LENGTH)))
    store64(queue, first + n)
    store64(queue + 24, load64(queue + 24) + 1)
    return n


@cfunc(types.uint16(intp, intp, types.uint16))
def send(queue: Any, packets: Any, count: Any) -> Any:
    end = load64(queue + 8)
    n = min(intp(count), QUEUE_LENGTH - end + load64(queue), load64(queue + 16))
    for i in range(n):
        store64(queue + 32 + 8 * ((end + i) % QUEUE_LENGTH), load64(packets + 8 * i))
    store64(queue + 8, end + n)
    store64(queue + 24, load64(queue + 24) + 1)
    return n


@cfunc(types.int32(intp, intp, types.uint32))
def no_more(pool: Any, objects: Any, count: Any) -> Any:
    return -1


@cfunc(types.void(intp, types.uint32))
def free_bulk(packets: Any, count: Any) -> None:
    freed = load64(_FREED)
    for i in range(intp(count)):
        store64(_FREED + 8 * (1 + freed + i), load64(packets + 8 * i))
    store64(_FREED, freed + intp(count))


@cfunc(types.int32(types.int32, types.uint16, types.uint16, types.uint16))
def set_base(vid: Any, ring: Any, available: Any, used: Any) -> Any:
    store64(_LIBRARY, intp(available))
    store64(_LIBRARY + 8, load64(_LIBRARY + 8) + 1)
    return 0


@cfunc(types.int32(types.int32, types.uint16, intp, intp))
def get_base(vid: Any, ring: Any, available: Any, used: Any) -> Any:
    store16(available, load64(_LIBRARY))
    store16(used, load64(_LIBRARY))
    return 0


@cfunc(types.uint16(types.int32, types.uint16, intp, types.uint16))
def enqueue(vid: Any, ring: Any, packets: Any, count: Any) -> Any:
    store64(_LIBRARY + 16, load64(_LIBRARY + 16) + 1)
    store64(_LIBRARY, load64(_LIBRARY) + load64(_LIBRARY + 40))
    return 0


@cfunc(types.uint16(types.int32, types.uint16, intp, intp, types.uint16))
def dequeue(vid: Any, ring: Any, pool: Any, packets: Any, count: Any) -> Any:
    store64(_LIBRARY + 24, load64(_LIBRARY + 24) + 1)
    store64(_LIBRARY, load64(_LIBRARY) + load64(_LIBRARY + 40))
    return 0


@cfunc(types.int32(types.int32, types.uint16))
def vring_call(vid: Any, ring: Any) -> Any:
    store64(_LIBRARY + 32, load64(_LIBRARY + 32) + 1)
    return 0
