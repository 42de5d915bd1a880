"""The session broker: the guest-facing sockets of all relays, and the session on each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from vio4wd.tasks import supervised
from vio4wd.vhostuser.backend import BackEnd
from vio4wd.vhostuser.channel import accept
from vio4wd.vhostuser.endpoint import MAX_PATH_BYTES, Endpoint, EndpointError, Listener, SocketMode, connect, listen
from vio4wd.vhostuser.options import Options
from vio4wd.vhostuser.session import Session, SessionView

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 0.8
_STEADY_SESSION_S = 1.0
_LEAVING_S = 10.0
_CANCEL_AGAIN_S = 1.0
_TELL_AGAIN_S = 60.0


class Broker:
    """Owns every guest-facing vhost-user socket; runs in one asyncio loop, without threads.

    One front end at a time is served on a relay. A second one waits ``Options.replace_grace`` for the first to leave
    (a VM that restarts) and is then disconnected with a warning: its user gets an error and not a VM that hangs.
    """

    def __init__(
        self,
        back_end: BackEnd,
        private_dir: Path,
        *,
        options: Options | None = None,
        on_change: Callable[[int], None] | None = None,
    ) -> None:
        """Make ``private_dir`` (mode 0700) for the sockets between broker and workers.

        ``on_change`` is called with a relay's number when a front end has connected or left.

        Raises:
            EndpointError: the directory cannot be made, or its path is too long.
        """
        self._back_end = back_end
        self._private_dir = private_dir
        self._options = options or Options()
        self._on_change = on_change or (lambda relay: None)
        self._ports: dict[int, _Port] = {}
        self._numbers = itertools.count()
        self._trial = asyncio.Lock()
        if len(bytes(private_dir)) > MAX_PATH_BYTES - len("/63-4294967295.sock"):
            raise EndpointError(f"directory {private_dir}: its path is too long for sockets in it")
        try:
            private_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            private_dir.chmod(0o700)
        except OSError as error:
            raise EndpointError(f"directory {private_dir}: cannot be made: {error.strerror}") from error

    async def open(self, relay: int, endpoint: Endpoint) -> None:
        """Serve a relay's front end on a socket: listen on it, or connect to it and keep reconnecting.

        Raises:
            EndpointError: the path cannot be used, or the relay has a socket already; nothing has changed.
        """
        if relay in self._ports:
            raise EndpointError(f"relay {relay}: already has the socket {self._ports[relay].endpoint.path}")
        for number, port in self._ports.items():
            if port.endpoint.path == endpoint.path:
                raise EndpointError(f"socket {endpoint.path}: relay {number} has it")
        endpoint.check()
        listener = listen(endpoint) if endpoint.mode is SocketMode.SERVER else None
        self._ports[relay] = _Port(self, relay, endpoint, listener)

    async def close(self, relay: int) -> None:
        """Cut the relay's front end off and remove its socket; nothing happens where there is none."""
        port = self._ports.get(relay)
        if port is not None:
            await port.close()
            self._ports.pop(relay, None)

    async def shutdown(self) -> None:
        """Close all relays."""
        await asyncio.gather(*(self.close(relay) for relay in list(self._ports)))
        with contextlib.suppress(OSError):
            self._private_dir.rmdir()

    def worker_lost(self, relays: Iterable[int], *, crashed: bool = False, culprits: Iterable[int] = ()) -> None:
        """The worker that carried these relays died: keep the front ends that are there until ``replay``.

        Front ends that come later try to attach, and so find out for themselves whether there is a worker again.

        ``culprits`` are the relays whose guests it died of. Where none is known of a worker that ``crashed`` by itself,
        those are to blame whose front ends had asked something of it that it had not answered.
        """
        sessions = {relay: session for relay in relays if (session := self._session(relay)) is not None}
        guilty = set(culprits)
        if crashed and not guilty:
            guilty = {relay for relay, session in sessions.items() if session.unanswered}
        for relay, session in sessions.items():
            session.worker_lost(cleared=bool(guilty) and relay not in guilty)
        for relay in guilty & self._ports.keys():
            self._ports[relay].offended("a worker process died of what its guest did", ends=False)

    def offended(self, relay: int, offence: str) -> None:
        """A relay's guest did something to its worker, which is alive, for which its front end is to be cut off."""
        if relay in self._ports:
            self._ports[relay].offended(offence, ends=True)

    async def release(self, relay: int) -> None:
        """Take a relay's session from its living worker, for a move to another one, where ``replay`` then puts it.

        Lanes are paused, rings stopped exactly where they are, the connection closed and the worker detached when this
        returns. A worker that dies meanwhile is no error.
        """
        session = self._session(relay)
        if session is not None:
            await session.release()

    async def replay(self, relay: int) -> None:
        """A worker for the relay is ready: attach the front end's session to it as it was, where there is a front end.

        A session that cannot go on (a ring's position is unknown, features are missing) is cut off and logged. Sessions
        that two workers died of, as it seems, come one at a time and after all others have settled, so that the next
        death tells which of them it was.

        Raises:
            WorkerError: this worker failed as well; call again with the next.
        """
        session = self._session(relay)
        if session is None:
            return
        if not session.doubtful:
            await session.replay()
            return
        async with self._trial:
            if session.orphaned:
                await asyncio.sleep(self._options.settling_time)
                await session.replay()

    def session(self, relay: int) -> SessionView | None:
        """The relay's session as it is now, None without a front end."""
        session = self._session(relay)
        return session.view() if session else None

    def connected(self, relay: int) -> bool:
        """Whether a front end is connected."""
        return self._session(relay) is not None

    def path(self, relay: int) -> Path | None:
        """The relay's guest-facing socket, None where it has none."""
        port = self._ports.get(relay)
        return port.endpoint.path if port else None

    def _session(self, relay: int) -> Session | None:
        port = self._ports.get(relay)
        return port.session if port else None

    def _make_session(self, relay: int, sock: socket.socket) -> Session:
        return Session(relay, sock, self._back_end, lambda: self._private_path(relay), self._options)

    def _private_path(self, relay: int) -> Path:
        return self._private_dir / f"{relay}-{next(self._numbers)}.sock"

    def _changed(self, relay: int) -> None:
        try:
            self._on_change(relay)
        except Exception:
            log.exception("relay %d: telling of a front end failed", relay)


