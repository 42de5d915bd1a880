"""Ports: DPDK's ethdev."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
from dataclasses import dataclass

from vio4wd.dpdk_ffi import pci, port_events
from vio4wd.dpdk_ffi.errors import DeviceError, DpdkError
from vio4wd.dpdk_ffi.layouts import View
from vio4wd.dpdk_ffi.loader import Dpdk, load
from vio4wd.dpdk_ffi.mempool import Mempool

_LOG = logging.getLogger(__name__)
_MODES = ("promiscuous", "allmulticast")


@dataclass(frozen=True)
class DescriptorLimits:
    """How many descriptors a ring may have: ``least`` to ``most``, in steps of ``align``."""

    least: int
    most: int
    align: int


@dataclass(frozen=True)
class PortInfo:
    """What a port can do (rte_eth_dev_info). Offload masks are RTE_ETH_RX_OFFLOAD_* and RTE_ETH_TX_OFFLOAD_*."""

    driver: str
    socket_id: int
    max_rx_queues: int
    max_tx_queues: int
    min_mtu: int
    max_mtu: int
    max_rx_pktlen: int
    rx_offload_capa: int
    tx_offload_capa: int
    rss_offloads: int
    rx_descriptors: DescriptorLimits
    tx_descriptors: DescriptorLimits
    interface_index: int


@dataclass(frozen=True)
class LinkStatus:
    """The link of a port; ``speed_mbps`` is None where it is unknown or the link is down."""

    up: bool
    speed_mbps: int | None


@dataclass(frozen=True)
class PortStats:
    """Counters of a port (rte_eth_stats), as its driver keeps them."""

    rx_pkts: int
    tx_pkts: int
    rx_bytes: int
    tx_bytes: int
    rx_missed: int
    rx_errors: int
    tx_errors: int
    rx_no_mbuf: int


@dataclass(frozen=True)
class BurstPointers:
    """Addresses for calling a queue's burst functions: ``uint16_t f(void *queue, struct rte_mbuf **, uint16_t)``."""

    rx_function: int
    rx_queue: int
    tx_function: int
    tx_queue: int


