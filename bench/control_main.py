"""The port control benchmark; see ``bench/control``."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from control.control_client import Answer, Client
from harness.daemon import Daemon
from harness.scheduling import no_autogroups

RELAYS = 64
LIMIT_S = 10.0
"""Most seconds for adding and removing all."""


def timed(request: Callable[[], Answer]) -> float:
    """Seconds that a request takes, which must succeed."""
    begun = time.monotonic()
    answer = request()
    if not answer.ok:
        raise click.ClickException(f"the daemon refused: error {answer.code} from {answer.source}")
    return time.monotonic() - begun


def report(what: str, seconds: list[float]) -> None:
    ms = sorted(1000 * value for value in seconds)
    click.echo(
        f"{what:>10}: {sum(seconds):6.2f} s for {len(ms)},"
        f" each {statistics.median(ms):6.1f} ms (median), {ms[-1]:6.1f} ms (slowest)"
    )


def measure(device: str) -> tuple[list[float], list[float]]:
    """Add a VF to every relay of a fresh daemon, then remove all; seconds of each request."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        daemon = Daemon(Path(name))
        try:
            daemon.settled_workers()  # half of the VFs go to a second worker process
            client = Client(daemon)
            added = [timed(lambda r=r: client.add(r, device.format(r))) for r in range(RELAYS)]
            removed = [timed(lambda r=r: client.remove(r, device.format(r))) for r in range(RELAYS)]
            client.close()
        finally:
            daemon.stop()
    return added, removed


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=3, show_default=True, help="Fresh daemons to measure.")
@click.option("--device", default="net_null{}", show_default=True, help="Devargs, with {} for the relay's number.")
def command(rounds: int, device: str) -> None:
    """Add and remove a VF on all relays. The last line is ``ratio: N.NN``, the limit by the median round's time.

    The exit status is 1 for a ratio below 1.
    """
    totals = []
    for _ in range(rounds):
        added, removed = measure(device)
        report("add", added)
        report("remove", removed)
        totals.append(sum(added) + sum(removed))
    click.echo(f"all: {statistics.median(totals):.2f} s in the median round, limit {LIMIT_S:.0f} s")
    ratio = LIMIT_S / statistics.median(totals)
    click.echo(f"ratio: {ratio:.2f}")
    sys.exit(ratio < 1)


def main() -> int:
    """Run the benchmark."""
    with no_autogroups():
        command()
    return 0
