"""Rings that break a rule: the lane stops, says which rule, touches nothing outside, and goes on after a reset."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable

import numpy as np
import pytest
from drivers import AVAIL, INDIRECT, NEXT, WRAP, WRITE, PackedDriver, Piece, SplitDriver
from rig import Rig

from vio4wd.relay.direct import engine, general
from vio4wd.relay.direct.chains import MAX_STEPS
from vio4wd.relay.direct.ring_record import RULE_TEXTS, RingRule

VERSION_1, MERGEABLE, PACKED = 1 << 32, 1 << 15, 1 << 34
TO_VM, TO_VF = 0, 1
END = Rig.GUEST_BASE + (1 << 20)
TOP = 1 << 64
MakeRig = Callable[..., Rig]


def provoke(rig: Rig) -> None:
    """Poll with a packet waiting, until nothing happens."""
    if rig.lane["direction"][0] == TO_VM:
        rig.offer(rig.pool.packet([bytes(60)]))
    for _ in range(3):
        rig.step()


def expect(rig: Rig, rule: RingRule) -> None:
    """The lane rests for this rule; after a reset it forwards again."""
    assert rig.rule is rule
    assert rig.step() == 0
    assert rule in RULE_TEXTS
    before = rig.counter("sent_pkts")
    ctypes.memset(rig.desc, 0, 16 * rig.size)
    rig.pool.put(rig.avail, "u4", 0)
    rig.pool.put(rig.used, "u4", 0)
    rig.load(WRAP if rig.packed else 0)
    driver = PackedDriver(rig) if rig.packed else SplitDriver(rig)
    guest = rig.allocate(200)
    driver.add([Piece(guest, 200, writable=rig.lane["direction"][0] == TO_VM)])
    if rig.packed:
        driver.write([], 0)
    provoke(rig)
    assert rig.rule is RingRule.KEPT
    assert rig.counter("sent_pkts") > before


BAD_ADDRESSES = [0, 1, Rig.GUEST_BASE - 1, END, END - 99, END + 100, TOP - 1, TOP - 50, 1 << 63, (1 << 63) - 1, 1 << 62]
BAD_ADDRESSES += [Rig.GUEST_BASE + (1 << 63), Rig.GUEST_BASE - 100, TOP - Rig.GUEST_BASE]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_descriptor_outside_memory(rig: MakeRig, address: int, direction: int, packed: bool) -> None:
    rig_ = _one(rig, direction, packed, address, 100, WRITE if direction == TO_VM else 0)
    expect(rig_, RingRule.ADDRESS)


def _one(rig: MakeRig, direction: int, packed: bool, address: int, length: int, flags: int) -> Rig:
    """A lane that was polled with one descriptor, a bad one as a rule."""
    features = VERSION_1 | (PACKED if packed else 0)
    rig_ = rig(direction, features=features, position=WRAP if packed else 0)
    if packed:
        PackedDriver(rig_).write([(address, length, flags)], 0)
    else:
        driver = SplitDriver(rig_)
        driver.descriptor(rig_.desc, 3, address, length, flags, 4)
        driver.make_available(3)
    provoke(rig_)
    return rig_


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("length", "rule"),
    [
        (0, RingRule.TOO_SHORT),
        (1, RingRule.TOO_SHORT),
        (11, RingRule.TOO_SHORT),
        (12, RingRule.TOO_SHORT),
        (65563, RingRule.TOO_LONG),
        (0x7FFFFFFF, RingRule.ADDRESS),
        (0xFFFFFFFF, RingRule.ADDRESS),
    ],
)
def test_lengths_from_the_guest(rig: MakeRig, length: int, rule: RingRule, packed: bool) -> None:
    expect(_one(rig, TO_VF, packed, Rig.GUEST_BASE + 0x8000, length, 0), rule)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("length", "rule"),
    [
        (0, RingRule.TOO_SHORT),
        (1, RingRule.TOO_SHORT),
        (11, RingRule.TOO_SHORT),
        (0x7FFFFFFF, RingRule.ADDRESS),
        (0xFFFFFFFF, RingRule.ADDRESS),
    ],
)
def test_lengths_to_the_guest(rig: MakeRig, length: int, rule: RingRule, packed: bool) -> None:
    expect(_one(rig, TO_VM, packed, Rig.GUEST_BASE + 0x8000, length, WRITE), rule)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [12, 12 + 59])
def test_a_buffer_that_the_packet_does_not_fit_in(rig: MakeRig, length: int, packed: bool) -> None:
    """No rule says how long a buffer is: the packet is dropped, and nothing of it is written."""
    rig_ = _one(rig, TO_VM, packed, Rig.GUEST_BASE + 0x8000, length, WRITE)
    assert (rig_.rule, rig_.counter("queue_full_pkts"), rig_.counter("sent_pkts")) == (RingRule.KEPT, 1, 0)
    assert rig_.view["position"] == rig_.view["published"] == (WRAP if packed else 0)
    assert rig_.read(Rig.GUEST_BASE + 0x8000, 200) == bytes(200)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
def test_wrong_direction(rig: MakeRig, direction: int, packed: bool) -> None:
    flags = 0 if direction == TO_VM else WRITE
    expect(_one(rig, direction, packed, Rig.GUEST_BASE + 0x8000, 100, flags), RingRule.DIRECTION)


@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
@pytest.mark.parametrize("head", [256, 257, 0x7FFF, 0xFFFF])
def test_head_out_of_range(rig: MakeRig, head: int, direction: int) -> None:
    rig_ = rig(direction, features=VERSION_1)
    SplitDriver(rig_).make_available(head)
    provoke(rig_)
    expect(rig_, RingRule.HEAD)


@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
@pytest.mark.parametrize("jump", [257, 300, 0x8000, 0xFFFF])
def test_available_index_jumps(rig: MakeRig, jump: int, direction: int) -> None:
    rig_ = rig(direction, features=VERSION_1)
    rig_.pool.put(rig_.avail + 2, "u2", jump)
    provoke(rig_)
    expect(rig_, RingRule.AVAILABLE_INDEX)


def flag(direction: int) -> int:
    """What the descriptors of buffers have in this direction."""
    return WRITE if direction == TO_VM else 0


@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
def test_chain_leaves_its_table(rig: MakeRig, direction: int) -> None:
    rig_ = rig(direction, features=VERSION_1)
    driver = SplitDriver(rig_)
    driver.descriptor(rig_.desc, 0, Rig.GUEST_BASE + 0x8000, 40, NEXT | flag(direction), 256)
    driver.make_available(0)
    provoke(rig_)
    expect(rig_, RingRule.NEXT)


@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
@pytest.mark.parametrize("where", ["ring", "table"])
@pytest.mark.parametrize("length", [0, 40])
def test_chain_loops(rig: MakeRig, length: int, where: str, direction: int) -> None:
    rig_ = rig(direction, features=VERSION_1)
    driver = SplitDriver(rig_)
    guest = Rig.GUEST_BASE if where == "ring" else rig_.allocate(32, 16)
    for i in range(2):
        driver.descriptor(rig_.host(guest), i, Rig.GUEST_BASE + 0x8000, length, NEXT | flag(direction), 1 - i)
    if where == "table":
        driver.descriptor(rig_.desc, 0, guest, 32, INDIRECT, 0)
    driver.make_available(0)
    provoke(rig_)
    expect(rig_, RingRule.CHAIN_LENGTH)


@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
@pytest.mark.parametrize("length", [0, 40])
def test_packed_chain_without_end(rig: MakeRig, length: int, direction: int) -> None:
    rig_ = rig(direction, features=VERSION_1 | PACKED, position=WRAP)
    PackedDriver(rig_).write([(Rig.GUEST_BASE + 0x8000, length, NEXT | flag(direction))] * 256, 0)
    provoke(rig_)
    expect(rig_, RingRule.CHAIN_LENGTH)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
@pytest.mark.parametrize(
    ("address", "length", "flags", "rule"),
    [
        (END, 32, INDIRECT, RingRule.INDIRECT_ADDRESS),
        (END - 16, 32, INDIRECT, RingRule.INDIRECT_ADDRESS),
        (TOP - 16, 32, INDIRECT, RingRule.INDIRECT_ADDRESS),
        (Rig.GUEST_BASE + 0x8000, 0xFFFFFFF0, INDIRECT, RingRule.INDIRECT_LENGTH),
        (Rig.GUEST_BASE + 0x8000, 0, INDIRECT, RingRule.INDIRECT_LENGTH),
        (Rig.GUEST_BASE + 0x8000, 15, INDIRECT, RingRule.INDIRECT_LENGTH),
        (Rig.GUEST_BASE + 0x8000, 33, INDIRECT, RingRule.INDIRECT_LENGTH),
        (Rig.GUEST_BASE + 0x8000, 32, INDIRECT | NEXT, RingRule.INDIRECT_FLAGS),
    ],
)
def test_indirect_tables(
    rig: MakeRig, address: int, length: int, flags: int, rule: RingRule, direction: int, packed: bool
) -> None:
    expect(_one(rig, direction, packed, address, length, flags), rule)


def entry(packed: bool, guest: int, size: int, flags: int, following: int = 0) -> bytes:
    """A descriptor of an indirect table, or of the ring; ``following`` is the next one, or the buffer's id."""
    return struct.pack("<QIHH", guest, size, *((following, flags) if packed else (flags, following)))


