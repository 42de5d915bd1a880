from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable

import pytest
from drivers import INDIRECT, NEXT, WRAP, PackedDriver, Piece, SplitDriver
from rig import DATA_ROOM, LIBRARY, QUEUE_LENGTH, Rig

from vio4wd.relay import mbuf
from vio4wd.relay.direct.engine import POLLS_BEFORE_LIBRARY
from vio4wd.relay.direct.ring_record import RingRule
from vio4wd.relay.lanes import LaneMode

VERSION_1, MERGEABLE, EVENT_INDEX, CSUM, PACKED = 1 << 32, 1 << 15, 1 << 29, 1, 1 << 34
TO_VM, TO_VF = 0, 1
MakeRig = Callable[..., Rig]


def frame(length: int, seed: int = 0) -> bytes:
    return random.Random(length << 8 | seed).randbytes(length)


def send(rig: Rig, driver: SplitDriver, data: bytes, cuts: list[int] | None = None, indirect: bool = False) -> int:
    """Offer a packet to the lane in a buffer cut at these offsets, header included."""
    raw = bytes(rig.view["header_bytes"]) + data
    edges = [0, *(cuts or []), len(raw)]
    pieces = []
    for begin, end in zip(edges, edges[1:], strict=False):
        guest = rig.allocate(end - begin)
        rig.write(guest, raw[begin:end])
        pieces.append(Piece(guest, end - begin))
    return driver.add(pieces, indirect=indirect)


def post(rig: Rig, driver: SplitDriver, *sizes: int, indirect: bool = False) -> int:
    """Offer a buffer of pieces of these sizes to receive into."""
    pieces = []
    for size in sizes:
        guest = rig.allocate(size)
        rig.write(guest, b"\xaa" * size)
        pieces.append(Piece(guest, size, writable=True))
    return driver.add(pieces, indirect=indirect)


@pytest.mark.parametrize("features", [0, MERGEABLE, VERSION_1, VERSION_1 | MERGEABLE | EVENT_INDEX])
@pytest.mark.parametrize("position", [0, 250, 0xFFF0])
def test_single_descriptors_from_the_guest(rig: MakeRig, features: int, position: int) -> None:
    rig_ = rig(TO_VF, features=features, position=position)
    driver = SplitDriver(rig_, position)
    frames = [frame(length) for length in (1, 14, 31, 32, 33, 60, 64, 127, 128, 129, 256, 1514, DATA_ROOM)] * 3
    heads = [send(rig_, driver, data) for data in frames]
    while rig_.step():
        pass
    assert rig_.sent() == frames
    assert driver.used() == [(head, 0) for head in heads]
    assert int(rig_.view["general_pkts"]) == 0
    total = sum(map(len, frames))
    assert rig_.counter("received_pkts") == rig_.counter("sent_pkts") == len(frames)
    assert rig_.counter("received_bytes") == rig_.counter("sent_bytes") == total
    assert rig_.pool.available == rig_.pool.count


