"""What the tests of declarative port control and of the command file share: a controller that can be made to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from portctl.memory_controller import MemoryController
from vio4wd.devices import Attachment, Device
from vio4wd.errors import RequestError
from vio4wd.relay.interface import RELAYS

EVENT_LIMIT_S = 10.0


class RecordingController(MemoryController):
    """Relays in memory that record requests, and refuse devices whose names are in ``broken``."""

    def __init__(self) -> None:
        super().__init__(slow_s=0.3)
        self.requests: list[tuple[str, int, str]] = []
        self.broken: dict[str, str] = {}

    async def add_vf(
        self, relay: int, device: Attachment, *, conditional: bool = True, patience_s: float | None = None
    ) -> None:
        self.requests.append(("add", relay, device.name))
        if device.name in self.broken:
            raise RequestError(self.broken[device.name], code=2, source="probe")
        await super().add_vf(relay, device, conditional=conditional)

    async def remove_vf(
        self,
        relay: int,
        device: Attachment | str | None,
        *,
        conditional: bool = True,
        patience_s: float | None = None,
    ) -> None:
        self.requests.append(("remove", relay, str(device)))
        if isinstance(device, Device) and device.name in self.broken:
            raise RequestError(self.broken[device.name], code=2, source="detach")
        await super().remove_vf(relay, device, conditional=conditional)

    @property
    def devices(self) -> dict[int, str]:
        """Devargs or bond name by relay, of relays that have any."""
        there = {relay: self.relays[relay].attachment for relay in range(RELAYS)}
        return {
            relay: device.devargs if isinstance(device, Device) else device.name
            for relay, device in there.items()
            if device is not None
        }


async def eventually(condition: Callable[[], bool], what: str = "condition", limit_s: float = EVENT_LIMIT_S) -> None:
    """Wait until a condition holds."""
    deadline = asyncio.get_running_loop().time() + limit_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {limit_s} s: {what}"
        await asyncio.sleep(0.01)


async def becomes(controller: RecordingController, devices: dict[int, str]) -> None:
    """Wait until exactly these devices are on exactly these relays."""
    try:
        await eventually(lambda: controller.devices == devices)
    except AssertionError:
        assert controller.devices == devices
