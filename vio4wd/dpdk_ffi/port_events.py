"""Ports that have to be opened anew to be of use: their PF was reset, or the kernel wants the device back.

DPDK tells on a thread of its own, from which a port cannot be closed; here it is only noted.
"""

from __future__ import annotations

import ctypes
import functools

from vio4wd.dpdk_ffi.loader import Dpdk

RESET = "its PF was reset"
WANTED_BACK = "the kernel wants the device back"

_INTR_RESET = 3
"""RTE_ETH_EVENT_INTR_RESET of rte_ethdev.h."""
_REMOVE = 1
"""RTE_DEV_EVENT_REMOVE of rte_dev.h."""

_reset_ports: set[int] = set()
_wanted_devices: set[str] = set()


def _on_port_event(port: int, _event: int, _argument: int, _result: int) -> int:
    _reset_ports.add(port)
    return 0


def _on_device_event(name: bytes, event: int, _argument: int) -> None:
    if event == _REMOVE:
        _wanted_devices.add(name.decode())


_PORT_EVENT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint16, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(
    _on_port_event
)
"""An rte_eth_dev_cb_fn."""
_DEVICE_EVENT = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p)(_on_device_event)
"""An rte_dev_event_cb_fn."""


@functools.cache
def watch(dpdk: Dpdk) -> None:
    """Take note from here on, of all ports that the process has and will have.

    Raises:
        DpdkError: no memory.
    """
    all_ports = dpdk.max_ports
    dpdk.call("", "rte_eth_dev_callback_register", all_ports, _INTR_RESET, _PORT_EVENT, None)
    dpdk.call("", "rte_dev_event_callback_register", None, _DEVICE_EVENT, None)


def forget(port: int, device: str) -> None:
    """A port of that number and device has just been opened: what was noted was about its predecessors."""
    _reset_ports.discard(port)
    _wanted_devices.discard(device)


def trouble(port: int, device: str) -> str:
    """What was noted of a port; empty for nothing."""
    if device in _wanted_devices:
        return WANTED_BACK
    return RESET if port in _reset_ports else ""
