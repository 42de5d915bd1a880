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
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from bench.machine import Conditions, Probe, best_of, cpu_model
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
ALL_RINGS = (
    DEFAULT_RINGS,
    "mrg_rxbuf=0",
    "in_order=1",
    "packed_vq=1",
    "packed_vq=1,mrg_rxbuf=0",
    "packed_vq=1,in_order=1",
)
"""What ``--rings all`` stands for: split and packed, with and without mergeable buffers, in order."""

FRONT_CPU, FORWARDER_CPU = 0, 1
RELAY = 0

SAMPLE_SECONDS = 0.2
MIN_SAMPLES = 3
"""Samples under like conditions that each contestant of a pair must have."""

MAX_TRIES = 3
"""Times that a pair is run until its contestants have had like conditions."""


Likeness = tuple[bool, bool]
"""Whether the CPUs were near, and all ours: see ``Conditions.alike``."""

LIKENESSES: dict[Likeness | None, str] = {
    (True, True): "calm",
    (True, False): "cores shared",
    (False, True): "cores far apart",
    (False, False): "far apart, shared",
    None: "not alike",
}


@dataclass(frozen=True)
class Sample:
    """A fraction of a second of one run: packets per second, each way, and what the CPUs were worth around it."""

    to_vm_pps: float
    to_vf_pps: float
    before: Conditions
    after: Conditions


@dataclass(frozen=True)
class Figure:
    """One run of one contestant with one kind of rings."""

    contestant: str
    frame: str
    rings: str
    samples: tuple[Sample, ...]

    def under(self, conditions: Likeness | None, best: Conditions) -> list[Sample]:
        """The samples that were taken under these conditions, before and after; None: all of them."""
        return [s for s in self.samples if conditions in (None, likeness(s, best))]


def likeness(sample: Sample, best: Conditions) -> Likeness | None:
    """The conditions of a sample beside the best; None if they changed meanwhile."""
    before, after = sample.before.alike(best), sample.after.alike(best)
    return before if before == after else None


def rates(samples: list[Sample]) -> tuple[float, float]:
    """Medians: packets per second to the VM and to the VF."""
    return statistics.median(s.to_vm_pps for s in samples), statistics.median(s.to_vf_pps for s in samples)


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


