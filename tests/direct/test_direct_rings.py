"""Which rings the direct engine takes, and what it says of those that it leaves to rte_vhost."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vio4wd.dpdk_ffi.layouts import RELEASES, layout_of
from vio4wd.dpdk_ffi.vhost import Region, VringInfo
from vio4wd.relay import mbuf
from vio4wd.relay.direct import attach
from vio4wd.relay.direct.ring_record import MAX_REGIONS, RING
from vio4wd.relay.direct.rings import load_ring
from vio4wd.relay.lanes import LANE_PADDED, Engine

VERSION_1, PACKED, ACCESS_PLATFORM, LOG_ALL, HASH_REPORT = 1 << 32, 1 << 34, 1 << 33, 1 << 26, 1 << 57
ALL_BUT_REFUSED = ((1 << 64) - 1) & ~(ACCESS_PLATFORM | LOG_ALL | HASH_REPORT | PACKED)
GUEST, HOST, BYTES = 0x40000000, 0x7F0000000000, 1 << 20
END = HOST + BYTES
WRAP = 1 << 15
SIZE = 256
PARTS = {"desc": HOST, "avail": HOST + 0x2000, "used": HOST + 0x3000}
LONGEST = 1522
RELAY, RING_INDEX = 7, 3


def memory(guest: int = GUEST, host: int = HOST, size: int = BYTES) -> Region:
    return Region(guest, guest, host, size, host, size, -1)


def vring(size: int = SIZE, **parts: int) -> VringInfo:
    return VringInfo(**{**PARTS, **parts}, size=size, callfd=-1, kickfd=-1, log_guest_addr=0)


def load(
    ring: VringInfo,
    *,
    regions: Sequence[Region] = (memory(),),
    features: int = VERSION_1,
    base: tuple[int, int] = (0, 0),
) -> tuple[np.void, str | None]:
    """Load a ring into a record that had a good one, whose guest broke a rule; answers the record and the refusal."""
    record: np.void = np.zeros(1, RING)[0]
    assert load_ring(record, vring(), (memory(),), VERSION_1, (0, 0), LONGEST) is None
    assert record["loaded"] == record["known"] == 1
    record["rule"] = record["head"] = 1
    return record, load_ring(record, ring, regions, features, base, LONGEST)


def refused(ring: VringInfo, reason: str, **options: Any) -> None:
    """It is refused for this reason, and nobody can take the record for that of a ring that the engine works."""
    record, said = load(ring, **options)
    assert said == reason
    assert record["loaded"] == record["known"] == 0
    assert record["rule"] == record["head"] == 0


def taken(ring: VringInfo, **options: Any) -> np.void:
    record, said = load(ring, **options)
    assert said is None
    assert record["loaded"] == record["known"] == 1
    assert record["rule"] == record["head"] == 0
    return record


@pytest.mark.parametrize("packed", [0, PACKED])
@pytest.mark.parametrize(
    ("feature", "reason"),
    [
        (ACCESS_PLATFORM, "its addresses go through an IOMMU"),
        (LOG_ALL, "its memory is being logged for a migration"),
        (HASH_REPORT, "its headers carry hash reports"),
    ],
)
def test_features_that_are_the_librarys(feature: int, reason: str, packed: int) -> None:
    refused(vring(), reason, features=VERSION_1 | feature | packed)
    refused(vring(), reason, features=ALL_BUT_REFUSED | feature | packed)


@pytest.mark.parametrize("packed", [0, PACKED])
def test_no_other_feature_is_in_the_way(packed: int) -> None:
    record = taken(vring(), features=ALL_BUT_REFUSED | packed)
    assert record["packed"] == (packed != 0)
    assert record["mergeable"] == record["event_index"] == record["guest_offloads"] == 1


@pytest.mark.parametrize("count", [0, MAX_REGIONS + 1])
def test_numbers_of_regions(count: int) -> None:
    regions = [memory(GUEST + i * BYTES, HOST + 2 * i * BYTES) for i in range(count)]
    refused(vring(), f"it has {count} memory regions", regions=regions)


def test_as_many_regions_as_the_record_holds() -> None:
    regions = [memory(GUEST + i * BYTES, HOST + 2 * i * BYTES) for i in range(MAX_REGIONS)]
    record = taken(vring(), regions=regions)
    assert record["regions"] == MAX_REGIONS
    assert list(record["guest_addresses"]) == [region.guest_phys_addr for region in regions]
    assert list(record["host_addresses"]) == [region.host_user_addr for region in regions]
    assert set(record["region_sizes"]) == {BYTES}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("end", [1 << 63, (1 << 63) + 1, (1 << 64) - 1, 1 << 64])
def test_a_region_that_ends_where_offsets_become_negative(end: int, place: int) -> None:
    regions = [memory(), memory(GUEST + BYTES, HOST + 2 * BYTES)]
    regions[place] = replace(regions[place], guest_phys_addr=end - BYTES)
    refused(vring(), "a memory region ends beyond 2**63", regions=regions)


def test_a_region_that_ends_just_below() -> None:
    taken(vring(), regions=[memory(guest=(1 << 63) - 1 - BYTES)])


@pytest.mark.parametrize(("size", "features"), [(0, 0), (3, 0), (100, 0), (257, 0), (0, PACKED)])
def test_sizes(size: int, features: int) -> None:
    refused(vring(size), f"its size is {size}", features=VERSION_1 | features)


@pytest.mark.parametrize(("size", "features"), [(1, 0), (2, 0), (256, 0), (1, PACKED), (100, PACKED), (255, PACKED)])
def test_sizes_that_are_good(size: int, features: int) -> None:
    assert taken(vring(size), features=VERSION_1 | features)["size"] == size


@pytest.mark.parametrize(
    ("base", "features"), [((6, 5), 0), ((5, 6), 0), ((0, 0xFFFF), 0), ((WRAP | 5, 5), PACKED), ((6, 5), PACKED)]
)
def test_bases_that_differ(base: tuple[int, int], features: int) -> None:
    reason = f"buffers are in flight: next available {base[0]:#x}, next used {base[1]:#x}"
    refused(vring(), reason, base=base, features=VERSION_1 | features)


@pytest.mark.parametrize("position", [SIZE, WRAP | SIZE, 0x7FFF, 0xFFFF])
def test_packed_positions_outside_the_ring(position: int) -> None:
    refused(
        vring(),
        f"its position {position:#x} is outside the ring",
        base=(position, position),
        features=VERSION_1 | PACKED,
    )


@pytest.mark.parametrize(
    ("position", "features"), [(0xFFFF, 0), (SIZE, 0), (SIZE - 1, PACKED), (WRAP | SIZE - 1, PACKED), (WRAP, PACKED)]
)
def test_positions_where_the_engine_goes_on(position: int, features: int) -> None:
    record = taken(vring(), base=(position, position), features=VERSION_1 | features)
    for name in ("position", "published", "limit", "saving", "saved"):
        assert record[name] == position, name


@pytest.mark.parametrize(
    ("part", "features", "alignment"),
    [("desc", 0, 16), ("avail", 0, 2), ("used", 0, 4), ("desc", PACKED, 16), ("avail", PACKED, 4), ("used", PACKED, 4)],
)
def test_misaligned_parts(part: str, features: int, alignment: int) -> None:
    for off in {1, alignment // 2, alignment - 1}:
        reason = f"its {part} part is not aligned to {alignment} bytes"
        refused(vring(**{part: PARTS[part] + off}), reason, features=VERSION_1 | features)
    taken(vring(**{part: PARTS[part] + alignment}), features=VERSION_1 | features)


@pytest.mark.parametrize(
    ("part", "features", "last"),
    [
        # the last address at which a part of this ring fits into the region, its event index included
        ("desc", 0, END - 16 * SIZE),
        ("avail", 0, END - (6 + 2 * SIZE)),
        ("used", 0, END - (6 + 8 * SIZE) & ~3),
        ("desc", PACKED, END - 16 * SIZE),
        ("avail", PACKED, END - 4),
        ("used", PACKED, END - 4),
    ],
)
def test_parts_that_leave_their_region(part: str, features: int, last: int) -> None:
    step = {"desc": 16, "avail": 4 if features else 2, "used": 4}[part]
    regions = (memory(), memory(GUEST + BYTES, HOST + 2 * BYTES))  # adjacent for the guest, not for us
    options: dict[str, Any] = {"regions": regions, "features": VERSION_1 | features}
    taken(vring(**{part: last}), **options)
    for address in (last + step, END, HOST - step, HOST + 2 * BYTES - step, 0, (1 << 64) - step):
        refused(vring(**{part: address}), f"its {part} part is not in the guest's memory", **options)
    taken(vring(**{part: HOST + 2 * BYTES}), **options)


class StandInDevice:
    """Instead of rte_vhost's device: where it is in the ring, and how often it was to call the guest."""

    calls: list[int] = []
    base = (5, 5)
    pool = np.zeros(layout_of(next(iter(RELEASES))).structs["rte_mempool"].size, np.uint8)
    """The relay's buffers: only whether they have a cache is asked."""

    def __init__(self, vid: int) -> None:
        self.vid = vid

    def ring_base(self, ring: int) -> tuple[int, int]:
        assert ring == RING_INDEX
        return self.base

    def call_guest(self, ring: int) -> None:
        self.calls.append(ring)


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> np.void:
    """A lane's record, whose relay has buffers with a cache; no DPDK is loaded."""
    monkeypatch.setattr(attach, "load", lambda: SimpleNamespace(layout=layout_of(next(iter(RELEASES)))))
    monkeypatch.setattr(attach, "VhostDevice", StandInDevice)
    monkeypatch.setattr(StandInDevice, "calls", [])
    record: np.void = np.zeros(1, LANE_PADDED)[0]
    StandInDevice.pool[mbuf.POOL_CACHE_SIZE] = 128
    record["ring"], record["longest"], record["mempool"] = RING_INDEX, LONGEST, StandInDevice.pool.ctypes.data
    return record


