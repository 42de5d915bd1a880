"""The error codes and sources that port control clients know, and how failures map to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from vio4wd.devices import Attachment, Bond
from vio4wd.errors import ForwarderError, RequestError, WorkerError
from vio4wd.relay.interface import RELAYS
from vio4wd.relay.worker_process import CommandError

ADD_VF = "virtio_forwarder_add_vf2()"
ADD_BOND = "virtio_forwarder_bond_add()"
REMOVE_VF = "virtio_forwarder_remove_vf2()"
ADD_SOCKET = "virtio_add_sock_dev_pair()"
REMOVE_SOCKET = "virtio_remove_sock_dev_pair()"
QUERY = "virtio_query_pci()"
SET_CPUS = "virtio_set_relay_cpus()"

BAD_RELAY = 1
RELAY_BUSY = 8
MEMBER_IN_USE = 3
PROBE_FAILED = 2
SOCKET_FAILED = 5

_VF_STAGES = {"probe": 2, "configure": 4, "start": 4, "rx_queue": 5, "tx_queue": 6, "busy": 8, "memory": -1}
_BOND_STAGES = _VF_STAGES | {
    "bond_create": 2, "memory": 4, "rx_queue": 4, "tx_queue": 4, "bond_member": 5, "start": 6, "no_bonding": -1
}  # fmt: skip
_NO_CODE = 2


def add_source(device: Attachment) -> str:
    """The source that errors of adding this device have."""
    return ADD_BOND if isinstance(device, Bond) else ADD_VF


def add_error(device: Attachment, error: WorkerError) -> RequestError:
    """The answer to a request to add ``device`` that a worker could not carry out."""
    stages = _BOND_STAGES if isinstance(device, Bond) else _VF_STAGES
    kind = error.kind if isinstance(error, CommandError) else ""
    return RequestError(str(error), code=stages.get(kind, _NO_CODE), source=add_source(device))


def remove_error(error: WorkerError) -> RequestError:
    """The answer to a request to remove a VF that a worker could not carry out."""
    code = 2 if isinstance(error, CommandError) else 5
    return RequestError(str(error), code=code, source=REMOVE_VF)


def add_socket_error(device: Attachment, error: ForwarderError) -> RequestError:
    """The answer to a request to add a socket whose device could not be added."""
    return RequestError(str(error), code=4 if isinstance(device, Bond) else 3, source=ADD_SOCKET)


def remove_socket_error(error: WorkerError) -> RequestError:
    """The answer to a request to remove a socket whose device could not be removed."""
    return RequestError(str(error), code=4, source=REMOVE_SOCKET)


@asynccontextmanager
async def answered(answer: Callable[[WorkerError], RequestError]) -> AsyncIterator[None]:
    """Have what a worker could not do, or not in time, answered as one of the above says."""
    try:
        yield
    except WorkerError as error:
        raise answer(error) from error


def check_relay(relay: int, source: str) -> None:
    """Refuse relay numbers that do not exist.

    Raises:
        RequestError: code 1 of ``source``.
    """
    if not 0 <= relay < RELAYS:
        raise RequestError(
            f"relay {relay} does not exist: the relays are 0..{RELAYS - 1}", code=BAD_RELAY, source=source
        )
