"""Rates of a relay's direction between two moments."""

from __future__ import annotations

from dataclasses import dataclass

from vio4wd.relay.interface import DirectionCounters

MAX_DELAY_MS = 60_000
"""Rates are measured over this time at most, whatever a client asks for."""


@dataclass(frozen=True)
class DirectionRates:
    """Packets and bytes per second of one direction, and the share of a CPU (0 to 1) that it used, None if unknown."""

    received_pps: float = 0.0
    received_bytes_per_s: float = 0.0
    sent_pps: float = 0.0
    sent_bytes_per_s: float = 0.0
    load: float | None = None


def rates_between(
    before: DirectionCounters, after: DirectionCounters, elapsed_s: float, tsc_hz: float | None
) -> DirectionRates:
    """Rates from two readings ``elapsed_s`` seconds apart; all zero and no load where no time has passed.

    ``tsc_hz`` is the frequency of the counter behind ``cycles``; None: no load.
    """
    if elapsed_s <= 0:
        return DirectionRates()
    cycles = after.cycles - before.cycles
    return DirectionRates(
        received_pps=(after.received_pkts - before.received_pkts) / elapsed_s,
        received_bytes_per_s=(after.received_bytes - before.received_bytes) / elapsed_s,
        sent_pps=(after.sent_pkts - before.sent_pkts) / elapsed_s,
        sent_bytes_per_s=(after.sent_bytes - before.sent_bytes) / elapsed_s,
        load=None if not tsc_hz else min(1.0, cycles / (tsc_hz * elapsed_s)),
    )