GOOD, IOMMU = VERSION_1, VERSION_1 | ACCESS_PLATFORM


@pytest.mark.parametrize(
    ("choice", "features", "engine", "level"),
    [
        ("auto", GOOD, Engine.DIRECT, None),
        ("direct", GOOD, Engine.DIRECT, None),
        ("library", GOOD, Engine.LIBRARY, None),
        ("auto", IOMMU, Engine.LIBRARY, logging.INFO),
        ("direct", IOMMU, Engine.LIBRARY, logging.WARNING),
        ("library", IOMMU, Engine.LIBRARY, None),
    ],
)
def test_the_engine_of_a_lane(
    lane: np.void, caplog: pytest.LogCaptureFixture, choice: str, features: int, engine: Engine, level: int | None
) -> None:
    caplog.set_level(logging.DEBUG)
    lane["engine"] = Engine.DIRECT if engine is Engine.LIBRARY else Engine.LIBRARY
    lane["view"]["known"] = 1
    attach.DirectRings(choice).take(lane, RELAY, vring(), (memory(),), features)
    assert lane["engine"] == engine
    assert lane["view"]["loaded"] == lane["view"]["known"] == (engine is Engine.DIRECT)
    if engine is Engine.DIRECT:
        assert (lane["view"]["position"], lane["view"]["longest"]) == (5, LONGEST)
    text = f"relay {RELAY}: rte_vhost works ring {RING_INDEX}: its addresses go through an IOMMU"
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == ([(level, text)] if level else [])


