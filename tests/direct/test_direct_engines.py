"""The same rings through rte_vhost and through the direct engine: same frames, same used entries, same counters.

The VF reads its frames from a capture file and writes what it sends into another one.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from frontend import FrontEnd, GuestMemory, SplitRing
from frontend.split import Buffer
from harness.daemon import Daemon
from harness.process import wait_for

pytestmark = pytest.mark.dpdk

VERSION_1, PROTOCOL, MERGEABLE = 1 << 32, 1 << 30, 1 << 15
INDIRECT, EVENT_INDEX, IN_ORDER, ANY_LAYOUT = 1 << 28, 1 << 29, 1 << 35, 1 << 27
MODERN = VERSION_1 | PROTOCOL
RELAY = 3
TO_VM_FRAMES, TO_VF_FRAMES = 40, 40


@dataclass(frozen=True)
class Case:
    """What is negotiated, and what the rings look like."""

    name: str
    features: int
    start: int = 0
    regions: int = 1
    simple: bool = False


CASES = [
    Case("simple", MODERN, simple=True),
    Case("simple, mergeable, wrapping", MODERN | MERGEABLE, start=0xFFE0, simple=True),
    Case("legacy", PROTOCOL | ANY_LAYOUT, simple=True),
    Case("legacy, mergeable, chains", PROTOCOL | ANY_LAYOUT | MERGEABLE),
    Case("chains", MODERN),
    Case("chains, indirect, several regions", MODERN | INDIRECT, regions=4),
    Case("several buffers a packet", MODERN | MERGEABLE | INDIRECT | EVENT_INDEX, start=250),
    Case("in order", MODERN | MERGEABLE | IN_ORDER, simple=True),
]


@dataclass(frozen=True)
class Outcome:
    """What can be seen from outside."""

    to_vm_used: list[tuple[int, int]]
    to_vm_bytes: list[bytes]
    to_vf_used: list[tuple[int, int]]
    to_vf_frames: list[bytes]
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

    def cut(self, total: int, least_first: int) -> list[int]:
        """Sizes of 1 to 5 pieces."""
        if self.case.simple:
            return [total]
        points = sorted(self.random.randint(least_first, total) for _ in range(self.random.randint(0, 4)))
        edges = [0, *points, total]
        return [b - a for a, b in zip(edges, edges[1:], strict=False) if b > a]

    def table(self, pieces: int) -> int | None:
        if self.case.features & INDIRECT and pieces > 1 and self.random.random() < 0.6:
            return self.memory.alloc(16 * pieces, 16, self.random.randrange(self.case.regions))
        return None

    def post(self, ring: SplitRing) -> None:
        """Receive buffers as long as there are descriptors for one more."""
        mergeable = self.case.features & MERGEABLE and not self.case.simple
        while len(ring.free) >= 6:
            total = self.random.choice([600, 1526, 2048]) if mergeable else 2048
            sizes = self.cut(total, 1)
            chain = [Buffer(self.alloc(size), size, writable=True) for size in sizes]
            for buffer in chain:
                self.memory.write(buffer.guest, b"\xee" * buffer.size)
            self.buffers[ring.add(chain, self.table(len(chain)))] = chain
        ring.publish()

    def send(self, ring: SplitRing, header_bytes: int, frames: list[bytes]) -> None:
        for data in frames:
            raw = bytes(header_bytes) + data
            chain, at = [], 0
            for size in self.cut(len(raw), 1):
                guest = self.alloc(size)
                self.memory.write(guest, raw[at : at + size])
                chain.append(Buffer(guest, size))
                at += size
            ring.add(chain, self.table(len(chain)))
        ring.publish()

    def contents(self, head: int, written: int) -> bytes:
        data = b"".join(self.memory.read(buffer.guest, buffer.size) for buffer in self.buffers[head])
        return data[:written]


def frame(source: random.Random) -> bytes:
    return bytes(12) + b"\x88\xb5" + source.randbytes(source.randint(46, 1500))


def play(daemon: Daemon, case: Case, directory: Path, seed: int) -> Outcome:
    player = Player(case, seed)
    incoming = [frame(player.random) for _ in range(TO_VM_FRAMES)]
    outgoing = [frame(player.random) for _ in range(TO_VF_FRAMES)]
    capture(directory / "in.pcap", incoming)
    out = directory / "out.pcap"
    out.unlink(missing_ok=True)
    devargs = f"net_pcap{RELAY},rx_pcap={directory / 'in.pcap'},tx_pcap={out}"
    before = figures(daemon)
    with FrontEnd(daemon.socket(RELAY), features=case.features, memory=player.memory, ring_size=256) as vm:
        rx, tx = vm.rings
        for ring in (rx, tx):
            restart(ring, case.start)
        player.post(rx)
        vm.handshake()
        assert vm.features == case.features, f"not offered: {case.features & ~vm.features:#x}"
        vm.barrier()
        wait_for(lambda: daemon.stats()[f"relay_{RELAY}.vm_to_vf.internal_state"] == "VIRTIO_READY", 10, "the guest")
        time.sleep(0.3)  # the last rings are enabled a moment after the guest is announced
        daemon.add(RELAY, devargs)
        player.send(tx, vm.header_bytes, outgoing)
        to_vf = take(tx, TO_VF_FRAMES)
        after_in = before["vf_to_vm.pkts_tx_to_vm"] + TO_VM_FRAMES
        wait_for(
            lambda: figures(daemon)["vf_to_vm.pkts_tx_to_vm"] >= after_in,
            10,
            f"{case.name}: frames to the guest: {figures(daemon)}",
        )
        to_vm = rx.take_used()
        contents = [player.contents(head, written) for head, written in to_vm]
        called = (rx.calls() > 0, tx.calls() > 0)
        daemon.remove(RELAY, devargs.split(",")[0])
        after = figures(daemon)
    wait_for(lambda: daemon.stats()[f"relay_{RELAY}.vm_to_vf.internal_state"] == "VIRTIO_UNINIT", 10, "the end")
    check(case, vm.header_bytes, incoming, outgoing, contents, captured(out))
    if not case.features & MERGEABLE:
        contents = [data[:10] + data[vm.header_bytes :] for data in contents]  # num_buffers: rte_vhost leaves it alone
    counters = {key: after[key] - before[key] for key in after}
    return Outcome(to_vm, contents, to_vf, captured(out), counters, called)


def restart(ring: SplitRing, start: int) -> None:
    """Have the ring begin at an index."""
    ring.next_available = ring.next_used = start
    ring.memory.write_u16(ring.available + 2, start)
    ring.memory.write_u16(ring.used + 2, start)


def take(ring: SplitRing, count: int) -> list[tuple[int, int]]:
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


def figures(daemon: Daemon) -> dict[str, int]:
    prefix = f"relay_{RELAY}."
    wanted = ("pkts_", "bytes_")
    return {
        key[len(prefix) :]: int(value)
        for key, value in daemon.stats().items()
        if key.startswith(prefix) and key.split(".")[-1].startswith(wanted)
    }


@pytest.mark.parametrize("engine", ["library", "direct"])
def test_outcomes_of_an_engine(engine: str, tmp_path: Path, outcomes: dict[tuple[str, str], Outcome]) -> None:
    """Plays all cases; the second engine is compared with the first."""
    daemon = Daemon(tmp_path, VIRTIOFWD_RING_ENGINE=engine)
    try:
        for number, case in enumerate(CASES):
            outcomes[case.name, engine] = play(daemon, case, tmp_path, number)
        assert "Traceback" not in daemon.child.log
    finally:
        daemon.stop()
    if engine == "direct":
        for case in CASES:
            assert outcomes[case.name, "direct"] == outcomes[case.name, "library"], case.name


def build_case(features: frozenset[int], legacy: bool, start: int, regions: int, simple: bool) -> Case:
    base = PROTOCOL | ANY_LAYOUT if legacy else MODERN
    if legacy or not simple:
        features -= {IN_ORDER}
    return Case("random", base | sum(features), start, regions, simple)


CASE = st.builds(
    build_case,
    st.frozensets(st.sampled_from([MERGEABLE, INDIRECT, EVENT_INDEX, IN_ORDER])),
    legacy=st.booleans(),
    start=st.sampled_from([0, 1, 250, 0x7FFF, 0xFFE0, 0xFFFF]),
    regions=st.integers(1, 4),
    simple=st.booleans(),
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    """A daemon for each engine."""
    engines = ("library", "direct")
    daemons = [Daemon(tmp_path_factory.mktemp(engine), VIRTIOFWD_RING_ENGINE=engine) for engine in engines]
    yield daemons[0], daemons[1]
    for daemon in daemons:
        daemon.stop()
        assert "Traceback" not in daemon.child.log


@given(case=CASE, seed=st.integers(0, 1 << 32))
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_random_rings(both: tuple[Daemon, Daemon], case: Case, seed: int) -> None:
    library, direct = (play(daemon, case, daemon.directory, seed) for daemon in both)
    assert direct == library


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, str], Outcome]:
    return {}