class EthPort:
    """A port. Not to be used by two threads at once, but for its burst functions and counters."""

    def __init__(self, dpdk: Dpdk, port_id: int, name: str) -> None:
        self._dpdk = dpdk
        self.port_id = port_id
        self.name = name
        self._started = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, port {self.port_id})"

    @classmethod
    def probe(cls, devargs: str) -> EthPort:
        """Attach a device: a PCI address or ``net_null0``, with ``,key=value`` arguments.

        Raises:
            DeviceError: a PCI device that is not there or is not bound to a driver that DPDK works with.
            DpdkError: EEXIST, the process has it already; ENODEV, no such device or driver; others from the driver.
        """
        dpdk = load()
        name = devargs.split(",", 1)[0]
        if find_port(dpdk, name) is not None:
            raise DpdkError("rte_dev_probe", errno.EEXIST, name)
        before = set(ports(dpdk))
        port_events.watch(dpdk)
        if pci.is_pci(name):
            _enable_vfio(dpdk)
        try:
            dpdk.call(devargs, "rte_dev_probe", devargs.encode())
        except DpdkError as error:
            cause = pci.cause(name, error.errno) if pci.is_pci(name) else ""
            if not cause:
                raise
            raise DeviceError(error, cause) from error
        port_id = find_port(dpdk, name)
        if port_id is None:
            new = sorted(set(ports(dpdk)) - before)
            if not new:
                _take_back(dpdk, name)
                raise DpdkError("rte_dev_probe", errno.ENODEV, devargs, ["the device has no port"])
            port_id = new[0]
        port_events.forget(port_id, name)
        return cls(dpdk, port_id, name)

    @property
    def trouble(self) -> str:
        """Why the port is of no use any more until it is opened anew; empty where it is not so."""
        return port_events.trouble(self.port_id, self.name)

    def info(self) -> PortInfo:
        """What the port can do."""
        view = self._info()
        driver = view["driver_name"]

        def limits(ring: str) -> DescriptorLimits:
            return DescriptorLimits(*(view[f"{ring}_desc_lim.nb_{what}"] for what in ("min", "max", "align")))

        return PortInfo(
            driver=ctypes.string_at(driver).decode() if driver else "",
            socket_id=int(self._dpdk.call(self.name, "rte_eth_dev_socket_id", self.port_id)),
            max_rx_queues=view["max_rx_queues"],
            max_tx_queues=view["max_tx_queues"],
            min_mtu=view["min_mtu"],
            max_mtu=view["max_mtu"],
            max_rx_pktlen=view["max_rx_pktlen"],
            rx_offload_capa=view["rx_offload_capa"],
            tx_offload_capa=view["tx_offload_capa"],
            rss_offloads=view["flow_type_rss_offloads"],
            rx_descriptors=limits("rx"),
            tx_descriptors=limits("tx"),
            interface_index=view["if_index"],
        )

    def _info(self) -> View:
        view = View.allocate(self._dpdk.layout.structs["rte_eth_dev_info"])
        self._dpdk.call(self.name, "rte_eth_dev_info_get", self.port_id, view.address)
        return view

    def configure(
        self, rx_queues: int, tx_queues: int, *, mtu: int = 1500, rx_offloads: int = 0, tx_offloads: int = 0
    ) -> None:
        """Set queue numbers, MTU (bytes of layer 3) and offloads; more than one receive queue are fed by RSS.

        Raises:
            DpdkError: EINVAL, more than the device has or an MTU or offload that it does not take.
        """
        layout = self._dpdk.layout
        conf = View.allocate(layout.structs["rte_eth_conf"])
        conf["rxmode.mtu"] = mtu
        conf["rxmode.offloads"] = rx_offloads
        conf["txmode.offloads"] = tx_offloads
        wanted = sum(layout.constants[f"RTE_ETH_RSS_{name}"] for name in ("IP", "TCP", "UDP", "SCTP"))
        hashes = wanted & self._info()["flow_type_rss_offloads"] if rx_queues > 1 else 0
        if hashes:
            conf["rxmode.mq_mode"] = layout.constants["RTE_ETH_MQ_RX_RSS"]
            conf["rx_adv_conf.rss_conf.rss_hf"] = hashes
        self._dpdk.call(self.name, "rte_eth_dev_configure", self.port_id, rx_queues, tx_queues, conf.address)

    def adjust_descriptors(self, rx: int, tx: int) -> tuple[int, int]:
        """The numbers of receive and transmit descriptors nearest to those wanted that the device takes."""
        rx_out, tx_out = ctypes.c_uint16(rx), ctypes.c_uint16(tx)
        self._dpdk.call(self.name, "rte_eth_dev_adjust_nb_rx_tx_desc", self.port_id, rx_out, tx_out)
        return rx_out.value, tx_out.value

    def setup_rx(self, queue: int, descriptors: int, mempool: Mempool) -> None:
        """Make a receive queue that takes its buffers from ``mempool``, on the device's NUMA node."""
        socket = self._dpdk.call(self.name, "rte_eth_dev_socket_id", self.port_id)
        what = f"{self.name} queue {queue}"
        self._dpdk.call(what, "rte_eth_rx_queue_setup", self.port_id, queue, descriptors, socket, None, mempool.address)

    def setup_tx(self, queue: int, descriptors: int) -> None:
        """Make a transmit queue on the device's NUMA node."""
        socket = self._dpdk.call(self.name, "rte_eth_dev_socket_id", self.port_id)
        self._dpdk.call(
            f"{self.name} queue {queue}", "rte_eth_tx_queue_setup", self.port_id, queue, descriptors, socket, None
        )

    def start(self) -> None:
        """Start the device; burst functions are valid from here on."""
        self._dpdk.call(self.name, "rte_eth_dev_start", self.port_id)
        self._started = True

    def stop(self) -> None:
        """Stop the device; nobody may be in a burst function of it."""
        self._started = False
        self._dpdk.call(self.name, "rte_eth_dev_stop", self.port_id)

    def close(self) -> None:
        """Stop the port and free its queues and its number; the device stays attached.

        Modes that we, or a bond, switched on are switched off first: the interface behind the device may outlive it.
        """
        for mode in _MODES:
            if self._dpdk.call(self.name, f"rte_eth_{mode}_get", self.port_id) == 1:
                self._switch(mode, False, logging.DEBUG)  # some that cannot say that they have it
        self.stop()
        self._dpdk.call(self.name, "rte_eth_dev_close", self.port_id)

    def remove(self) -> None:
        """Stop, close and detach, each even where the one before failed (that is logged).

        Raises:
            DpdkError: the device could not be detached.
        """
        device = self._info()["device"]
        try:
            self.close()
        except DpdkError as error:
            _LOG.warning("closing %s before its removal: %s", self.name, error)
        self._detach(device)

    def _detach(self, device: int) -> None:
        self._dpdk.call(self.name, "rte_dev_remove", device)

    def set_promiscuous(self, on: bool) -> bool:
        """Receive frames for any address, or not; False where the device cannot, or its PF does not let it."""
        return self._switch("promiscuous", on)

    def set_allmulticast(self, on: bool) -> bool:
        """Receive all multicast frames, or not; False where the device cannot, or its PF does not let it."""
        return self._switch("allmulticast", on)

    def _switch(self, mode: str, on: bool, level: int = logging.INFO) -> bool:
        """Drivers of VFs have many errors for the refusal of a PF, and none of them means more than that."""
        try:
            self._dpdk.call(self.name, f"rte_eth_{mode}_{'enable' if on else 'disable'}", self.port_id)
        except DpdkError as error:
            _LOG.log(level, "%s", error)
            return False
        return True

    def mtu(self) -> int:
        """The MTU in bytes."""
        out = ctypes.c_uint16()
        self._dpdk.call(self.name, "rte_eth_dev_get_mtu", self.port_id, out)
        return out.value

    def mac(self) -> str:
        """The default MAC address, as ``02:00:00:00:00:01``."""
        view = View.allocate(self._dpdk.layout.structs["rte_ether_addr"])
        self._dpdk.call(self.name, "rte_eth_macaddr_get", self.port_id, view.address)
        return ctypes.string_at(view.address, 6).hex(":")

    def link(self) -> LinkStatus:
        """The link as the device has it now, without waiting."""
        view = View.allocate(self._dpdk.layout.structs["rte_eth_link"])
        self._dpdk.call(self.name, "rte_eth_link_get_nowait", self.port_id, view.address)
        up, speed = bool(view["link_status"]), view["link_speed"]
        known = up and speed not in (0, self._dpdk.layout.constants["RTE_ETH_SPEED_NUM_UNKNOWN"])
        return LinkStatus(up, speed if known else None)

    def stats(self) -> PortStats:
        """The port's counters."""
        view = View.allocate(self._dpdk.layout.structs["rte_eth_stats"])
        self._dpdk.call(self.name, "rte_eth_stats_get", self.port_id, view.address)
        names = ("ipackets", "opackets", "ibytes", "obytes", "imissed", "ierrors", "oerrors", "rx_nombuf")
        return PortStats(*(view[name] for name in names))

    def xstats(self) -> dict[str, int]:
        """The driver's own counters by name."""
        name, stat = (self._dpdk.layout.structs[struct] for struct in ("rte_eth_xstat_name", "rte_eth_xstat"))
        count = int(self._dpdk.call(self.name, "rte_eth_xstats_get_names", self.port_id, None, 0))
        if not count:
            return {}
        names, stats = View.allocate(name, name.size * count), View.allocate(stat, stat.size * count)
        self._dpdk.call(self.name, "rte_eth_xstats_get_names", self.port_id, names.address, count)
        got = int(self._dpdk.call(self.name, "rte_eth_xstats_get", self.port_id, stats.address, count))
        views = [View(stat, stats.address + stat.size * index) for index in range(min(count, got))]
        return {View(name, names.address + name.size * view["id"]).text("name"): view["value"] for view in views}

    def burst(self, queue: int) -> BurstPointers:
        """The burst functions and queue pointers (rte_eth_fp_ops); valid until the port is stopped.

        Raises:
            DpdkError: EINVAL, the port is not started.
        """
        if not self._started:
            raise DpdkError("rte_eth_fp_ops", errno.EINVAL, f"{self.name}: not started")
        struct = self._dpdk.layout.structs["rte_eth_fp_ops"]
        view = View(struct, self._dpdk.address("rte_eth_fp_ops") + self.port_id * struct.size)
        data = self._dpdk.layout.structs["rte_ethdev_qdata"].offset("data")

        def queue_pointer(member: str) -> int:
            table = ctypes.c_uint64.from_address(view.address + struct.offset(member) + data).value
            return ctypes.c_uint64.from_address(table + queue * 8).value

        return BurstPointers(view["rx_pkt_burst"], queue_pointer("rxq"), view["tx_pkt_burst"], queue_pointer("txq"))


