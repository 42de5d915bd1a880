"""Plays rings of one shape, with all that is random about them, against a daemon, and says what came of it.

The VF reads its frames from a capture file and writes what it sends into another one.
"""

from __future__ import annotations

import random
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from frontend import FrontEnd, GuestMemory
from frontend.ring import Buffer, Ring
from harness.daemon import Daemon
from harness.process import wait_for
from vio4wd.relay.direct.ring_record import own_packets
from vio4wd.relay.lanes import COUNTERS, Direction, LaneTable

VERSION_1, PROTOCOL, MERGEABLE, PACKED = 1 << 32, 1 << 30, 1 << 15, 1 << 34
INDIRECT, EVENT_INDEX, IN_ORDER, ANY_LAYOUT = 1 << 28, 1 << 29, 1 << 35, 1 << 27
MODERN = VERSION_1 | PROTOCOL
RELAY, RING_SIZE = 3, 256
GUEST_UP, GUEST_DOWN = (f"relay {RELAY}: guest is {state}" for state in ("up", "down"))
TO_VM_FRAMES, TO_VF_FRAMES, SHORTEST, USUAL = 40, 40, 60, 1514
WRAP = 1 << 15
HEADER_BYTES = 12


@dataclass(frozen=True)
class Case:
    """What is negotiated, and what the rings look like; ``calls``: the guest asks to be called.

    ``longest_in`` and ``longest_out`` are the bytes of the longest frames to the guest and from it. Those that the VF
    receives and that are longer than a packet buffer come as several segments.
    """

    name: str
    features: int
    start: int = 0
    regions: int = 1
    simple: bool = False
    calls: bool = True
    longest_in: int = USUAL
    longest_out: int = USUAL

    @property
    def packed(self) -> bool:
        return bool(self.features & PACKED)

    @property
    def position(self) -> int:
        """Where the rings begin."""
        return self.start % RING_SIZE | self.start & WRAP if self.packed else self.start


@dataclass(frozen=True)
class Outcome:
    """What can be seen from outside."""

    to_vm_used: list[tuple[int, int]]
    to_vm_bytes: list[bytes]
    to_vf_used: list[tuple[int, int]]
    to_vf_frames: list[bytes]
    stopped_at: list[int]
    counters: dict[str, int]
    called: tuple[bool, bool]


def capture(path: Path, frames: list[bytes]) -> None:
    records = b"".join(struct.pack("<IIII", 0, 0, len(data), len(data)) + data for data in frames)
    path.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + records)


def captured(path: Path) -> list[bytes]:
    raw, at, frames = path.read_bytes(), 24, []
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at + 8)
        frames.append(raw[at + 16 : at + 16 + length])
        at += 16 + length
    return frames


