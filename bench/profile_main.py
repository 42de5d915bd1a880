"""The cycle profile; see ``bench/profile``."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from bench.throughput_main import FORWARDER_CPU, FRONT_CPU, relay, source_devargs
from harness.testpmd import Testpmd

LOOP_LIMIT_PERCENT = 3.0
"""What the loop may cost beside DPDK's libraries, with the library engine."""

_COMPILED = re.compile(r"\[JIT\]|anon|memfd|perf-\d+\.map|\[unknown\]")
_ROW = re.compile(r"^\s*(\d+\.\d+)%\s+(\S.*?)\s*$", re.MULTILINE)


def shares(seconds: float, directory: Path) -> dict[str, float]:
    """Percent of the forwarder CPU's cycles per shared object."""
    data = directory / "perf.data"
    record = ["perf", "record", "-q", "-C", str(FORWARDER_CPU), "-o", str(data), "--", "sleep", str(seconds)]
    subprocess.run(record, check=True, capture_output=True, timeout=seconds + 60)
    report = subprocess.run(
        ["perf", "report", "-i", str(data), "--stdio", "--sort", "dso", "--quiet"],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return {name: float(percent) for percent, name in _ROW.findall(report.stdout)}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engine", default="library", show_default=True, type=click.Choice(["library", "direct"]))
@click.option("--frame", default="64", show_default=True, help="Frame size in bytes, FCS included.")
@click.option("--seconds", default=3.0, show_default=True)
def command(engine: str, frame: str, seconds: float) -> None:
    """Profile a relay under full load. The last line is ``ratio: N.NN``, the loop's limit by its share."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        with relay(engine, source_devargs(frame, directory), directory) as sock:
            front = Testpmd(sock, directory, cpu=FRONT_CPU)
            try:
                front.command("start", "io packet forwarding")
                rows = shares(seconds, directory)
            finally:
                front.stop()
    compiled = sum(percent for name, percent in rows.items() if _COMPILED.search(name))
    for name, percent in rows.items():
        click.echo(f"{percent:6.2f} %  {name}")
    click.echo(f"{compiled:6.2f} %  compiled Python in all (limit with the library engine: {LOOP_LIMIT_PERCENT} %)")
    click.echo(f"ratio: {LOOP_LIMIT_PERCENT / max(compiled, 0.01):.2f}")


def main() -> int:
    """Run the profile."""
    command()
    return 0
