"""Random rings against a plain model of what a device does: what comes out, what is given back, where it stops."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from drivers import INDIRECT, NEXT, WRAP, WRITE, PackedDriver, Piece, SplitDriver
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import Rig

from vio4wd.relay.direct.ring_record import RingRule

VERSION_1, MERGEABLE, EVENT_INDEX, PACKED = 1 << 32, 1 << 15, 1 << 29, 1 << 34
TO_VM, TO_VF = 0, 1
SIZE = 64
NOISE = random.Random(0).randbytes(1 << 13)
END = Rig.GUEST_BASE + (1 << 18) + 8192

FAULTS = {
    RingRule.ADDRESS: (END, 100, 0),
    RingRule.DIRECTION: (Rig.GUEST_BASE + 0x4000, 100, WRITE),
    RingRule.INDIRECT_ADDRESS: (END - 8, 32, INDIRECT),
    RingRule.INDIRECT_LENGTH: (Rig.GUEST_BASE + 0x4000, 24, INDIRECT),
    RingRule.INDIRECT_FLAGS: (Rig.GUEST_BASE + 0x4000, 32, INDIRECT | NEXT),
    RingRule.TOO_SHORT: (Rig.GUEST_BASE + 0x4000, 8, 0),
    RingRule.TOO_LONG: (Rig.GUEST_BASE + 0x4000, 70000, 0),
}


@dataclass(frozen=True)
class Shape:
    """One buffer: its size, where it is cut, whether a table names its pieces."""

    size: int
    cuts: tuple[int, ...]
    indirect: bool

    def sizes(self) -> list[int]:
        edges = sorted({0, self.size, *(cut % (self.size + 1) for cut in self.cuts)})
        return [b - a for a, b in zip(edges, edges[1:], strict=False)]


def shapes(least: int, most: int) -> st.SearchStrategy[Shape]:
    cuts = st.lists(st.integers(0, 1 << 16), max_size=3).map(tuple)
    return st.builds(Shape, st.integers(least, most), cuts, st.booleans())


FEATURES = st.sampled_from([0, VERSION_1, MERGEABLE, VERSION_1 | MERGEABLE, VERSION_1 | EVENT_INDEX])


@contextmanager
def lane(direction: int, features: int, packed: bool, start: int) -> Iterator[tuple[Rig, SplitDriver | PackedDriver]]:
    if packed:
        features |= PACKED | VERSION_1
        start = start % SIZE | (start & WRAP)
    rig = Rig(direction, SIZE, features, region_sizes=(1 << 18, 4096, 4096), position=start)
    yield rig, PackedDriver(rig, start) if packed else SplitDriver(rig, start)
    rig.close()


def own_area(rig: Rig) -> tuple[int, int]:
    """Where the device writes in the ring itself, address and bytes: the used ring, or packed descriptors."""
    host, length = (rig.desc, 16 * SIZE) if rig.packed else (rig.used, 6 + 8 * SIZE)
    return Rig.GUEST_BASE + host - rig.memories[0].address, length


def strays(rig: Rig, before: npt.NDArray[np.uint8], written: Iterable[tuple[int, int]]) -> list[str]:
    """Addresses of guest memory that is not as ``before``, but for the ring's own area and what was ``written``."""
    differs = rig.contents() != before
    for guest, length in [own_area(rig), *written]:
        differs[guest - Rig.GUEST_BASE :][:length] = False
    return [hex(Rig.GUEST_BASE + int(offset)) for offset in np.flatnonzero(differs)]


def parts_written(pieces: list[Piece], length: int) -> Iterator[tuple[int, int]]:
    """What the first ``length`` bytes of a buffer are in guest memory."""
    for piece in pieces:
        yield piece.guest, min(piece.size, length)
        length -= min(piece.size, length)


def drain(rig: Rig) -> None:
    while rig.step():
        pass


