"""A stats response as text: flat lines that scripts grep, or protobuf's own text format."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf import text_format
from google.protobuf.message import Message

from vio4wd.portctl.proto.virtioforwarder_pb2 import StatsResponse


def flat_lines(response: StatsResponse, *, suppress_zero: bool = False) -> Iterator[str]:
    """One ``relay_1.vf_to_vm.cpu_2.pkts_rx_from_vf=123`` for each value that is set.

    Counters and rates of a direction carry the CPU that serves it in their name, and do without while there is none.
    ``suppress_zero`` leaves out counters and rates that are 0.
    """
    for relay in response.relay:
        prefix = f"relay_{relay.id}"
        for field, value in relay.ListFields():
            if field.name in ("vf_to_vm", "vm_to_vf"):
                cpu = getattr(relay.cpu, field.name) if relay.cpu.HasField(field.name) else None
                yield from _direction_lines(f"{prefix}.{field.name}", value, cpu, suppress_zero)
            else:
                yield from _lines(f"{prefix}.{field.name}", value)


def protobuf_text(response: StatsResponse) -> str:
    """The response in protobuf's text format."""
    return text_format.MessageToString(response)


def _lines(name: str, value: object) -> Iterator[str]:
    if isinstance(value, Message):
        for field, inner in value.ListFields():
            yield from _lines(f"{name}.{field.name}", inner)
    elif isinstance(value, float):
        yield f"{name}={value:.2f}"
    else:
        yield f"{name}={value}"


def _lane_lines(name: str, lane: StatsResponse.RelayState.Work.Lane) -> Iterator[str]:
    yield f"{name}.direct_bursts={lane.direct_bursts}"
    yield f"{name}.library_bursts={lane.library_bursts}"


def _direction_lines(prefix: str, direction: Message, cpu: int | None, suppress_zero: bool) -> Iterator[str]:
    measured = prefix if cpu is None else f"{prefix}.cpu_{cpu}"
    for field, value in direction.ListFields():
        if field.name in ("active", "internal_state"):
            yield f"{prefix}.{field.name}={value}"
        elif field.type == field.TYPE_MESSAGE:
            for inner_field, inner in value.ListFields():
                if inner_field.name == "lane":
                    for lane in inner:
                        yield from _lane_lines(f"{measured}.{field.name}.queue_{lane.queue_pair}", lane)
                elif inner or not suppress_zero:
                    yield from _lines(f"{measured}.{field.name}.{inner_field.name}", inner)
        elif value or not suppress_zero:
            yield from _lines(f"{measured}.{field.name}", value)
