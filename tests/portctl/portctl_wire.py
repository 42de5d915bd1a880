"""Protobuf bytes by hand (developers.google.com/protocol-buffers/docs/encoding), so that tests see what clients see."""

from __future__ import annotations

import struct

ADD, REMOVE, ADD_SOCK, REMOVE_SOCK, QUERY_PCI = range(5)
ERROR, OK = 0, 1

Fields = dict[int, list[int | bytes]]


def varint(value: int) -> bytes:
    """A varint; negative numbers as 64-bit two's complement, as int32 fields are sent."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def data(field: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def pci(address: str) -> bytes:
    """Field 2 of PortControlRequest from ``0000:05:08.1``."""
    domain, bus, rest = address.split(":")
    slot, function = rest.split(".")
    return data(2, b"".join(number(i + 1, int(part, 16)) for i, part in enumerate((domain, bus, slot, function))))


def request(  # noqa: PLR0913 -- one argument for each field of the message
    op: int,
    *,
    addresses: tuple[str, ...] = (),
    devargs: tuple[str, ...] = (),
    virtio_id: int | None = None,
    conditional: bool | None = None,
    name: str | None = None,
    mode: int | None = None,
    path: str | None = None,
    patience_ms: int | None = None,
) -> bytes:
    """A PortControlRequest."""
    parts = [number(1, op), *(pci(address) for address in addresses)]
    parts += [] if virtio_id is None else [number(3, virtio_id)]
    parts += [] if conditional is None else [number(4, conditional)]
    parts += [] if name is None else [data(5, name)]
    parts += [] if mode is None else [number(6, mode)]
    parts += [] if path is None else [data(7, path)]
    parts += [data(1000, text) for text in devargs]
    parts += [] if patience_ms is None else [number(1001, patience_ms)]
    return b"".join(parts)


def decode(message: bytes) -> Fields:
    """Values by field number, in order: int for varints, bytes for strings and messages, 4 bytes for floats."""
    fields: Fields = {}
    position = 0
    while position < len(message):
        key, position = _varint_at(message, position)
        kind = key & 7
        value: int | bytes
        if kind == 0:
            value, position = _varint_at(message, position)
        elif kind == 2:
            length, position = _varint_at(message, position)
            assert position + length <= len(message)
            value, position = message[position : position + length], position + length
        else:
            assert kind == 5, f"wire type {kind}"
            value, position = message[position : position + 4], position + 4
        fields.setdefault(key >> 3, []).append(value)
    return fields


def only(fields: Fields, field: int) -> int | bytes:
    """The one value of a field."""
    (value,) = fields[field]
    return value


def message(fields: Fields, field: int) -> Fields:
    """The one message in a field."""
    value = only(fields, field)
    assert isinstance(value, bytes)
    return decode(value)


def float32(value: int | bytes) -> float:
    assert isinstance(value, bytes)
    (result,) = struct.unpack("<f", value)
    return float(result)


def _varint_at(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
