"""Properties of the codec, the record and the ring positions."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vio4wd.errors import ProtocolError
from vio4wd.relay.direct.ring_record import SavedPosition
from vio4wd.vhostuser import codec
from vio4wd.vhostuser.channel import Channel, PeerClosed
from vio4wd.vhostuser.codec import Message, Region
from vio4wd.vhostuser.record import SessionRecord
from vio4wd.vhostuser.requests import RULES, Payload, Request, name_of, rule_of
from vio4wd.vhostuser.ringbase import UnknownRingBase, ring_base

MAX_RINGS = 65
MESSAGES = st.builds(
    Message,
    request=st.one_of(st.sampled_from(list(Request)), st.integers(45, 2**32 - 1)).map(int),
    payload=st.binary(max_size=300),
    flags=st.integers(0, 15),
)


def pair() -> tuple[socket.socket, Channel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    return ours, Channel(theirs)


@given(MESSAGES, st.integers(1, 40))
def test_messages_survive_any_cutting(message: Message, step: int) -> None:
    ours, channel = pair()
    try:
        data = message.encode()
        got = None
        for start in range(0, len(data), step):
            assert got is None
            assert channel.try_receive() is None
            ours.send(data[start : start + step])
            if start + step >= len(data):
                got = channel.try_receive()
        assert got == message
        ours.close()
        with pytest.raises(PeerClosed):
            channel.try_receive()
    finally:
        ours.close()
        channel.close()


@given(MESSAGES)
def test_check_accepts_or_names_the_request(message: Message) -> None:
    try:
        codec.check(message, MAX_RINGS)
    except ProtocolError as error:
        assert str(error).startswith(message.name)
    else:
        ring = codec.ring_index(message)
        assert ring is None or ring < MAX_RINGS
        kind = rule_of(message.request).payload
        assert kind.least <= len(message.payload) <= kind.most
        SessionRecord().apply(message)


@given(st.lists(MESSAGES, max_size=30))
def test_record_takes_any_valid_sequence(messages: list[Message]) -> None:
    record = SessionRecord()
    for message in messages:
        try:
            codec.check(message, MAX_RINGS)
            record.check(message)
        except ProtocolError:
            continue
        record.apply(message)
    again = SessionRecord()
    for message in record.replay(lambda ring: 0):
        codec.check(message, MAX_RINGS)
        again.check(message)
        again.apply(message)
    assert again.started_rings == record.started_rings
    assert (again.features, again.protocol_features) == (record.features, record.protocol_features)
    assert (again.mtu, again.status) == (record.mtu, record.status)
    record.close()
    again.close()


def test_every_request_has_a_rule() -> None:
    assert set(RULES) == set(Request)
    assert name_of(1) == "GET_FEATURES"
    assert name_of(4711) == "request 4711"
    for request in Request:
        rule = RULES[request]
        assert rule.fds is not None or rule.payload in (Payload.RING_FD, Payload.MEMORY_TABLE)


@pytest.mark.parametrize("request_", [Request.SET_VRING_CALL, Request.SET_VRING_KICK, Request.SET_VRING_ERR])
def test_rings_are_told_by_eventfds_only(request_: Request) -> None:
    eventfd, (read_end, write_end) = os.eventfd(0), os.pipe()
    codec.check(codec.u64_message(request_, 3, [eventfd]), MAX_RINGS)
    codec.check(codec.u64_message(request_, 3 | 1 << 8), MAX_RINGS)
    for fd in (read_end, write_end):
        with pytest.raises(ProtocolError, match=f"^{request_.name}: .* must be an eventfd$"):
            codec.check(codec.u64_message(request_, 3, [fd]), MAX_RINGS)
    codec.close_fds([eventfd, read_end, write_end])


def packed_record(bits: list[tuple[int, int]], ids: list[int] | None = None) -> SessionRecord:
    """A record with a packed ring 0 whose descriptors have these avail and used bits."""
    size = len(bits)
    record = SessionRecord()
    record.apply(codec.u64_message(Request.SET_FEATURES, 1 << 34))
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 65536)
    for i, (avail, used) in enumerate(bits):
        number = ids[i] if ids else i
        os.pwrite(fd, struct.pack("<QIHH", 1, 1, number, avail << 7 | used << 15), 16 * i)
    record.apply(codec.table_message([Region(0, 65536, 1 << 32, 0)], [fd]))
    record.apply(codec.ring_message(Request.SET_VRING_NUM, 0, size))
    record.apply(Message(Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, 1 << 32, 0, 0, 0)))
    os.close(fd)
    return record


def available_bits(number: int, size: int) -> tuple[int, int]:
    """Flags (avail, used) of the buffer that is the ``number``-th since the ring began, when the driver offers it."""
    wrap = 1 - (number // size) % 2
    return wrap, 1 - wrap


def used_bits(number: int, size: int) -> tuple[int, int]:
    """The same when the device has given it back."""
    wrap = 1 - (number // size) % 2
    return wrap, wrap


def position_of(number: int, size: int) -> int:
    """The slot of that buffer, with the wrap counter."""
    return number % size | (0 if (number // size) % 2 else 0x8000)


@given(st.integers(1, 64), st.integers(0, 200), st.data())
def test_packed_position_of_single_descriptor_buffers(size: int, done: int, data: st.DataObject) -> None:
    """A driver and a device run for a while; the position that memory shows is the device's."""
    available = done + data.draw(st.integers(0, size))
    bits = [(0, 0)] * size
    for i in range(available):
        bits[i % size] = available_bits(i, size)
    for i in range(done):
        if i + size >= available:
            bits[i % size] = used_bits(i, size)
    record = packed_record(bits)
    try:
        base = ring_base(record, 0, None)
    finally:
        record.close()
    expected = position_of(done, size)
    assert base == expected | expected << 16


