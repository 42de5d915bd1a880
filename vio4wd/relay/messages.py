"""The messages between the supervisor and a worker: JSON, one message a packet, over a SOCK_SEQPACKET socket pair.

Version 1. Every message has ``v``. A command has ``id``, ``op`` and ``args``; its one reply has ``re`` (that id) and
either ``result`` or ``error`` (kind, message). Events have ``event`` and ``args`` and are not answered. Commands for
one relay are carried out in order; commands for different relays may overtake each other.

=============== ================================================== =====================================================
command         arguments                                          result
=============== ================================================== =====================================================
add_port        relay, device | bond, degraded (false)             numa_node; degraded: one member of a bond is enough
remove_port     relay
attach          relay, path                                        once the session's socket is registered
detach          relay, path
pause           relay
resume          relay, interrupt (false)                           interrupt: the guest is interrupted first
place           relay, vf_cpu, virtio_cpu
set_log_level   level (Python's)
stop                                                               after everything is released; then the worker exits
=============== ================================================== =====================================================

=============== ====================================================================================================
event           arguments
=============== ====================================================================================================
ready           pid, abi, dpdk, tsc_hz, max_ports
failed          message: the worker could not start, and exits
log             level (Python's), logger, message
guest           relay, connected (bool), numa_node
lane_fault      relay, queue_pair, direction, message
guest_blocks    relay, message: its front end is to be cut off; its lanes are off until then
vf_lost         relay, message: the VF is of no use until it is removed and added again
=============== ====================================================================================================
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from vio4wd.devices import Attachment, Bond, BondMode, Device
from vio4wd.errors import ProtocolError

VERSION = 1
MAX_MESSAGE_BYTES = 65536

MAX_TEXT = 4000
"""Characters of an error or log text, which is cut there; JSON makes up to twelve bytes of one."""


@dataclass(frozen=True)
class Command:
    """Something that the supervisor wants done."""

    id: int
    op: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """The one answer to a command; ``error_kind`` is None when it succeeded."""

    re: int
    result: dict[str, Any] = field(default_factory=dict)
    error_kind: str | None = None
    error_message: str = ""


@dataclass(frozen=True)
class Event:
    """Something that happened in the worker."""

    event: str
    args: dict[str, Any] = field(default_factory=dict)


Message = Command | Reply | Event


def encode(message: Message) -> bytes:
    """The packet for a message. Texts that are too long are cut.

    Raises:
        ProtocolError: the message is too long all the same.
    """
    body: dict[str, Any] = {"v": VERSION}
    if isinstance(message, Command):
        body |= {"id": message.id, "op": message.op, "args": message.args}
    elif isinstance(message, Event):
        texts = {"message": _cut(message.args["message"])} if "message" in message.args else {}
        body |= {"event": message.event, "args": message.args | texts}
    elif message.error_kind is None:
        body |= {"re": message.re, "result": message.result}
    else:
        body |= {"re": message.re, "error": {"kind": message.error_kind, "message": _cut(message.error_message)}}
    packet = json.dumps(body, separators=(",", ":")).encode()
    if len(packet) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"a worker message of {len(packet)} bytes, must be at most {MAX_MESSAGE_BYTES}")
    return packet


def _cut(text: Any) -> Any:
    return text if not isinstance(text, str) or len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def decode(packet: bytes) -> Message:
    """Read a packet.

    Raises:
        ProtocolError: the packet is not a message of this version.
    """
    try:
        body = json.loads(packet)
        if body["v"] != VERSION:
            raise ProtocolError(f"worker message has version {body['v']}, this side speaks {VERSION}: update both")
        if "op" in body:
            return Command(body["id"], body["op"], body["args"])
        if "event" in body:
            return Event(body["event"], body["args"])
        error = body.get("error")
        if error is not None:
            return Reply(body["re"], error_kind=error["kind"], error_message=error["message"])
        return Reply(body["re"], body["result"])
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"not a worker message ({error!r}): {packet[:80]!r}") from error


def attachment_to_json(attachment: Attachment) -> dict[str, Any]:
    """An attachment as command arguments."""
    if isinstance(attachment, Device):
        return {"device": attachment.devargs}
    members = [member.devargs for member in attachment.members]
    return {"bond": {"name": attachment.name, "mode": int(attachment.mode), "members": members}}


def attachment_from_json(args: dict[str, Any]) -> Attachment:
    """The attachment in command arguments."""
    if "device" in args:
        return Device.parse(args["device"])
    bond = args["bond"]
    return Bond(bond["name"], tuple(Device.parse(member) for member in bond["members"]), BondMode(bond["mode"]))
