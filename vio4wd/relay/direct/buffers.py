"""Packet buffers for compiled code, taken from and given to the lcore's own mempool cache in place. Compiled by numba.

This is what DPDK's inline functions do (rte_mempool.h): the cache is a stack, so that the buffer freed last, which is
still in the CPU's caches, is the next one used. Everything unusual goes through DPDK's exported functions.
"""

from __future__ import annotations

from typing import Any

from numba import types

from vio4wd.relay.dpdk_calls import free_bulk, mempool_dequeue
from vio4wd.relay.mbuf import (
    CACHE_BYTES,
    CACHE_FLUSH_THRESHOLD,
    CACHE_LENGTH,
    CACHE_OBJECTS,
    DATA_LEN,
    FRESH_REARM_SIGNED,
    NEXT,
    OL_FLAGS,
    OL_NOT_DIRECT,
    OPS_BYTES,
    OPS_DEQUEUE,
    OPS_FIRST,
    PACKET_TYPE,
    POOL,
    POOL_CACHE_SIZE,
    POOL_LOCAL_CACHE,
    POOL_OPS_INDEX,
    REARM,
    REARM_COUNTS_MASK,
    REARM_ONE_OF_EACH,
)
from vio4wd.relay.native import compiled, load32, load64, store32, store64


@compiled
def cache_of(core: Any, pool: int) -> Any:
    """The address of this lcore's cache of a pool."""
    return load64(pool + POOL_LOCAL_CACHE) + core.lcore * CACHE_BYTES


@compiled
def _refill(core: Any, pool: int, cache: int, count: int) -> Any:
    operations = core.mempool_operations + OPS_FIRST + OPS_BYTES * load32(pool + POOL_OPS_INDEX)
    dequeue = load64(operations + OPS_DEQUEUE)
    have = load32(cache + CACHE_LENGTH)
    wanted = load32(pool + POOL_CACHE_SIZE)
    if mempool_dequeue(dequeue, pool, cache + CACHE_OBJECTS + 8 * have, types.uint32(wanted)) < 0:
        wanted = count - have
        if mempool_dequeue(dequeue, pool, cache + CACHE_OBJECTS + 8 * have, types.uint32(wanted)) < 0:
            return have
    store32(cache + CACHE_LENGTH, have + wanted)
    return have + wanted


@compiled
def stocked(core: Any, pool: int, cache: int, count: int) -> Any:
    """See to it that the cache holds ``count`` buffers; answers how many it holds, fewer when the pool is empty.

    The address of the topmost is at ``cache + CACHE_OBJECTS + 8 * (held - 1)``.
    """
    have = load32(cache + CACHE_LENGTH)
    if have >= count:
        return have
    return _refill(core, pool, cache, count)


@compiled
def fill_in(buffer: int, length: int) -> None:
    """Make a buffer that was just taken a packet of one segment with ``length`` bytes behind the headroom."""
    store64(buffer + REARM, FRESH_REARM_SIGNED)
    store64(buffer + OL_FLAGS, 0)
    store64(buffer + PACKET_TYPE, length << 32)
    store32(buffer + DATA_LEN, length)


@compiled
def give(core: Any, pool: int, packets: int, count: int) -> None:
    """Free packets whose pointers lie at ``packets``; those that are not plain buffers of the pool through DPDK."""
    if count == 0:
        return
    cache = cache_of(core, pool)
    have = load32(cache + CACHE_LENGTH)
    if have + count > load32(cache + CACHE_FLUSH_THRESHOLD):
        free_bulk(core.free_bulk, packets, types.uint32(count))
        return
    top = cache + CACHE_OBJECTS + 8 * have
    for i in range(count):
        buffer = load64(packets + 8 * i)
        plain = (load64(buffer + REARM) & REARM_COUNTS_MASK) == REARM_ONE_OF_EACH
        if not plain or load64(buffer + POOL) != pool or load64(buffer + OL_FLAGS) & OL_NOT_DIRECT:
            store32(cache + CACHE_LENGTH, have + i)
            free_bulk(core.free_bulk, packets + 8 * i, types.uint32(count - i))
            return
        store64(top + 8 * i, buffer)
    store32(cache + CACHE_LENGTH, have + count)


@compiled
def chain_up(first: int, buffer: int) -> None:
    """Put ``buffer`` behind the segment ``first``."""
    store64(first + NEXT, buffer)