def _enable_vfio(dpdk: Dpdk) -> None:
    """Have DPDK use VFIO, which it does by itself only where the kernel's module is loaded when the EAL starts."""
    if dpdk.call("vfio", "rte_vfio_is_enabled", b"vfio"):
        return
    with contextlib.suppress(DpdkError):  # told by the probe of a device that needs it
        dpdk.call("vfio", "rte_vfio_enable", b"vfio")


def _take_back(dpdk: Dpdk, name: str) -> None:
    """Detach a device that was attached and is no port."""
    bus = b"pci" if pci.is_pci(name) else b"vdev"
    try:
        dpdk.call(name, "rte_eal_hotplug_remove", bus, name.encode())
    except DpdkError as error:
        _LOG.warning("a device without a port stays attached: %s", error)


def find_port(dpdk: Dpdk, name: str) -> int | None:
    """The port of that name, None where there is none."""
    out = ctypes.c_uint16()
    try:
        dpdk.call(name, "rte_eth_dev_get_port_by_name", name.encode(), out)
    except DpdkError:
        return None
    return out.value


def ports(dpdk: Dpdk) -> list[int]:
    """The numbers of all ports of the process."""
    found, port = [], int(dpdk.call("", "rte_eth_find_next", 0))
    while port < dpdk.max_ports:
        found.append(port)
        port = int(dpdk.call("", "rte_eth_find_next", port + 1))
    return found