@settings(max_examples=300, deadline=None)
@given(
    FEATURES,
    st.booleans(),
    st.integers(0, 0xFFFF),
    st.lists(shapes(1, 3000), min_size=1, max_size=12),
    st.none() | st.tuples(st.sampled_from(list(FAULTS)), st.integers(0, 12)),
)
def test_from_the_guest(
    features: int, packed: bool, start: int, wanted: list[Shape], fault: tuple[RingRule, int] | None
) -> None:
    with lane(TO_VF, features, packed, start) as (rig, driver):
        header = int(rig.view["header_bytes"])
        frames, identities = [], []
        rig.fill_free(0xAA)
        for number, shape in enumerate(wanted):
            if fault is not None and number == fault[1]:
                break
            frame = NOISE[number : number + shape.size]
            content, pieces, at = bytes(header) + frame, [], 0
            for size in Shape(header + len(frame), shape.cuts, shape.indirect).sizes():
                guest = rig.allocate(size)
                rig.write(guest, content[at : at + size])
                pieces.append(Piece(guest, size))
                at += size
            if driver_room(driver) < len(pieces):
                break
            frames.append(frame)
            identities.append(driver.add(pieces, indirect=shape.indirect))
        rule = RingRule.KEPT
        if fault is not None and driver_room(driver):
            rule = fault[0]
            break_ring(rig, driver, rule)
        before = rig.contents()
        drain(rig)
        assert not strays(rig, before, [])
        assert rig.sent() == frames
        assert rig.rule is rule
        assert driver.used() == [(identity, 0) for identity in identities]
        assert rig.counter("received_bytes") == rig.counter("sent_bytes") == sum(map(len, frames))


def driver_room(driver: SplitDriver | PackedDriver) -> int:
    return driver.room if isinstance(driver, PackedDriver) else len(driver.free)


def break_ring(rig: Rig, driver: SplitDriver | PackedDriver, rule: RingRule) -> None:
    address, length, flags = FAULTS[rule]
    if isinstance(driver, PackedDriver):
        driver.write([(address, length, flags)], SIZE - 1)
    else:
        index = driver.free.pop(0)
        driver.descriptor(rig.desc, index, address, length, flags, index)
        driver.make_available(index)


@settings(max_examples=300, deadline=None)
@given(
    FEATURES,
    st.booleans(),
    st.integers(0, 0xFFFF),
    st.lists(shapes(12, 2500), min_size=1, max_size=24),
    st.lists(st.tuples(st.integers(1, 1514), st.integers(1, 3)), min_size=1, max_size=12),
)
def test_to_the_guest(
    features: int,
    packed: bool,
    start: int,
    wanted: list[Shape],
    packets: list[tuple[int, int]],
) -> None:
    with lane(TO_VM, features, packed, start) as (rig, driver):
        header, mergeable = int(rig.view["header_bytes"]), bool(rig.view["mergeable"])
        posted: list[tuple[int, list[Piece]]] = []
        rig.fill_free(0xAA)
        for shape in wanted:
            sizes = shape.sizes()
            if driver_room(driver) < len(sizes):
                break
            pieces = [Piece(rig.allocate(size), size, writable=True) for size in sizes]
            posted.append((driver.add(pieces, indirect=shape.indirect), pieces))
        frames = [NOISE[i : i + length] for i, (length, _) in enumerate(packets)]
        rig.offer(*(rig.pool.packet(split(f, count)) for f, (_, count) in zip(frames, packets, strict=True)))
        before = rig.contents()
        drain(rig)
        used, contents, dropped = model(header, mergeable, [(i, sum(p.size for p in ps)) for i, ps in posted], frames)
        assert rig.rule is RingRule.KEPT
        assert driver.used() == used
        held = dict(posted)
        for (identity, length), content in zip(used, contents, strict=True):
            data = b"".join(rig.read(piece.guest, piece.size) for piece in held[identity])
            assert data[:length] == content
        assert not strays(rig, before, (part for i, length in used for part in parts_written(held[i], length)))
        assert rig.counter("queue_full_pkts") == dropped


def split(frame: bytes, count: int) -> list[bytes]:
    """Segments of a packet, none empty."""
    step = max(1, -(-len(frame) // count))
    return [frame[i : i + step] for i in range(0, len(frame), step)]


def model(
    header: int, mergeable: bool, buffers: list[tuple[int, int]], frames: list[bytes]
) -> tuple[list[tuple[int, int]], list[bytes], int]:
    """What a device does: used entries, their contents, frames dropped. Buffers are identity and size."""
    used, contents, dropped = [], [], 0
    for frame in frames:
        if not buffers:
            break
        taken, room = 0, 0
        while taken < len(buffers) and room < header + len(frame) and (mergeable or not taken):
            room += buffers[taken][1]
            taken += 1
        if room < header + len(frame):
            if mergeable:
                break
            dropped += 1
            continue
        left = bytes(10) + taken.to_bytes(2, "little")[: header - 10] + frame
        for identity, size in buffers[:taken]:
            used.append((identity, min(size, len(left))))
            contents.append(left[:size])
            left = left[size:]
        del buffers[:taken]
    return used, contents, dropped
