"""Frames to and from a bond whose guest sends back what it gets."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Sequence

from harness.daemon import Daemon
from vio4wd.cli.client import ask
from vio4wd.portctl.proto.virtioforwarder_pb2 import (
    PortControlRequest,
    PortControlResponse,
    StatsRequest,
    StatsResponse,
)

ETHERTYPE = bytes.fromhex("88b5")


def add_bond(daemon: Daemon, relay: int, mode: int, devargs: Sequence[str], name: str = "") -> PortControlResponse:
    """Ask for a bond of these devices on a relay, ``net_bonding<relay>`` unless named."""
    request = PortControlRequest(
        op="ADD", virtio_id=relay, name=name or f"net_bonding{relay}", mode=mode, devargs=devargs, conditional=False
    )
    return ask(daemon.endpoint("port_control"), request, PortControlResponse, timeout_s=20)


def put_bond(daemon: Daemon, relay: int, mode: int, devargs: Sequence[str]) -> None:
    """Add a bond; AssertionError if the daemon refuses."""
    answer = add_bond(daemon, relay, mode, devargs)
    assert answer.status == PortControlResponse.OK, f"{answer}{daemon.child.log[-3000:]}"


def remove_bond(daemon: Daemon, relay: int) -> None:
    """Remove the relay's bond of the usual name."""
    request = PortControlRequest(op="REMOVE", virtio_id=relay, name=f"net_bonding{relay}", conditional=False)
    answer = ask(daemon.endpoint("port_control"), request, PortControlResponse, timeout_s=20)
    assert answer.status == PortControlResponse.OK, f"{answer}{daemon.child.log[-3000:]}"


def to_vf(daemon: Daemon, relay: int) -> int:
    """Packets that a relay has sent to its VF."""
    stats = ask(daemon.endpoint("stats"), StatsRequest(relay=[relay]), StatsResponse)
    return int(stats.relay[0].vm_to_vf.pkts_tx_to_vf)


def frame(number: int) -> bytes:
    """A frame of 64 bytes; its source address, and so its flow, depends on the number."""
    head = b"\x02\x00\x00\x01\x00\x01" + b"\x02\x00\x00\x02" + (number & 0xFFFF).to_bytes(2, "big") + ETHERTYPE
    return head + number.to_bytes(4, "big").ljust(50)


def number_of(data: bytes) -> int:
    """The number of a frame."""
    return int.from_bytes(data[14:18], "big")


def collect(sockets: Sequence[socket.socket], seconds: float, enough: int | None = None) -> list[list[int]]:
    """The numbers of our frames that arrive within a time, by socket; returns early with ``enough`` of them in all."""
    found: list[list[int]] = [[] for _ in sockets]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (enough is None or sum(map(len, found)) < enough):
        before = sum(map(len, found))
        for sock, numbers in zip(sockets, found, strict=True):
            numbers += _waiting(sock)
        if sum(map(len, found)) == before:
            time.sleep(0.001)
    return found


def _waiting(sock: socket.socket) -> list[int]:
    numbers = []
    while True:
        try:
            data, address = sock.recvfrom(65536)
        except (BlockingIOError, OSError):
            return numbers
        if address[2] != socket.PACKET_OUTGOING and data[12:14] == ETHERTYPE:
            numbers.append(number_of(data))


def exchange(
    sockets: Sequence[socket.socket], sender: int, numbers: Sequence[int], enough: int, seconds: float = 3
) -> list[list[int]]:
    """Send frames on one wire; answers the numbers that come back, by wire. Frames of before do not count."""
    for sock in sockets:
        _waiting(sock)
    for number in numbers:
        sockets[sender].send(frame(number))
        time.sleep(0.0003)
    return collect(sockets, seconds, enough)


_probes = itertools.count(1 << 16)


def carries(end: socket.socket) -> bool:
    """Whether twenty new frames, sent on a far end, come back on it."""
    probes = [next(_probes) for _ in range(20)]
    try:
        found = exchange([end], 0, probes, len(probes), seconds=0.05)[0]
    except OSError:  # the link is down
        return False
    return set(found) >= set(probes)
