"""The supervisor's handle of one worker process: starting it, commands and events, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vio4wd
from vio4wd.errors import ProtocolError, StartupError, WorkerError
from vio4wd.relay.fatal_signals import FATAL_SIGNALS
from vio4wd.relay.messages import MAX_MESSAGE_BYTES, Command, Event, Reply, decode, encode
from vio4wd.relay.worker_options import WorkerOptions

log = logging.getLogger(__name__)

START_LIMIT_S = 180.0
"""Compiling the loop for the first time on a slow machine takes most of it."""

STOP_LIMIT_S = 2.0
"""How long a worker may take to end: to release everything, or, while it starts, until EAL has started."""

CALL_LIMIT_S = 10.0


_NO_POOL = {"OPENBLAS_NUM_THREADS": "1"}
"""numpy would start a thread for each CPU, and none of them is ever used."""


class CommandError(WorkerError):
    """The worker refused a command and carries on; ``kind`` says why (a PortStage value, ``error``, ``internal``)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class WorkerProcess:
    """One worker process, from start to end.

    Set ``on_event`` to get every event but log lines, and ``on_exit`` to be called once when a started worker has
    ended, for whatever reason but ``stop``.
    """

    def __init__(self, options: WorkerOptions, lanes_fd: int) -> None:
        self._options = options
        self._lanes_fd = lanes_fd
        self.on_event: Callable[[Event], None] = lambda event: None
        self.on_exit: Callable[[], None] = lambda: None
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._channel: socket.socket | None = None
        self._started: asyncio.Future[dict[str, Any]] | None = None
        self._waiter: asyncio.Task[None] | None = None
        self._stopping = False
        self.facts: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """What it is called in the log, also its EAL file prefix."""
        return self._options.name

    @property
    def pid(self) -> int | None:
        """The process id, None before the start."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether commands can be sent."""
        return self._channel is not None

    @property
    def crashed(self) -> bool:
        """Whether it has died by a signal that a fault of its own raises, not one that somebody sent."""
        return self._process is not None and -(self._process.returncode or 0) in FATAL_SIGNALS

    async def start(self) -> None:
        """Start the process and wait until it is ready.

        Cancelled, it ends the process first.

        Raises:
            StartupError: it could not start; the message is the worker's own.
            OSError: the system has no descriptor, memory or process left for it.
        """
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._started = loop.create_future()
        root = str(Path(vio4wd.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with contextlib.ExitStack() as undo, theirs:
            undo.enter_context(ours)
            arguments = [str(theirs.fileno()), str(self._lanes_fd), self._options.encode()]
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "vio4wd.relay.worker", *arguments,
                pass_fds=(theirs.fileno(), self._lanes_fd), stdin=asyncio.subprocess.DEVNULL,
                env={**_NO_POOL, **os.environ, "PYTHONPATH": path},
                process_group=0,  # Ctrl-C in a terminal is for the supervisor, which stops its workers
            )  # fmt: skip
            undo.pop_all()
        self._channel = ours
        loop.add_reader(ours, self._readable)
        self._waiter = loop.create_task(self._wait())
        try:
            async with asyncio.timeout(START_LIMIT_S):
                self.facts = await self._started
        except TimeoutError:
            await self.kill()
            raise StartupError(f"{self._options.name} was not ready within {START_LIMIT_S:.0f} s") from None
        except StartupError:
            await self.kill()
            raise
        except asyncio.CancelledError:
            await self._abandon()
            raise

    async def call(self, op: str, *, limit_s: float = CALL_LIMIT_S, **args: Any) -> dict[str, Any]:
        """Have a command carried out; answers its result.

        Raises:
            CommandError: the worker refused.
            WorkerError: the worker has ended, the command is too long for it, or it did not answer in time (it is
                killed then, since it hangs).
        """
        if self._channel is None:
            raise WorkerError(f"{self._options.name} is not running")
        number = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            self._channel.send(encode(Command(number, op, args)))
            async with asyncio.timeout(limit_s):
                return await future
        except TimeoutError:
            log.error("%s did not answer %s within %.0f s and is killed", self._options.name, op, limit_s)
            self._signal_kill()
            raise WorkerError(f"{self._options.name} did not answer {op} within {limit_s:.0f} s") from None
        except OSError as error:
            raise WorkerError(f"{self._options.name} cannot be reached: {error}") from error
        except ProtocolError as error:
            raise WorkerError(f"{op} cannot be asked of {self._options.name}: {error}") from error
        finally:
            self._pending.pop(number, None)

    async def stop(self) -> None:
        """Have the worker release everything and end; kill it if that takes too long."""
        self._stopping = True
        if self._process is None or self._waiter is None:
            return
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.send(encode(Command(next(self._ids), "stop")))
        _, late = await asyncio.wait({self._waiter}, timeout=STOP_LIMIT_S)
        if late:
            log.error("%s did not stop within %.0f s and is killed", self._options.name, STOP_LIMIT_S)
            await self.kill()

    async def kill(self) -> None:
        """End the process at once."""
        self._stopping = True
        self._signal_kill()
        if self._waiter is not None:
            await self._waiter

    async def _abandon(self) -> None:
        """End a process that is still starting: kindly, since EAL would leave files if it was killed in its start."""
        assert self._process is not None and self._waiter is not None
        self._stopping = True
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        _, late = await asyncio.wait({self._waiter}, timeout=STOP_LIMIT_S)
        if late:
            await self.kill()

    def _signal_kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _wait(self) -> None:
        assert self._process is not None
        status = await self._process.wait()
        self._readable()
        self._disconnect()
        error = WorkerError(f"{self._options.name} ended with status {status}")
        for future in self._pending.values():
            if not future.done():
                future.set_exception(error)
        if self._started is not None and not self._started.done():
            self._started.set_exception(StartupError(str(error)))
        elif not self._stopping:
            log.error("%s", error)
            self.on_exit()

    def _disconnect(self) -> None:
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._channel = None

    def _readable(self) -> None:
        while self._channel is not None:
            try:
                packet = self._channel.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._disconnect()
                return
            try:
                self._dispatch(decode(packet))
            except ProtocolError as error:
                log.error("%s: %s", self._options.name, error)
                self._signal_kill()
            except Exception:
                log.exception("%s: a message could not be handled", self._options.name)

    def _dispatch(self, message: Command | Reply | Event) -> None:
        if isinstance(message, Reply):
            self._settle(message)
        elif isinstance(message, Event):
            self._event(message)

    def _settle(self, reply: Reply) -> None:
        future = self._pending.get(reply.re)
        if future is None or future.done():
            return
        if reply.error_kind is None:
            future.set_result(reply.result)
        else:
            future.set_exception(CommandError(reply.error_kind, reply.error_message))

    def _event(self, event: Event) -> None:
        if event.event == "log":
            logging.getLogger(event.args["logger"]).log(event.args["level"], "%s", event.args["message"])
        elif event.event == "ready" and self._started is not None:
            self._started.set_result(event.args)
        elif event.event == "failed" and self._started is not None:
            self._started.set_exception(StartupError(event.args["message"]))
        else:
            self.on_event(event)
