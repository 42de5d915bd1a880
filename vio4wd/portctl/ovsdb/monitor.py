"""The side of the OVSDB monitor that runs on the daemon's event loop."""

from __future__ import annotations

import asyncio
import logging
import re
from concurrent.futures import ThreadPoolExecutor

from vio4wd.portctl.claims import Claim, Source
from vio4wd.portctl.ovsdb.interfaces import InterfaceReader
from vio4wd.portctl.ovsdb.replica import Replica
from vio4wd.portctl.reconcile import Reconciler
from vio4wd.portctl.resolver import DeviceResolver

log = logging.getLogger(__name__)

STOP_S = 5.0
"""How long the replica's thread may take to end."""

_METHOD = re.compile(r"(?:unix|tcp|ssl):")


class OvsdbMonitor:
    """Hands the claims that are in the database to the reconciler.

    Args:
        server: the path of ovsdb-server's socket, or an OVSDB connection method such as ``tcp:127.0.0.1:6640``.
        reconciler: is told every change; keeps the last claims while the server is away or this is restarted.
        resolver: finds devices; used in the replica's thread only.
    """

    def __init__(self, server: str, reconciler: Reconciler, resolver: DeviceResolver) -> None:
        self._remote = server if _METHOD.match(server) else f"unix:{server}"
        self._reconciler = reconciler
        self._reader = InterfaceReader(resolver)

    async def run(self) -> None:
        """Follow the database until cancelled. Meant to be supervised: an error of the replica's is raised here."""
        loop = asyncio.get_running_loop()

        def publish(claims: tuple[Claim, ...]) -> None:
            loop.call_soon_threadsafe(self._reconciler.set_claims, Source.OVSDB, claims)

        replica = Replica(self._remote, self._reader, publish)
        pool = ThreadPoolExecutor(1, thread_name_prefix="ovsdb")
        work = loop.run_in_executor(pool, replica.run)
        try:
            await asyncio.shield(work)
        finally:
            if not work.done():
                replica.stop()
                await asyncio.wait([work], timeout=STOP_S)
            if work.done():
                replica.close()
            else:
                log.error("OVSDB: the thread that follows %s has not ended after %.0f s", self._remote, STOP_S)
            pool.shutdown(wait=False)