def _one_table(rig: MakeRig, direction: int, packed: bool, *entries: tuple[int, int, int]) -> Rig:
    """A lane that was polled with one indirect table of such descriptors, each linked to the next."""
    rig_ = rig(direction, features=VERSION_1 | (PACKED if packed else 0), position=WRAP if packed else 0)
    table = rig_.allocate(16 * len(entries), 16)
    rig_.write(table, b"".join(entry(packed, *each, 0 if packed else i + 1) for i, each in enumerate(entries)))
    if packed:
        PackedDriver(rig_).write([(table, 16 * len(entries), INDIRECT)], 0)
    else:
        driver = SplitDriver(rig_)
        driver.descriptor(rig_.desc, 0, table, 16 * len(entries), INDIRECT, 0)
        driver.make_available(0)
    provoke(rig_)
    return rig_


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
def test_indirect_within_indirect(rig: MakeRig, direction: int, packed: bool) -> None:
    rig_ = _one_table(rig, direction, packed, (Rig.GUEST_BASE + 0x8000, 32, INDIRECT | flag(direction)))
    expect(rig_, RingRule.INDIRECT_FLAGS)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
@pytest.mark.parametrize("bad_first", [False, True])
@pytest.mark.parametrize(
    ("guest", "size", "wrong_way", "rule"),
    [
        (END - 20, 40, False, RingRule.ADDRESS),
        (TOP - 20, 40, False, RingRule.ADDRESS),
        (Rig.GUEST_BASE + 0x8000, 0xFFFFFFFF, False, RingRule.ADDRESS),
        (Rig.GUEST_BASE + 0x8000, 40, True, RingRule.DIRECTION),
    ],
)
def test_what_an_indirect_table_names(
    rig: MakeRig, guest: int, size: int, wrong_way: bool, rule: RingRule, bad_first: bool, direction: int, packed: bool
) -> None:
    good = (Rig.GUEST_BASE + 0x8000, 40, NEXT | flag(direction))
    bad = (guest, size, NEXT | flag(1 - direction if wrong_way else direction))
    expect(_one_table(rig, direction, packed, *((bad, good) if bad_first else (good, bad)), good), rule)


