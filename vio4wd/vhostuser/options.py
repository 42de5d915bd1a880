"""Limits of sessions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Limits of sessions. Times are in seconds.

    ``batch_gap`` is how long a pause waits for the front end's next message; ``replace_grace`` how long a second front
    end waits for the first to leave. ``settling_time`` is how long a worker must have carried a session for its death
    to be none of the session's doing, unless the session has requests there; ``most_deaths`` of others in a row end the
    session. As many offences of a relay's front ends within ``offence_memory`` (a worker died of what the guest did, or
    was held up by it) end the session, and have others refused until that time has passed.
    """

    max_queue_pairs: int = 32
    max_memory_slots: int = 64
    accept_timeout: float = 5.0
    reply_delivery_timeout: float = 10.0
    batch_gap: float = 0.001
    replace_grace: float = 1.0
    settling_time: float = 1.0
    most_deaths: int = 3
    offence_memory: float = 600.0

    @property
    def max_rings(self) -> int:
        """Rings of one device: two for each queue pair and the control ring."""
        return 2 * self.max_queue_pairs + 1
