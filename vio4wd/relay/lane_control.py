"""Decides what every lane of a worker's relays does, from what is on the VF side and on the VM side, and switches it.

Every change goes the same way: the relay's lanes are switched off, all lcores are waited for, the records and lists are
rewritten, and the lanes are switched on again as the new state says. Changes are rare; packets wait in the VF's queue
and in the guest's ring for the microseconds that it takes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np

from vio4wd.dpdk_ffi.mempool import flush
from vio4wd.dpdk_ffi.vhost import Region, VringInfo
from vio4wd.relay.blame import Notes
from vio4wd.relay.direct.attach import DirectRings
from vio4wd.relay.direct.rings import F_RING_PACKED, NET_F_MRG_RXBUF
from vio4wd.relay.interface import RelayCpus
from vio4wd.relay.lanes import LANE_STRIDE, QUEUE_PAIRS, Direction, LaneMode, LaneTable, lane_index, relay_lanes
from vio4wd.relay.lcores import Lcores


@dataclass(frozen=True)
class QueueBursts:
    """Burst functions of one queue pair of a VF and their first arguments, as addresses.

    With ``pulse`` the transmit function must be called regularly, with or without packets (bonds in mode 802.3ad).
    """

    rx_function: int
    rx_queue: int
    tx_function: int
    tx_queue: int
    pulse: bool = False


@dataclass(frozen=True)
class GuestRing:
    """One vring of a guest as the lanes need it; ``info`` is None while it is not enabled."""

    index: int
    info: VringInfo | None

    @property
    def enabled(self) -> bool:
        """The guest has switched the ring on."""
        return self.info is not None

    @property
    def size(self) -> int:
        """Its descriptors."""
        return self.info.size if self.info else 0


@dataclass(frozen=True)
class GuestView:
    """The VM side of a relay: rte_vhost's number of the guest, its rings by index, what it negotiated, its memory."""

    vid: int
    rings: tuple[GuestRing, ...]
    features: int
    regions: tuple[Region, ...]

    @property
    def packed(self) -> bool:
        """Its rings are packed."""
        return bool(self.features >> F_RING_PACKED & 1)

    @property
    def mergeable(self) -> bool:
        """It takes packets in several buffers."""
        return bool(self.features >> NET_F_MRG_RXBUF & 1)


@dataclass(frozen=True)
class _Lane:
    """What one lane's record should say."""

    mode: LaneMode = LaneMode.OFF
    ring: GuestRing | None = None
    burst_function: int = 0
    burst_queue: int = 0
    pulse: bool = False


@dataclass(frozen=True)
class RelaySides:
    """What a relay has at the moment. ``queues`` is empty without a VF, ``guest`` None without a VM.

    All lanes are off while it is ``paused`` (nobody may touch the guest) or ``vf_busy`` (nobody may touch the VF).
    """

    queues: tuple[QueueBursts, ...] = ()
    guest: GuestView | None = None
    mempool: int = 0
    cpus: RelayCpus | None = None
    paused: bool = False
    vf_busy: bool = False


@dataclass(frozen=True)
class LaneFault:
    """A lane that rests because its guest broke a rule, and what that was."""

    relay: int
    queue_pair: int
    direction: Direction
    message: str


@dataclass
class _Relay:
    sides: RelaySides = field(default_factory=RelaySides)
    lanes: dict[int, _Lane] = field(default_factory=dict)


