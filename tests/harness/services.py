"""ZeroMQ services in a program of their own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack

import zmq.asyncio

from vio4wd.portctl.zmq_service import Handler, Service


async def serve(directory: str, handlers: Mapping[str, Handler]) -> None:
    """Open each service on the socket of its name in the directory, say READY, and serve until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    context = zmq.asyncio.Context()
    async with AsyncExitStack() as stack:
        stack.callback(context.term)
        for name, handler in handlers.items():
            service = Service(f"ipc://{directory}/{name}", handler, context=context)
            await service.start()
            stack.push_async_callback(service.stop)
        print("READY", flush=True)
        await stopped.wait()
