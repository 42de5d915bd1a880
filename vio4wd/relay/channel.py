"""The worker's end of its channel to the supervisor: sends from any thread, receives on one."""

from __future__ import annotations

import logging
import socket
import sys
import threading

from vio4wd.relay.messages import MAX_MESSAGE_BYTES, Event, Message, decode, encode

SEND_LIMIT_S = 5.0
"""How long a supervisor may leave the channel full before the worker gives up on it."""


class Channel:
    """A SOCK_SEQPACKET socket that carries one message a packet."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SEND_LIMIT_S)
        self._connection = connection
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """For selectors."""
        return self._connection.fileno()

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            OSError: the supervisor is gone, or has not read for SEND_LIMIT_S.
            ProtocolError: the message is too long.
        """
        with self._lock:
            self._connection.send(encode(message))

    def receive(self) -> Message | None:
        """The next message, None when the supervisor has gone away.

        Raises:
            ProtocolError: the packet is not a message.
        """
        try:
            packet = self._connection.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:
            return None
        return decode(packet) if packet else None


class ChannelLogHandler(logging.Handler):
    """Passes log records on to the supervisor, or to standard error where that fails."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        message = self.format(record)
        try:
            self._channel.send(Event("log", {"level": record.levelno, "logger": record.name, "message": message}))
        except OSError:
            sys.stderr.write(message + "\n")
