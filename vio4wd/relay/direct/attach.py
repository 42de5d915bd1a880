"""Which engine a lane's ring gets, and the passing of rings between rte_vhost and the direct engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from vio4wd.dpdk_ffi.layouts import View
from vio4wd.dpdk_ffi.loader import load
from vio4wd.dpdk_ffi.vhost import Region, VhostDevice, VringInfo
from vio4wd.relay.direct.ring_record import RULE_TEXTS, RingRule, own_packets
from vio4wd.relay.direct.rings import load_ring, unload_ring
from vio4wd.relay.lanes import Engine

log = logging.getLogger(__name__)


class DirectRings:
    """Gives rings to the direct engine and takes them back, while their lanes are off and quiescent.

    ``choice`` is the configuration's: ``library`` leaves all rings to rte_vhost; ``direct`` warns of rings that the
    direct engine cannot work, ``auto`` only notes them.
    """

    def __init__(self, choice: str) -> None:
        self._choice = choice

    @staticmethod
    def fault(lane: np.void) -> str | None:
        """What rule the lane's ring has broken; None if none, or if this has been asked since.

        A guest may have its ring loaded again as often as it likes. What it breaks then is told if packets have moved
        meanwhile, or the guest began anew: else it could fill the log.
        """
        view = lane["view"]
        moved = 1 + own_packets(view)
        if not view["loaded"] or not view["rule"] or view["reported"] == moved:
            return None
        view["reported"] = moved
        return f"{RULE_TEXTS[RingRule(int(view['rule']))]} (ring {lane['ring']}, descriptor {view['head']})"

    def take(self, lane: np.void, relay: int, vring: VringInfo, regions: Sequence[Region], features: int) -> None:
        """Let the direct engine work a lane's ring if it can; ``lane`` is the lane's record, filled in but for this."""
        index, device = int(lane["ring"]), VhostDevice(int(lane["vid"]))
        lane["engine"] = Engine.LIBRARY
        reason = self._refusal(lane, vring, regions, features, device.ring_base(index))
        if reason is None:
            lane["engine"] = Engine.DIRECT
            return
        if self._choice != "library":
            level = logging.WARNING if self._choice == "direct" else logging.INFO
            log.log(level, "relay %d: rte_vhost works ring %d: %s", relay, index, reason)
        self.leave(lane)

    @staticmethod
    def leave(lane: np.void) -> None:
        """Let rte_vhost work a lane's ring, which the direct engine may have had until now."""
        lane["view"]["known"] = 0
        if lane["view"]["unsynced"]:
            # What rte_vhost last told the guest is long ago; let it look at the ring as it is now.
            VhostDevice(int(lane["vid"])).call_guest(int(lane["ring"]))
            lane["view"]["unsynced"] = 0

    def _refusal(
        self, lane: np.void, vring: VringInfo, regions: Sequence[Region], features: int, base: tuple[int, int]
    ) -> str | None:
        if self._choice == "library":
            return "the configuration says so"
        pool = View(load().layout.structs["rte_mempool"], int(lane["mempool"]))
        if not pool["cache_size"]:
            return "the relay's mempool has no cache"
        return load_ring(lane["view"], vring, regions, features, base, int(lane["longest"]))

    def give_back(self, lane: np.void) -> None:
        """Tell rte_vhost where a lane's ring is, if the direct engine had it."""
        unload_ring(lane["view"], VhostDevice(int(lane["vid"])), int(lane["ring"]))
        lane["engine"] = Engine.LIBRARY