@pytest.mark.parametrize("features", [0, MERGEABLE, VERSION_1, VERSION_1 | MERGEABLE | EVENT_INDEX])
@pytest.mark.parametrize("position", [0, 250, 0xFFF0])
def test_single_descriptors_to_the_guest(rig: MakeRig, features: int, position: int) -> None:
    rig_ = rig(TO_VM, features=features, position=position)
    driver = SplitDriver(rig_, position)
    header = int(rig_.view["header_bytes"])
    frames = [frame(length) for length in (1, 14, 31, 32, 33, 60, 64, 127, 128, 129, 256, 1514, 2000)] * 3
    heads = [post(rig_, driver, len(data) + header + extra % 3) for extra, data in enumerate(frames)]
    rig_.offer(*(rig_.pool.packet([data]) for data in frames))
    while rig_.step():
        pass
    used = driver.used()
    assert used == [(head, len(data) + header) for head, data in zip(heads, frames, strict=True)]
    expected = bytes(10) + b"\x01\x00" if header == 12 else bytes(10)
    for (head, length), data in zip(used, frames, strict=True):
        assert driver.contents(head, length) == expected + data
        rest = driver.contents(head, 1 << 20)[length:]
        assert rest == b"\xaa" * len(rest), "bytes behind the packet were written"
    assert int(rig_.view["general_pkts"]) == 0
    rig_.settle()
    assert rig_.pool.available == rig_.pool.count


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("cuts", [[12], [1], [5, 12, 13], [11], [13], [12, 40, 41], [0, 12]])
def test_chains_from_the_guest(rig: MakeRig, cuts: list[int], indirect: bool) -> None:
    rig_ = rig(TO_VF, features=VERSION_1)
    driver = SplitDriver(rig_)
    frames = [frame(60 + i) for i in range(10)]
    heads = [send(rig_, driver, data, cuts, indirect) for data in frames]
    send_simple = frame(80)
    heads.append(send(rig_, driver, send_simple))
    while rig_.step():
        pass
    assert rig_.sent() == [*frames, send_simple]
    assert driver.used() == [(head, 0) for head in heads]
    assert int(rig_.view["general_pkts"]) == 10
    assert int(rig_.view["simple_pkts"]) == 1


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("sizes", [(12, 2000), (4, 8, 2000), (1, 2000), (11, 1, 60, 0, 2000), (13, 13, 2000)])
def test_chains_to_the_guest(rig: MakeRig, sizes: tuple[int, ...], indirect: bool) -> None:
    rig_ = rig(TO_VM, features=VERSION_1)
    driver = SplitDriver(rig_)
    frames = [frame(60 + i) for i in range(10)]
    for _ in frames:
        post(rig_, driver, *sizes, indirect=indirect)
    rig_.offer(*(rig_.pool.packet([data]) for data in frames))
    while rig_.step():
        pass
    used = driver.used()
    assert [length for _, length in used] == [len(data) + 12 for data in frames]
    for (head, length), data in zip(used, frames, strict=True):
        assert driver.contents(head, length) == bytes(10) + b"\x01\x00" + data


def test_one_packet_over_several_buffers(rig: MakeRig) -> None:
    rig_ = rig(TO_VM, features=VERSION_1 | MERGEABLE)
    driver = SplitDriver(rig_)
    heads = [post(rig_, driver, 100) for _ in range(20)]
    rig_.offer(rig_.pool.packet([frame(60)]), rig_.pool.packet([frame(350)]), rig_.pool.packet([frame(88)]))
    while rig_.step():
        pass
    used = driver.used()
    assert used == list(zip(heads, [72, 100, 100, 100, 62, 100], strict=False))
    assert driver.contents(heads[0], 72)[10:12] == b"\x01\x00"
    assert driver.contents(heads[1], 100)[10:12] == b"\x04\x00"
    whole = b"".join(driver.contents(head, length) for head, length in used[1:5])
    assert whole[12:] == frame(350)
    assert driver.contents(heads[5], 100)[12:] == frame(88)


def test_a_packet_waits_for_enough_buffers(rig: MakeRig) -> None:
    rig_ = rig(TO_VM, features=VERSION_1 | MERGEABLE, size=4)
    driver = SplitDriver(rig_)
    post(rig_, driver, 100)
    rig_.offer(rig_.pool.packet([frame(150)]))
    rig_.step()
    assert driver.used() == []
    assert rig_.counter("held_count") == 1
    post(rig_, driver, 100)
    rig_.step()
    assert [length for _, length in driver.used()] == [100, 62]
    assert rig_.counter("sent_pkts") == 1
    assert rig_.counter("received_pkts") == 1


