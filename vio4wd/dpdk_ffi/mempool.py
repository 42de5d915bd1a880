"""Mempools of packet buffers."""

from __future__ import annotations

from vio4wd.dpdk_ffi.errors import DpdkError
from vio4wd.dpdk_ffi.layouts import View
from vio4wd.dpdk_ffi.loader import Dpdk, load

ANY_SOCKET = -1
"""SOCKET_ID_ANY: memory of any NUMA node."""


class Mempool:
    """An rte_mempool of mbufs.

    Attributes:
        address: the rte_mempool, 0 once it is freed.
        name: unique in the process.
        count: buffers in it.
        data_room: bytes of one buffer, headroom included.
    """

    def __init__(self, dpdk: Dpdk, address: int, name: str, count: int, data_room: int) -> None:
        self._dpdk = dpdk
        self.address = address
        self.name = name
        self.count = count
        self.data_room = data_room

    @classmethod
    def create(
        cls, name: str, count: int, *, cache_size: int = 256, data_room: int = 2176, socket_id: int = ANY_SOCKET
    ) -> Mempool:
        """Make a pool of ``count`` mbufs (2**n - 1 wastes least), each with ``data_room`` bytes, headroom included.

        Args:
            cache_size: buffers that each lcore may keep, at most 512 and ``count`` / 1.5.
            socket_id: NUMA node of the memory.

        Raises:
            DpdkError: EINVAL, EEXIST (the name is taken), ENOMEM, ENAMETOOLONG (more than 25 bytes).
        """
        dpdk = load()
        try:
            address = dpdk.call(
                name, "rte_pktmbuf_pool_create", name.encode(), count, cache_size, 0, data_room, socket_id
            )
        except DpdkError as error:
            what = f"{name}: {count} buffers of {data_room} bytes, cache {cache_size}, NUMA node {socket_id}"
            raise DpdkError(error.function, error.errno, what, error.reasons) from None
        return cls(dpdk, address, name, count, data_room)

    def available(self) -> int:
        """Buffers that are free, those in caches included. Slow; for tests and reports."""
        return int(self._dpdk.call(self.name, "rte_mempool_avail_count", self.address))

    def in_use(self) -> int:
        """Buffers that somebody holds. Slow; for tests and reports."""
        return int(self._dpdk.call(self.name, "rte_mempool_in_use_count", self.address))

    def free(self) -> None:
        """Give the memory back; nobody may hold a buffer of it or use the pool. A second call does nothing."""
        address, self.address = self.address, 0
        if address:
            self._dpdk.call(self.name, "rte_mempool_free", address)

    def __repr__(self) -> str:
        return f"Mempool({self.name}, {self.count})"


def flush(pool: int, lcore: int) -> None:
    """Put what an lcore keeps of a pool's buffers back for all to use; nobody may be using the pool on that lcore.

    ``pool`` is the rte_mempool's address; it has caches. To be called from a thread that is no lcore.
    """
    dpdk = load()
    structs = dpdk.layout.structs
    caches = View(structs["rte_mempool"], pool)["local_cache"]
    cache = View(structs["rte_mempool_cache"], caches + lcore * structs["rte_mempool_cache"].size)
    count, cache["len"] = cache["len"], 0
    objects = cache.address + structs["rte_mempool_cache"].offset("objs")
    dpdk.call(f"mempool {pool:#x}", "rte_pktmbuf_free_bulk", objects, count)