class _Port:
    """A relay's socket, the task that awaits front ends on it, and the front end's session."""

    def __init__(self, broker: Broker, relay: int, endpoint: Endpoint, listener: Listener | None) -> None:
        self.endpoint = endpoint
        self.session: Session | None = None
        self._broker = broker
        self._relay = relay
        self._listener = listener
        self._serving: asyncio.Task[None] | None = None
        # When its front ends' guests did something to a worker, and when it was last told that others are refused.
        self._offences: list[float] = []
        self._refusal_told = -_TELL_AGAIN_S
        self._task = asyncio.create_task(supervised(f"socket {endpoint.path} of relay {relay}", self._await_front_ends))

    async def close(self) -> None:
        """End all tasks; the front end is cut off, the socket removed."""
        pending = {task for task in (self._task, self._serving) if task is not None and not task.done()}
        while pending:
            # Again and again: a cancellation can get lost on the way (asyncio.wait_for of Python 3.11, in a back end).
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)
        if self._listener is not None:
            self._listener.close()

    async def _await_front_ends(self) -> None:
        if self._listener is not None:
            await self._accept(self._listener.sock)
        else:
            await self._connect()

    def offended(self, offence: str, *, ends: bool) -> None:
        """The guest of the front end that is there did something to a worker; ``ends``: that ends the session."""
        options = self._broker._options
        self._offences = [*self._recent_offences(), asyncio.get_running_loop().time()]
        count, most = len(self._offences), options.most_deaths
        log.warning(
            "relay %d: %s (%d of %d times in %.0f s)", self._relay, offence, count, most, options.offence_memory
        )
        if self.session is not None and (ends or count >= most):
            self.session.cut_off(offence)

    def _recent_offences(self) -> list[float]:
        now = asyncio.get_running_loop().time()
        return [then for then in self._offences if now - then < self._broker._options.offence_memory]

    def _refuses(self) -> bool:
        """Whether front ends have done too much to workers lately; tells of it now and then."""
        options, now = self._broker._options, asyncio.get_running_loop().time()
        recent = self._recent_offences()
        if len(recent) < options.most_deaths:
            return False
        if now - self._refusal_told >= _TELL_AGAIN_S:
            self._refusal_told = now
            left = recent[-options.most_deaths] + options.offence_memory - now
            message = "relay %d: front ends are refused for %.0f s: %d times their guests did something to a worker"
            log.warning(message, self._relay, left, len(recent))
        return True

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock = await accept(listener)
            except OSError as error:
                log.error("relay %d: cannot accept a front end on %s: %s", self._relay, self.endpoint.path, error)
                await asyncio.sleep(_STEADY_SESSION_S)
                continue
            try:
                free = await self._is_free()
            except BaseException:
                sock.close()
                raise
            if free:
                self._serving = self._start_serving(sock)
            else:
                pid = self.session.peer_pid if self.session else 0
                log.warning(
                    "relay %d: a second front end on %s is refused, pid %d uses it",
                    self._relay,
                    self.endpoint.path,
                    pid,
                )
                sock.close()

    def _start_serving(self, sock: socket.socket) -> asyncio.Task[None]:
        serving = asyncio.create_task(self._serve(sock), name=f"front end of relay {self._relay}")
        serving.add_done_callback(lambda _: sock.close())  # it may be cancelled before it has begun
        return serving

    async def _is_free(self) -> bool:
        """Wait a little for the front end that is there to leave."""
        if self._serving is not None:
            await asyncio.wait([self._serving], timeout=self._broker._options.replace_grace)
            if self.session is not None and self.session.front_left():
                await asyncio.wait([self._serving], timeout=_LEAVING_S)
        return self._serving is None or self._serving.done()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        delay = _FIRST_RETRY_S
        complaint = ""
        while True:
            began = loop.time()
            try:
                sock = connect(self.endpoint.path)
            except EndpointError as error:
                sock = None
                if str(error) != complaint:
                    complaint = str(error)
                    log.warning("relay %d: %s; trying again", self._relay, complaint)
            if sock is not None:
                complaint = ""
                await self._serve(sock)
                if loop.time() - began >= _STEADY_SESSION_S:
                    delay = _FIRST_RETRY_S
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LAST_RETRY_S)

    async def _serve(self, sock: socket.socket) -> None:
        """Run a session on a connected socket until it ends, unless front ends are refused here."""
        if self._refuses():
            sock.close()
            return
        try:
            session = self._broker._make_session(self._relay, sock)
        except Exception:
            log.exception("relay %d: a front end cannot be served", self._relay)
            sock.close()
            return
        self.session = session
        self._broker._changed(self._relay)
        try:
            await session.run()
        except Exception:
            log.exception("relay %d: the session broke", self._relay)
        finally:
            self.session = None
            self._broker._changed(self._relay)
