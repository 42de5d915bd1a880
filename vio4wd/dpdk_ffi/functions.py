"""The tables of DPDK's functions: one per library, name -> argument types, result type, checker.

A function that a release does not have is left out by the loader; ``Dpdk.has`` tells. Names that were renamed are
all listed and chosen by the caller.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Mapping
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, field
from typing import Any


class Check(enum.Enum):
    """How a function says that it failed."""

    NONE = enum.auto()
    """It cannot fail, or the result speaks for itself."""
    NEGATIVE_ERRNO = enum.auto()
    """The result is a negative errno."""
    MINUS_ONE = enum.auto()
    """The result is negative and the reason is in rte_errno, or nowhere but in the log."""
    NULL = enum.auto()
    """The result is a null pointer and the reason is in rte_errno."""


@dataclass(frozen=True)
class Signature:
    """One exported function of DPDK; types are ctypes's, None is void."""

    arguments: tuple[Any, ...] = field(default=())
    result: Any = c_int
    check: Check = Check.NONE


def _negative(*arguments: Any) -> Signature:
    return Signature(arguments, c_int, Check.NEGATIVE_ERRNO)


def _minus_one(*arguments: Any) -> Signature:
    return Signature(arguments, c_int, Check.MINUS_ONE)


def _null(*arguments: Any) -> Signature:
    return Signature(arguments, c_void_p, Check.NULL)


def _plain(result: Any, *arguments: Any) -> Signature:
    return Signature(arguments, result)


PORT = c_uint16
QUEUE = c_uint16
POINTER = c_void_p
U16_OUT = ctypes.POINTER(c_uint16)
U64_OUT = ctypes.POINTER(c_uint64)

EAL = {
    "rte_eal_init": _minus_one(c_int, POINTER),
    "rte_eal_cleanup": _negative(),
    "rte_eal_remote_launch": _negative(POINTER, POINTER, c_uint),
    "rte_eal_wait_lcore": _plain(c_int, c_uint),
    "rte_eal_get_lcore_state": _plain(c_int, c_uint),
    "rte_eal_iova_mode": _plain(c_int),
    "rte_eal_get_runtime_dir": _plain(c_char_p),
    "rte_get_tsc_hz": _plain(c_uint64),
    "rte_version": _plain(c_char_p),
    "rte_dev_probe": _negative(c_char_p),
    "rte_dev_remove": _negative(POINTER),
    "rte_eal_hotplug_remove": _negative(c_char_p, c_char_p),
    "rte_dev_name": _plain(c_char_p, POINTER),
    "rte_dev_event_callback_register": _negative(c_char_p, POINTER, POINTER),
    "rte_vfio_enable": _minus_one(c_char_p),
    "rte_vfio_is_enabled": _plain(c_int, c_char_p),
}

LOG = {
    "rte_openlog_stream": _negative(POINTER),
    "rte_log_cur_msg_loglevel": _plain(c_int),
    "rte_log_cur_msg_logtype": _plain(c_int),
    "rte_log_set_global_level": _plain(None, c_uint32),
    "rte_log_get_global_level": _plain(c_uint32),
    "rte_log_set_level_pattern": _minus_one(c_char_p, c_uint32),
    "rte_log_dump": _plain(None, POINTER),
}

MEMPOOL = {
    "rte_mempool_free": _plain(None, POINTER),
    "rte_mempool_avail_count": _plain(c_uint, POINTER),
    "rte_mempool_in_use_count": _plain(c_uint, POINTER),
    "rte_mempool_lookup": _null(c_char_p),
}

MBUF = {
    "rte_pktmbuf_pool_create": _null(c_char_p, c_uint, c_uint, c_uint16, c_uint16, c_int),
    "rte_pktmbuf_free_bulk": _plain(None, POINTER, c_uint),
}

ETHDEV = {
    "rte_eth_dev_get_port_by_name": _negative(c_char_p, U16_OUT),
    "rte_eth_dev_get_name_by_port": _negative(PORT, c_char_p),
    "rte_eth_find_next": _plain(c_uint16, PORT),
    "rte_eth_dev_count_avail": _plain(c_uint16),
    "rte_eth_dev_socket_id": _plain(c_int, PORT),
    "rte_eth_dev_info_get": _negative(PORT, POINTER),
    "rte_eth_dev_configure": _negative(PORT, c_uint16, c_uint16, POINTER),
    "rte_eth_dev_adjust_nb_rx_tx_desc": _negative(PORT, U16_OUT, U16_OUT),
    "rte_eth_rx_queue_setup": _negative(PORT, QUEUE, c_uint16, c_uint, POINTER, POINTER),
    "rte_eth_tx_queue_setup": _negative(PORT, QUEUE, c_uint16, c_uint, POINTER),
    "rte_eth_dev_start": _negative(PORT),
    "rte_eth_dev_callback_register": _negative(PORT, c_int, POINTER, POINTER),
    "rte_eth_dev_stop": _negative(PORT),
    "rte_eth_dev_close": _negative(PORT),
    "rte_eth_promiscuous_enable": _negative(PORT),
    "rte_eth_promiscuous_disable": _negative(PORT),
    "rte_eth_promiscuous_get": _negative(PORT),
    "rte_eth_allmulticast_enable": _negative(PORT),
    "rte_eth_allmulticast_disable": _negative(PORT),
    "rte_eth_allmulticast_get": _negative(PORT),
    "rte_eth_dev_get_mtu": _negative(PORT, U16_OUT),
    "rte_eth_link_get_nowait": _negative(PORT, POINTER),
    "rte_eth_macaddr_get": _negative(PORT, POINTER),
    "rte_eth_stats_get": _negative(PORT, POINTER),
    "rte_eth_stats_reset": _negative(PORT),
    "rte_eth_xstats_get_names": _negative(PORT, POINTER, c_uint),
    "rte_eth_xstats_get": _negative(PORT, POINTER, c_uint),
}

