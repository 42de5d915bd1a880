"""DPDK's functions as compiled code calls them: the first argument is where the function is, then come its own."""

from __future__ import annotations

from numba import types

from vio4wd.relay.native import native

# uint16_t rte_eth_rx_burst_t / eth_tx_burst_t(void *queue, struct rte_mbuf **, uint16_t)
ethdev_burst = native(types.uint16, types.intp, types.intp, types.uint16)
# uint16_t rte_vhost_enqueue_burst(int vid, uint16_t queue, struct rte_mbuf **, uint16_t)
vhost_enqueue = native(types.uint16, types.int32, types.uint16, types.intp, types.uint16)
# uint16_t rte_vhost_dequeue_burst(int vid, uint16_t queue, struct rte_mempool *, struct rte_mbuf **, uint16_t)
vhost_dequeue = native(types.uint16, types.int32, types.uint16, types.intp, types.intp, types.uint16)
# uint16_t rte_vhost_avail_entries(int vid, uint16_t queue)
vhost_avail_entries = native(types.uint16, types.int32, types.uint16)
# int rte_vhost_get_vring_base(int vid, uint16_t queue, uint16_t *last_avail, uint16_t *last_used)
vhost_get_vring_base = native(types.int32, types.int32, types.uint16, types.intp, types.intp)
# int rte_vhost_set_vring_base(int vid, uint16_t queue, uint16_t last_avail, uint16_t last_used)
vhost_set_vring_base = native(types.int32, types.int32, types.uint16, types.uint16, types.uint16)
# int rte_vhost_vring_call(int vid, uint16_t queue)
vhost_vring_call = native(types.int32, types.int32, types.uint16)
# void rte_pktmbuf_free_bulk(struct rte_mbuf **, unsigned int)
free_bulk = native(types.void, types.intp, types.uint32)
# int rte_mempool_dequeue_t(struct rte_mempool *, void **, unsigned int)
mempool_dequeue = native(types.int32, types.intp, types.intp, types.uint32)
