"""DPDK's vhost library: sockets (drivers), the devices that connect through them, and their events."""

from __future__ import annotations

import ctypes
import enum
import errno
import functools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vio4wd.dpdk_ffi.errors import DpdkError
from vio4wd.dpdk_ffi.layouts import View
from vio4wd.dpdk_ffi.loader import Dpdk, load

_LOG = logging.getLogger(__name__)
_IN_CALLBACK = threading.local()
_LONGEST_PATH = 107  # sun_path of unix(7), less the NUL
_REGISTERED: set[str] = set()
_ABI_25_11 = 26
_KEEPER = "keeps-the-event-thread"


class VhostFlags(enum.IntFlag):
    """RTE_VHOST_USER_* of rte_vhost.h."""

    CLIENT = 1 << 0
    NO_RECONNECT = 1 << 1
    IOMMU_SUPPORT = 1 << 3
    POSTCOPY_SUPPORT = 1 << 4
    EXTBUF_SUPPORT = 1 << 5
    LINEARBUF_SUPPORT = 1 << 6
    ASYNC_COPY = 1 << 7
    NET_COMPLIANT_OL_FLAGS = 1 << 8
    NET_STATS_ENABLE = 1 << 9


SERVER = VhostFlags(0)
"""Listen, and take front ends one after the other."""


class VhostCallbacks(Protocol):
    """Events of a driver's devices. They come on DPDK's vhost thread, which does nothing else until they return.

    An exception is logged; from ``new_device``, ``vring_state_changed``, ``features_changed`` and ``new_connection`` it
    is also a refusal. ``VhostDriver.unregister`` may not be called from here.
    """

    def new_device(self, vid: int) -> None:
        """The device is ready: memory and rings are known."""

    def destroy_device(self, vid: int) -> None:
        """The device is going away: nobody may use it once this returns."""

    def vring_state_changed(self, vid: int, ring: int, enabled: bool) -> None:
        """A ring was enabled or disabled; nobody may use a disabled ring once this returns."""

    def features_changed(self, vid: int, features: int) -> None:
        """The negotiated features changed while the device runs (dirty logging)."""

    def new_connection(self, vid: int) -> None:
        """A front end connected."""

    def destroy_connection(self, vid: int) -> None:
        """A front end's connection ended."""


_CALLBACKS: dict[str, tuple[Any, ...]] = {
    "new_device": (ctypes.c_int, ctypes.c_int),
    "destroy_device": (None, ctypes.c_int),
    "vring_state_changed": (ctypes.c_int, ctypes.c_int, ctypes.c_uint16, ctypes.c_int),
    "features_changed": (ctypes.c_int, ctypes.c_int, ctypes.c_uint64),
    "new_connection": (ctypes.c_int, ctypes.c_int),
    "destroy_connection": (None, ctypes.c_int),
}


def _guarded(path: str, name: str, function: Callable[..., None]) -> Callable[..., int | None]:
    """A callback that never raises: 0, or -1 and a log line; None where C expects nothing."""
    answers = _CALLBACKS[name][0] is not None

    def callback(vid: int, *arguments: int) -> int | None:
        _IN_CALLBACK.active = True
        try:
            if name == "vring_state_changed":
                function(vid, arguments[0], bool(arguments[1]))
            else:
                function(vid, *arguments)
        except Exception:  # the edge of DPDK's thread: an exception has nowhere to go
            _LOG.exception("vhost %s: %s(%d) failed", path, name, vid)
            return -1 if answers else None
        finally:
            _IN_CALLBACK.active = False
        return 0 if answers else None

    return callback


@functools.cache
def _keep_event_thread(dpdk: Dpdk) -> None:
    """From 25.11 the last path that is unregistered waits up to 1 s for the library's event thread to end.

    A path that is registered and never started keeps the thread: it costs one idle socket and no file.
    """
    if dpdk.abi >= _ABI_25_11:
        dpdk.call(_KEEPER, "rte_vhost_driver_register", _KEEPER.encode(), SERVER)


