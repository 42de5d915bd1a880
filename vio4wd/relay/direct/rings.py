"""Starts and ends the direct engine's work on a ring: the record is filled from what rte_vhost knows, and given back.

Everything here happens while the lane is off and quiescent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vio4wd.dpdk_ffi.vhost import Region, VhostDevice, VringInfo
from vio4wd.relay.direct.ring_record import MAX_REGIONS

# Feature bits: VIRTIO 1.2, sections 5.1.3, 6 and 7.3; VHOST_F_LOG_ALL: vhost-user.
NET_F_CSUM, NET_F_MRG_RXBUF = 0, 15
NET_F_HOST_TSO4, NET_F_HOST_TSO6, NET_F_HOST_ECN, NET_F_HOST_UFO, NET_F_HOST_USO = 11, 12, 13, 14, 56
NET_F_HASH_REPORT = 57
VHOST_F_LOG_ALL = 26
RING_F_EVENT_IDX, F_VERSION_1, F_ACCESS_PLATFORM, F_RING_PACKED = 29, 32, 33, 34

_GUEST_OFFLOADS = sum(
    1 << bit for bit in (NET_F_CSUM, NET_F_HOST_TSO4, NET_F_HOST_TSO6, NET_F_HOST_ECN, NET_F_HOST_UFO, NET_F_HOST_USO)
)
_LIBRARY_ONLY = {
    VHOST_F_LOG_ALL: "its memory is being logged for a migration",
    F_ACCESS_PLATFORM: "its addresses go through an IOMMU",
    NET_F_HASH_REPORT: "its headers carry hash reports",
}
_DESCRIPTOR_BYTES = 16
_ALIGNMENTS = {"desc": 16, "avail": 4, "used": 4}  # of packed rings; a split ring's avail needs 2
_NO_WRAP = 0x7FFF


def _ring_bytes(vring: VringInfo, *, packed: bool) -> dict[str, int]:
    """Sizes of the ring's three parts (VIRTIO 1.2, sections 2.7 and 2.8), event indexes included."""
    event = 4
    if packed:
        return {"desc": _DESCRIPTOR_BYTES * vring.size, "avail": event, "used": event}
    return {"desc": _DESCRIPTOR_BYTES * vring.size, "avail": 6 + 2 * vring.size, "used": 6 + 8 * vring.size}


def unsuitable(vring: VringInfo, regions: Sequence[Region], features: int, base: tuple[int, int]) -> str | None:
    """Why the direct engine cannot work this ring; None where it can. ``base`` is where rte_vhost is in it."""
    for bit, reason in _LIBRARY_ONLY.items():
        if features >> bit & 1:
            return reason
    packed = bool(features >> F_RING_PACKED & 1)
    if not 0 < len(regions) <= MAX_REGIONS:
        return f"it has {len(regions)} memory regions"
    if any(region.guest_phys_addr + region.size >= 1 << 63 for region in regions):
        return "a memory region ends beyond 2**63"
    if vring.size < 1 or (not packed and vring.size & (vring.size - 1)):
        return f"its size is {vring.size}"
    if base[0] != base[1]:
        return f"buffers are in flight: next available {base[0]:#x}, next used {base[1]:#x}"
    if packed and base[0] & _NO_WRAP >= vring.size:
        return f"its position {base[0]:#x} is outside the ring"
    for part, size in _ring_bytes(vring, packed=packed).items():
        address = getattr(vring, part)
        alignment = 2 if part == "avail" and not packed else _ALIGNMENTS[part]
        if address % alignment:
            return f"its {part} part is not aligned to {alignment} bytes"
        if not any(r.host_user_addr <= address and address + size <= r.host_user_addr + r.size for r in regions):
            return f"its {part} part is not in the guest's memory"
    return None


def load_ring(
    ring: np.void, vring: VringInfo, regions: Sequence[Region], features: int, base: tuple[int, int], longest: int
) -> str | None:
    """Fill a lane's ring record (its field ``view``) for the direct engine; ``longest`` is as in the lane's record.

    Answers None, or why the library engine must do it; then the record says that the ring is not loaded. A broken rule
    is forgotten, but not that it was told, nor how far rte_vhost is behind with what it told the guest (``unsynced``):
    it stays so when a ring was given back and is taken again.
    """
    ring["rule"] = ring["head"] = 0
    reason = unsuitable(vring, regions, features, base)
    if reason is not None:
        ring["loaded"] = ring["known"] = 0
        return reason
    values: dict[str, Any] = {
        "descriptors": vring.desc,
        "available": vring.avail,
        "used": vring.used,
        "size": vring.size,
        "call_fd": vring.callfd,
        "packed": features >> F_RING_PACKED & 1,
        "mergeable": features >> NET_F_MRG_RXBUF & 1,
        "event_index": features >> RING_F_EVENT_IDX & 1,
        "guest_offloads": int(features & _GUEST_OFFLOADS != 0),
        "header_bytes": 12 if features & (1 << NET_F_MRG_RXBUF | 1 << F_VERSION_1) else 10,
        "longest": longest,
        "untold": 0,
        "announced": 0,
        "polls": 0,
        "region_guest": regions[0].guest_phys_addr,
        "region_bytes": regions[0].size,
        "region_host": regions[0].host_user_addr,
        "regions": len(regions),
    }
    values |= dict.fromkeys(("position", "published", "limit", "saving", "saved"), base[0])
    for name, value in values.items():
        ring[name] = value
    for i, region in enumerate(regions):
        ring["guest_addresses"][i] = region.guest_phys_addr
        ring["region_sizes"][i] = region.size
        ring["host_addresses"][i] = region.host_user_addr
    ring["loaded"] = ring["known"] = 1
    return None


def unload_ring(ring: np.void, device: VhostDevice, index: int) -> None:
    """Tell rte_vhost where the direct engine got to in ring ``index``, if it had it."""
    if ring["loaded"]:
        device.set_ring_base(index, int(ring["position"]), int(ring["position"]))
        ring["loaded"] = 0