def test_a_packet_waits_for_more_buffers_than_a_burst_takes(rig: MakeRig) -> None:
    rig_ = rig(TO_VM, features=VERSION_1 | MERGEABLE)
    driver = SplitDriver(rig_)
    data = frame(40 * 50 - 12)
    for _ in range(39):
        post(rig_, driver, 50)
    rig_.offer(rig_.pool.packet([data]))
    for _ in range(3):
        rig_.step()
    assert driver.used() == []
    post(rig_, driver, 50)
    rig_.step()
    assert b"".join(driver.contents(head, length) for head, length in driver.used())[12:] == data


@pytest.mark.parametrize(("features", "buffers"), [(VERSION_1, 1), (VERSION_1 | MERGEABLE, 4)])
def test_a_packet_that_never_fits_is_dropped(rig: MakeRig, features: int, buffers: int) -> None:
    rig_ = rig(TO_VM, features=features, size=4)
    driver = SplitDriver(rig_)
    for _ in range(buffers):
        post(rig_, driver, 100)
    rig_.offer(rig_.pool.packet([frame(1000)]), rig_.pool.packet([frame(60)]))
    while rig_.step():
        pass
    assert [length for _, length in driver.used()] == [72]
    assert rig_.counter("sent_pkts") == 1
    assert rig_.counter("queue_full_pkts") == 1
    assert rig_.counter("queue_full_bytes") == 1000
    assert rig_.counter("received_pkts") == 2


def test_a_packet_that_never_fits_in_chains_is_dropped(rig: MakeRig) -> None:
    """All descriptors of the ring are offered, as fewer buffers."""
    rig_ = rig(TO_VM, features=VERSION_1 | MERGEABLE, size=4)
    driver = SplitDriver(rig_)
    for _ in range(2):
        post(rig_, driver, 60, 60)
    rig_.offer(rig_.pool.packet([frame(1000)]), rig_.pool.packet([frame(60)]))
    for _ in range(4):
        rig_.step()
    assert [length for _, length in driver.used()] == [72]
    assert rig_.counter("queue_full_pkts") == 1


@pytest.mark.parametrize("packed", [False, True])
def test_the_vf_is_asked_for_full_bursts_once_the_guest_has_a_buffer(rig: MakeRig, packed: bool) -> None:
    """Vector drivers give nothing to those who ask for fewer than 4 or 8; what the guest has no room for is held."""
    rig_ = rig(TO_VM, features=VERSION_1 | (PACKED if packed else 0), position=WRAP if packed else 0)
    driver = PackedDriver(rig_) if packed else SplitDriver(rig_)
    rig_.queue[4 + QUEUE_LENGTH] = 8
    rig_.offer(*(rig_.pool.packet([frame(60, i)]) for i in range(40)))
    assert rig_.step() == 0
    assert int(rig_.queue[3]) == 0, "the VF was asked though the guest has no buffer"

    def post_one() -> None:
        driver.add([Piece(rig_.allocate(100), 100, writable=True)])

    for _ in range(3):
        post_one()
    assert rig_.step() == 32 + 3
    assert rig_.counter("received_pkts") == 32
    assert (rig_.counter("held_count"), rig_.counter("held_bytes")) == (29, 29 * 60)
    for _ in range(29):
        post_one()
        assert rig_.step() == 1
    assert int(rig_.queue[0]) == 32, "the VF was read while packets were held"
    assert rig_.counter("sent_pkts") == len(driver.used()) == 32


def test_packets_that_the_vf_refuses_are_held(rig: MakeRig) -> None:
    rig_ = rig(TO_VF, features=VERSION_1)
    driver = SplitDriver(rig_)
    frames = [frame(60 + i) for i in range(32)]
    for data in frames:
        send(rig_, driver, data)
    rig_.queue[2] = 5
    assert rig_.step() == 32 + 5
    assert rig_.counter("held_count") == 27
    assert rig_.counter("held_bytes") == sum(map(len, frames[5:]))
    rig_.queue[2] = 100
    assert rig_.step() == 27
    assert rig_.sent() == frames
    assert rig_.counter("sent_bytes") == rig_.counter("received_bytes") == sum(map(len, frames))