def test_packed_position_that_is_ambiguous_is_refused() -> None:
    chain_left_behind = packed_record([(1, 1), (1, 0), (1, 1), (1, 0), (0, 0), (0, 0)])
    same_id = packed_record([(1, 1), (1, 0), (0, 0), (0, 0)], ids=[5, 5, 0, 0])
    for record in (chain_left_behind, same_id):
        with pytest.raises(UnknownRingBase):
            ring_base(record, 0, None)
        assert ring_base(record, 0, SavedPosition(0x8003, 0x8003)) == 0x80038003
        record.close()


@pytest.mark.parametrize(
    ("bits", "expected"),
    [((1, 0), 0x8001), ((1, 1), 0x8002), ((0, 1), 0x8002)],
    ids=["not given back", "given back", "available for the next lap"],
)
def test_packed_position_of_a_buffer_that_was_just_given_back(bits: tuple[int, int], expected: int) -> None:
    record = packed_record([(1, 1), bits, (1, 0), (0, 0)])
    assert ring_base(record, 0, SavedPosition(0x8001, 0x8002)) == expected | expected << 16
    record.close()


@given(st.integers(1, 64), st.integers(0, 200), st.data())
def test_packed_position_in_a_burst_of_single_descriptor_buffers(size: int, begun: int, data: st.DataObject) -> None:
    """A device dies when it has given back some buffers of a burst; the driver has reused some of those already."""
    burst = data.draw(st.integers(1, size))
    given_back = data.draw(st.integers(0, burst))
    reused = data.draw(st.integers(0, given_back))
    bits = [(0, 0)] * size
    for i in range(begun + burst):
        bits[i % size] = used_bits(i, size)
    for i in range(begun + given_back, begun + burst):
        bits[i % size] = available_bits(i, size)
    for i in range(begun + size, begun + size + reused):
        bits[i % size] = available_bits(i, size)
    record = packed_record(bits)
    try:
        saved = SavedPosition(position_of(begun, size), position_of(begun + burst, size), one_by_one=True)
        base = ring_base(record, 0, saved)
    finally:
        record.close()
    expected = position_of(begun + given_back, size)
    assert base == expected | expected << 16


def test_split_position_is_in_memory_else_saved() -> None:
    record = SessionRecord()
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 8192)
    os.pwrite(fd, struct.pack("<HH", 0, 4242), 4096 + 256)
    record.apply(codec.table_message([Region(0, 4096, 1 << 32, 4096)], [fd]))
    record.apply(Message(Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, 0, (1 << 32) + 256, 0, 0)))
    record.apply(Message(Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", 1, 0, 0, 12345, 0, 0)))
    assert ring_base(record, 0, SavedPosition(4000, 4000)) == 4242
    assert ring_base(record, 1, SavedPosition(99, 99)) == 99
    with pytest.raises(UnknownRingBase, match="no memory region"):
        ring_base(record, 1, None)
    os.ftruncate(fd, 4096)
    with pytest.raises(UnknownRingBase, match="truncated"):
        ring_base(record, 0, None)
    record.close()
    os.close(fd)
