"""Files of CURVE keys, as ``zmq.auth.create_certificates`` writes them."""

from __future__ import annotations

from pathlib import Path

import zmq.auth

from vio4wd.errors import ConfigError


def load_public_key(path: Path) -> bytes:
    """The public key (Z85, 40 bytes) of a certificate file.

    Raises:
        ConfigError: the file cannot be read or has no public key.
    """
    return _load(path)[0]


def load_key_pair(path: Path) -> tuple[bytes, bytes]:
    """Public and secret key (Z85, 40 bytes each) of a certificate file.

    Raises:
        ConfigError: the file cannot be read or lacks one of them.
    """
    public, secret = _load(path)
    if secret is None:
        raise ConfigError(f"CURVE certificate {path}: has no secret-key; give the .key_secret file")
    return public, secret


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        return zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"CURVE certificate {path}: {error}") from error
