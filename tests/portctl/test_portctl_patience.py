"""How long requests let others go first: what they say, what they do not say, and when too many say a lot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from memory_controller import MemoryController
from portctl_wire import ADD, ADD_SOCK, QUERY_PCI, REMOVE, REMOVE_SOCK, request

from vio4wd.devices import Attachment
from vio4wd.portctl.port_control import MAX_PATIENT, PortControlService

OK = b"\x20\x01"


class Waiting(MemoryController):
    """Notes the patience of every request; additions wait for ``go``."""

    def __init__(self) -> None:
        super().__init__(dynamic_sockets=True)
        self.patience: list[float | None] = []
        self.go = asyncio.Event()

    async def add_vf(
        self, relay: int, device: Attachment, *, conditional: bool = True, patience_s: float | None = None
    ) -> None:
        self.patience.append(patience_s)
        await self.go.wait()

    async def remove_vf(
        self,
        relay: int,
        device: Attachment | str | None,
        *,
        conditional: bool = True,
        patience_s: float | None = None,
    ) -> None:
        self.patience.append(patience_s)

    async def add_socket(
        self, path: Path, device: Attachment, *, conditional: bool = True, patience_s: float | None = None
    ) -> int:
        self.patience.append(patience_s)
        return 0

    async def remove_socket(
        self,
        path: Path | None,
        device: Attachment | str | None,
        *,
        conditional: bool = True,
        patience_s: float | None = None,
    ) -> None:
        self.patience.append(patience_s)


@pytest.mark.parametrize(
    ("patience_ms", "seconds"), [(None, 1.5), (0, 0), (700, 0.7), (2600, 2.6), (60_000, 60), (2**32 - 1, 60)]
)
def test_patience_of_a_request(patience_ms: int | None, seconds: float) -> None:
    async def scenario() -> None:
        controller = Waiting()
        controller.go.set()
        service = PortControlService(controller)
        for operation in (ADD, REMOVE, ADD_SOCK, REMOVE_SOCK):
            message = request(operation, devargs=("net_null0",), virtio_id=1, path="/a", patience_ms=patience_ms)
            assert await service(message) == OK
        assert controller.patience == [seconds] * 4
        await service(request(QUERY_PCI, path="/a", patience_ms=patience_ms))

    asyncio.run(scenario())


def test_too_many_patient_requests_leave_room_for_others() -> None:
    async def scenario() -> None:
        controller = Waiting()
        service = PortControlService(controller)

        async def add(patience_ms: int | None) -> bytes:
            return await service(request(ADD, devargs=("net_null0",), virtio_id=1, patience_ms=patience_ms))

        patient = [asyncio.create_task(add(60_000)) for _ in range(MAX_PATIENT + 2)]
        hasty = [asyncio.create_task(add(None)) for _ in range(3)]
        await asyncio.sleep(0)
        assert controller.patience == [60] * MAX_PATIENT + [1.5] * 5
        controller.go.set()
        assert set(await asyncio.gather(*patient, *hasty)) == {OK}
        assert await add(60_000) == OK
        assert controller.patience[-1] == 60

    asyncio.run(scenario())
