"""virtioforwarder_port_control.py: add and remove VFs, bonds and vhost-user sockets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from vio4wd.cli import tool
from vio4wd.cli.client import REPLY_TIMEOUT_S, ClientKeys, ask, connect, exchange, sockets
from vio4wd.devices import PciAddress
from vio4wd.portctl.endpoint import PORT_CONTROL_EP
from vio4wd.portctl.proto import parse
from vio4wd.portctl.proto.virtioforwarder_pb2 import PciAddress as PciMessage
from vio4wd.portctl.proto.virtioforwarder_pb2 import PortControlRequest, PortControlResponse

OPERATIONS = [name.lower() for name in PortControlRequest.Op.keys()]  # noqa: SIM118 -- not a dict
CHANGE_TIMEOUT_S = 4.0
"""Callers want an end within 5 s, the start of Python included."""
PATIENCE_MS = 2600
"""How long a change may wait to begin. The rest is for the change itself: a PCI device takes a second and more."""
GARBAGE = b"\xff" * 32


@click.command(context_settings=tool.CONTEXT)
@click.argument("operation", metavar="OP", type=click.Choice(OPERATIONS))
@click.option("--virtio-id", type=click.IntRange(0, 2**32 - 1), metavar="N", help="Relay number (add, remove).")
@click.option(
    "--pci-addr", "pci_addrs", multiple=True, metavar="ADDRESS", help="VF, as 0000:05:08.1 or 05:08.1; repeat."
)
@click.option(
    "--devargs", multiple=True, metavar="DEVARGS", help="Device as DPDK devargs; repeat, or mix with --pci-addr."
)
@click.option("--vhost-path", metavar="PATH", help="vhost-user socket (add_sock, remove_sock, query_pci).")
@click.option("--name", metavar="BOND", help="Bond over 2 to 8 devices: net_bonding and more.")
@click.option("--mode", type=click.IntRange(0, 6), default=1, show_default=True, help="Mode of the bond.")
@click.option("--zmq_ep", default=PORT_CONTROL_EP, show_default=True, metavar="ENDPOINT", help="Port control service.")
@click.option("--conditional", is_flag=True, help="It is no error if nothing had to change.")
@click.option("--crash-after-send", is_flag=True, hidden=True)
@click.option("--send-garbage", is_flag=True, hidden=True)
@tool.curve_options
def command(
    operation: str,
    virtio_id: int | None,
    pci_addrs: Sequence[str],
    devargs: Sequence[str],
    vhost_path: str | None,
    name: str | None,
    mode: int,
    zmq_ep: str,
    conditional: bool,
    crash_after_send: bool,
    send_garbage: bool,
    curve_server_key: Path | None,
    curve_client_key: Path | None,
) -> int:
    """Change the ports of a running virtio-forwarder.

    OP is add, remove, add_sock, remove_sock or query_pci. The exit status is 0 if it was done, 1 if it failed, 2 if the
    command line is wrong.
    """
    keys = tool.curve_keys(curve_server_key, curve_client_key)
    question = operation == "query_pci"
    request = PortControlRequest(
        op=operation.upper(),
        pci_addrs=[_pci_message(address) for address in pci_addrs],
        devargs=devargs,
        virtio_id=virtio_id,
        conditional=conditional,
        name=name,
        mode=mode if name else None,
        vhost_path=vhost_path,
        patience_ms=None if question else PATIENCE_MS,
    )
    if crash_after_send:
        _send_and_crash(zmq_ep, request.SerializeToString(), keys)
    if send_garbage:
        frames = exchange(zmq_ep, GARBAGE, timeout_s=REPLY_TIMEOUT_S, keys=keys)
        return _report(parse(PortControlResponse, frames[0]))
    timeout_s = REPLY_TIMEOUT_S if question else CHANGE_TIMEOUT_S
    return _report(ask(zmq_ep, request, PortControlResponse, timeout_s=timeout_s, keys=keys))


def main() -> int:
    """Run the tool; answers its exit status."""
    return tool.run(command)


def _pci_message(text: str) -> PciMessage:
    address = PciAddress.parse(text)
    return PciMessage(domain=address.domain, bus=address.bus, slot=address.slot, function=address.function)


def _report(response: PortControlResponse) -> int:
    if response.status == PortControlResponse.OK:
        if response.query_string:
            click.echo(response.query_string)
        return tool.EXIT_OK
    details = [response.error_text or "the request was refused"]
    if response.HasField("error_code_source") or response.HasField("error_code"):
        details.append(f"(error {response.error_code} from {response.error_code_source})")
    click.echo("virtio-forwarder: " + " ".join(details), err=True)
    return tool.EXIT_FAILED


def _send_and_crash(endpoint: str, request: bytes, keys: ClientKeys | None) -> None:
    """A client that dies before it hears the answer."""
    with sockets() as context:
        socket = connect(context, endpoint, REPLY_TIMEOUT_S, keys)
        socket.send(request)
        socket.close(linger=round(REPLY_TIMEOUT_S * 1000))
        context.term()
        os._exit(tool.EXIT_FAILED)
