from __future__ import annotations

import ctypes
import random
from collections.abc import Callable

import pytest
from drivers import WRAP, PackedDriver, Piece
from rig import Pool, Rig
from stand_ins import LIBRARY

from vio4wd.relay import mbuf

VERSION_1, MERGEABLE, EVENT_INDEX, PACKED, CSUM = 1 << 32, 1 << 15, 1 << 29, 1 << 34, 1 << 0
TO_VM, TO_VF = 0, 1
MakeRig = Callable[..., Rig]


def frame(length: int, seed: int = 0) -> bytes:
    return random.Random(length << 8 | seed).randbytes(length)


def send(rig: Rig, driver: PackedDriver, data: bytes, cuts: list[int] | None = None, indirect: bool = False) -> int:
    raw = bytes(rig.view["header_bytes"]) + data
    edges = [0, *(cuts or []), len(raw)]
    pieces = []
    for begin, end in zip(edges, edges[1:], strict=False):
        guest = rig.allocate(end - begin)
        rig.write(guest, raw[begin:end])
        pieces.append(Piece(guest, end - begin))
    return driver.add(pieces, indirect=indirect)


def post(rig: Rig, driver: PackedDriver, *sizes: int, indirect: bool = False) -> int:
    return driver.add([Piece(rig.allocate(size), size, writable=True) for size in sizes], indirect=indirect)


@pytest.mark.parametrize("position", [WRAP, WRAP | 60, 63, 0])
@pytest.mark.parametrize("size", [64, 50])
def test_single_descriptors_from_the_guest(rig: MakeRig, position: int, size: int) -> None:
    if position & ~WRAP >= size:
        position = position & WRAP | size - 1
    rig_ = rig(TO_VF, features=VERSION_1 | PACKED, size=size, position=position)
    driver = PackedDriver(rig_, position)
    for round_ in range(8):
        frames = [frame(60 + i, round_) for i in range(20)]
        sent = [send(rig_, driver, data) for data in frames]
        while rig_.step():
            pass
        assert rig_.sent() == frames
        assert driver.used() == [(identity, 0) for identity in sent]
    assert int(rig_.view["general_pkts"]) == 0
    assert rig_.view["position"] == driver.slot | (WRAP if driver.wrap else 0)
    assert rig_.view["saved"] == rig_.view["position"]


@pytest.mark.parametrize("position", [WRAP, 60])
def test_single_descriptors_to_the_guest(rig: MakeRig, position: int) -> None:
    rig_ = rig(TO_VM, features=VERSION_1 | PACKED | MERGEABLE, size=64, position=position)
    driver = PackedDriver(rig_, position)
    for round_ in range(8):
        frames = [frame(60 + i, round_) for i in range(20)]
        pieces = {}
        for data in frames:
            pieces[post(rig_, driver, len(data) + 12)] = data
        held = {identity: driver.held[identity][1] for identity in pieces}
        rig_.offer(*(rig_.pool.packet([data]) for data in frames))
        while rig_.step():
            pass
        used = driver.used()
        assert len(used) == 20
        for identity, length in used:
            data = pieces[identity]
            assert length == len(data) + 12
            assert rig_.read(held[identity][0].guest, length) == bytes(10) + b"\x01\x00" + data
    assert int(rig_.view["general_pkts"]) == 0


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("position", [WRAP, 61])
def test_chains_from_the_guest(rig: MakeRig, position: int, indirect: bool) -> None:
    rig_ = rig(TO_VF, features=VERSION_1 | PACKED, size=64, position=position)
    driver = PackedDriver(rig_, position)
    for round_ in range(6):
        frames, sent = [], []
        for cuts in ([12], [5, 30], [], [1, 12, 13]):
            frames.append(frame(50 + len(cuts), round_))
            sent.append(send(rig_, driver, frames[-1], cuts, indirect and bool(cuts)))
        while rig_.step():
            pass
        assert rig_.sent() == frames
        assert driver.used() == [(identity, 0) for identity in sent]
    assert int(rig_.view["simple_pkts"]) == 6


@pytest.mark.parametrize("position", [WRAP, 62])
def test_one_packet_over_several_buffers(rig: MakeRig, position: int) -> None:
    rig_ = rig(TO_VM, features=VERSION_1 | PACKED | MERGEABLE, size=64, position=position)
    driver = PackedDriver(rig_, position)
    identities = [post(rig_, driver, *sizes) for sizes in ((100,), (40, 60), (100,), (100,), (100,))]
    pieces = [driver.held[identity][1] for identity in identities]
    rig_.offer(rig_.pool.packet([frame(350)]), rig_.pool.packet([frame(60)]))
    while rig_.step():
        pass
    used = driver.used()
    assert used == list(zip(identities, [100, 100, 100, 62, 72], strict=True))
    whole = b"".join(rig_.read(piece.guest, piece.size) for part in pieces[:4] for piece in part)
    assert whole[: 350 + 12] == bytes(10) + b"\x04\x00" + frame(350)


def test_a_packet_waits_for_enough_buffers(rig: MakeRig) -> None:
    rig_ = rig(TO_VM, features=VERSION_1 | PACKED | MERGEABLE, size=4, position=WRAP)
    driver = PackedDriver(rig_)
    post(rig_, driver, 100)
    rig_.offer(rig_.pool.packet([frame(150)]))
    rig_.step()
    assert driver.used() == []
    post(rig_, driver, 100)
    rig_.step()
    assert [length for _, length in driver.used()] == [100, 62]


