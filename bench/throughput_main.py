"""The throughput benchmark; see ``bench/throughput``."""

from __future__ import annotations

import itertools
import json
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from harness.daemon import Daemon
from harness.process import Child, wait_for
from harness.scheduling import no_autogroups
from harness.testpmd import Testpmd

FCS_BYTES = 4
IMIX = "imix"
IMIX_FRAMES = (64,) * 7 + (594,) * 4 + (1518,)
"""The simple Internet mix: 7 small, 4 medium, 1 large frame."""

TARGETS = {"64": 1.8, "256": 1.5, "1518": 1.35}
"""Frame size -> what the direct engine is to reach against dpdk-testpmd with the default rings: split, mergeable."""

DEFAULT_RINGS = "default"

FRONT_CPU, FORWARDER_CPU = 0, 1
RELAY = 0


@dataclass(frozen=True)
class Figure:
    """One run of one contestant with one kind of rings: packets per second, each way."""

    contestant: str
    frame: str
    rings: str
    to_vm_pps: float
    to_vf_pps: float

    @property
    def total_pps(self) -> float:
        return self.to_vm_pps + self.to_vf_pps


def source_devargs(frame: str, directory: Path) -> str:
    """Devargs of a software VF that generates frames of this size (with FCS, as on the wire)."""
    if frame != IMIX:
        return f"net_null0,size={int(frame) - FCS_BYTES},copy=0"
    capture = directory / "imix.pcap"
    with capture.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for size in IMIX_FRAMES:
            length = size - FCS_BYTES
            file.write(struct.pack("<IIII", 0, 0, length, length) + bytes(12) + b"\x08\x00" + bytes(length - 14))
    return f"net_pcap0,rx_pcap={capture},infinite_rx=1"


@contextmanager
def relay(engine: str, devargs: str, directory: Path) -> Iterator[Path]:
    """Our daemon with one relay; yields the vhost-user socket."""
    daemon = Daemon(directory, VIRTIOFWD_RING_ENGINE=engine, VIRTIOFWD_CPU_MASK=str(FORWARDER_CPU))
    try:
        daemon.settled_workers()  # the spare worker starts after the daemon is ready, on the same CPUs
        daemon.add(RELAY, devargs)
        yield daemon.socket(RELAY)
    finally:
        daemon.stop()


@contextmanager
def testpmd_peer(devargs: str, directory: Path) -> Iterator[Path]:
    """dpdk-testpmd as the forwarder; yields the vhost-user socket."""
    sock = directory / "peer.sock"
    arguments = [
        "dpdk-testpmd", "--lcores", f"0@{FRONT_CPU},1@{FORWARDER_CPU}", "--no-pci", "--in-memory",
        "--no-telemetry", "-m", "512",
        "--vdev", devargs, "--vdev", f"net_vhost0,iface={sock},queues=1", "--",
        "--forward-mode=io", "--nb-cores=1", "--total-num-mbufs=16384", "--no-mlockall", "--stats-period=60",
    ]  # fmt: skip
    peer = Child(arguments, directory / "peer.log")
    try:
        wait_for(sock.is_socket, 20, "the peer's socket")
        yield sock
    finally:
        peer.stop()


