"""What the session broker needs of whoever carries a relay's rings (a worker process)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from vio4wd.relay.direct.ring_record import SavedPosition


class BackEnd(Protocol):
    """Connects to and disconnects from the private socket that the broker listens on for one session.

    All methods raise WorkerError when the worker is gone or refuses.
    """

    async def attach(self, relay: int, path: Path) -> None:
        """Have the worker that carries ``relay`` connect to ``path`` as a vhost-user back end (a client, once)."""

    async def detach(self, relay: int, path: Path) -> None:
        """Have the worker forget ``path`` and a pause; the connection is closed already or will be by this.

        Raises WorkerError when the worker is gone, only then: whoever does not know why a connection closed asks so.
        """

    async def pause(self, relay: int) -> None:
        """Return once no lane of the relay touches guest memory or rings by itself, until ``resume``."""

    async def resume(self, relay: int, *, interrupt: bool = False) -> None:
        """Let the lanes of the relay work the rings again, with fresh views of rings and memory.

        With ``interrupt`` the guest is interrupted first, for what its last back end used and did not tell.
        """

    def saved_position(self, relay: int, ring: int) -> SavedPosition | None:
        """Where a ring was when the last worker died, as that left it in shared memory; None where it did not."""
