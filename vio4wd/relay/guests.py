"""The VM side in a worker: rte_vhost sessions, and what their callbacks mean for lanes.

Callbacks come on rte_vhost's own thread, some while it holds the very ring locks that its functions and a running lane
take. So they only note what has changed; the thread that carries out commands reads the rings afterwards. The one
exception is ``destroy_device``: it returns only when no lane uses the guest. The session broker pauses a relay before
messages that change its rings, and resumes it after them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vio4wd.dpdk_ffi.vhost import VhostDevice, VhostDriver, VhostFlags
from vio4wd.errors import WorkerError
from vio4wd.relay.lane_control import GuestRing, GuestView, LaneControl

log = logging.getLogger(__name__)


@dataclass
class _Session:
    relay: int
    path: Path
    driver: VhostDriver
    vid: int | None = None
    running: bool = False
    announced: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    enabled: set[int] = field(default_factory=set)


class Guests:
    """The vhost-user sessions of a worker, at most one a relay.

    ``mempool`` gives the address of a relay's buffers; ``notify(relay, connected, numa_node)`` tells the supervisor;
    ``submit(function, relay)`` has the thread that carries out guests' commands call a function;
    ``disabled_features`` is a mask of virtio features that are not offered.
    """

    def __init__(
        self,
        lanes: LaneControl,
        mempool: Callable[[int], int],
        notify: Callable[[int, bool, int], None],
        submit: Callable[[Callable[[int], None], int], object],
        disabled_features: int,
    ) -> None:
        self._lanes = lanes
        self._mempool = mempool
        self._notify = notify
        self._submit = submit
        self._disabled = disabled_features
        self._sessions: dict[str, _Session] = {}
        self._by_vid: dict[int, _Session] = {}
        self._lock = threading.Lock()

    def attach(self, relay: int, path: Path) -> None:
        """Connect to the broker's socket for one session.

        Raises:
            WorkerError: the relay has a session.
            DpdkError: rte_vhost refused.
        """
        if any(session.relay == relay for session in self._sessions.values()):
            raise WorkerError(f"relay {relay} has a vhost-user session already")
        driver = VhostDriver.register(path, VhostFlags.CLIENT | VhostFlags.NO_RECONNECT)
        session = _Session(relay, path, driver)
        self._sessions[str(path)] = session
        try:
            driver.disable_features(self._disabled)
            driver.set_callbacks(self)
            driver.start()
        except Exception:
            self.detach(relay, path)
            raise

    def detach(self, relay: int, path: Path) -> None:
        """Forget a session; its connection is closed. Unknown ones are ignored: it may have ended by itself."""
        session = self._sessions.get(str(path))
        if session is None:
            return
        with self._lanes.working(relay):
            session.driver.unregister()
            self._stop(session)
        del self._sessions[str(path)]
        self._lanes.set(relay, paused=False)

    def close(self) -> None:
        """Forget all sessions."""
        for session in list(self._sessions.values()):
            self.detach(session.relay, session.path)

    def connected(self, relay: int) -> bool:
        """Whether a guest is running on the relay."""
        return any(session.relay == relay and session.running for session in list(self._sessions.values()))

    def refresh(self, relay: int) -> None:
        """Read the relay's rings from rte_vhost anew, if a guest is running."""
        for session in list(self._sessions.values()):
            if session.relay == relay:
                with self._lanes.working(relay):
                    self._update(session)

    def interrupt(self, relay: int) -> None:
        """Interrupt the relay's guest for what a dead worker used and did not tell, where it wants interrupts."""
        guest = self._lanes.sides(relay).guest
        if guest is not None:
            with self._lanes.working(relay):
                for ring in guest.rings:
                    if ring.enabled:
                        VhostDevice(guest.vid).call_guest(ring.index)

    # rte_vhost's callbacks

    def new_connection(self, vid: int) -> None:
        """A session has begun; nothing is negotiated yet."""
        session = self._sessions[VhostDevice(vid).ifname()]
        with self._lock:
            session.vid = vid
            self._by_vid[vid] = session

    def destroy_connection(self, vid: int) -> None:
        """The session has ended."""
        with self._lock:
            self._by_vid.pop(vid, None)

    def new_device(self, vid: int) -> None:
        """The guest's rings are ready."""
        session = self._by_vid[vid]
        with session.lock:
            session.running = True
        self._later(session)

    def destroy_device(self, vid: int) -> None:
        """The guest's rings stop; when this returns no lane uses them."""
        self._stop(self._by_vid[vid])

    def vring_state_changed(self, vid: int, ring: int, enabled: bool) -> None:
        """One ring was enabled or disabled."""
        session = self._by_vid[vid]
        if enabled:
            session.enabled.add(ring)
        else:
            session.enabled.discard(ring)
        self._later(session)

    def features_changed(self, vid: int, features: int) -> None:
        """Dirty logging starts or ends."""
        self._later(self._by_vid[vid])

    def _later(self, session: _Session) -> None:
        if session.running:
            self._submit(self._refresh_unless_paused, session.relay)

    def _refresh_unless_paused(self, relay: int) -> None:
        """During a pause rte_vhost may be replacing the guest's memory; whoever ends it refreshes."""
        if not self._lanes.sides(relay).paused:
            self.refresh(relay)

    def _update(self, session: _Session) -> None:
        """Bring the lanes in line with the session, if its guest is still running."""
        with session.lock:
            if not session.running or session.vid is None:
                return
            view = _view(session.vid, session.enabled)
            mempool = self._mempool(session.relay)
            self._lanes.set(session.relay, guest=view, mempool=mempool)
            if not session.announced:
                session.announced = True
                node = VhostDevice(session.vid).numa_node()
                log.info("relay %d: guest is up (%d rings, NUMA node %d)", session.relay, len(view.rings), node)
                self._notify(session.relay, True, node)

    def _stop(self, session: _Session) -> None:
        with session.lock:
            if not session.running:
                return
            self._lanes.set(session.relay, guest=None)
            session.running = False  # until here it needs the relay's buffers
            if session.announced:
                session.announced = False
                log.info("relay %d: guest is down", session.relay)
                self._notify(session.relay, False, -1)


def _view(vid: int, enabled: set[int]) -> GuestView:
    """The guest as rte_vhost has it now. Kicks are switched off, since lanes poll."""
    device = VhostDevice(vid)
    rings = []
    for index in range(device.vring_num()):
        up = index in enabled
        if up:
            device.enable_guest_notification(index, False)
        rings.append(GuestRing(index, device.vring(index) if up else None))
    return GuestView(vid, tuple(rings), device.negotiated_features(), device.memory_regions())
