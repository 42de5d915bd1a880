"""Where compiled code finds the fields of DPDK's packet buffers and mempools, and the check that it is right.

The offsets are compiled in. They are the same in all supported releases; the worker compares them at its start with
the generated layout of the DPDK that it has loaded.
"""

from __future__ import annotations

from collections.abc import Iterable

from vio4wd.dpdk_ffi.layouts.model import Layout
from vio4wd.errors import WorkerError

BUF_ADDR = 0
REARM = 16
"""data_off, refcnt, nb_segs and port, 16 bits each: one 64-bit word."""
DATA_OFF = 16
REFCNT = 18
NB_SEGS = 20
OL_FLAGS = 24
PACKET_TYPE = 32
PKT_LEN = 36
DATA_LEN = 40
BUF_LEN = 54
POOL = 56
NEXT = 64

HEADROOM = 128

OL_NOT_DIRECT = (1 << 61) | (1 << 62)
"""RTE_MBUF_F_EXTERNAL and RTE_MBUF_F_INDIRECT: the data is not in this buffer."""

OL_TX_WORK = (3 << 52) | (1 << 54) | (1 << 50) | (1 << 42)
"""Checksum or segmentation that the packet still needs: TX_L4_MASK, TX_IP_CKSUM, TX_TCP_SEG, TX_UDP_SEG."""

FRESH_REARM = HEADROOM | 1 << 16 | 1 << 32 | 0xFFFF << 48
"""The rearm word of a new packet: headroom, one reference, one segment, no port."""
FRESH_REARM_SIGNED = FRESH_REARM - (1 << 64)
"""The same as the signed integer that compiled code stores."""

REARM_COUNTS_MASK = 0xFFFFFFFF << 16
REARM_ONE_OF_EACH = 1 << 16 | 1 << 32
"""The rearm word's refcnt and nb_segs, and the two at 1: a packet of one segment that nobody else holds."""

POOL_CACHE_SIZE = 68
POOL_OPS_INDEX = 88
POOL_LOCAL_CACHE = 96
CACHE_FLUSH_THRESHOLD = 4
CACHE_LENGTH = 8
CACHE_OBJECTS = 64
CACHE_BYTES = 8256
"""sizeof(struct rte_mempool_cache): the caches of all lcores lie one behind the other."""

OPS_FIRST = 64
OPS_BYTES = 128
OPS_DEQUEUE = 56
"""In rte_mempool_ops_table: the first entry, the size of one, and its dequeue function."""

_MBUF = {
    "buf_addr": BUF_ADDR,
    "data_off": DATA_OFF,
    "refcnt": REFCNT,
    "nb_segs": NB_SEGS,
    "port": REARM + 6,
    "ol_flags": OL_FLAGS,
    "packet_type": PACKET_TYPE,
    "pkt_len": PKT_LEN,
    "data_len": DATA_LEN,
    "buf_len": BUF_LEN,
    "pool": POOL,
    "next": NEXT,
}
_POOL = {"cache_size": POOL_CACHE_SIZE, "ops_index": POOL_OPS_INDEX, "local_cache": POOL_LOCAL_CACHE}
_CACHE = {"flushthresh": CACHE_FLUSH_THRESHOLD, "len": CACHE_LENGTH, "objs": CACHE_OBJECTS}


def _differences(layout: Layout) -> Iterable[str]:
    wanted = {"rte_mbuf": _MBUF, "rte_mempool": _POOL, "rte_mempool_cache": _CACHE}
    for struct, fields in wanted.items():
        for name, offset in fields.items():
            if layout.structs[struct].offset(name) != offset:
                yield f"{struct}.{name} at {layout.structs[struct].offset(name)}, not {offset}"
    sizes = {"rte_mempool_cache": CACHE_BYTES, "rte_mempool_ops": OPS_BYTES}
    for struct, size in sizes.items():
        if layout.structs[struct].size != size:
            yield f"{struct} of {layout.structs[struct].size} bytes, not {size}"
    if layout.structs["rte_mempool_ops_table"].offset("ops") != OPS_FIRST:
        yield f"rte_mempool_ops_table.ops not at {OPS_FIRST}"
    if layout.structs["rte_mempool_ops"].offset("dequeue") != OPS_DEQUEUE:
        yield f"rte_mempool_ops.dequeue not at {OPS_DEQUEUE}"
    constant = layout.constants
    if constant["RTE_PKTMBUF_HEADROOM"] != HEADROOM:
        yield f"RTE_PKTMBUF_HEADROOM is {constant['RTE_PKTMBUF_HEADROOM']}, not {HEADROOM}"
    if constant["RTE_MBUF_F_EXTERNAL"] | constant["RTE_MBUF_F_INDIRECT"] != OL_NOT_DIRECT:
        yield "RTE_MBUF_F_EXTERNAL or RTE_MBUF_F_INDIRECT has another bit"
    work = ("RTE_MBUF_F_TX_L4_MASK", "RTE_MBUF_F_TX_IP_CKSUM", "RTE_MBUF_F_TX_TCP_SEG", "RTE_MBUF_F_TX_UDP_SEG")
    if sum(constant[name] for name in work) != OL_TX_WORK:
        yield f"one of {', '.join(work)} has another bit"


def check(layout: Layout) -> None:
    """Compare the offsets compiled in with the layout of the DPDK that is loaded.

    Raises:
        WorkerError: compiled code would read other fields than it means; the message lists them.
    """
    wrong = list(_differences(layout))
    if wrong:
        raise WorkerError(f"DPDK {layout.release} lays out packet buffers in another way: {'; '.join(wrong)}")