@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
def test_indirect_chain_leaves_its_table(rig: MakeRig, direction: int) -> None:
    rig_ = rig(direction, features=VERSION_1)
    driver = SplitDriver(rig_)
    table = rig_.allocate(64, 16)
    driver.descriptor(rig_.host(table), 0, Rig.GUEST_BASE + 0x8000, 40, NEXT | flag(direction), 2)
    driver.descriptor(rig_.desc, 0, table, 32, INDIRECT, 0)
    driver.make_available(0)
    provoke(rig_)
    expect(rig_, RingRule.NEXT)


def test_many_buffers_of_few_bytes(rig: MakeRig) -> None:
    """A packet that would need more buffers than are taken for one is dropped; the ring is as good as before."""
    rig_ = rig(TO_VM, features=VERSION_1 | MERGEABLE, size=1024, region_sizes=(1 << 20,))
    driver = SplitDriver(rig_)
    for _ in range(1024):
        driver.add([Piece(rig_.allocate(12), 12, writable=True)])
    rig_.offer(rig_.pool.packet([bytes(2000)] * 2))
    while rig_.step():
        pass
    assert (rig_.rule, rig_.counter("queue_full_pkts")) == (RingRule.KEPT, 1)
    assert driver.used() == []


def test_many_buffers_of_many_pieces(rig: MakeRig) -> None:
    """The same where it is the pieces of the buffers together that are too many, though each one's are not."""
    rig_ = rig(TO_VM, features=VERSION_1 | MERGEABLE, size=1024, region_sizes=(1 << 20,))
    driver = SplitDriver(rig_)
    for _ in range(20):
        driver.add([Piece(rig_.allocate(1), 1, writable=True) for _ in range(50)])
    rig_.offer(rig_.pool.packet([bytes(900)]), rig_.pool.packet([bytes(60)]))
    while rig_.step():
        pass
    assert (rig_.rule, rig_.counter("queue_full_pkts")) == (RingRule.KEPT, 1)
    assert [length for _, length in driver.used()] == [50, 22], "the next packet is delivered"