def test_where_it_is_can_be_told_at_any_moment(rig: MakeRig) -> None:
    """Used descriptors appear in order; several buffers of one packet all at once, and then nothing is claimed."""
    rig_ = rig(TO_VM, features=VERSION_1 | PACKED | MERGEABLE, size=64, position=WRAP | 62)
    driver = PackedDriver(rig_, WRAP | 62)
    for _ in range(6):
        post(rig_, driver, 100)
    rig_.offer(rig_.pool.packet([frame(60)]), rig_.pool.packet([frame(250)]), rig_.pool.packet([frame(61)]))
    while rig_.step():
        pass
    assert [length for _, length in driver.used()] == [72, 100, 100, 62, 73]
    assert rig_.view["position"] == rig_.view["saved"] == rig_.view["saving"] == 3


def test_the_library_hears_of_every_hand_over(rig: MakeRig) -> None:
    """It counts what it has told the guest modulo the ring's size: after our buffers it has to look at the ring."""
    rig_ = rig(TO_VF, features=VERSION_1 | PACKED | CSUM, size=64, position=WRAP | 62)
    driver = PackedDriver(rig_, WRAP | 62)
    handed = rig_.allocate(100)
    rig_.write(handed, b"\x01" + bytes(11) + frame(88))
    for expected in (1, 2):
        send(rig_, driver, frame(60))
        driver.add([Piece(handed, 100)])
        rig_.step()
        assert rig_.sent() == [frame(60)]
        assert LIBRARY[4] == expected
        assert LIBRARY[0] == rig_.view["position"] == (WRAP | 63 if expected == 1 else 1)
        rig_.load(0)
        driver.slot, driver.wrap = 0, False
    rig_.step()
    assert LIBRARY[4] == 2, "nothing of ours in between"


def test_notifications(rig: MakeRig) -> None:
    rig_ = rig(TO_VF, features=VERSION_1 | PACKED, size=64, position=WRAP)
    driver = PackedDriver(rig_)
    for flags, expected in ((0, 1), (1, 0), (0, 1), (2, 1)):
        driver.set_event(flags)
        send(rig_, driver, frame(60))
        rig_.step()
        assert rig_.calls() == expected, flags
        rig_.sent()


@pytest.mark.parametrize("position", [WRAP, 60])
def test_notifications_at_a_descriptor(rig: MakeRig, position: int) -> None:
    rig_ = rig(TO_VF, features=VERSION_1 | PACKED | EVENT_INDEX, size=64, position=position)
    driver = PackedDriver(rig_, position)
    send(rig_, driver, frame(60))
    driver.set_event(2, 0)
    rig_.step()
    assert rig_.calls() == 1, "the first time it is not known what the guest has heard of"

    def after(count: int) -> int:
        slot, wrap = driver.slot + count, driver.wrap
        if slot >= 64:
            slot, wrap = slot - 64, not wrap
        return slot | (WRAP if wrap else 0)

    wanted = after(3)
    for offset in range(70):
        driver.set_event(2, wanted)
        send(rig_, driver, frame(60))
        rig_.step()
        assert rig_.calls() == (1 if offset == 3 else 0), offset
        rig_.sent()
        driver.used()
    driver.set_event(2, after(5))
    for _ in range(10):
        send(rig_, driver, frame(60))
    rig_.step()
    assert rig_.calls() == 1
    rig_.sent()


@pytest.mark.parametrize("size", [8, 16, 24], ids=lambda size: f"size {size}")
@pytest.mark.parametrize("event_index", [0, EVENT_INDEX], ids=["flags", "event index"])
def test_a_guest_that_keeps_pace_with_a_burst_is_woken(rig: MakeRig, size: int, event_index: int) -> None:
    """It offers its buffers again while the burst is on, so that this goes more than once round the ring."""
    rig_ = rig(TO_VF, features=VERSION_1 | PACKED | event_index, size=size, position=WRAP, buffers=64)
    driver = PackedDriver(rig_)
    send(rig_, driver, frame(60))
    rig_.step()
    assert len(rig_.sent()) == rig_.calls() == len(driver.used()) == 1
    to_send, stash = 32, [rig_.pool.take() for _ in range(rig_.pool.available - 1)]

    def offer() -> None:
        nonlocal to_send
        if not to_send:
            return  # it sleeps
        driver.set_event(1)
        driver.used()
        while to_send and driver.room:
            send(rig_, driver, frame(60))
            to_send -= 1
        driver.set_event(2 if event_index else 0, driver.used_slot | (WRAP if driver.used_wrap else 0))

    def dequeue(_pool: int, objects: int, count: int) -> int:
        """The guest runs on its CPU while the mempool gives buffers one by one."""
        offer()
        if count > 1:
            return -1
        rig_.pool.put(objects, "u8", stash.pop())
        return 0

    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)(dequeue)
    address = ctypes.cast(function, ctypes.c_void_p).value or 0
    Pool.put(rig_.operations.ctypes.data + mbuf.OPS_FIRST + mbuf.OPS_DEQUEUE, "u8", address)
    offer()
    rig_.step()
    for buffer in stash:
        rig_.pool.give(buffer)
    assert len(rig_.sent()) == 32
    assert rig_.calls() == 1
