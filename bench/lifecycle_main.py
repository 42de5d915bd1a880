"""The lifecycle benchmark; see ``bench/lifecycle``."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from harness.daemon import Daemon
from harness.process import wait_for
from harness.scheduling import no_autogroups
from harness.testpmd import Testpmd
from vio4wd.cli.client import ask
from vio4wd.cli.stats import fetch
from vio4wd.portctl.proto.virtioforwarder_pb2 import PortControlRequest, PortControlResponse

LIMITS_S = {
    "start to READY": 2.0,
    "worker's death to traffic": 1.0,
    "add a VF": 0.1,
    "remove a VF": 0.1,
    "stop under traffic": 2.0,
}
RELAY = 0
DEVARGS = "net_null0,size=60,copy=0"


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def change(daemon: Daemon, operation: int) -> None:
    """Add or remove the VF, without the cost of starting a tool."""
    request = PortControlRequest(op=operation, virtio_id=RELAY, devargs=[DEVARGS])
    response = ask(daemon.endpoint("port_control"), request, PortControlResponse, timeout_s=5)
    assert response.status == PortControlResponse.OK, response


def forwarded(daemon: Daemon) -> int:
    """Packets that the relay has sent to the VF."""
    response = fetch(daemon.endpoint("stats"), include_inactive=True, delay_ms=0, keys=None)
    return int(next(relay for relay in response.relay if relay.id == RELAY).vm_to_vf.pkts_tx_to_vf)


def recovery(daemon: Daemon) -> float:
    """Kill the worker that carries the traffic; seconds until packets flow again."""
    daemon.settled_workers()
    time.sleep(0.5)
    before = forwarded(daemon)
    time.sleep(0.2)
    assert forwarded(daemon) > before, "there is no traffic"
    worker: psutil.Process = daemon.workers()[0]
    worker.kill()
    worker.wait(5)
    begun, last = time.perf_counter(), forwarded(daemon)
    wait_for(lambda: forwarded(daemon) > last + 1000, 20, "traffic")
    return time.perf_counter() - begun


def one_round(figures: dict[str, list[float]]) -> None:
    """Start, change, kill and stop one daemon."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        begun = time.perf_counter()
        daemon = Daemon(directory)
        figures["start to READY"].append(time.perf_counter() - begun)
        front = None
        try:
            for _ in range(5):
                figures["add a VF"].append(timed(lambda: change(daemon, PortControlRequest.ADD)))
                figures["remove a VF"].append(timed(lambda: change(daemon, PortControlRequest.REMOVE)))
            change(daemon, PortControlRequest.ADD)
            front = Testpmd(daemon.socket(RELAY), directory)
            front.command("start", "io packet forwarding")
            daemon.wait_active(RELAY)
            figures["worker's death to traffic"].append(recovery(daemon))
            figures["stop under traffic"].append(timed(daemon.stop))
        finally:
            daemon.stop()
            if front is not None:
                front.stop()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=5, show_default=True, help="Daemons to start.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures here.")
def command(rounds: int, json_path: Path | None) -> None:
    """Measure starts, deaths and changes. The last line is ``ratio: N.NN``, limit to median, of the worst.

    The exit status is 1 for a ratio below 1.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:  # compiles the loop if it is not in the cache
        Daemon(Path(name)).stop()
    figures: dict[str, list[float]] = {name: [] for name in LIMITS_S}
    for _ in range(rounds):
        one_round(figures)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=1))
    ratios = []
    for name, limit in LIMITS_S.items():
        median = statistics.median(figures[name])
        ratios.append(limit / median)
        worst = max(figures[name])
        click.echo(
            f"{name:<28} median {median * 1e3:8.1f} ms  worst {worst * 1e3:8.1f} ms  limit {limit * 1e3:6.0f} ms"
        )
    click.echo(f"ratio: {min(ratios):.2f}")
    sys.exit(min(ratios) < 1)


def main() -> int:
    """Run the benchmark."""
    with no_autogroups():
        command()
    return 0
