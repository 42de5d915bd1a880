"""virtioforwarder_stats.py: show states, counters and rates of the relays."""

from __future__ import annotations

from pathlib import Path

import click

from vio4wd.cli import tool
from vio4wd.cli.client import REPLY_TIMEOUT_S, ClientKeys, NoAnswerError, ask
from vio4wd.portctl.proto.virtioforwarder_pb2 import StatsRequest, StatsResponse
from vio4wd.stats.rates import MAX_DELAY_MS
from vio4wd.stats.view import flat_lines, protobuf_text


@click.command(context_settings=tool.CONTEXT)
@tool.endpoint_options("stats")
@click.option("--include-inactive", is_flag=True, help="Show relays without a VF or a VM too.")
@click.option(
    "--delay",
    type=click.IntRange(0, MAX_DELAY_MS),
    default=200,
    show_default=True,
    metavar="MS",
    help="Measure rates over MS.",
)
@click.option("--output-format", type=click.Choice(["flat", "protobuf"]), default="flat", show_default=True)
@click.option("-z", "--suppress-zero", is_flag=True, help="Leave out counters and rates that are 0 (flat format).")
@tool.curve_options
def command(
    stats_ep: str,
    include_inactive: bool,
    delay: int,
    output_format: str,
    suppress_zero: bool,
    curve_server_key: Path | None,
    curve_client_key: Path | None,
) -> None:
    """Show statistics of a running virtio-forwarder."""
    keys = tool.curve_keys(curve_server_key, curve_client_key)
    response = fetch(stats_ep, include_inactive=include_inactive, delay_ms=delay, keys=keys)
    if output_format == "protobuf":
        click.echo(protobuf_text(response), nl=False)
    else:
        for line in flat_lines(response, suppress_zero=suppress_zero):
            click.echo(line)


def fetch(
    endpoint: str,
    *,
    include_inactive: bool,
    delay_ms: int,
    keys: ClientKeys | None = None,
    stop_fd: int | None = None,
) -> StatsResponse:
    """Ask the stats service for all relays, rates measured over ``delay_ms``.

    Raises:
        NoAnswerError: no answer within 2 s beyond the delay, or an answer that is not OK.
        StoppedError: ``stop_fd`` became readable meanwhile.
        ProtocolError: the answer is not a StatsResponse.
    """
    request = StatsRequest(include_inactive=include_inactive, delay=delay_ms)
    timeout_s = REPLY_TIMEOUT_S + delay_ms / 1000
    response = ask(endpoint, request, StatsResponse, timeout_s=timeout_s, keys=keys, stop_fd=stop_fd)
    if response.status != StatsResponse.OK:
        raise NoAnswerError(f"{endpoint}: refused with {StatsResponse.Status.Name(response.status)}")
    return response


def main() -> int:
    """Run the tool; answers its exit status."""
    return tool.run(command)