WALK_BOUND = engine.BURST_DESCRIPTORS + general.MAX_DESCRIPTORS + 2 * MAX_STEPS
"""What one poll may walk: up to the last packet of its burst, for that one up to its last buffer, and that one."""


def walked(rig: Rig) -> int:
    """Poll once; answers how many descriptors were read for it."""
    before = int(rig.view["walked"])
    rig.step()
    return int(rig.view["walked"]) - before


def offer_chain(rig: Rig, head: int, chain: list[tuple[int, int, int]]) -> None:
    """Write a chain of descriptors (address, length, flags) into the ring, from ``head`` on.

    In a packed ring it is available thereby; in a split ring only with an entry of the available ring.
    """
    packed = rig.packed
    raw = [
        entry(packed, guest, size, flags | (AVAIL if packed else 0), head if packed else head + i + 1)
        for i, (guest, size, flags) in enumerate(chain)
    ]
    rig.write(Rig.GUEST_BASE + 16 * head, b"".join(raw))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
def test_work_of_one_poll_is_bounded(rig: MakeRig, direction: int, packed: bool) -> None:
    """What a poll walks does not depend on what the guest writes: a full ring of the longest chains is over soon."""
    features = VERSION_1 | (PACKED if packed else 0)
    rig_ = rig(direction, features=features, size=32768, region_sizes=(1 << 22,), position=WRAP if packed else 0)
    offer_chain(rig_, 0, [(0, 0, NEXT | flag(direction))] * 32768)
    if not packed:
        for i in range(1024):
            rig_.pool.put(rig_.avail + 4 + 2 * i, "u2", i)
        rig_.pool.put(rig_.avail + 2, "u2", 1024)
    if direction == TO_VM:
        rig_.offer(rig_.pool.packet([bytes(60)]))
    assert walked(rig_) == MAX_STEPS
    assert rig_.rule is RingRule.CHAIN_LENGTH
    assert rig_.view["head"] == 0


TABLES = {"chain": Rig.GUEST_BASE, "table": Rig.GUEST_BASE + 0x80000, "table across regions": END - 2048}
"""Where a chain may lie: in the ring itself, or in an indirect table."""

LONG_CHAIN = MAX_STEPS
"""Descriptors of the longest chain that is walked to its end. Packed rings of 256 and more hold a number of them."""


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [256, 8192])
@pytest.mark.parametrize("table", TABLES)
def test_one_long_chain_offered_many_times(rig: MakeRig, table: str, size: int, packed: bool) -> None:
    """A packet that would need a hundred of them is not worth a hundred walks; what waits for it is bounded, too."""
    features, position = VERSION_1 | MERGEABLE | (PACKED if packed else 0), WRAP if packed else 0
    rig_ = rig(TO_VM, features=features, size=size, region_sizes=(1 << 20, 1 << 20), position=position)
    guest = rig_.allocate(64)
    length = LONG_CHAIN if table == "chain" else LONG_CHAIN - 1  # what names a table is a step, too
    chain = [(guest, 0, NEXT | WRITE)] * (length - 1) + [(guest, 12, WRITE)]
    if table != "chain":
        rig_.write(TABLES[table], b"".join(entry(packed, *each, i + 1) for i, each in enumerate(chain)))
        chain = [(TABLES[table], 16 * length, INDIRECT)]
    offer_chain(rig_, 0, chain)
    if packed:
        for head in range(len(chain), size, len(chain)):
            offer_chain(rig_, head, chain)
    else:
        rig_.pool.put(rig_.avail + 2, "u2", size)  # all of them head 0
    before = rig_.contents()
    rig_.offer(*(rig_.pool.packet([bytes(1500)]) for _ in range(32)))
    while rig_.counter("queue_full_pkts") != 32:
        assert general.MAX_DESCRIPTORS <= walked(rig_) <= WALK_BOUND
    assert rig_.rule is RingRule.KEPT
    assert np.array_equal(rig_.contents(), before), "no buffer is used"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
