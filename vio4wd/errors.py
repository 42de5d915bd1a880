"""The exception tree of the project.

Every message is for an operator: it names the thing (VF, relay, socket, key, line), what was wrong, and what would be
right.
"""

from __future__ import annotations


class ForwarderError(Exception):
    """Base of all errors that the project raises on purpose."""


class ConfigError(ForwarderError):
    """A configuration file, command line or environment value that cannot be used."""


class StartupError(ForwarderError):
    """The daemon cannot start here: DPDK, hugepages, permissions, CPUs, directories."""


class ProtocolError(ForwarderError):
    """A peer (front end, ZeroMQ client, worker) sent something that its protocol does not allow."""


class WorkerError(ForwarderError):
    """A worker process died, did not answer in time, or refused a command."""


class RequestError(ForwarderError):
    """A port control request that was understood and could not be carried out; state is as it was.

    ``code`` and ``source`` are the pair that port control clients print. Both are None for a request that
    was refused by validation.
    """

    def __init__(self, message: str, *, code: int | None = None, source: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.source = source
