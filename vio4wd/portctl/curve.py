"""CURVE keys: what lets a ZeroMQ service listen on TCP, where file permissions do not protect it."""

from __future__ import annotations

from pathlib import Path

import zmq
import zmq.asyncio
import zmq.auth.asyncio

from vio4wd.errors import StartupError
from vio4wd.portctl.keys import load_key_pair


class CurveAuthority:
    """The server's key pair and the clients that may connect; one for each ZeroMQ context.

    Args:
        context: the context of the services; the authority answers for all its sockets.
        server_key: the server's certificate file with its secret key.
        client_keys: directory of the clients' public certificate files (``*.key``).

    Raises:
        ConfigError: the server's certificate cannot be used.
    """

    def __init__(self, context: zmq.asyncio.Context, server_key: Path, client_keys: Path) -> None:
        self._public, self._secret = load_key_pair(server_key)
        self._client_keys = client_keys
        self._authenticator = zmq.auth.asyncio.AsyncioAuthenticator(context)

    def start(self) -> None:
        """Answer for the context's sockets until ``stop``; call it in the event loop.

        Raises:
            StartupError: the directory of clients' keys is missing or empty.
        """
        if not list(self._client_keys.glob("*.key")):
            raise StartupError(f"CURVE: {self._client_keys} holds no client certificate (*.key): nobody could connect")
        self._authenticator.start()
        self._authenticator.configure_curve(domain="*", location=self._client_keys)

    def stop(self) -> None:
        """Stop answering; the sockets that it protects must be closed before."""
        self._authenticator.stop()

    def protect(self, socket: zmq.asyncio.Socket) -> None:
        """Have a socket, not bound yet, accept only clients with known keys."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._secret)