class Player:
    """Plays a case against a daemon; all randomness comes from its seed, so that it is the same for each engine."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        self.random = random.Random(seed)
        self.memory = GuestMemory(size=4 << 20, count=case.regions)
        self.buffers: dict[int, list[Buffer]] = {}

    def alloc(self, size: int) -> int:
        return self.memory.alloc(max(size, 1), self.random.choice([1, 2, 64]), self.random.randrange(self.case.regions))

    def cut(self, total: int) -> list[int]:
        """Sizes of 1 to 5 pieces. In packed rings the first of several is too small for a frame.

        (rte_vhost fills four packed descriptors at a time, if each has the room, also where they are one chain. And
        where a chain begins with less than the header, it was seen to take the next packet's buffer out of that chain.)
        """
        if self.case.simple:
            return [total]
        points = sorted(self.random.randint(1, total) for _ in range(self.random.randint(0, 4)))
        if self.case.packed and points:
            points = sorted([min(max(points[0], HEADER_BYTES), SHORTEST), *points[1:]])
        edges = [0, *points, total]
        return [b - a for a, b in zip(edges, edges[1:], strict=False) if b > a]

    def table(self, pieces: int) -> int | None:
        if self.case.features & INDIRECT and pieces > 1 and self.random.random() < 0.6:
            return self.memory.alloc(16 * pieces, 16, self.random.randrange(self.case.regions))
        return None

    def ask_for_calls(self, ring: Ring) -> None:
        """Set what the guest wants to hear of: the last frame of those that fit without a chain, or nothing."""
        ring.wants_calls(self.case.calls)
        if self.case.features & EVENT_INDEX:
            if self.case.packed and self.case.calls:
                ring.set_used_event(self._later(TO_VM_FRAMES - 1))
            elif not self.case.packed:
                ring.set_used_event(self._later(TO_VM_FRAMES - 1 if self.case.calls else 0x7000))

    def _later(self, count: int) -> int:
        """A position so many descriptors after the first one."""
        position = self.case.position
        if not self.case.packed:
            return (position + count) & 0xFFFF
        slot = (position & ~WRAP) + count
        return slot - RING_SIZE | (position & WRAP) ^ WRAP if slot >= RING_SIZE else slot | position & WRAP

    def called(self, ring: Ring) -> bool:
        """Whether the guest was called, but for the once that both engines do it where they do not know what is new."""
        needless = self.case.features & EVENT_INDEX and not self.case.packed and not self.case.calls
        return ring.calls() > (1 if needless else 0)

    def post(self, ring: Ring) -> None:
        """Receive buffers as long as there are descriptors for one more."""
        mergeable = self.case.features & MERGEABLE and not self.case.simple
        while len(ring.free) >= 6:
            total = self.random.choice([600, 1526, 2048]) if mergeable else 2048
            sizes = self.cut(total)
            chain = [Buffer(self.alloc(size), size, writable=True) for size in sizes]
            for buffer in chain:
                self.memory.write(buffer.guest, b"\xee" * buffer.size)
            self.buffers[ring.add(chain, self.table(len(chain)))] = chain
        ring.publish()

    def send(self, ring: Ring, header_bytes: int, frames: list[bytes]) -> None:
        for data in frames:
            raw = bytes(header_bytes) + data
            chain, at = [], 0
            for size in self.cut(len(raw)):
                guest = self.alloc(size)
                self.memory.write(guest, raw[at : at + size])
                chain.append(Buffer(guest, size))
                at += size
            ring.add(chain, self.table(len(chain)))
        ring.publish()

    def contents(self, head: int, written: int) -> bytes:
        data = b"".join(self.memory.read(buffer.guest, buffer.size) for buffer in self.buffers[head])
        return data[:written]


def frame(source: random.Random, longest: int) -> bytes:
    return bytes(12) + b"\x88\xb5" + source.randbytes(source.randint(SHORTEST, longest) - 14)


def play(daemon: Daemon, engine: str, case: Case, directory: Path, seed: int) -> Outcome:
    """Play a case against a daemon whose rings are worked by this engine."""
    player = Player(case, seed)
    incoming = [frame(player.random, case.longest_in) for _ in range(TO_VM_FRAMES)]
    outgoing = [frame(player.random, case.longest_out) for _ in range(TO_VF_FRAMES)]
    capture(directory / "in.pcap", incoming)
    out = directory / "out.pcap"
    out.unlink(missing_ok=True)
    devargs = f"net_pcap{RELAY},rx_pcap={directory / 'in.pcap'},tx_pcap={out}"
    table, guests = daemon.lanes(), daemon.child.log.count(GUEST_UP)
    before = figures(table)
    with FrontEnd(daemon.socket(RELAY), features=case.features, memory=player.memory, ring_size=RING_SIZE) as vm:
        rx, tx = vm.rings
        for ring in (rx, tx):
            ring.begin_at(case.position)
            player.ask_for_calls(ring)
        player.post(rx)
        vm.handshake()
        assert vm.features == case.features, f"not offered: {case.features & ~vm.features:#x}"
        vm.barrier()
        wait_for(lambda: daemon.child.log.count(GUEST_UP) > guests, 10, "the guest")
        time.sleep(0.3)  # the last rings are enabled a moment after the guest is announced
        daemon.add(RELAY, devargs)
        keep_library_out(table, RELAY)
        try:
            player.send(tx, vm.header_bytes, outgoing)
            to_vf = take(tx, TO_VF_FRAMES)
            all_sent = before["VF_TO_VM.sent_pkts"] + TO_VM_FRAMES
            wait_for(lambda: figures(table)["VF_TO_VM.sent_pkts"] >= all_sent, 10, f"{case}: frames to the guest")
            to_vm = rx.take_used()
            contents = [player.contents(head, written) for head, written in to_vm]
            called = (player.called(rx), player.called(tx))
        finally:
            daemon.remove(RELAY, devargs.split(",")[0])
        after = figures(table)
        stopped_at = [vm.stop_ring(index) for index in (0, 1)]
        assert stopped_at == [ring.used_index() for ring in (rx, tx)]
    wait_for(lambda: daemon.child.log.count(GUEST_DOWN) > guests, 10, "the end")
    check(case, vm.header_bytes, incoming, outgoing, contents, captured(out))
    assert called == (case.calls, case.calls)
    check_engine(daemon, engine, before, after)
    if not case.features & MERGEABLE:
        contents = [data[:10] + data[vm.header_bytes :] for data in contents]  # num_buffers: rte_vhost leaves it alone
    if case.packed:
        to_vf = [(identity, 0) for identity, _ in to_vf]  # bytes written, none: rte_vhost leaves the buffer's length
    counters = {key: after[key] - before[key] for key in after if not key.endswith(("cycles", "_bursts", "own_pkts"))}
    return Outcome(to_vm, contents, to_vf, captured(out), stopped_at, counters, called)


def keep_library_out(table: LaneTable, relay: int) -> None:
    """Put off rte_vhost's turns at the guest's empty ring: it may take what is offered at that very moment."""
    polls = table.of(relay, Direction.VM_TO_VF)["view"]["polls"]

    def put_off() -> bool:
        polls[0] = -(1 << 40)
        time.sleep(0.002)  # the lcore counts up meanwhile, and may have overwritten it
        return bool(polls[0] < 0)

    wait_for(put_off, 5, "rte_vhost to be kept out")


def take(ring: Ring, count: int) -> list[tuple[int, int]]:
    done: list[tuple[int, int]] = []

    def enough() -> bool:
        done.extend(ring.take_used())
        return len(done) >= count

    wait_for(enough, 10, f"{count} used buffers")
    return done


def check(
    case: Case, header: int, incoming: list[bytes], outgoing: list[bytes], contents: list[bytes], sent: list[bytes]
) -> None:
    """Frames are the right ones, whatever the engine."""
    assert sent == outgoing
    frames, left = [], list(contents)
    while left:
        buffers = struct.unpack_from("<H", left[0], 10)[0] if case.features & MERGEABLE else 1
        frames.append(b"".join(left[:buffers])[header:])
        del left[:buffers]
    assert frames == incoming


def check_engine(daemon: Daemon, engine: str, before: dict[str, int], after: dict[str, int]) -> None:
    """The engine that was asked for has worked the rings, in both directions, and only that one."""
    assert "rte_vhost works ring" not in daemon.child.log
    other = "library" if engine == "direct" else "direct"
    for direction, packets in ((Direction.VF_TO_VM, TO_VM_FRAMES), (Direction.VM_TO_VF, TO_VF_FRAMES)):
        grown = {
            name: after[f"{direction.name}.{name}"] - before[f"{direction.name}.{name}"]
            for name in ("direct_bursts", "library_bursts", "own_pkts")
        }
        assert grown[f"{engine}_bursts"] > 0, direction.name
        assert grown[f"{other}_bursts"] == 0, direction.name
        assert grown["own_pkts"] == (packets if engine == "direct" else 0), direction.name


def figures(table: LaneTable) -> dict[str, int]:
    """All counters of the relay, and for each direction the packets that the direct engine itself has moved."""
    found = {}
    for direction in Direction:
        lanes = table.of(RELAY, direction)
        found |= {f"{direction.name}.{name}": int(lanes[name].sum()) for name in COUNTERS}
        found[f"{direction.name}.own_pkts"] = own_packets(lanes["view"])
    return found
