"""The stats service: states, counters and rates of the relays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vio4wd.portctl.proto import parse
from vio4wd.portctl.proto.virtioforwarder_pb2 import StatsRequest, StatsResponse
from vio4wd.relay.interface import RELAYS, RelayController, RelaySnapshot
from vio4wd.stats.message import relay_state
from vio4wd.stats.rates import MAX_DELAY_MS, rates_between

MAX_DELAYED = 256
"""Requests that wait for their rates at a time, so that they leave the service room for others."""


@dataclass(frozen=True, eq=False)
class _Reading:
    """All relays at one moment, of the monotonic clock."""

    relays: Sequence[RelaySnapshot]
    time_s: float


class StatsService:
    """Answers StatsRequest.

    Args:
        controller: whose relays are shown.
        tsc_hz: answers the frequency of the workers' cycle counters, None while it is unknown (no load is sent then).
    """

    def __init__(self, controller: RelayController, *, tsc_hz: Callable[[], float | None] = lambda: None) -> None:
        self._controller = controller
        self._tsc_hz = tsc_hz
        self._awaited: set[_Reading] = set()

    @property
    def refusal(self) -> bytes:
        """The answer to what is not a request: EBADR."""
        return StatsResponse(status=StatsResponse.EBADR).SerializeToString()

    async def __call__(self, request: bytes) -> bytes:
        """Answer one serialized StatsRequest after its delay. Without a delay rates are zero.

        Where too many wait already, it is answered at once, with the rates since that one of them began whose time is
        nearest to the delay.

        Raises:
            ProtocolError: the bytes are not one.
        """
        message = parse(StatsRequest, request)
        if len(message.relay) > RELAYS:
            return StatsResponse(status=StatsResponse.E2BIG).SerializeToString()
        before = after = self._read()
        delay_s = min(message.delay, MAX_DELAY_MS) / 1000
        if message.delay and len(self._awaited) >= MAX_DELAYED:
            before = min(self._awaited, key=lambda reading: abs(after.time_s - reading.time_s - delay_s))
        elif message.delay:
            self._awaited.add(before)
            try:
                await asyncio.sleep(delay_s)
            finally:
                self._awaited.remove(before)
            after = self._read()
        elapsed_s = after.time_s - before.time_s
        return self._response(message, before.relays, after.relays, elapsed_s).SerializeToString()

    def _read(self) -> _Reading:
        return _Reading(self._controller.snapshot(), time.monotonic())

    def _response(
        self, request: StatsRequest, before: Sequence[RelaySnapshot], after: Sequence[RelaySnapshot], elapsed_s: float
    ) -> StatsResponse:
        response = StatsResponse(status=StatsResponse.OK)
        earlier = {snapshot.relay: snapshot for snapshot in before}
        wanted = frozenset(request.relay)
        hz = self._tsc_hz()
        for now in after:
            if (wanted and now.relay not in wanted) or not (now.active or request.include_inactive):
                continue
            then = earlier.get(now.relay, now)
            response.relay.append(
                relay_state(
                    now,
                    rates_between(then.vf_to_vm, now.vf_to_vm, elapsed_s, hz),
                    rates_between(then.vm_to_vf, now.vm_to_vf, elapsed_s, hz),
                )
            )
        return response
