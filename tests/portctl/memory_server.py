"""All ZeroMQ services over a MemoryController, in a directory: ``memory_server.py DIRECTORY [dynamic]``; says READY."""

from __future__ import annotations

import asyncio
import signal
import sys

import zmq.asyncio
from memory_controller import MemoryController

from vio4wd.portctl.config_service import ConfigService
from vio4wd.portctl.port_control import PortControlService
from vio4wd.portctl.zmq_service import Service
from vio4wd.scheduler.service import CoreSchedService
from vio4wd.stats.service import StatsService


async def serve(directory: str, *, dynamic: bool) -> None:
    controller = MemoryController(dynamic_sockets=dynamic)
    handlers = {
        "config": ConfigService(controller),
        "stats": StatsService(controller, tsc_hz=lambda: 2e9),
        "port_control": PortControlService(controller),
        "core_sched": CoreSchedService(controller),
    }
    context = zmq.asyncio.Context()
    services = [Service(f"ipc://{directory}/{name}", handler, context=context) for name, handler in handlers.items()]
    for service in services:
        await service.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print("READY", flush=True)
    await stopped.wait()
    for service in services:
        await service.stop()
    context.term()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], dynamic="dynamic" in sys.argv))
