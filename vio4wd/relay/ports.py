"""The VF side in a worker: ports, their queues, and the buffers of each relay."""

from __future__ import annotations

import contextlib
import enum
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vio4wd.devices import Attachment, Bond, BondMode
from vio4wd.dpdk_ffi.bond import BondPort
from vio4wd.dpdk_ffi.errors import DpdkError
from vio4wd.dpdk_ffi.ethdev import EthPort
from vio4wd.dpdk_ffi.mempool import Mempool
from vio4wd.errors import WorkerError
from vio4wd.relay.bonds import BondKeeper, OpenBond
from vio4wd.relay.lane_control import LaneControl, QueueBursts
from vio4wd.relay.lanes import BURST, QUEUE_PAIRS

log = logging.getLogger(__name__)

DESCRIPTORS = 512
"""Wanted descriptors of a VF's queues."""

MEMPOOL_CACHE = 256
_CACHED = 2 * (MEMPOOL_CACHE * 3 // 2)
"""Buffers in the caches of the two lcores that serve a relay; a cache may hold half as much again as its size."""

_HELD = BURST * (QUEUE_PAIRS + 1)
"""Buffers that the lanes of a relay hold at the most: one VF queue, and all that a guest may have."""

STANDARD_MTU = 1500
JUMBO_MTU = 9000
_HEADROOM_BYTES = 128
_FRAME_OVERHEAD_BYTES = 22  # Ethernet header, two VLAN tags
_FCS_BYTES = 4  # which a port may write behind the frame
_STANDARD_DATA_BYTES = 2048


def longest_frame(mtu: int) -> int:
    """Bytes of the longest frame that a VF of this MTU may be given; some stop at the sight of a longer one."""
    return mtu + _FRAME_OVERHEAD_BYTES


def pool_buffers(ports: int, rx_descriptors: int, tx_descriptors: int) -> int:
    """Buffers that a relay needs whose VF has that many ports (members of a bond), so that none ever waits for one."""
    return ports * (rx_descriptors + tx_descriptors) + _HELD + _CACHED


_LEAST_BUFFERS = pool_buffers(1, DESCRIPTORS, DESCRIPTORS)


class PortStage(enum.Enum):
    """Where adding a VF failed."""

    BUSY = "busy"
    MEMORY = "memory"
    PROBE = "probe"
    CONFIGURE = "configure"
    RX_QUEUE = "rx_queue"
    TX_QUEUE = "tx_queue"
    START = "start"
    NO_BONDING = "no_bonding"
    BOND_CREATE = "bond_create"
    BOND_MEMBER = "bond_member"
    NO_VF = "no_vf"
    DETACH = "detach"


class PortError(WorkerError):
    """A VF or bond could not be added or removed; the relay is as it was."""

    def __init__(self, stage: PortStage, message: str) -> None:
        super().__init__(message)
        self.stage = stage


@contextlib.contextmanager
def _stage(stage: PortStage, device: object = None) -> Iterator[None]:
    """DPDK's errors as those of a stage; ``device`` where they do not name it by themselves."""
    try:
        yield
    except DpdkError as error:
        raise PortError(stage, str(error) if device is None else f"{device}: {error}") from error


@dataclass
class _Port:
    attachment: Attachment
    port: EthPort
    bond: OpenBond | None = None
    reported: bool = False

    def remove(self) -> None:
        """Give everything back to DPDK, in the order that it wants."""
        if self.bond is not None:
            self.bond.close()
        else:
            self.port.remove()


class Ports:
    """The VFs of a worker's relays, and the mempools of relays that have a VF or a guest.

    ``in_use(relay)`` says whether a guest still needs the relay's buffers.
    """

    def __init__(self, lanes: LaneControl, *, mtu: int, in_use: Callable[[int], bool]) -> None:
        self._lanes = lanes
        self._mtu = mtu
        self._in_use = in_use
        self._ports: dict[int, _Port] = {}
        self._pools: dict[int, list[Mempool]] = {}
        self._pool_numbers = itertools.count()
        self._pools_lock = threading.Lock()
        self._keeper = BondKeeper(lambda relay, on: lanes.set(relay, vf_busy=on))

    def mempool(self, relay: int) -> int:
        """The address of a relay's buffers, made at first use.

        Raises:
            PortError: no memory.
        """
        return self._pool(relay, _LEAST_BUFFERS).address

    def _pool(self, relay: int, buffers: int, numa_node: int = -1) -> Mempool:
        """The relay's mempool, a new one if it has none with as many buffers.

        A smaller one stays for as long as the relay has any: lanes may be using it.
        """
        data = max(_STANDARD_DATA_BYTES, longest_frame(self._mtu) + _FCS_BYTES) + _HEADROOM_BYTES
        with self._pools_lock, _stage(PortStage.MEMORY, f"relay {relay}"):
            pools = self._pools.get(relay, [])
            if not pools or pools[-1].count < buffers:
                name = f"relay{relay}.{next(self._pool_numbers)}"
                pool = Mempool.create(name, buffers, cache_size=MEMPOOL_CACHE, data_room=data, socket_id=numa_node)
                self._pools[relay] = [*pools, pool]
            return self._pools[relay][-1]

    def add(self, relay: int, attachment: Attachment, *, degraded: bool = False) -> int:
        """Probe, configure and start a VF or bond and let the relay's lanes use it; answers its NUMA node.

        With ``degraded`` one member of a bond is enough: the others follow when they can.

        Raises:
            PortError: it failed; nothing is left of it.
        """
        if relay in self._ports:
            raise PortError(PortStage.BUSY, f"relay {relay} has {self._ports[relay].attachment} already")
        with self._keeper.hotplug, contextlib.ExitStack() as undo:
            undo.callback(self.release_mempool, relay)
            opened = self._open(attachment, undo, degraded=degraded)
            port = opened.port
            node = port.info().socket_id
            self._start(relay, attachment, port)
            self._ports[relay] = opened
            undo.callback(self._ports.pop, relay)
            bursts = port.burst(0)
            pulse = isinstance(attachment, Bond) and attachment.mode is BondMode.LACP
            queue = QueueBursts(bursts.rx_function, bursts.rx_queue, bursts.tx_function, bursts.tx_queue, pulse)
            undo.callback(self._lanes.set, relay, queues=())
            self._lanes.set(relay, queues=(queue,), mempool=self.mempool(relay))
            undo.pop_all()
        if opened.bond is not None:
            self._keeper.watch(relay, opened.bond)
        log.info("relay %d: added %s (port %d, NUMA node %d)", relay, attachment, port.port_id, node)
        return max(node, 0)

    def remove(self, relay: int) -> None:
        """Take the relay's VF or bond away and release what it used.

        Raises:
            PortError: the relay has none, or DPDK could not let go of it.
        """
        port = self._ports.get(relay)
        if port is None:
            raise PortError(PortStage.NO_VF, f"relay {relay} has no VF")
        self._keeper.forget(relay)
        self._lanes.set(relay, queues=(), vf_busy=False)
        del self._ports[relay]
        try:
            with self._keeper.hotplug, _stage(PortStage.DETACH, port.attachment):
                port.remove()
        finally:
            self.release_mempool(relay)
        log.info("relay %d: removed %s", relay, port.attachment)

    def newly_lost(self) -> list[tuple[int, str]]:
        """Relays whose VF is of no use any more until it is opened anew, with the reason; each VF is told of once.

        Bonds look after their members by themselves.
        """
        found = []
        for relay, port in list(self._ports.items()):
            trouble = port.port.trouble
            if trouble and not port.reported:
                port.reported = True
                found.append((relay, trouble))
        return found

    def release_mempool(self, relay: int) -> None:
        """Free a relay's buffers if neither VF nor guest needs them."""
        with self._pools_lock:
            if relay in self._ports or self._in_use(relay) or relay not in self._pools:
                return
            self._lanes.set(relay, mempool=0)
            pools = self._pools.pop(relay)
        for pool in pools:
            if pool.in_use():
                log.error("relay %d: %d buffers were not given back; their memory stays reserved", relay, pool.in_use())
            else:
                pool.free()

    def close(self) -> None:
        """Remove all VFs; errors are logged."""
        self._keeper.close()
        for relay in list(self._ports):
            try:
                self.remove(relay)
            except PortError as error:
                log.error("relay %d: %s", relay, error)
        for relay in list(self._pools):
            self.release_mempool(relay)

    def _open(self, attachment: Attachment, undo: contextlib.ExitStack, *, degraded: bool) -> _Port:
        if isinstance(attachment, Bond):
            return self._open_bond(attachment, undo, degraded=degraded)
        with _stage(PortStage.PROBE):
            port = EthPort.probe(attachment.devargs)
        undo.callback(port.remove)
        return _Port(attachment, port)

    @staticmethod
    def _open_bond(attachment: Bond, undo: contextlib.ExitStack, *, degraded: bool) -> _Port:
        if not BondPort.available():
            raise PortError(PortStage.NO_BONDING, f"{attachment}: DPDK's bonding driver (librte_net_bond) is missing")
        with _stage(PortStage.BOND_CREATE, attachment):
            port = BondPort.create(attachment.name, attachment.mode)
        bond = OpenBond(attachment, port)
        undo.callback(bond.close)
        with _stage(PortStage.BOND_MEMBER, attachment):
            bond.open_members(degraded=degraded)
        with _stage(PortStage.CONFIGURE, attachment):
            bond.set_options()
        return _Port(attachment, port, bond)

    def _start(self, relay: int, attachment: Attachment, port: EthPort) -> None:
        with _stage(PortStage.CONFIGURE, attachment):
            port.configure(1, 1, mtu=self._mtu)
            rx_descriptors, tx_descriptors = port.adjust_descriptors(DESCRIPTORS, DESCRIPTORS)
        members = len(attachment.members) if isinstance(attachment, Bond) else 1
        buffers = pool_buffers(members, rx_descriptors, tx_descriptors)
        pool = self._pool(relay, max(buffers, _LEAST_BUFFERS), port.info().socket_id)
        with _stage(PortStage.RX_QUEUE, attachment):
            port.setup_rx(0, rx_descriptors, pool)
        with _stage(PortStage.TX_QUEUE, attachment):
            port.setup_tx(0, tx_descriptors)
        with _stage(PortStage.START, attachment):
            port.start()
        if not port.set_promiscuous(True):
            log.warning(
                "relay %d: %s has no promiscuous mode: only frames to its own address arrive", relay, attachment
            )
        port.set_allmulticast(True)
