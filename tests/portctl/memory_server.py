"""All ZeroMQ services over a MemoryController, in a directory: ``memory_server.py DIRECTORY [dynamic]``; says READY."""

from __future__ import annotations

import asyncio
import sys

sys.path.append(__file__.rsplit("/", 2)[0])

from memory_controller import MemoryController

from harness.services import serve
from vio4wd.portctl.config_service import ConfigService
from vio4wd.portctl.port_control import PortControlService
from vio4wd.scheduler.service import CoreSchedService
from vio4wd.stats.service import StatsService


async def main(directory: str, *, dynamic: bool) -> None:
    controller = MemoryController(dynamic_sockets=dynamic)
    handlers = {
        "config": ConfigService(controller),
        "stats": StatsService(controller, tsc_hz=lambda: 2e9),
        "port_control": PortControlService(controller),
        "core_sched": CoreSchedService(controller),
    }
    await serve(directory, handlers)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], dynamic="dynamic" in sys.argv))
