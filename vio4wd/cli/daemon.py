"""The daemon's command: options, foreground or background, log, and its exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable

from vio4wd.cli import tool
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
        return _serve(invocation, syslog=invocation.log_syslog, ready=lambda: None)
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            return 0 if pipe.read(1) else 1
    os.close(read_end)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = _leave_terminal()

    def tell_parent() -> None:
        os.write(write_end, b"\0")
        os.close(write_end)
        os.dup2(null, sys.stderr.fileno(), inheritable=False)

    return _serve(invocation, syslog=True, ready=tell_parent)


def _serve(invocation: Invocation, *, syslog: bool, ready: Callable[[], None]) -> int:
    to_syslog = logs.configure(invocation.config.log_level, syslog=syslog)
    try:
        asyncio.run(Supervisor(invocation.config, invocation.reload, ready).run())
    except ForwarderError as error:
        message = str(error)
    except OSError as error:
        log.debug("this happened here:", exc_info=True)
        message = f"cannot run here as uid {os.geteuid()}: {error}"
    else:
        return 0
    log.critical("%s", message)
    if to_syslog:
        print(f"virtio-forwarder: {message}", file=sys.stderr)
    return 1


def _leave_terminal() -> int:
    """Let go of the caller's directory and standard streams, for this process and all that it starts.

    ``sys.stderr`` keeps the caller's for what is said until the daemon is ready; answers a descriptor of /dev/null.
    """
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    return null


def main() -> int:
    """Run the daemon's command; it exits by itself, or answers the exit status where it could not say all it had to."""
    try:
        make_command(run).main()
    except OSError as error:
        return tool.give_up(error)
    return tool.EXIT_OK
