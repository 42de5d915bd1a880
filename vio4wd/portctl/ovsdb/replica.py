"""A replica of the Interface table, followed in a thread of its own.

A thread, because the library blocks: it parses large updates in one go, waits in poll(2), and resolves host names.
"""

from __future__ import annotations

import enum
import logging
import os
import select
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from ovs import timeval
from ovs.db.idl import Idl, SchemaHelper

from vio4wd.portctl.claims import Claim
from vio4wd.portctl.ovsdb.interfaces import Interface, InterfaceReader

log = logging.getLogger(__name__)

SCHEMA = {
    "name": "Open_vSwitch",
    "tables": {
        "Interface": {
            "columns": {
                "name": {"type": "string"},
                "external_ids": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}},
                "options": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}},
            }
        }
    },
}
"""The part of ovs-vswitchd.conf.db(5) that is followed. All servers have it, so it need not be asked for."""

RECONNECT_FIRST_MS = 1000
RECONNECT_MOST_MS = 2000

START_PATIENCE_S = 1.0
"""How long a server may take to answer at the start before its absence is worth a warning."""

ANSWER_LIMIT_S = 5.0
"""How long a server that has taken the connection may take to tell what it has before it is asked afresh."""

RESOLVE_INTERVAL_S = 2.0
"""How often the interfaces are gone through again while one has no device: a netdev may appear after its row."""


class Server(enum.Enum):
    """What is known of the server."""

    UNKNOWN = enum.auto()
    AWAY = enum.auto()
    SERVING = enum.auto()


class Replica:
    """Follows one server until stopped, over any number of its restarts, and publishes claims.

    Args:
        remote: an OVSDB connection method, such as ``unix:/var/run/openvswitch/db.sock``.
        reader: makes claims of rows.
        publish: takes all claims, in the replica's thread: first when the server has told everything, then whenever
            they have changed. Not called while the server is away: what it said last stays in force.
    """

    def __init__(self, remote: str, reader: InterfaceReader, publish: Callable[[tuple[Claim, ...]], None]) -> None:
        self._remote = remote
        self._reader = reader
        self._publish = publish
        self._published: tuple[Claim, ...] | None = None
        self._server = Server.UNKNOWN
        self._started = time.monotonic()
        self._silent_since: float | None = None
        self._stopping = threading.Event()
        # Made here, not in the replica's thread: it asks for a UUID, and libuuid keeps a file open for each thread.
        self._idl = Idl(remote, _schema(), leader_only=False)
        # The library has no public setting for this; its own is up to 8 s.
        self._idl._session.reconnect.set_backoff(RECONNECT_FIRST_MS, RECONNECT_MOST_MS)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def stop(self) -> None:
        """Have ``run`` return soon. Called from any thread, once."""
        self._stopping.set()
        os.write(self._wake_write, b"x")

    def close(self) -> None:
        """Close what ``stop`` needs. Called when ``run`` has ended."""
        os.close(self._wake_read)
        os.close(self._wake_write)

    def run(self) -> None:
        """Follow the server until ``stop``. Blocks."""
        try:
            self._follow(self._idl)
        finally:
            self._idl.close()

    def _follow(self, idl: Any) -> None:
        seen = -1
        while not self._stopping.is_set():
            idl.run()
            serving = idl.state == Idl.IDL_S_MONITORING and idl._session.is_connected()
            self._note_server(serving=serving)
            self._ask_afresh_if_silent(idl, serving=serving)
            if serving and (idl.change_seqno != seen or not self._reader.complete):
                seen = idl.change_seqno
                self._read(idl)
            poller = Poller()
            idl.wait(poller)
            poller.fd_wait(self._wake_read, select.POLLIN)
            if self._server is Server.UNKNOWN:
                poller.timer_wait(START_PATIENCE_S * 1000)
            if serving and not self._reader.complete:
                poller.timer_wait(RESOLVE_INTERVAL_S * 1000)
            if not serving:
                poller.timer_wait(ANSWER_LIMIT_S * 1000)
            poller.block()

    def _ask_afresh_if_silent(self, idl: Any, *, serving: bool) -> None:
        """Have the library forget where it was: it waits for ever where a server refuses to go on from there."""
        now = time.monotonic()
        if serving or not idl._session.is_connected():
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since >= ANSWER_LIMIT_S:
            self._silent_since = None
            idl.last_id = str(uuid.UUID(int=0))
            idl.force_reconnect()

    def _read(self, idl: Any) -> None:
        rows = idl.tables["Interface"].rows.values()
        claims = self._reader.claims([Interface(row.name, row.external_ids, row.options) for row in rows])
        if claims != self._published:
            self._published = claims
            self._publish(claims)

    def _note_server(self, *, serving: bool) -> None:
        """Log, once per change, whether there is a server. The only place where its state changes."""
        state = Server.SERVING if serving else Server.AWAY
        patient = self._server is Server.UNKNOWN and time.monotonic() - self._started < START_PATIENCE_S
        if state is self._server or (state is Server.AWAY and patient):
            return
        self._server = state
        if serving:
            log.info("OVSDB: following %s", self._remote)
        else:
            log.warning("OVSDB: no answer from %s; relays stay as they are, and it is tried again", self._remote)


class Poller:
    """Stands in for ovs.poller.Poller, which uses select(2) and so fails on file descriptors above 1023."""

    def __init__(self) -> None:
        self._events: dict[int, int] = {}
        self._timeout_ms: float | None = None

    def fd_wait(self, descriptor: Any, events: int) -> None:
        """Wake up for these events, and those of earlier calls, of a descriptor or of an object that has one."""
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        self._events[number] = self._events.get(number, 0) | events

    def timer_wait(self, milliseconds: float) -> None:
        """Wake up after this time at the latest."""
        known = self._timeout_ms
        self._timeout_ms = max(0.0, milliseconds if known is None else min(known, milliseconds))

    def timer_wait_until(self, milliseconds: float) -> None:
        """Wake up at this time of ovs.timeval.msec at the latest."""
        self.timer_wait(milliseconds - timeval.msec())

    def immediate_wake(self) -> None:
        """Do not wait at all."""
        self.timer_wait(0)

    def block(self) -> None:
        """Wait for what has been asked for."""
        poll = select.poll()
        for descriptor, events in self._events.items():
            poll.register(descriptor, events)
        poll.poll(self._timeout_ms)


def _schema() -> SchemaHelper:
    helper = SchemaHelper(schema_json=SCHEMA)
    helper.register_columns("Interface", ["name", "external_ids", "options"])
    return helper
