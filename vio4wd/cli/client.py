"""One question to a ZeroMQ service of the daemon, answered within a bounded time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import zmq
from google.protobuf.message import Message

from vio4wd.errors import ForwarderError
from vio4wd.portctl.keys import load_key_pair, load_public_key
from vio4wd.portctl.proto import parse

REPLY_TIMEOUT_S = 2.0

M = TypeVar("M", bound=Message)


class NoAnswerError(ForwarderError):
    """The daemon did not answer, or not with what the service answers."""


class StoppedError(ForwarderError):
    """The wait for an answer was ended by the caller's own descriptor."""


@dataclass(frozen=True)
class ClientKeys:
    """CURVE certificates for a ``tcp://`` endpoint: the server's public one and our secret one."""

    server: Path
    client: Path


def ask(
    endpoint: str,
    request: Message,
    response_type: type[M],
    *,
    timeout_s: float = REPLY_TIMEOUT_S,
    keys: ClientKeys | None = None,
    stop_fd: int | None = None,
) -> M:
    """Send a request and read its response.

    Raises:
        NoAnswerError: no answer within ``timeout_s``, an endpoint that cannot be used, or an answer that is none.
        StoppedError: ``stop_fd`` became readable meanwhile.
        ProtocolError: the answer is not a ``response_type``.
        ConfigError: ``keys`` cannot be used.
    """
    frames = exchange(endpoint, request.SerializeToString(), timeout_s=timeout_s, keys=keys, stop_fd=stop_fd)
    if len(frames) != 1:
        raise NoAnswerError(
            f"{endpoint}: answered {len(frames)} frames, must be 1: is this virtio-forwarder's endpoint?"
        )
    return parse(response_type, frames[0])


def exchange(
    endpoint: str, request: bytes, *, timeout_s: float, keys: ClientKeys | None = None, stop_fd: int | None = None
) -> list[bytes]:
    """Send one frame and receive the frames of the reply. Raises NoAnswerError, StoppedError or ConfigError."""
    with sockets() as context:
        socket = connect(context, endpoint, timeout_s, keys)
        try:
            socket.send(request)
            if stop_fd is not None:
                _wait(socket, stop_fd, timeout_s)
            return socket.recv_multipart()
        except zmq.Again:
            raise NoAnswerError(
                f"{endpoint}: no answer within {timeout_s:g} s: is virtio-forwarder running with this endpoint?"
            ) from None


def _wait(socket: zmq.Socket[bytes], stop_fd: int, timeout_s: float) -> None:
    """Wait for a message. Raises StoppedError, or zmq.Again when the time is over."""
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(stop_fd, zmq.POLLIN)
    ready = dict(poller.poll(round(timeout_s * 1000)))
    if stop_fd in ready:
        raise StoppedError("stopped while waiting for an answer")
    if not ready:
        raise zmq.Again


@contextmanager
def sockets() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context that ends without waiting, whatever was left open in it by an error or an interrupt."""
    context = zmq.Context()
    try:
        yield context
    finally:
        context.destroy(linger=0)


def connect(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, timeout_s: float, keys: ClientKeys | None
) -> zmq.Socket[bytes]:
    """A REQ socket that never waits longer than ``timeout_s`` nor lingers. Raises NoAnswerError or ConfigError."""
    socket = context.socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, round(timeout_s * 1000))
    socket.setsockopt(zmq.SNDTIMEO, round(timeout_s * 1000))
    if keys is not None:
        _use_keys(socket, keys)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise NoAnswerError(f"endpoint {endpoint}: {error.strerror}; must be as in ipc:///path/to/socket") from error
    return socket


def _use_keys(socket: zmq.Socket[bytes], keys: ClientKeys) -> None:
    public, secret = load_key_pair(keys.client)
    socket.setsockopt(zmq.CURVE_SERVERKEY, load_public_key(keys.server))
    socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