def take_samples(front: Testpmd, probe: Probe, seconds: float) -> Iterator[Sample]:
    """Read the front end's counters again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = probe.look()
        first, begun = front.counters(), time.monotonic()
        time.sleep(SAMPLE_SECONDS)
        second, elapsed = front.counters(), time.monotonic() - begun
        received, sent = (second[f"{way}-packets"] - first[f"{way}-packets"] for way in ("RX", "TX"))
        yield Sample(received / elapsed, sent / elapsed, before, probe.look())


def measure(contestant: str, frame: str, rings: str, seconds: float, probe: Probe) -> Figure:
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
                return Figure(contestant, frame, rings, tuple(take_samples(front, probe, seconds)))
            finally:
                front.stop()


@dataclass(frozen=True)
class Pair:
    """One run of each contestant, one after the other."""

    figures: tuple[Figure, ...]

    def conditions(self, best: Conditions) -> Likeness | None:
        """Under which all contestants have enough samples: calm if possible, else the most frequent; None: none."""
        fewest = {
            alike: min(len(figure.under(alike, best)) for figure in self.figures) for alike in LIKENESSES if alike
        }
        enough = {alike: count for alike, count in fewest.items() if count >= MIN_SAMPLES}
        return (True, True) if (True, True) in enough else max(enough, key=enough.__getitem__, default=None)

    def rates(self, best: Conditions) -> dict[str, tuple[float, float]]:
        """Contestant -> packets per second to the VM and to the VF, of comparable samples, or of all if none are."""
        alike = self.conditions(best)
        return {figure.contestant: rates(figure.under(alike, best)) for figure in self.figures}


@dataclass(frozen=True)
class Comparison:
    """All pairs of a run. The first of ``names`` is what is compared, the last the peer, others are ours, too."""

    names: list[str]
    frames: list[str]
    modes: list[str]
    pairs: list[Pair]

    def best(self) -> Conditions:
        """The best conditions of the whole run."""
        samples = [s for pair in self.pairs for figure in pair.figures for s in figure.samples]
        return best_of([c for s in samples for c in (s.before, s.after)])

    def of(self, frame: str, mode: str) -> list[Pair]:
        """All pairs with this frame size and this kind of rings."""
        return [p for p in self.pairs if (p.figures[0].frame, p.figures[0].rings) == (frame, mode)]

    def ratio(self, ours: str, peer: str, frame: str, mode: str) -> float:
        """Median over the pairs of our rate by the peer's. Without any under like conditions, all pairs count."""
        best, pairs = self.best(), self.of(frame, mode)
        alike = [pair for pair in pairs if pair.conditions(best)] or pairs
        return statistics.median(sum(r[ours]) / sum(r[peer]) for r in (pair.rates(best) for pair in alike))

    def incomparable(self) -> Iterator[str]:
        """What has no pair under like conditions: its ratios say more about the machine than about the contestants."""
        best = self.best()
        for mode, frame in itertools.product(self.modes, self.frames):
            if not any(pair.conditions(best) for pair in self.of(frame, mode)):
                yield f"{mode}, {frame}: no pair had like conditions, so its ratios are worth nothing; run more pairs"

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
    """Run all contestants in turns, and show each figure.

    A pair whose contestants had no conditions in common is run again.
    """
    comparison = Comparison(names, frames, modes, [])
    click.echo(f"CPU: {cpu_model()}")
    click.echo(f"{'frame':>6} {'pair':>4}  " + "  ".join(f"{name:>15}" for name in names) + "   (Mpps to VM / to VF)")
    with closing(Probe(FRONT_CPU, FORWARDER_CPU)) as probe:
        for mode in modes:
            if modes != [DEFAULT_RINGS]:
                click.echo(f"rings: {mode}")
            for frame, number in itertools.product(frames, range(1, pairs + 1)):
                for _ in range(MAX_TRIES):
                    pair = Pair(tuple(measure(name, frame, mode, seconds, probe) for name in names))
                    comparison.pairs.append(pair)
                    show(pair, number, comparison.best())
                    if pair.conditions(comparison.best()):
                        break
    return comparison


def show(pair: Pair, number: int, best: Conditions) -> None:
    """Print a pair as a row."""
    figures = pair.rates(best).values()
    cells = "  ".join(f"{to_vm / 1e6:>6.2f} / {to_vf / 1e6:>6.2f}" for to_vm, to_vf in figures)
    click.echo(f"{pair.figures[0].frame:>6} {number:>4}  {cells}   {LIKENESSES[pair.conditions(best)]}")


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
    help="Options of the front end (virtio-user), such as packed_vq=1; give it again for more kinds, or all.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures here.")
@click.option(
    "--check", is_flag=True, help="Exit with 1 where the first misses a target, is behind ours, or was not comparable."
)
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
    modes = list(dict.fromkeys(kind for given in rings for kind in (ALL_RINGS if given == "all" else (given,))))
    comparison = compare(contestants.split(","), frames.split(","), modes, pairs, seconds)
    if json_path is not None:
        json_path.write_text(
            json.dumps([asdict(figure) for pair in comparison.pairs for figure in pair.figures], indent=1)
        )
    incomparable = list(comparison.incomparable())
    shortfalls = list(comparison.shortfalls()) if check else []
    for line in incomparable:
        click.echo(f"unlike: {line}")
    for line in shortfalls:
        click.echo(f"short: {line}")
    for line in comparison.lines():
        click.echo(line)
    if check and (shortfalls or incomparable):
        sys.exit(1)


def main() -> int:
    """Run the benchmark."""
    with no_autogroups():
        command()
    return 0
