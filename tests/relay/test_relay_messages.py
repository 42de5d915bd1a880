from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vio4wd.devices import Bond, BondMode, Device
from vio4wd.errors import ProtocolError
from vio4wd.relay.messages import (
    MAX_MESSAGE_BYTES,
    MAX_TEXT,
    Command,
    Event,
    Message,
    Reply,
    attachment_from_json,
    attachment_to_json,
    decode,
    encode,
)

_arguments = st.dictionaries(st.text(max_size=10), st.integers() | st.text(max_size=20) | st.booleans(), max_size=4)
_messages = (
    st.builds(Command, st.integers(), st.text(min_size=1), _arguments)
    | st.builds(Event, st.text(min_size=1), _arguments)
    | st.builds(Reply, st.integers(), _arguments)
    | st.builds(Reply, st.integers(), st.just({}), st.text(min_size=1), st.text())
)


@given(_messages)
def test_messages_survive_the_wire(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=200))
def test_garbage_is_refused(packet: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(packet)


@pytest.mark.parametrize("text", ["x" * 70_000, "\U0001f600" * 70_000])
def test_texts_are_cut_and_what_is_still_too_long_is_refused(text: str) -> None:
    for message in (Reply(1, error_kind="error", error_message=text), Event("log", {"message": text})):
        packet = encode(message)
        assert len(packet) <= MAX_MESSAGE_BYTES
        assert text[:MAX_TEXT] + "..." in str(decode(packet))
    with pytest.raises(ProtocolError, match="bytes, must be at most 65536"):
        encode(Command(1, "add_port", {"device": text}))


def test_another_version_is_named() -> None:
    with pytest.raises(ProtocolError, match="version 9"):
        decode(json.dumps({"v": 9, "op": "stop", "id": 1, "args": {}}).encode())


@pytest.mark.parametrize(
    "attachment",
    [
        Device.parse("0000:05:08.1"),
        Device.parse("net_null0,size=60,copy=0"),
        Bond("net_bonding0", (Device.parse("05:08.1"), Device.parse("net_tap0,iface=t0")), BondMode.LACP),
    ],
)
def test_attachments_survive_the_wire(attachment: Device | Bond) -> None:
    assert attachment_from_json(json.loads(json.dumps(attachment_to_json(attachment)))) == attachment
