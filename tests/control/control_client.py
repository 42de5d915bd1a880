"""A client of a daemon's services that keeps its connection, as programs do that ask often."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import zmq

from portctl import portctl_wire as wire
from vio4wd.portctl.proto.virtioforwarder_pb2 import StatsRequest, StatsResponse

Relay = StatsResponse.RelayState


@dataclass(frozen=True)
class Answer:
    """A PortControlResponse; ``code`` and ``source`` as clients print them."""

    ok: bool
    code: int | None
    source: str | None
    text: str

    @property
    def error(self) -> tuple[int | None, str | None]:
        """Code and source of an error; AssertionError for a success."""
        assert not self.ok
        return self.code, self.source


OK = Answer(ok=True, code=None, source=None, text="")


class Serving(Protocol):
    """A daemon, by the endpoints of its services."""

    def endpoint(self, name: str, /) -> str: ...


class Client:
    """Asks one daemon; a request that is not answered within ``patience`` seconds is an error."""

    def __init__(
        self, daemon: Serving, patience: float = 15, services: tuple[str, ...] = ("port_control", "stats")
    ) -> None:
        self._context = zmq.Context()
        self._sockets = {name: self._connect(daemon.endpoint(name), patience) for name in services}

    def _connect(self, endpoint: str, patience: float) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.REQ_RELAXED, 1)
        socket.setsockopt(zmq.REQ_CORRELATE, 1)
        socket.setsockopt(zmq.RCVTIMEO, round(patience * 1000))
        socket.connect(endpoint)
        return socket

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _ask(self, service: str, request: bytes) -> bytes:
        self._sockets[service].send(request)
        return self._sockets[service].recv()

    def control(self, op: int, *devargs: str, path: Path | str | None = None, **fields: object) -> Answer:
        """Send a PortControlRequest; ``conditional`` is off unless given."""
        fields = {"conditional": False, "path": None if path is None else str(path)} | fields
        request = wire.request(op, devargs=devargs, **fields)  # type: ignore[arg-type]
        answer = wire.decode(self._ask("port_control", request))
        code = answer.get(5, [None])[0]
        if isinstance(code, int) and code >= 1 << 63:
            code -= 1 << 64
        source, text = (answer.get(field, [b""])[0] for field in (6, 7))
        assert not isinstance(code, bytes) and isinstance(source, bytes) and isinstance(text, bytes)
        return Answer(wire.only(answer, 4) == wire.OK, code, source.decode() or None, text.decode())

    def add(self, relay: int, *devargs: str, **fields: object) -> Answer:
        return self.control(wire.ADD, *devargs, virtio_id=relay, **fields)

    def remove(self, relay: int, *devargs: str, **fields: object) -> Answer:
        return self.control(wire.REMOVE, *devargs, virtio_id=relay, **fields)

    def add_sock(self, path: Path | str, *devargs: str, **fields: object) -> Answer:
        return self.control(wire.ADD_SOCK, *devargs, path=path, **fields)

    def remove_sock(self, path: Path | str | None, *devargs: str, **fields: object) -> Answer:
        return self.control(wire.REMOVE_SOCK, *devargs, path=path, **fields)

    def query(self, path: Path | str) -> Answer:
        return self.control(wire.QUERY_PCI, path=path)

    def stats(self) -> dict[int, Relay]:
        """All relays by number."""
        request = StatsRequest(include_inactive=True).SerializeToString()
        return {relay.id: relay for relay in StatsResponse.FromString(self._ask("stats", request)).relay}

    def relay(self, number: int) -> Relay:
        return self.stats()[number]

    def devices(self) -> dict[int, str]:
        """The device of every relay that has one."""
        return {number: relay.vf.pci_addr_str for number, relay in self.stats().items() if relay.HasField("vf")}

    def sockets(self) -> dict[int, str]:
        """The socket of every relay that has one."""
        names = {number: relay.vhost.vhost_socket_name for number, relay in self.stats().items()}
        return {number: name for number, name in names.items() if name != "NONE"}
