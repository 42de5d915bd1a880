"""The port control service: adds and removes VFs, bonds and sockets as ZeroMQ clients ask."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vio4wd.devices import MAX_BOND_MEMBERS, Attachment, Bond, BondMode, Device, DeviceNameError, PciAddress
from vio4wd.errors import ForwarderError, RequestError
from vio4wd.portctl.proto import parse
from vio4wd.portctl.proto.virtioforwarder_pb2 import PortControlRequest, PortControlResponse
from vio4wd.relay.interface import RelayController

log = logging.getLogger(__name__)

ADD_SOCK_SOURCE = "virtio_add_sock_dev_pair()"
REMOVE_SOCK_SOURCE = "virtio_remove_sock_dev_pair()"
PATIENCE_S = 1.5
"""How long a request that does not say waits to begin. Known clients wait 2 s for the answer."""
MAX_PATIENCE_S = 60.0
MAX_PATIENT = 256
"""Requests that may wait longer than ``PATIENCE_S`` at a time, so that they leave the service room for others."""


class PortControlService:
    """Answers PortControlRequest: checks what can be checked without state and hands the rest to the controller."""

    def __init__(self, controller: RelayController) -> None:
        self._controller = controller
        self._patient = 0
        self._operations: dict[int, Callable[[PortControlRequest, float], Awaitable[str | None]]] = {
            PortControlRequest.ADD: self._add,
            PortControlRequest.REMOVE: self._remove,
            PortControlRequest.ADD_SOCK: self._add_sock,
            PortControlRequest.REMOVE_SOCK: self._remove_sock,
            PortControlRequest.QUERY_PCI: self._query_pci,
        }

    @property
    def refusal(self) -> bytes:
        """The answer to what is not a request: ERROR without a code."""
        return PortControlResponse(status=PortControlResponse.ERROR).SerializeToString()

    async def __call__(self, request: bytes) -> bytes:
        """Answer one serialized PortControlRequest.

        Raises:
            ProtocolError: the bytes are not one.
        """
        message = parse(PortControlRequest, request)
        response = PortControlResponse(status=PortControlResponse.OK)
        operation = PortControlRequest.Op.Name(message.op)
        try:
            with self._patience(message) as patience_s:
                answer = await self._operations[message.op](message, patience_s)
        except (ForwarderError, DeviceNameError) as error:
            log.warning("port control: %s failed: %s", operation, error)
            response.status = PortControlResponse.ERROR
            response.error_text = str(error)
            if isinstance(error, RequestError):
                if error.code is not None:
                    response.error_code = error.code
                if error.source is not None:
                    response.error_code_source = error.source
        else:
            log.info("port control: %s done", operation)
            if answer is not None:
                response.query_string = answer
        return response.SerializeToString()

    @contextmanager
    def _patience(self, request: PortControlRequest) -> Iterator[float]:
        """How long a request waits to begin, in seconds."""
        asked_s = min(request.patience_ms / 1000, MAX_PATIENCE_S) if request.HasField("patience_ms") else PATIENCE_S
        if asked_s <= PATIENCE_S or self._patient >= MAX_PATIENT:
            yield min(asked_s, PATIENCE_S)
            return
        self._patient += 1
        try:
            yield asked_s
        finally:
            self._patient -= 1

    async def _add(self, request: PortControlRequest, patience_s: float) -> None:
        device = _attachment(request)
        await self._controller.add_vf(_relay(request), device, conditional=request.conditional, patience_s=patience_s)

    async def _remove(self, request: PortControlRequest, patience_s: float) -> None:
        device = _named_device(request)
        relay = _relay(request)
        await self._controller.remove_vf(relay, device, conditional=request.conditional, patience_s=patience_s)

    async def _add_sock(self, request: PortControlRequest, patience_s: float) -> None:
        _ignore_relay(request)
        device = _attachment(request)
        path = _vhost_path(request)
        if path is None:
            raise RequestError("add_sock: no vhost-user socket path is given", code=-1, source=ADD_SOCK_SOURCE)
        await self._controller.add_socket(path, device, conditional=request.conditional, patience_s=patience_s)

    async def _remove_sock(self, request: PortControlRequest, patience_s: float) -> None:
        _ignore_relay(request)
        device = _named_device(request)
        path = _vhost_path(request)
        if path is None and device is None:
            raise RequestError(
                "remove_sock: neither a vhost-user socket path nor a device is given",
                code=-1,
                source=REMOVE_SOCK_SOURCE,
            )
        await self._controller.remove_socket(path, device, conditional=request.conditional, patience_s=patience_s)

    async def _query_pci(self, request: PortControlRequest, _patience_s: float) -> str:
        path = _vhost_path(request)
        if path is None:
            raise RequestError("query_pci: no vhost-user socket path is given")
        device = self._controller.query_device(path)
        return "" if device is None else str(device)


def _relay(request: PortControlRequest) -> int:
    if not request.HasField("virtio_id"):
        raise RequestError("add and remove: no virtio id (relay number) is given")
    return request.virtio_id


def _ignore_relay(request: PortControlRequest) -> None:
    if request.HasField("virtio_id"):
        log.warning("port control: virtio id %d is ignored: sockets take the lowest free relay", request.virtio_id)


def _vhost_path(request: PortControlRequest) -> Path | None:
    if "\0" in request.vhost_path:
        raise RequestError("the vhost-user socket path has a zero byte in it")
    return Path(request.vhost_path) if request.vhost_path else None


def _devices(request: PortControlRequest) -> tuple[Device, ...]:
    count = len(request.pci_addrs) + len(request.devargs)
    if count > MAX_BOND_MEMBERS:
        raise RequestError(f"{count} devices are given, there can be at most {MAX_BOND_MEMBERS}")
    if any(not devargs.isprintable() for devargs in request.devargs):
        raise RequestError("devargs have control characters in them")
    addresses = [
        PciAddress(address.domain, address.bus, address.slot, address.function) for address in request.pci_addrs
    ]
    return (
        *(Device(address.sysfs_name) for address in addresses),
        *(Device.parse(devargs) for devargs in request.devargs),
    )


def _attachment(request: PortControlRequest) -> Attachment:
    """The device or bond that an addition names."""
    devices = _devices(request)
    if not devices:
        raise RequestError("no device is given: a PCI address or devargs are needed")
    if len(devices) == 1:
        if request.name:
            raise RequestError(f"bond {request.name}: has one member, must have 2 to {MAX_BOND_MEMBERS}")
        return devices[0]
    if not request.name:
        raise RequestError(f"{len(devices)} devices are given without the name of a bond over them")
    if request.HasField("mode") and request.mode not in BondMode.__members__.values():
        raise RequestError(f"bond {request.name}: mode {request.mode} is not in 0..{max(BondMode)}")
    mode = BondMode(request.mode) if request.HasField("mode") else BondMode.ACTIVE_BACKUP
    return Bond(request.name, devices, mode)


def _named_device(request: PortControlRequest) -> Device | str | None:
    """The device or the bond's name that a removal gives, None for neither; beside a name devices do not count."""
    devices = _devices(request)
    if request.name:
        return request.name
    if len(devices) > 1:
        raise RequestError(f"{len(devices)} devices are given without the name of the bond over them")
    return devices[0] if devices else None