@pytest.mark.parametrize("table", ["table", "table across regions"])
def test_work_on_a_table(rig: MakeRig, table: str, direction: int, packed: bool) -> None:
    """What names it counts, and its descriptors, twice where they are copied first."""
    features, position = VERSION_1 | (PACKED if packed else 0), WRAP if packed else 0
    rig_ = rig(direction, features=features, region_sizes=(1 << 20, 1 << 20), position=position)
    chain = [(rig_.allocate(200), 0, NEXT | flag(direction))] * 199 + [(Rig.GUEST_BASE + 0x8000, 72, flag(direction))]
    rig_.write(TABLES[table], b"".join(entry(packed, *each, i + 1) for i, each in enumerate(chain)))
    offer_chain(rig_, 0, [(TABLES[table], 16 * 200, INDIRECT)])
    if not packed:
        rig_.pool.put(rig_.avail + 2, "u2", 1)
    if direction == TO_VM:
        rig_.offer(rig_.pool.packet([bytes(60)]))
    assert walked(rig_) == 1 + 200 * (1 if table == "table" else 2)
    assert rig_.counter("sent_bytes") == 60


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [0, 70])
def test_long_chains_from_the_guest(rig: MakeRig, length: int, packed: bool) -> None:
    """A full ring of chains of 250 descriptors; also where each is dropped, since it is longer than the VF takes."""
    size, features = 8000 if packed else 1024, VERSION_1 | (PACKED if packed else 0)
    rig_ = rig(TO_VF, features=features, size=size, position=WRAP if packed else 0)
    rig_.view["longest"] = 1522
    guest = rig_.allocate(4096)
    chain = [(guest, length, NEXT)] * 249 + [(guest, 60, 0)]
    for head in range(0, size if packed else 1, 250):
        offer_chain(rig_, head, chain)
    if not packed:
        rig_.pool.put(rig_.avail + 2, "u2", size)  # all of them head 0
    assert engine.BURST_DESCRIPTORS <= walked(rig_) <= WALK_BOUND
    assert rig_.rule is RingRule.KEPT
    done = engine.BURST_DESCRIPTORS // 250 + 1
    assert rig_.counter("too_long_pkts") == (done if length else 0)
    assert rig_.counter("sent_pkts") == (0 if length else done)


@pytest.mark.parametrize("size", [260, 1526])
def test_the_longest_packet_in_many_buffers(rig: MakeRig, size: int) -> None:
    """What a guest may well be sent is within the bounds: 64 KiB, each buffer a chain of two descriptors."""
    rig_ = rig(TO_VM, features=VERSION_1 | MERGEABLE, size=512)
    driver = SplitDriver(rig_)
    needed = -(-(65535 + 12) // size)
    each = 1 if size == 260 else 2
    for _ in range(needed):
        guest = rig_.allocate(size)
        driver.add(
            [Piece(guest + size * i // each, size * (i + 1) // each - size * i // each, True) for i in range(each)]
        )
    rig_.offer(rig_.pool.packet([bytes([i]) * 2048 for i in range(31)] + [b"\xff" * 2047]))
    assert rig_.step() == 2
    used = driver.used()
    assert (len(used), sum(length for _, length in used)) == (needed, 65535 + 12)
    assert rig_.counter("sent_bytes") == 65535


@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
def test_memory_changes_between_reads(rig: MakeRig, direction: int) -> None:
    """A second thread flips descriptors between good and bad while the lane runs: whatever is seen, nothing strays."""
    rig_ = rig(direction, features=VERSION_1 | MERGEABLE, size=64)
    driver = SplitDriver(rig_)
    good = rig_.allocate(2048)
    flags = WRITE if direction == TO_VM else 0
    for i in range(64):
        driver.descriptor(rig_.desc, i, good, 100, flags, 0)
    variants = [
        (good, 100, flags, 0),
        (END - 50, 100, flags, 0),
        (good, 0xFFFFFFF0, flags, 0),
        (TOP - 64, 100, flags, 0),
    ]
    variants += [(END - 12, 12, flags, 0), (good, 100, flags | NEXT, 300), (END - 16, 64, INDIRECT, 0)]
    stop = threading.Event()

    def flip() -> None:
        turn = 0
        while not stop.is_set():
            for i in range(64):
                driver.descriptor(rig_.desc, i, *variants[turn % len(variants)])
                turn += 1
            for i in range(0, 64, 3):
                rig_.pool.put(rig_.avail + 4 + 2 * i, "u2", (turn * 7 + i) % 80)
            turn += 1

    flipper = threading.Thread(target=flip)
    flipper.start()
    rules: set[RingRule] = set()
    try:
        position = 0
        for _ in range(3000):
            position = (position + 32) & 0xFFFF
            rig_.pool.put(rig_.avail + 2, "u2", position)
            if direction == TO_VM:
                while rig_.pool.available > 8:
                    rig_.offer(rig_.pool.packet([bytes(60)]))
            rig_.step()
            if rig_.rule:
                rules.add(rig_.rule)
                rig_.load(position)
            rig_.settle()
            if direction == TO_VF:
                rig_.sent()
    finally:
        stop.set()
        flipper.join()
    assert rules & {RingRule.ADDRESS, RingRule.HEAD, RingRule.NEXT, RingRule.INDIRECT_ADDRESS}
