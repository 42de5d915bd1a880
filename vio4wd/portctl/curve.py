"""CURVE keys: what lets a ZeroMQ service listen on TCP, where file permissions do not protect it."""

from __future__ import annotations

from pathlib import Path

import zmq
import zmq.asyncio
import zmq.auth
import zmq.auth.asyncio

from vio4wd.errors import ConfigError, StartupError


def load_keys(path: Path, *, secret: bool) -> tuple[bytes, bytes | None]:
    """Public and secret key (Z85, 40 bytes each) of a certificate file as ``zmq.auth.create_certificates`` writes it.

    Raises:
        ConfigError: the file cannot be read, or lacks a key (a secret one where ``secret`` asks for it).
    """
    try:
        public, private = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"CURVE certificate {path}: {error}") from error
    if secret and private is None:
        raise ConfigError(f"CURVE certificate {path}: has no secret-key; give the .key_secret file")
    return public, private


class CurveAuthority:
    """The server's key pair and the clients that may connect; one for each ZeroMQ context.

    Args:
        context: the context of the services; the authority answers for all its sockets.
        server_key: the server's certificate file with its secret key.
        client_keys: directory of the clients' public certificate files (``*.key``).
    """

    def __init__(self, context: zmq.asyncio.Context, server_key: Path, client_keys: Path) -> None:
        public, secret = load_keys(server_key, secret=True)
        self._public = public
        self._secret = secret
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
        if self._secret is not None:
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._secret)