class VhostDriver:
    """A registered vhost-user socket path. Make it with ``register``."""

    def __init__(self, dpdk: Dpdk, path: str, flags: VhostFlags) -> None:
        self._dpdk = dpdk
        self.path = path
        self.flags = flags
        self._kept: list[object] = []

    def __repr__(self) -> str:
        return f"VhostDriver({self.path})"

    @classmethod
    def register(cls, path: Path | str, flags: VhostFlags = SERVER) -> VhostDriver:
        """Register a path: with CLIENT one to connect to, else one to listen on. ``start`` sets it going.

        Raises:
            DpdkError: EEXIST, registered already; ENAMETOOLONG, more than 107 bytes; others from the library.
        """
        dpdk, name = load(), str(path)
        if name in _REGISTERED:  # the library takes a path twice and then knows only one of the two
            raise DpdkError("rte_vhost_driver_register", errno.EEXIST, name)
        if len(name.encode()) > _LONGEST_PATH:
            raise DpdkError("rte_vhost_driver_register", errno.ENAMETOOLONG, name)
        _keep_event_thread(dpdk)
        dpdk.call(name, "rte_vhost_driver_register", name.encode(), flags)
        _REGISTERED.add(name)
        return cls(dpdk, name, flags)

    def _call(self, function: str, *arguments: Any) -> Any:
        return self._dpdk.call(self.path, function, self.path.encode(), *arguments)

    def _get(self, function: str) -> int:
        out = ctypes.c_uint64()
        self._call(function, out)
        return out.value

    def features(self) -> int:
        """The virtio features that the driver offers, as a mask."""
        return self._get("rte_vhost_driver_get_features")

    def set_features(self, mask: int) -> None:
        """Offer exactly these virtio features."""
        self._call("rte_vhost_driver_set_features", mask)

    def disable_features(self, mask: int) -> None:
        """Stop offering these virtio features."""
        self._call("rte_vhost_driver_disable_features", mask)

    def protocol_features(self) -> int:
        """The vhost-user protocol features that the driver offers, as a mask."""
        return self._get("rte_vhost_driver_get_protocol_features")

    def set_protocol_features(self, mask: int) -> None:
        """Offer exactly these vhost-user protocol features."""
        self._call("rte_vhost_driver_set_protocol_features", mask)

    def set_callbacks(self, callbacks: VhostCallbacks) -> None:
        """Have events told to ``callbacks``, which live as long as the driver."""
        ops = View.allocate(self._dpdk.layout.structs["rte_vhost_device_ops"])
        self._kept = [callbacks, ops]
        for name, types in _CALLBACKS.items():
            native = ctypes.CFUNCTYPE(*types)(_guarded(self.path, name, getattr(callbacks, name)))
            self._kept.append(native)
            ops[name] = ctypes.cast(native, ctypes.c_void_p).value or 0
        self._call("rte_vhost_driver_callback_register", ops.address)

    def start(self) -> None:
        """Listen or connect.

        Raises:
            DpdkError: the socket cannot be listened on, or with NO_RECONNECT nobody answers on it.
        """
        self._call("rte_vhost_driver_start")

    def unregister(self) -> None:
        """Close the connection and the path; its callbacks have all returned when this does.

        Raises:
            DpdkError: EDEADLK, called from a callback: that would never return. EINVAL or 0, not registered.
        """
        if getattr(_IN_CALLBACK, "active", False):
            raise DpdkError("rte_vhost_driver_unregister", errno.EDEADLK, f"{self.path}: from a callback")
        self._call("rte_vhost_driver_unregister")
        _REGISTERED.discard(self.path)
        self._kept = []


@dataclass(frozen=True)
class VringInfo:
    """A ring as the library has mapped it: addresses in this process, ``size`` in descriptors, -1 for no fd.

    For a packed ring ``desc`` is the ring, ``avail`` the driver's and ``used`` the device's event structure.
    """

    desc: int
    avail: int
    used: int
    size: int
    callfd: int
    kickfd: int
    log_guest_addr: int


@dataclass(frozen=True)
class Region:
    """Guest memory: the guest's, the front end's and our own address of ``size`` bytes, and the mapping under them."""

    guest_phys_addr: int
    guest_user_addr: int
    host_user_addr: int
    size: int
    mmap_addr: int
    mmap_size: int
    fd: int


