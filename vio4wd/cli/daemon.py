"""The daemon's command: options, log, and its exit status."""

from __future__ import annotations

import asyncio
import logging

from vio4wd.cli.daemon_options import Invocation, make_command
from vio4wd.daemon import logs
from vio4wd.daemon.supervisor import Supervisor
from vio4wd.errors import ForwarderError

log = logging.getLogger("virtio-forwarder")


def run(invocation: Invocation) -> int:
    """Run the daemon until it is told to stop; answers its exit status."""
    logs.configure(invocation.config.log_level, syslog=invocation.log_syslog)
    try:
        asyncio.run(Supervisor(invocation.config).run())
    except ForwarderError as error:
        log.critical("%s", error)
        return 1
    return 0


main = make_command(run)