def measure(contestant: str, frame: str, seconds: float, rings: str = DEFAULT_RINGS) -> Figure:
    """Run one contestant."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        devargs = source_devargs(frame, directory)
        forwarder = (
            testpmd_peer(devargs, directory) if contestant == "testpmd" else relay(contestant, devargs, directory)
        )
        with forwarder as sock:
            front = Testpmd(sock, directory, cpu=FRONT_CPU, options="" if rings == DEFAULT_RINGS else rings)
            try:
                front.command("start", "io packet forwarding")
                time.sleep(1)
                first, begun = front.counters(), time.monotonic()
                time.sleep(seconds)
                second, elapsed = front.counters(), time.monotonic() - begun
            finally:
                front.stop()
    received, sent = (second[f"{way}-packets"] - first[f"{way}-packets"] for way in ("RX", "TX"))
    return Figure(contestant, frame, rings, received / elapsed, sent / elapsed)


@dataclass(frozen=True)
class Comparison:
    """All figures of a run. The first of ``names`` is what is compared, the last the peer, others are ours, too."""

    names: list[str]
    frames: list[str]
    modes: list[str]
    figures: list[Figure]

    def ratio(self, ours: str, peer: str, frame: str, mode: str) -> float:
        """Median over the pairs of our rate by the peer's."""
        rates = {
            name: [f.total_pps for f in self.figures if (f.contestant, f.frame, f.rings) == (name, frame, mode)]
            for name in (ours, peer)
        }
        return statistics.median(mine / its for mine, its in zip(rates[ours], rates[peer], strict=True))

    def lines(self) -> Iterator[str]:
        """What came out: everything against everything, then the first one's ratios for the first kind of rings."""
        first, peer = self.names[0], self.names[-1]
        for mode in self.modes:
            for frame in self.frames:
                for other in self.names[1:-1]:
                    yield f"{mode}, {frame}: {first} to {other} {self.ratio(first, other, frame, mode):.2f}"
                    yield f"{mode}, {frame}: {other} to {peer} {self.ratio(other, peer, frame, mode):.2f}"
                if mode != self.modes[0]:
                    yield f"{mode}, {frame}: {first} to {peer} {self.ratio(first, peer, frame, mode):.2f}"
        for frame in sorted(self.frames, key=lambda frame: frame != IMIX):  # the mix first, then by size
            yield f"ratio-{frame}: {self.ratio(first, peer, frame, self.modes[0]):.2f}"
        yield f"ratio: {self.ratio(first, peer, self.frames[0], self.modes[0]):.2f}"

    def shortfalls(self) -> Iterator[str]:
        """Where the first one misses a target (meant for the first kind of rings) or is behind another of ours."""
        first, peer = self.names[0], self.names[-1]
        for frame, target in TARGETS.items():
            if frame in self.frames and (got := self.ratio(first, peer, frame, self.modes[0])) < target:
                yield f"{frame}: {first} to {peer} {got:.2f}, the target is {target:.2f}"
        for mode, frame, other in itertools.product(self.modes, self.frames, self.names[1:-1]):
            if (got := self.ratio(first, other, frame, mode)) < 1:
                yield f"{mode}, {frame}: {first} to {other} {got:.2f}"


def compare(names: list[str], frames: list[str], modes: list[str], pairs: int, seconds: float) -> Comparison:
    """Run all contestants in turns, and show each figure."""
    comparison = Comparison(names, frames, modes, [])
    click.echo(f"{'frame':>6} {'pair':>4}  " + "  ".join(f"{name:>21}" for name in names) + "   (Mpps to VM / to VF)")
    for mode in modes:
        if modes != [DEFAULT_RINGS]:
            click.echo(f"rings: {mode}")
        for frame, pair in itertools.product(frames, range(pairs)):
            row = [measure(name, frame, seconds, mode) for name in names]
            comparison.figures.extend(row)
            cells = "  ".join(f"{f.to_vm_pps / 1e6:>9.2f} / {f.to_vf_pps / 1e6:>9.2f}" for f in row)
            click.echo(f"{frame:>6} {pair + 1:>4}  {cells}")
    return comparison


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pairs", default=5, show_default=True, help="Rounds in which every contestant runs once.")
@click.option("--seconds", default=4.0, show_default=True, help="Measured time of each run.")
@click.option("--frames", default="64,256,1518,imix", show_default=True, help="Frame sizes in bytes, FCS included.")
@click.option("--contestants", default="direct,library,testpmd", show_default=True, help="The first is compared.")
@click.option(
    "--rings",
    multiple=True,
    default=[DEFAULT_RINGS],
    show_default=True,
    help="Options of the front end (virtio-user), such as packed_vq=1; give it again for more kinds of rings.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures here.")
@click.option("--check", is_flag=True, help="Exit with 1 where the first contestant misses a target or is behind ours.")
def command(
    pairs: int,
    seconds: float,
    frames: str,
    contestants: str,
    rings: tuple[str, ...],
    json_path: Path | None,
    check: bool,
) -> None:
    """Compare relays with dpdk-testpmd. The last line is ``ratio: N.NN`` for the first frame size and kind of rings."""
    comparison = compare(contestants.split(","), frames.split(","), list(rings), pairs, seconds)
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(figure) for figure in comparison.figures], indent=1))
    shortfalls = list(comparison.shortfalls()) if check else []
    for line in shortfalls:
        click.echo(f"short: {line}")
    for line in comparison.lines():
        click.echo(line)
    if shortfalls:
        sys.exit(1)


def main() -> int:
    """Run the benchmark."""
    with no_autogroups():
        command()
    return 0
