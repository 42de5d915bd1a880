"""Makes the relays equal to what static configuration and OVSDB ask for, and keeps them so.

Sources state *claims* (this device on that relay). The reconciler compares them with the relays themselves, so that
it does not matter how the difference came about: a changed claim, an outage, a failed attempt, a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from vio4wd.devices import Attachment
from vio4wd.errors import ForwarderError
from vio4wd.portctl.claims import Claim, Source, device_names, merge, same_device
from vio4wd.relay.interface import RelayController
from vio4wd.tasks import Backoff

log = logging.getLogger(__name__)

AUDIT_INTERVAL_S = 2.0
"""How often the relays are compared with the claims where nothing asks for it sooner."""


@dataclass
class _Attempts:
    """What failed on one relay since it was last as wanted."""

    wanted: Attachment | None
    failures: int = 0
    not_before: float = 0.0
    reason: str = ""


class Reconciler:
    """Adds what is claimed and removes what is no longer claimed, but only what it had put there itself.

    Everything runs on the event loop's thread. ``run`` is meant to be supervised: what it knows survives a restart.
    """

    def __init__(
        self, controller: RelayController, *, backoff: Backoff | None = None, audit_interval_s: float = AUDIT_INTERVAL_S
    ) -> None:
        self._controller = controller
        self._backoff = backoff or Backoff(first_s=0.5, most_s=15.0)
        self._audit_interval_s = audit_interval_s
        self._claims: dict[Source, tuple[Claim, ...]] = dict.fromkeys(Source, ())
        self._wanted: dict[int, tuple[Source, Claim]] = {}
        self._conflicts: frozenset[str] = frozenset()
        self._placed: dict[int, Attachment] = {}
        self._fulfilled: dict[int, Claim] = {}
        self._attempts: dict[int, _Attempts] = {}
        self._changes: dict[int, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()

    def set_claims(self, source: Source, claims: Sequence[Claim]) -> None:
        """Replace all claims of a source. Where two exclude each other the first wins, static ones before OVSDB's."""
        self._claims[source] = tuple(claims)
        self._wanted, conflicts = merge(self._claims)
        for conflict in sorted(conflicts - self._conflicts):
            log.warning("%s", conflict)
        self._conflicts = conflicts
        for relay, claim in list(self._fulfilled.items()):
            if relay not in self._wanted or self._wanted[relay][1].attachment != claim.attachment:
                del self._fulfilled[relay]
        self._wake.set()

    @property
    def claimed_relays(self) -> frozenset[int]:
        """Relays that somebody claims, whether or not the device is there yet."""
        return frozenset(self._wanted)

    async def run(self) -> None:
        """Reconcile for ever: at once after a change of claims, when a retry is due, and at every audit."""
        try:
            while True:
                self._wake.clear()
                self._start_changes()
                # Not wait_for, which until Python 3.12 may swallow a cancellation that comes together with the event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._wait_s()):
                        await self._wake.wait()
        finally:
            await self._cancel_changes()

    def _start_changes(self) -> None:
        """Compare, and start a task for each relay that is not as it should be and has none yet."""
        actual = {snapshot.relay: snapshot.attachment for snapshot in self._controller.snapshot()}
        self._forget_lost(actual)
        for relay, placed in self._placed.items():
            if self._attachment_wanted(relay) != placed and self._due(relay):
                self._change(relay, None)
        for relay, (source, claim) in self._wanted.items():
            if relay in self._changes or self._placed.get(relay, claim.attachment) != claim.attachment:
                continue
            if same_device(actual.get(relay), claim.attachment):
                self._fulfilled[relay] = claim
                self._note_success(relay, claim.attachment)
            elif self._may_add(relay, source, claim) and self._due(relay):
                self._change(relay, claim.attachment)

    def _forget_lost(self, actual: Mapping[int, Attachment | None]) -> None:
        """Forget what is not where it was put: somebody else has removed or replaced it."""
        for relay, placed in list(self._placed.items()):
            if relay not in self._changes and not same_device(actual.get(relay), placed):
                del self._placed[relay]
                log.info("relay %d: %s was taken away by another request", relay, placed)
        for relay in self._attempts.keys() - self._placed.keys() - self._wanted.keys() - self._changes.keys():
            del self._attempts[relay]

    def _may_add(self, relay: int, source: Source, claim: Claim) -> bool:
        """Whether nothing of ours is in the way, neither on the relay nor, elsewhere, the same device."""
        if relay in self._placed or (relay in self._fulfilled and not source.persistent):
            return False
        names = device_names(claim.attachment)
        return not any(names & device_names(placed) for placed in self._placed.values())

    def _attachment_wanted(self, relay: int) -> Attachment | None:
        return self._wanted[relay][1].attachment if relay in self._wanted else None

    def _due(self, relay: int) -> bool:
        """Whether a change may start: none is under way, and no retry is being put off."""
        if relay in self._changes:
            return False
        attempts = self._attempts.get(relay)
        if attempts is None or attempts.wanted != self._attachment_wanted(relay):
            return True
        return asyncio.get_running_loop().time() >= attempts.not_before

    def _change(self, relay: int, attachment: Attachment | None) -> None:
        """Start to put a device on a relay, or to take away the one that was put there (None)."""
        work = self._remove(relay) if attachment is None else self._add(relay, attachment)
        task = asyncio.create_task(work, name=f"relay {relay}")
        self._changes[relay] = task
        task.add_done_callback(lambda _: self._changed(relay))

    def _changed(self, relay: int) -> None:
        del self._changes[relay]
        self._wake.set()

    async def _add(self, relay: int, attachment: Attachment) -> None:
        # Recorded first: a cancelled request may have been carried out, and the next audit finds out.
        self._placed[relay] = attachment
        try:
            await self._controller.add_vf(relay, attachment)
        except Exception as error:
            del self._placed[relay]
            self._note_failure(relay, f"{attachment} could not be added", error)
        else:
            self._note_success(relay, attachment)

    async def _remove(self, relay: int) -> None:
        attachment = self._placed[relay]
        try:
            await self._controller.remove_vf(relay, attachment)
        except Exception as error:
            self._note_failure(relay, f"{attachment} could not be removed", error)
            return
        del self._placed[relay]
        self._attempts.pop(relay, None)
        for attempts in self._attempts.values():
            attempts.not_before = 0.0  # The device or the relay that somebody waits for may be free now.

    def _note_failure(self, relay: int, what: str, error: Exception) -> None:
        """Put the next attempt off, and log the reason unless the last attempt failed for the same one."""
        attempts = self._attempts.get(relay)
        wanted = self._attachment_wanted(relay)
        if attempts is None or attempts.wanted != wanted:
            attempts = self._attempts[relay] = _Attempts(wanted)
        attempts.failures += 1
        attempts.not_before = asyncio.get_running_loop().time() + self._backoff.delay_s(attempts.failures)
        reason = f"{what}: {error if isinstance(error, ForwarderError) else repr(error)}"
        if reason == attempts.reason:
            return
        attempts.reason = reason
        unexpected = None if isinstance(error, ForwarderError) else error
        log.warning("relay %d: %s; it is tried again", relay, reason, exc_info=unexpected)

    def _note_success(self, relay: int, attachment: Attachment) -> None:
        attempts = self._attempts.pop(relay, None)
        if attempts is not None and attempts.wanted == attachment:
            log.info("relay %d: has %s after %d failed attempts", relay, attachment, attempts.failures)

    def _wait_s(self) -> float:
        """Seconds until the next audit or retry."""
        now = asyncio.get_running_loop().time()
        dues = (attempts.not_before - now for attempts in self._attempts.values() if attempts.not_before > now)
        return min([self._audit_interval_s, *dues])

    async def _cancel_changes(self) -> None:
        tasks = tuple(self._changes.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
