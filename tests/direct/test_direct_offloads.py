"""Guests whose headers ask for checksums and segmentation: both engines do with them what rte_vhost does.

The daemon offers no such features, so a worker process is run here without it, and offers everything. Its VF gives back
the very buffers that it is sent: a header that asks for work on the way out must do so on the way in, too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from frontend import FrontEnd, listen
from frontend.vm import DEFAULT_FEATURES, F_RING_PACKED, Packet
from harness.daemon import TROUBLE
from harness.process import wait_for
from vio4wd.relay.direct.ring_record import own_packets
from vio4wd.relay.lanes import Direction, LaneTable
from vio4wd.relay.worker_options import WorkerOptions
from vio4wd.relay.worker_process import WorkerProcess

pytestmark = pytest.mark.dpdk

RELAY = 4
CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4 = (1 << bit for bit in (0, 1, 7, 11))
OFFLOADS = CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4

RING_SIZE, WRAP = 64, 1 << 15
FRAMES, BATCH = 480, 24
"""Several times around the rings, in batches that a burst can take."""

# struct virtio_net_hdr: VIRTIO 1.2, section 5.1.6
HEADER = struct.Struct("<BBHHHHH")
NEEDS_CSUM = 1
GSO_NONE, GSO_TCPV4 = 0, 1
ETHERNET, IPV4, TCP, UDP = 14, 20, 20, 8
TCP_CHECKSUM, UDP_CHECKSUM = 16, 6


@dataclass(frozen=True)
class Outcome:
    """What the guest got back, and what was counted."""

    packets: list[Packet]
    counters: dict[str, int]


def frame(source: random.Random, protocol: int, payload: int) -> bytes:
    """An Ethernet frame with TCP (6) or UDP (17) in IPv4."""
    transport = bytes([0, 80, 0, 80] + [0] * 8 + [5 << 4, 0x10, 1, 0, 0, 0, 0, 0]) if protocol == 6 else bytes(8)
    body = transport + source.randbytes(payload)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, IPV4 + len(body), 1, 0, 64, protocol, 0, b"\n\0\0\1", b"\n\0\0\2")
    return bytes.fromhex("020000000001 020000000002 0800") + ip + body


def conversation(count: int) -> list[tuple[bytes, bytes]]:
    """Headers and frames: plain, with a checksum to be filled in, and to be cut in segments, all mixed."""
    source, start, sent = random.Random(11), ETHERNET + IPV4, []
    for _ in range(count):
        kind, payload = source.choice(["plain", "plain", "tcp", "udp", "segments"]), source.randint(30, 1300)
        header = {
            "plain": HEADER.pack(0, GSO_NONE, 0, 0, 0, 0, 0),
            "tcp": HEADER.pack(NEEDS_CSUM, GSO_NONE, 0, 0, start, TCP_CHECKSUM, 0),
            "udp": HEADER.pack(NEEDS_CSUM, GSO_NONE, 0, 0, start, UDP_CHECKSUM, 0),
            "segments": HEADER.pack(NEEDS_CSUM, GSO_TCPV4, start + TCP, 400, start, TCP_CHECKSUM, 0),
        }[kind]
        sent.append((header, frame(source, 17 if kind == "udp" else 6, payload)))
    return sent


def converse(vm: FrontEnd, table: LaneTable, features: int) -> list[Packet]:
    """Send everything, and get it back; in the end both rings are where they say."""
    for ring in vm.rings:
        ring.begin_at(WRAP | RING_SIZE - 14 if features & F_RING_PACKED else 0xFFE0)
    vm.handshake()
    vm.post_rx()
    assert vm.features & (OFFLOADS | F_RING_PACKED) == features
    lanes = [table.of(RELAY, direction)[0] for direction in Direction]
    wait_for(lambda: all(lane["mode"] for lane in lanes), 10, "lanes")
    time.sleep(0.3)  # the last rings are enabled a moment after the first
    sent, received = conversation(FRAMES), []
    for begin in range(0, FRAMES, BATCH):
        headers, data = zip(*sent[begin : begin + BATCH], strict=True)
        vm.send_all(list(data), headers=list(headers))
        received += vm.receive_all(len(data))
    vm.await_sent()
    assert [vm.stop_ring(index) for index in (0, 1)] == [ring.used_index() for ring in vm.rings]
    return received


async def play(engine: str, features: int, directory: Path) -> Outcome:
    """Run a worker with this engine and a guest with these features."""
    table, path = LaneTable.create(), directory / f"{engine}.sock"
    cpu = min(1, psutil.cpu_count() - 1)
    options = WorkerOptions(f"offloads-{os.getpid()}", 0, (cpu,), "", 1500, logging.INFO, 0, 0, engine)
    worker = WorkerProcess(options, table.fd)
    await worker.start()
    try:
        with listen(path) as listener:
            await worker.call("add_port", relay=RELAY, device=f"net_ring{RELAY}")
            await worker.call("place", relay=RELAY, vf_cpu=cpu, virtio_cpu=cpu)
            await worker.call("attach", relay=RELAY, path=str(path))
            sock, _ = listener.accept()
        with FrontEnd(sock=sock, features=DEFAULT_FEATURES | features, ring_size=RING_SIZE) as vm:
            packets = await asyncio.to_thread(converse, vm, table, features)
            check_engine(table, engine)
        await worker.call("remove_port", relay=RELAY)
        await worker.call("detach", relay=RELAY, path=str(path))
    finally:
        await worker.stop()
    counters = {
        f"{direction.name}.{name}": int(table.of(RELAY, direction)[name].sum())
        for direction in Direction
        for name in ("received_pkts", "received_bytes", "sent_pkts", "sent_bytes", "queue_full_pkts", "too_long_pkts")
    }
    return Outcome(packets, counters)


def check_engine(table: LaneTable, engine: str) -> None:
    for direction in Direction:
        lane = table.of(RELAY, direction)[0]
        if engine == "direct":
            assert lane["direct_bursts"], f"{direction.name}: plain packets are its own"
            own = own_packets(lane["view"])
            assert own >= 10, f"{direction.name}: plain packets are its own, up to the first of a burst that is not"
            assert lane["view"]["handed_bursts"], f"{direction.name}: others are handed over"
            assert lane["library_bursts"] >= FRAMES // BATCH // 2, f"{direction.name}: others are handed over"
        else:
            assert not lane["direct_bursts"]


@pytest.mark.parametrize("packed", [0, F_RING_PACKED], ids=["split", "packed"])
def test_both_engines_do_the_same(packed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    library, direct = (asyncio.run(play(engine, OFFLOADS | packed, tmp_path)) for engine in ("library", "direct"))
    assert direct == library
    assert not [line for line in caplog.messages if any(text in line for text in TROUBLE)]
    for (header, data), packet in zip(conversation(FRAMES), direct.packets, strict=True):
        assert packet.data[:ETHERNET] == data[:ETHERNET]
        assert len(packet.data) == len(data)
        assert packet.header[:2] == header[:2], "what the guest asked for is asked of the guest"
        assert packet.header[4:10] == header[4:10]