@pytest.mark.parametrize(("choice", "level"), [("auto", logging.INFO), ("direct", logging.WARNING)])
def test_a_relay_whose_buffers_have_no_cache(
    lane: np.void, caplog: pytest.LogCaptureFixture, choice: str, level: int
) -> None:
    caplog.set_level(logging.DEBUG)
    StandInDevice.pool[mbuf.POOL_CACHE_SIZE] = 0
    attach.DirectRings(choice).take(lane, RELAY, vring(), (memory(),), GOOD)
    assert (lane["engine"], lane["view"]["known"]) == (Engine.LIBRARY, 0)
    text = f"relay {RELAY}: rte_vhost works ring {RING_INDEX}: the relay's mempool has no cache"
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(level, text)]


@pytest.mark.parametrize("choice", ["auto", "direct", "library"])
@pytest.mark.parametrize("unsynced", [0, 1])
def test_a_ring_left_to_the_library_is_looked_at_by_it(lane: np.void, unsynced: int, choice: str) -> None:
    lane["view"]["unsynced"] = unsynced
    attach.DirectRings(choice).take(lane, RELAY, vring(), (memory(),), IOMMU)
    assert StandInDevice.calls == [RING_INDEX] * unsynced
    assert lane["view"]["unsynced"] == 0


def test_a_ring_that_the_engine_takes_is_not(lane: np.void) -> None:
    lane["view"]["unsynced"] = 1
    attach.DirectRings("auto").take(lane, RELAY, vring(), (memory(),), GOOD)
    assert StandInDevice.calls == []
    assert lane["view"]["unsynced"] == 1, "rte_vhost is as far behind as before"
