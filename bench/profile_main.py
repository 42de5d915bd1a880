"""The cycle profile; see ``bench/profile``."""

from __future__ import annotations

import collections
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from bench.compiled_code import functions, save_objects
from bench.throughput_main import FORWARDER_CPU, FRONT_CPU, relay, source_devargs
from harness.scheduling import no_autogroups
from harness.testpmd import Testpmd

LOOP_LIMIT_PERCENT = 3.0
"""What the loop may cost beside DPDK's libraries, with the library engine."""

SHOWN_PERCENT = 0.1
SETTLING_S = 1.0

_COMPILED = re.compile(r"\[JIT\]|anon|memfd|perf-\d+\.map|\[unknown\]")
_SAMPLE = re.compile(r"^\s*([0-9a-f]+) \((.*)\)$", re.MULTILINE)

Samples = collections.Counter[tuple[str, int]]
"""Samples of the forwarder CPU by shared object and address."""


def sample(seconds: float, directory: Path) -> Samples:
    """Where the forwarder CPU is, some thousand times a second."""
    data = directory / "perf.data"
    record = ["perf", "record", "-q", "-C", str(FORWARDER_CPU), "-o", str(data), "--", "sleep", str(seconds)]
    subprocess.run(record, check=True, capture_output=True, timeout=seconds + 60)
    script = ["perf", "script", "-i", str(data), "-F", "ip,dso"]
    done = subprocess.run(script, check=True, capture_output=True, text=True, timeout=120)
    return collections.Counter((Path(dso).name, int(ip, 16)) for ip, dso in _SAMPLE.findall(done.stdout))


def compiled_worker() -> int:
    """The process on the forwarder CPU whose code was sampled: the first worker that was started."""
    found = subprocess.run(["pgrep", "-o", "-f", "vio4wd.relay.worker"], check=True, capture_output=True, text=True)
    return int(found.stdout)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engine", default="library", show_default=True, type=click.Choice(["library", "direct"]))
@click.option("--frame", default="64", show_default=True, help="Frame size in bytes, FCS included.")
@click.option("--seconds", default=3.0, show_default=True)
@click.option(
    "--functions", "by_function", is_flag=True, help="Also show where in the compiled Python (compiles anew)."
)
def command(engine: str, frame: str, seconds: float, by_function: bool) -> None:
    """Profile a relay under full load.

    With the library engine the last line is ``ratio: N.NN``, the limit of compiled Python's share by the share.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        if by_function:
            os.environ |= {"NUMBA_DEBUGINFO": "1", "CACHE_DIRECTORY": name}
        with relay(engine, source_devargs(frame, directory), directory) as sock:
            front = Testpmd(sock, directory, cpu=FRONT_CPU)
            try:
                front.command("start", "io packet forwarding")
                time.sleep(SETTLING_S)
                samples = sample(seconds, directory)
                objects = save_objects(compiled_worker(), directory) if by_function else []
            finally:
                front.stop()
        compiled = {address: count for (dso, address), count in samples.items() if _COMPILED.search(dso)}
        rows = functions(objects, compiled)
    total = samples.total()
    print_shares(objects_of(samples), total)
    if by_function:
        click.echo("of which compiled Python:")
        print_shares(rows, total)
    share = 100 * sum(compiled.values()) / total
    click.echo(f"{share:6.2f} %  compiled Python in all")
    if engine == "library":
        click.echo(f"limit: {LOOP_LIMIT_PERCENT} %")
        click.echo(f"ratio: {LOOP_LIMIT_PERCENT / max(share, 0.01):.2f}")


def objects_of(samples: Samples) -> collections.Counter[str]:
    """Samples by shared object."""
    found: collections.Counter[str] = collections.Counter()
    for (dso, _address), count in samples.items():
        found[dso] += count
    return found


def print_shares(rows: collections.Counter[str], total: int) -> None:
    """A line for each row that has a share worth showing."""
    for name, count in rows.most_common():
        if 100 * count / total >= SHOWN_PERCENT:
            click.echo(f"{100 * count / total:6.2f} %  {name}")


def main() -> int:
    """Run the profile."""
    with no_autogroups():
        command()
    return 0