class VhostDevice:
    """A connected device by its number ``vid``. The caller sees to it that the device still exists."""

    def __init__(self, vid: int) -> None:
        self._dpdk = load()
        self.vid = vid

    def _call(self, function: str, *arguments: Any) -> Any:
        return self._dpdk.call(f"vhost device {self.vid}", function, self.vid, *arguments)

    def _get(self, function: str) -> int:
        out = ctypes.c_uint64()
        self._call(function, out)
        return out.value

    def ifname(self) -> str:
        """The path of the driver through which the device came."""
        buffer = ctypes.create_string_buffer(4096)
        self._call("rte_vhost_get_ifname", buffer, len(buffer))
        return buffer.value.decode()

    def vring_num(self) -> int:
        """Rings that the front end has set up; even: receive rings 0, 2, ..., transmit rings 1, 3, ... of the guest."""
        return int(self._call("rte_vhost_get_vring_num"))

    def vring(self, ring: int) -> VringInfo:
        """A ring's addresses, valid until the ring is disabled or the memory changes."""
        view = View.allocate(self._dpdk.layout.structs["rte_vhost_vring"])
        self._call("rte_vhost_get_vhost_vring", ring, view.address)
        names = ("desc", "avail", "used", "size", "callfd", "kickfd", "log_guest_addr")
        return VringInfo(*(view[name] for name in names))

    def memory_regions(self) -> tuple[Region, ...]:
        """The guest's memory as it is mapped now."""
        table = ctypes.c_void_p()
        self._call("rte_vhost_get_mem_table", ctypes.byref(table))
        structs = self._dpdk.layout.structs
        memory, region = structs["rte_vhost_memory"], structs["rte_vhost_mem_region"]
        address = table.value or 0
        try:
            count = View(memory, address)["nregions"]
            views = [View(region, address + memory.size + index * region.size) for index in range(count)]
            names = ("guest_phys_addr", "guest_user_addr", "host_user_addr", "size", "mmap_addr", "mmap_size", "fd")
            return tuple(Region(*(view[name] for name in names)) for view in views)
        finally:
            _free(address)

    def negotiated_features(self) -> int:
        """The virtio features that both sides have, as a mask."""
        return self._get("rte_vhost_get_negotiated_features")

    def protocol_features(self) -> int | None:
        """The vhost-user protocol features that both sides have, None where this release does not tell."""
        name = "rte_vhost_get_negotiated_protocol_features"
        return self._get(name) if self._dpdk.has(name) else None

    def numa_node(self) -> int:
        """The NUMA node of the device's memory in the library."""
        return int(self._call("rte_vhost_get_numa_node"))

    def mtu(self) -> int | None:
        """The MTU that the front end told, None where it did not."""
        out = ctypes.c_uint16()
        try:
            self._call("rte_vhost_get_mtu", out)
        except DpdkError as error:
            if error.errno in (errno.ENOTSUP, errno.EAGAIN):
                return None
            raise
        return out.value

    def ring_base(self, ring: int) -> tuple[int, int]:
        """The ring's indexes: next available entry to take, next used entry to write; bit 15 wraps in packed rings."""
        avail, used = ctypes.c_uint16(), ctypes.c_uint16()
        self._call("rte_vhost_get_vring_base", ring, avail, used)
        return avail.value, used.value

    def set_ring_base(self, ring: int, avail: int, used: int) -> None:
        """Set the ring's indexes, as ``ring_base`` gives them."""
        self._call("rte_vhost_set_vring_base", ring, avail, used)

    def enable_guest_notification(self, ring: int, on: bool) -> None:
        """Ask the guest to kick us when it adds to the ring, or not to."""
        self._call("rte_vhost_enable_guest_notification", ring, int(on))

    def avail_entries(self, ring: int) -> int:
        """Entries that the guest has made available and nobody has taken; for guest receive rings."""
        return int(self._call("rte_vhost_avail_entries", ring))

    def call_guest(self, ring: int) -> None:
        """Interrupt the guest for a ring, where it wants that."""
        self._call("rte_vhost_vring_call", ring)

    def log_base(self) -> tuple[int, int]:
        """Address and size in bytes of the dirty-page log; zeros where there is none."""
        base, size = ctypes.c_uint64(), ctypes.c_uint64()
        self._call("rte_vhost_get_log_base", base, size)
        return base.value, size.value


def _free(address: int) -> None:
    """free() of libc, for what the library allocates for its callers."""
    free = ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_void_p]
    free.restype = None
    free(address)
