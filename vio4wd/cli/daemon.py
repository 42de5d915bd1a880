"""The daemon's command: options, foreground or background, log, and its exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from vio4wd.cli.daemon_options import Invocation, make_command
from vio4wd.daemon import logs
from vio4wd.daemon.supervisor import Supervisor
from vio4wd.errors import ForwarderError

log = logging.getLogger("virtio-forwarder")


def run(invocation: Invocation) -> int:
    """Run the daemon until it is told to stop; answers its exit status.

    In the background (without ``--nodaemon``) the calling process returns once the daemon is ready or has failed.
    """
    if invocation.nodaemon:
        return _serve(invocation, syslog=invocation.log_syslog, ready=None)
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            return 0 if pipe.read(1) else 1
    os.close(read_end)
    os.setsid()
    if os.fork():
        os._exit(0)
    return _serve(invocation, syslog=True, ready=write_end)


def _serve(invocation: Invocation, *, syslog: bool, ready: int | None) -> int:
    logs.configure(invocation.config.log_level, syslog=syslog)

    def tell_parent() -> None:
        if ready is not None:
            os.write(ready, b"\0")
            os.close(ready)
            _leave_terminal()

    try:
        asyncio.run(Supervisor(invocation.config, invocation.reload, tell_parent).run())
    except ForwarderError as error:
        log.critical("%s", error)
        if ready is not None:
            print(f"virtio-forwarder: {error}", file=sys.stderr)
        return 1
    return 0


def _leave_terminal() -> None:
    """Let go of the caller's directory and standard streams."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)


main = make_command(run)
