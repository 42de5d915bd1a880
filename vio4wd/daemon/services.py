"""The ZeroMQ services that the configuration asks for."""

from __future__ import annotations

from contextlib import AsyncExitStack

import zmq.asyncio

from vio4wd.config.model import Config
from vio4wd.daemon.relays import Relays
from vio4wd.portctl.config_service import ConfigService
from vio4wd.portctl.curve import CurveAuthority
from vio4wd.portctl.port_control import PortControlService
from vio4wd.portctl.zmq_service import Handler, Service
from vio4wd.relay.workers import Workers
from vio4wd.scheduler.service import CoreSchedService
from vio4wd.stats.service import StatsService


async def start_services(config: Config, relays: Relays, workers: Workers, stack: AsyncExitStack) -> None:
    """Start the services that have an endpoint; ``stack`` stops them.

    Raises:
        StartupError: an endpoint cannot be bound.
    """

    def tsc_hz() -> float | None:
        return workers.slots[0].process.facts.get("tsc_hz") if workers.slots else None

    wanted: list[tuple[str | None, Handler]] = [
        (config.zmq_stats_ep, StatsService(relays, tsc_hz=tsc_hz)),
        (config.zmq_config_ep, ConfigService(relays)),
        (config.core_sched_endpoint, CoreSchedService(relays)),
        (config.zmq_port_control_ep, PortControlService(relays)),
    ]
    context = zmq.asyncio.Context()
    stack.callback(context.destroy, linger=0)
    curve = _curve(config, context, stack)
    for endpoint, handler in wanted:
        if endpoint is not None:
            service = Service(endpoint, handler, context=context, group_gid=config.zmq_group, curve=curve)
            await service.start()
            stack.push_async_callback(service.stop)


def _curve(config: Config, context: zmq.asyncio.Context, stack: AsyncExitStack) -> CurveAuthority | None:
    if config.zmq_curve_server_key is None or config.zmq_curve_client_keys is None:
        return None
    authority = CurveAuthority(context, config.zmq_curve_server_key, config.zmq_curve_client_keys)
    authority.start()
    stack.callback(authority.stop)
    return authority
