"""What static configuration and OVSDB ask for: claims, and which of them hold where they exclude each other."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vio4wd.devices import Attachment, Bond


class Source(enum.Enum):
    """Where claims come from, in order of precedence."""

    STATIC = "static configuration"
    OVSDB = "OVSDB"

    @property
    def persistent(self) -> bool:
        """Whether a device that somebody else took away is put back.

        The database says what is to be now. Static VFs are what the daemon starts with: an operator who has removed
        one by port control does not want it back.
        """
        return self is Source.OVSDB


@dataclass(frozen=True)
class Claim:
    """A device that is to be on a relay. ``origin`` names, for the log, what asks for it: ``interface eth100``."""

    relay: int
    attachment: Attachment
    origin: str

    def __str__(self) -> str:
        return f"{self.origin} ({self.attachment} on relay {self.relay})"


def device_names(attachment: Attachment) -> frozenset[str]:
    """Names of the devices that an attachment occupies: its own and, of a bond, the members'."""
    members = attachment.members if isinstance(attachment, Bond) else ()
    return frozenset({attachment.name, *(member.name for member in members)})


def same_device(one: Attachment | None, other: Attachment) -> bool:
    """Whether two attachments are the same device; arguments do not matter, as nobody compares those of others."""
    return one is not None and type(one) is type(other) and one.name == other.name


def merge(
    claims: Mapping[Source, Sequence[Claim]],
) -> tuple[dict[int, tuple[Source, Claim]], frozenset[str]]:
    """What holds by relay, and what to tell the operator about claims that exclude each other."""
    wanted: dict[int, tuple[Source, Claim]] = {}
    holders: dict[str, Claim] = {}
    conflicts = set()
    for source in Source:
        for claim in claims[source]:
            names = device_names(claim.attachment)
            taken = sorted(names & holders.keys())
            if claim.relay in wanted:
                winner = wanted[claim.relay][1]
                if not same_device(winner.attachment, claim.attachment):
                    conflicts.add(_conflict(f"relay {claim.relay}", winner, claim))
            elif taken:
                conflicts.add(_conflict(f"device {taken[0]}", holders[taken[0]], claim))
            else:
                wanted[claim.relay] = (source, claim)
                holders.update(dict.fromkeys(names, claim))
    return wanted, frozenset(conflicts)


def _conflict(what: str, winner: Claim, loser: Claim) -> str:
    return f"{what} is claimed by {winner} and by {loser}; the former has it"