def test_several_segments_both_ways(rig: MakeRig) -> None:
    to_vm = rig(TO_VM, features=VERSION_1 | MERGEABLE)
    driver = SplitDriver(to_vm)
    for _ in range(8):
        post(to_vm, driver, 1526)
    segments = [frame(2000, 1), frame(100, 2), frame(2048, 3), frame(1, 4)]
    to_vm.offer(to_vm.pool.packet(segments))
    to_vm.step()
    used = driver.used()
    assert [length for _, length in used] == [1526, 1526, 12 + 4149 - 2 * 1526]
    assert b"".join(driver.contents(h, n) for h, n in used)[12:] == b"".join(segments)
    to_vm.settle()
    assert to_vm.pool.available == to_vm.pool.count

    to_vf = rig(TO_VF, features=VERSION_1)
    driver = SplitDriver(to_vf)
    jumbo = [frame(9000), frame(2049), frame(65550 - 12)]
    for data in jumbo:
        send(to_vf, driver, data, [12])
    send(to_vf, driver, frame(3000))
    while to_vf.step():
        pass
    assert to_vf.sent() == [*jumbo, frame(3000)]


def test_several_regions(rig: MakeRig) -> None:
    rig_ = rig(TO_VF, features=VERSION_1, region_sizes=(1 << 16, 4096, 8192, 1 << 16))
    driver = SplitDriver(rig_)
    frames = []
    starts = [Rig.GUEST_BASE + (1 << 16) - 50, Rig.GUEST_BASE + (1 << 16) - 6, Rig.GUEST_BASE + (1 << 16) + 4096 - 13]
    starts += [Rig.GUEST_BASE + (1 << 16) + 100, Rig.GUEST_BASE + (1 << 16) + 4096 + 8192 + 5]
    for i, start in enumerate(starts):
        data = frame(70 + i)
        rig_.write(start, bytes(12) + data)
        frames.append((start, data))
        driver.add([Piece(start, 82 + i)])
        rig_.step()
        assert rig_.sent() == [data]
    assert int(rig_.view["regions"]) == 4