_PATH_U64 = _minus_one(c_char_p, c_uint64)
_PATH_U64_OUT = _minus_one(c_char_p, U64_OUT)

VHOST = {
    "rte_vhost_driver_register": _PATH_U64,
    "rte_vhost_driver_unregister": _minus_one(c_char_p),
    "rte_vhost_driver_start": _minus_one(c_char_p),
    "rte_vhost_driver_callback_register": _minus_one(c_char_p, POINTER),
    "rte_vhost_driver_set_features": _PATH_U64,
    "rte_vhost_driver_enable_features": _PATH_U64,
    "rte_vhost_driver_disable_features": _PATH_U64,
    "rte_vhost_driver_get_features": _PATH_U64_OUT,
    "rte_vhost_driver_set_protocol_features": _PATH_U64,
    "rte_vhost_driver_get_protocol_features": _PATH_U64_OUT,
    "rte_vhost_get_ifname": _minus_one(c_int, c_char_p, c_size_t),
    "rte_vhost_get_vring_num": _plain(c_uint16, c_int),
    "rte_vhost_get_numa_node": _minus_one(c_int),
    "rte_vhost_get_mtu": _negative(c_int, U16_OUT),
    "rte_vhost_get_negotiated_features": _minus_one(c_int, U64_OUT),
    "rte_vhost_get_negotiated_protocol_features": _minus_one(c_int, U64_OUT),
    "rte_vhost_get_mem_table": _minus_one(c_int, ctypes.POINTER(c_void_p)),
    "rte_vhost_get_vhost_vring": _minus_one(c_int, c_uint16, POINTER),
    "rte_vhost_get_vring_base": _minus_one(c_int, c_uint16, U16_OUT, U16_OUT),
    "rte_vhost_set_vring_base": _minus_one(c_int, c_uint16, c_uint16, c_uint16),
    "rte_vhost_get_log_base": _minus_one(c_int, U64_OUT, U64_OUT),
    "rte_vhost_enable_guest_notification": _minus_one(c_int, c_uint16, c_int),
    "rte_vhost_avail_entries": _plain(c_uint16, c_int, c_uint16),
    "rte_vhost_rx_queue_count": _plain(c_uint32, c_int, c_uint16),
    "rte_vhost_vring_call": _minus_one(c_int, c_uint16),
}

_BOND_LIST = _negative(PORT, U16_OUT, c_uint16)
_BOND_PAIR = _negative(PORT, PORT)

BOND = {
    "rte_eth_bond_create": _negative(c_char_p, c_uint8, c_uint8),
    "rte_eth_bond_free": _negative(c_char_p),
    "rte_eth_bond_slave_add": _BOND_PAIR,
    "rte_eth_bond_slave_remove": _BOND_PAIR,
    "rte_eth_bond_slaves_get": _BOND_LIST,
    "rte_eth_bond_active_slaves_get": _BOND_LIST,
    "rte_eth_bond_member_add": _BOND_PAIR,
    "rte_eth_bond_member_remove": _BOND_PAIR,
    "rte_eth_bond_members_get": _BOND_LIST,
    "rte_eth_bond_active_members_get": _BOND_LIST,
    "rte_eth_bond_primary_set": _BOND_PAIR,
    "rte_eth_bond_primary_get": _negative(PORT),
    "rte_eth_bond_mode_set": _negative(PORT, c_uint8),
    "rte_eth_bond_mode_get": _negative(PORT),
    "rte_eth_bond_xmit_policy_set": _negative(PORT, c_uint8),
    "rte_eth_bond_xmit_policy_get": _negative(PORT),
    "rte_eth_bond_link_monitoring_set": _negative(PORT, c_uint32),
    "rte_eth_bond_8023ad_dedicated_queues_enable": _negative(PORT),
}

LIBRARIES: Mapping[str, Mapping[str, Signature]] = {
    "log": LOG,
    "eal": EAL,
    "ring": {},
    "mempool": MEMPOOL,
    "mbuf": MBUF,
    "ethdev": ETHDEV,
    "vhost": VHOST,
    "net_bond": BOND,
}
"""Libraries in the order in which they are loaded. ``log`` is one of its own from 23.11, before it is in ``eal``."""
