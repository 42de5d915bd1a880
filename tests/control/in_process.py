"""The relays of a daemon in the test's own process, with worker processes of their own."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from vio4wd.daemon.relays import Relays
from vio4wd.relay.lanes import LaneTable
from vio4wd.relay.placement import Placement
from vio4wd.relay.ports import STANDARD_MTU
from vio4wd.relay.worker_options import WorkerOptions
from vio4wd.relay.workers import Workers
from vio4wd.vhostuser.broker import Broker
from vio4wd.vhostuser.endpoint import Endpoint

CPUS = tuple(range(psutil.cpu_count()))


@asynccontextmanager
async def relays_with_worker(directory: Path) -> AsyncIterator[tuple[Relays, Workers]]:
    """Relays with dynamic sockets, and a worker that carries them; sockets of its own are in ``directory``."""

    def options(name: str) -> WorkerOptions:
        return WorkerOptions(
            name=f"{name}-{directory.name}",
            main_cpu=0,
            worker_cpus=CPUS[-1:],
            huge_dir="/dev/hugepages",
            mtu=STANDARD_MTU,
            log_level=logging.INFO,
            idle_sleep_max_us=1000,
            disabled_features=0,
        )

    table = LaneTable.create()
    relays = Relays(table, Placement(CPUS[-1:], {}), Endpoint, dynamic_sockets=True)
    broker = Broker(relays.carrier, directory / "private", on_change=relays.carrier.front_end_changed)
    workers = Workers(options, table, relays.carrier)
    relays.connect(workers, broker)
    try:
        await workers.start()
        yield relays, workers
    finally:
        await relays.carrier.close()
        await broker.shutdown()
        await workers.stop()