@pytest.mark.parametrize("entries", [1, 2, 3])
def test_a_table_across_regions(rig: MakeRig, entries: int) -> None:
    rig_ = rig(TO_VF, features=VERSION_1, region_sizes=(1 << 16, 4096))
    driver = SplitDriver(rig_)
    table, guest = Rig.GUEST_BASE + (1 << 16) - 24, rig_.allocate(100)
    rig_.write(guest, bytes(12) + frame(88))
    cuts = [100 * i // entries for i in range(entries + 1)]
    for i, (begin, end) in enumerate(itertools.pairwise(cuts)):
        following = (NEXT, i + 1) if i + 1 < entries else (0, 0)
        rig_.write(table + 16 * i, struct.pack("<QIHH", guest + begin, end - begin, *following))
    driver.descriptor(rig_.desc, 0, table, 16 * entries, INDIRECT, 0)
    driver.make_available(0)
    rig_.step()
    assert rig_.sent() == [frame(88)]
    assert list(LIBRARY) == [0] * 8


@pytest.mark.parametrize("parts", [1, 2])
def test_frames_longer_than_the_vf_takes_are_dropped(rig: MakeRig, parts: int) -> None:
    rig_ = rig(TO_VF, features=VERSION_1)
    rig_.view["longest"] = 1522
    driver = SplitDriver(rig_)
    for i in range(60):
        send(rig_, driver, frame(1523 + i), [12] if parts == 2 else None)
        send(rig_, driver, frame(1522, i), [12] if parts == 2 else None)
    while rig_.step():
        pass
    assert rig_.sent() == [frame(1522, i) for i in range(60)]
    assert len(driver.used()) == 120
    assert (rig_.counter("received_pkts"), rig_.counter("too_long_pkts")) == (120, 60)
    assert rig_.counter("too_long_bytes") == sum(1523 + i for i in range(60))
    assert rig_.counter("received_bytes") == rig_.counter("sent_bytes") + rig_.counter("too_long_bytes")


def test_nothing_but_frames_that_are_too_long(rig: MakeRig) -> None:
    """A poll takes a burst of them at the most."""
    rig_ = rig(TO_VF, features=VERSION_1)
    rig_.view["longest"] = 100
    driver = SplitDriver(rig_)
    for _ in range(40):
        send(rig_, driver, frame(101))
    rig_.step()
    assert rig_.counter("too_long_pkts") == 32
    rig_.step()
    assert rig_.counter("too_long_pkts") == 40
    assert len(driver.used()) == 40
    assert rig_.calls() == 2


def test_one_region_at_the_very_end(rig: MakeRig) -> None:
    rig_ = rig(TO_VF, features=VERSION_1, region_sizes=(1 << 16,))
    driver = SplitDriver(rig_)
    for length in (1, 31, 33, 60, 1514):
        start = Rig.GUEST_BASE + (1 << 16) - 12 - length
        rig_.write(start, bytes(12) + frame(length))
        driver.add([Piece(start, 12 + length)])
        rig_.step()
        assert rig_.sent() == [frame(length)]


@pytest.mark.parametrize("direction", [TO_VM, TO_VF])
def test_notifications_by_flag(rig: MakeRig, direction: int) -> None:
    rig_ = rig(direction, features=VERSION_1)
    driver = SplitDriver(rig_)

    def one() -> None:
        if direction == TO_VM:
            post(rig_, driver, 100)
            rig_.offer(rig_.pool.packet([frame(60)]))
        else:
            send(rig_, driver, frame(60))
        rig_.step()
        rig_.sent() if direction else None

    one()
    assert rig_.calls() == 1
    driver.set_no_interrupt(True)
    one()
    assert rig_.calls() == 0
    driver.set_no_interrupt(False)
    one()
    assert rig_.calls() == 1
    rig_.step()
    assert rig_.calls() == 0


@pytest.mark.parametrize("position", [0, 0xFFFD])
def test_notifications_by_event_index(rig: MakeRig, position: int) -> None:
    rig_ = rig(TO_VF, features=VERSION_1 | EVENT_INDEX, position=position)
    driver = SplitDriver(rig_, position)
    send(rig_, driver, frame(60))
    driver.set_event(position + 100)
    rig_.step()
    assert rig_.calls() == 1, "the first time it is not known what the guest has heard of"
    for offset in (1, 2, 3, 4, 5, 6):
        driver.set_event(position + 3)
        send(rig_, driver, frame(60))
        rig_.step()
        assert rig_.calls() == (1 if offset == 3 else 0), offset
    for _ in range(10):
        send(rig_, driver, frame(60))
    driver.set_event(position + 12)
    rig_.step()
    assert rig_.calls() == 1
    rig_.sent()


def test_a_guest_without_call_fd_is_not_called(rig: MakeRig) -> None:
    rig_ = rig(TO_VF, features=VERSION_1, call=False)
    send(rig_, SplitDriver(rig_), frame(60))
    rig_.step()
    assert rig_.sent() == [frame(60)]


def test_offload_work_goes_to_the_library(rig: MakeRig) -> None:
    rig_ = rig(TO_VF, features=VERSION_1 | CSUM)
    driver = SplitDriver(rig_)
    send(rig_, driver, frame(60))
    guest = rig_.allocate(100)
    rig_.write(guest, b"\x01" + bytes(11) + frame(88))
    driver.add([Piece(guest, 100)])
    rig_.step()
    assert rig_.sent() == [frame(60)]
    assert list(LIBRARY[:4]) == [1, 1, 0, 1], "told where the ring is, and asked for the rest"
    assert len(driver.used()) == 1, "the first packet is given back before the library looks"
    assert rig_.view["handed_bursts"] == 1


def test_headers_are_ignored_where_offloads_were_not_negotiated(rig: MakeRig) -> None:
    rig_ = rig(TO_VF, features=VERSION_1)
    guest = rig_.allocate(100)
    rig_.write(guest, b"\x01\x01" + bytes(10) + frame(88))
    SplitDriver(rig_).add([Piece(guest, 100)])
    rig_.step()
    assert rig_.sent() == [frame(88)]


def test_packets_with_transmit_work_go_to_the_library(rig: MakeRig) -> None:
    rig_ = rig(TO_VM, features=VERSION_1)
    driver = SplitDriver(rig_)
    post(rig_, driver, 100)
    post(rig_, driver, 100)
    rig_.offer(rig_.pool.packet([frame(60)]), rig_.pool.packet([frame(61)], ol_flags=1 << 52))
    rig_.step()
    assert len(driver.used()) == 1
    assert list(LIBRARY[:4]) == [1, 1, 1, 0]
    assert rig_.counter("held_count") == 1
    rig_.pool.put(int(rig_.lane["held"][0][int(rig_.counter("held_head"))]) + mbuf.OL_FLAGS, "u8", 0)
    rig_.step()
    assert [length for _, length in driver.used()] == [73]


def test_transmit_work_that_never_fits_is_dropped(rig: MakeRig) -> None:
    rig_ = rig(TO_VM, features=VERSION_1)
    driver = SplitDriver(rig_)
    post(rig_, driver, 100)
    rig_.offer(rig_.pool.packet([frame(200)], ol_flags=1 << 52), rig_.pool.packet([frame(60)]))
    while rig_.step():
        pass
    assert rig_.counter("queue_full_pkts") == 1
    assert [length for _, length in driver.used()] == [72]
    assert LIBRARY[2] == 0


def test_the_library_goes_on_from_here_and_we_from_there(rig: MakeRig) -> None:
    rig_ = rig(TO_VF, features=VERSION_1 | CSUM, position=0xFFFE)
    driver = SplitDriver(rig_, 0xFFFE)
    send(rig_, driver, frame(60))
    guest = rig_.allocate(100)
    rig_.write(guest, b"\x01" + bytes(11) + frame(88))
    for _ in range(3):
        driver.add([Piece(guest, 100)])
    send(rig_, driver, frame(61))
    LIBRARY[5] = 3
    rig_.step()
    assert (LIBRARY[0], rig_.view["position"]) == (0x10002, 2), "from 0xffff on it used three buffers"
    assert rig_.sent() == [frame(60)]
    rig_.pool.put(rig_.used + 2, "u2", 2)
    rig_.step()
    assert rig_.sent() == [frame(61)]


@pytest.mark.parametrize(("sleep_us", "polls"), [(0, 8192), (1000, 9), (10000, 1)])
def test_the_library_gets_its_turn(rig: MakeRig, sleep_us: int, polls: int) -> None:
    """It may have a packet of its own to send, also where the lcore sleeps between polls."""
    rig_ = rig(TO_VF, features=VERSION_1)
    rig_.core["sleep_us"] = sleep_us
    for _ in range(polls - 1):
        rig_.step()
    assert LIBRARY[3] == 0
    rig_.step()
    assert LIBRARY[3] == 1


@pytest.mark.parametrize("address", [None, 1 << 40])
def test_the_library_gets_its_turn_at_an_empty_ring(rig: MakeRig, address: int | None) -> None:
    """What the guest offers is the engine's to check, also when it is the library's turn."""
    rig_ = rig(TO_VF, features=VERSION_1)
    driver = SplitDriver(rig_)
    rig_.view["polls"] = POLLS_BEFORE_LIBRARY - 1
    driver.add([Piece(rig_.allocate(72) if address is None else address, 72)])
    rig_.step()
    assert LIBRARY[3] == 0
    assert rig_.rule == (RingRule.KEPT if address is None else RingRule.ADDRESS)
    rig_.step()
    assert LIBRARY[3] == (1 if address is None else 0)


@pytest.mark.parametrize(("count", "calls"), [(1, 0), ((1 << 14) - 1, 0), (1 << 14, 1)])
def test_the_library_is_told_of_notifications_in_time(rig: MakeRig, count: int, calls: int) -> None:
    """It counts what it has told the guest modulo 2**16, so it may not sleep through much of that."""
    rig_ = rig(TO_VF, features=VERSION_1 | CSUM)
    driver = SplitDriver(rig_)
    guest = rig_.allocate(100)
    rig_.write(guest, bytes(12) + frame(60))
    while count:
        burst = min(32, count)
        for _ in range(burst):
            driver.add([Piece(guest, 72)])
        rig_.step()
        rig_.sent()
        driver.used()
        count -= burst
    rig_.write(guest, b"\x01")
    driver.add([Piece(guest, 100)])
    rig_.step()
    assert (LIBRARY[1], LIBRARY[4]) == (1, calls)


@pytest.mark.parametrize("packed", [False, True])
def test_the_library_is_told_also_when_the_ring_was_loaded_anew(rig: MakeRig, packed: bool) -> None:
    """A pause gives the ring back and takes it again: rte_vhost still thinks of what it told the guest before."""
    position = WRAP if packed else 0
    rig_ = rig(TO_VF, features=VERSION_1 | CSUM | (PACKED if packed else 0), position=position)
    driver = PackedDriver(rig_) if packed else SplitDriver(rig_)
    guest = rig_.allocate(100)
    rig_.write(guest, bytes(12) + frame(88))
    for _ in range(1 if packed else 1 << 9):
        for _ in range(32):
            driver.add([Piece(guest, 100)])
        rig_.step()
        rig_.sent()
        driver.used()
    rig_.load(int(rig_.view["position"]))
    rig_.write(guest, b"\x01")
    driver.add([Piece(guest, 100)])
    for handed in (1, 2):
        rig_.step()
        assert (LIBRARY[1], LIBRARY[4]) == (handed, 1)


def test_shared_and_foreign_buffers_are_freed_by_dpdk(rig: MakeRig) -> None:
    rig_ = rig(TO_VM, features=VERSION_1)
    driver = SplitDriver(rig_)
    for _ in range(6):
        post(rig_, driver, 100)
    packets = [rig_.pool.packet([frame(60)]) for _ in range(6)]
    rig_.pool.put(packets[1] + mbuf.REFCNT, "u2", 2)
    rig_.pool.put(packets[3] + mbuf.POOL, "u8", 0x1234)
    rig_.pool.put(packets[4] + mbuf.OL_FLAGS, "u8", 1 << 61)
    rig_.offer(*packets)
    rig_.step()
    assert rig_.pool.available == rig_.pool.count - 5
    for packet in packets:
        rig_.pool.put(packet + mbuf.POOL, "u8", rig_.pool.address)
    rig_.settle()
    assert rig_.pool.available == rig_.pool.count


def test_without_buffers_the_guest_waits(rig: MakeRig) -> None:
    rig_ = rig(TO_VF, features=VERSION_1, buffers=8)
    driver = SplitDriver(rig_)
    for i in range(12):
        send(rig_, driver, frame(60, i))
    for _ in range(4):
        rig_.step()
    assert rig_.lane["mode"] == LaneMode.FORWARD
    assert rig_.counter("received_bytes") == rig_.counter("sent_bytes") == 8 * 60
    assert rig_.sent() == [frame(60, i) for i in range(8)]
    rig_.step()
    assert rig_.sent() == [frame(60, i) for i in range(8, 12)]


def test_position_is_saved_for_a_successor(rig: MakeRig) -> None:
    rig_ = rig(TO_VF, features=VERSION_1, position=0xFFFE)
    driver = SplitDriver(rig_, 0xFFFE)
    for _ in range(5):
        send(rig_, driver, frame(60))
    rig_.step()
    assert rig_.view["saved"] == rig_.view["saving"] == rig_.view["position"] == 3
    assert rig_.pool.get(rig_.used + 2, "u2") == 3
    rig_.sent()
