"""Static VFs: the claims of the configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from vio4wd.devices import Attachment
from vio4wd.portctl.claims import Claim, Source
from vio4wd.portctl.reconcile import Reconciler


class StaticVf(Protocol):
    """One entry of VIRTIOFWD_STATIC_VFS, as the configuration holds it."""

    @property
    def relay(self) -> int:
        """The relay's number."""

    @property
    def attachment(self) -> Attachment:
        """The VF, virtual device or bond."""


def apply_static_vfs(reconciler: Reconciler, static_vfs: Iterable[StaticVf]) -> None:
    """Have these VFs put on their relays, and those of an earlier call that are not among them taken away.

    Called at the start and after each reload. Returns at once; the reconciler adds them, and tries again what fails.
    """
    claims = [Claim(static.relay, static.attachment, "VIRTIOFWD_STATIC_VFS") for static in static_vfs]
    reconciler.set_claims(Source.STATIC, claims)