class LaneControl:
    """The lanes of all relays that this worker carries. Its methods may be called from any thread.

    ``longest`` is how many bytes a frame for a VF may have.
    """

    def __init__(self, table: LaneTable, lcores: Lcores, rings: DirectRings, notes: Notes, *, longest: int) -> None:
        self._table = table
        self._notes = notes
        self._longest = longest
        self._rings = rings
        self._lcores = lcores
        self._relays: dict[int, _Relay] = {}
        self._lock = threading.Lock()

    def sides(self, relay: int) -> RelaySides:
        """What a relay has at the moment."""
        return self._relays[relay].sides if relay in self._relays else RelaySides()

    def change(self, relay: int, edit: Callable[[RelaySides], RelaySides]) -> None:
        """Replace a relay's sides by what ``edit`` makes of them, and its lanes with them.

        When this returns no lcore uses what the old sides named.

        Raises:
            WorkerError: an lcore hangs.
        """
        with self._lock:
            state = self._relays.setdefault(relay, _Relay())
            after = edit(state.sides)
            if after != state.sides:
                with self.working(relay):
                    self._switch(relay, state, after)
                state.sides = after

    def set(self, relay: int, **fields: object) -> None:
        """``change`` that replaces the named fields of RelaySides."""
        self.change(relay, lambda sides: replace(sides, **fields))  # type: ignore[arg-type]

    def working(self, relay: int) -> AbstractContextManager[None]:
        """To be held while the calling thread has to do with a relay's guest, who is to blame for the end of it."""
        return self._notes.working(self._table.address + relay_lanes(relay).start * LANE_STRIDE)

    def call_fds(self) -> dict[int, int]:
        """The descriptors by which guests are interrupted, with their relays. Takes no lock: its holder may hang."""
        sides = [(relay, state.sides) for relay, state in list(self._relays.items())]
        sides.sort(key=lambda entry: not entry[1].paused)  # what is being changed may be out of date
        return {
            ring.info.callfd: relay
            for relay, side in sides
            for ring in (side.guest.rings if side.guest else ())
            if ring.info is not None and ring.info.callfd >= 0
        }

    def rest(self, relay: int) -> None:
        """Switch a relay's lanes off without waiting for them, until its sides change. Takes no lock, see above."""
        self._table.lanes["mode"][relay_lanes(relay).start : relay_lanes(relay).stop] = LaneMode.OFF

    def faults(self) -> list[LaneFault]:
        """The lanes whose guests have broken a rule of their rings since the last time; these lanes rest."""
        found = []
        with self._lock:
            for relay, state in self._relays.items():
                for index in state.lanes:
                    message = self._rings.fault(self._table.lanes[index])
                    if message is not None:
                        found.append(LaneFault(relay, index // 2 % QUEUE_PAIRS, Direction(index & 1), message))
        return found

    def _adopt(self, relay: int) -> None:
        """Begin anew with a relay that has had no lanes here: another worker may have died with them as they are.

        Until then its records may be those of a worker that carries it now.
        """
        lanes = self._table.lanes[relay_lanes(relay).start : relay_lanes(relay).stop]
        lanes["mode"] = LaneMode.OFF
        lanes["not_connected_pkts"] += lanes["held_count"].astype(np.uint64)
        lanes["not_connected_bytes"] += lanes["held_bytes"].astype(np.uint64)
        lanes["held_count"] = 0
        lanes["held_bytes"] = 0
        for name in ("loaded", "known", "reported"):
            lanes["view"][name] = 0

    def _switch(self, relay: int, state: _Relay, sides: RelaySides) -> None:
        new = _plan(relay, sides)
        if new and not state.lanes:
            self._adopt(relay)
        self._silence(state.lanes.keys(), new.keys())
        for index in state.lanes:
            self._rings.give_back(self._table.lanes[index])
        for index in state.lanes.keys() | new.keys():
            self._write(index, new.get(index, _Lane()), sides)
        state.lanes = new
        if state.sides.guest and not sides.guest:
            for name in ("known", "reported"):  # the next guest's rings are others
                self._table.lanes["view"][name][relay_lanes(relay)] = 0
        if sides.paused or sides.vf_busy:
            return
        self._assign(relay, new, sides)
        for index, lane in new.items():
            guest, record = sides.guest, self._table.lanes[index]
            if guest and lane.ring and lane.ring.info:
                if lane.mode is LaneMode.FORWARD:
                    self._rings.take(record, relay, lane.ring.info, guest.regions, guest.features)
                else:
                    self._rings.leave(record)
            self._table.lanes["mode"][index] = lane.mode

    def _assign(self, relay: int, new: Mapping[int, _Lane], sides: RelaySides) -> None:
        """Put the relay's lanes on their lcores; those that have no lane of it any more keep none of its buffers."""
        indexes = relay_lanes(relay)
        before = self._lcores.serving(indexes)
        cpus = {index: self._cpu(index, sides) if index in new else None for index in indexes}
        if self._lcores.assign(cpus):
            self._lcores.quiesce()
        for lcore in before - self._lcores.serving(indexes) if sides.mempool else ():
            flush(sides.mempool, lcore)

    def _silence(self, old: Set[int], staying: Set[int]) -> None:
        """Switch lanes off; those that do not stay give up what they hold first."""
        modes = self._table.lanes["mode"]
        wanted = {index: LaneMode.OFF if index in staying else LaneMode.FLUSH for index in old}
        if all(mode == modes[index] == LaneMode.OFF for index, mode in wanted.items()):
            return
        for index, mode in wanted.items():
            modes[index] = mode
        self._lcores.quiesce()
        for index in wanted:
            modes[index] = LaneMode.OFF

    def _write(self, index: int, lane: _Lane, sides: RelaySides) -> None:
        record = self._table.lanes[index]
        record["direction"] = index & 1
        record["burst_function"] = lane.burst_function
        record["burst_queue"] = lane.burst_queue
        record["pulse"] = lane.pulse
        record["mempool"] = sides.mempool
        record["longest"] = self._longest
        record["refusals"] = 0
        if sides.guest is not None and lane.ring is not None:
            record["vid"] = sides.guest.vid
            record["packed"] = sides.guest.packed
            record["mergeable"] = sides.guest.mergeable
            record["ring"] = lane.ring.index
            record["ring_size"] = lane.ring.size
            record["descriptors"] = lane.ring.info.desc if lane.ring.info else 0

    @staticmethod
    def _cpu(index: int, sides: RelaySides) -> int | None:
        if sides.cpus is None:
            return None
        return sides.cpus.vf_to_vm if index & 1 == Direction.VF_TO_VM else sides.cpus.vm_to_vf


def _plan(relay: int, sides: RelaySides) -> dict[int, _Lane]:
    """The lanes that a relay with these sides should have, by table index; the others are off."""
    lanes: dict[int, _Lane] = {}
    rings = sides.guest.rings if sides.guest else ()
    for queue, bursts in enumerate(sides.queues):
        ring = _enabled(rings, 2 * queue)
        mode = LaneMode.FORWARD if ring else LaneMode.DRAIN
        index = lane_index(relay, queue, Direction.VF_TO_VM)
        lanes[index] = _Lane(mode, ring, bursts.rx_function, bursts.rx_queue)
        if bursts.pulse and _enabled(rings, 2 * queue + 1) is None:
            index = lane_index(relay, queue, Direction.VM_TO_VF)
            lanes[index] = _Lane(LaneMode.FLUSH, None, bursts.tx_function, bursts.tx_queue, pulse=True)
    for pair in range(len(rings) // 2):
        ring = _enabled(rings, 2 * pair + 1)
        if ring is None:
            continue
        index = lane_index(relay, pair, Direction.VM_TO_VF)
        if sides.queues:
            bursts = sides.queues[pair % len(sides.queues)]
            lanes[index] = _Lane(LaneMode.FORWARD, ring, bursts.tx_function, bursts.tx_queue, bursts.pulse)
        else:
            lanes[index] = _Lane(LaneMode.DRAIN, ring)
    return lanes


def _enabled(rings: tuple[GuestRing, ...], index: int) -> GuestRing | None:
    """The ring of that index if the guest has it enabled."""
    return rings[index] if index < len(rings) and rings[index].enabled else None
