"""A RelayController that keeps relays in memory, for tests of what is above it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vio4wd.devices import Attachment, Bond, Device
from vio4wd.errors import RequestError
from vio4wd.relay.interface import (
    RELAYS,
    DirectionCounters,
    RelayCpus,
    RelaySnapshot,
    VfState,
    VirtioState,
)

ADD_VF = "virtio_forwarder_add_vf2()"
ADD_BOND = "virtio_forwarder_bond_add()"
REMOVE_VF = "virtio_forwarder_remove_vf2()"
ADD_SOCK = "virtio_add_sock_dev_pair()"
REMOVE_SOCK = "virtio_remove_sock_dev_pair()"
QUERY = "virtio_query_pci()"
MISSING_DEVICE = "net_missing"
SLOW_DEVICE = "net_slow"
EMPTY = RelaySnapshot(
    relay=0,
    vf_state=VfState.UNINIT,
    virtio_state=VirtioState.UNINIT,
    attachment=None,
    socket_path=None,
    vf_cpu=None,
    virtio_cpu=None,
    numa_node=0,
    vf_to_vm=DirectionCounters(),
    vm_to_vf=DirectionCounters(),
)


class MemoryController:
    """Relays without packets. Devices named ``net_missing...`` cannot be probed; ``net_slow...`` take ``slow_s``."""

    def __init__(self, *, dynamic_sockets: bool = False, workers: Sequence[int] = (1, 2), slow_s: float = 1.0) -> None:
        self.dynamic_sockets = dynamic_sockets
        self.slow_s = slow_s
        self.relays = {
            relay: replace(EMPTY, relay=relay, socket_path=None if dynamic_sockets else f"/tmp/vf{relay}.sock")
            for relay in range(RELAYS)
        }
        self._workers = tuple(workers)
        self._cpus: dict[int, RelayCpus] = {}
        self._locks = {relay: asyncio.Lock() for relay in range(RELAYS)}

    async def add_vf(
        self, relay: int, device: Attachment, *, conditional: bool = True, patience_s: float | None = None
    ) -> None:
        source = ADD_BOND if isinstance(device, Bond) else ADD_VF
        if not 0 <= relay < RELAYS:
            raise RequestError(f"relay {relay}: must be 0 to {RELAYS - 1}", code=1, source=source)
        async with self._locks[relay]:
            there = self.relays[relay].attachment
            if there is not None:
                if conditional and _names(there) == _names(device):
                    return
                raise RequestError(f"relay {relay}: has {there} already", code=8, source=source)
            if device_in_use := _names(device) & set().union(*map(_names, self._attached())):
                code = 3 if isinstance(device, Bond) else 2
                raise RequestError(f"{', '.join(device_in_use)} is on another relay", code=code, source=source)
            if any(name.startswith(MISSING_DEVICE) for name in _names(device)):
                raise RequestError(f"{device}: there is no such device", code=2, source=source)
            if any(name.startswith(SLOW_DEVICE) for name in _names(device)):
                await asyncio.sleep(self.slow_s)
            self._change(relay, attachment=device, vf_state=VfState.ADDED, vf_cpu=self._placed(relay).vf_to_vm)

    async def remove_vf(
        self,
        relay: int,
        device: Attachment | str | None,
        *,
        conditional: bool = True,
        patience_s: float | None = None,
    ) -> None:
        if not 0 <= relay < RELAYS:
            raise RequestError(f"relay {relay}: must be 0 to {RELAYS - 1}", code=1, source=REMOVE_VF)
        async with self._locks[relay]:
            there = self.relays[relay].attachment
            if there is None:
                if conditional:
                    return
                raise RequestError(f"relay {relay}: has no VF", code=4, source=REMOVE_VF)
            if not _matches(there, device):
                raise RequestError(f"relay {relay}: has {there}, not {device}", code=3, source=REMOVE_VF)
            self._change(relay, attachment=None, vf_state=VfState.UNINIT, vf_cpu=None)
            self._cpus.pop(relay, None)

    async def add_socket(
        self, path: Path, device: Attachment, *, conditional: bool = True, patience_s: float | None = None
    ) -> int:
        if not self.dynamic_sockets:
            raise RequestError("add_sock needs dynamic sockets")
        for relay, state in self.relays.items():
            if state.socket_path == str(path):
                if conditional and state.attachment is not None and _names(state.attachment) == _names(device):
                    return relay
                raise RequestError(f"{path} is in use", code=1, source=ADD_SOCK)
        free = [relay for relay, state in self.relays.items() if state.socket_path is None and state.attachment is None]
        if not free:
            raise RequestError("no relay is free", code=2, source=ADD_SOCK)
        try:
            await self.add_vf(free[0], device, conditional=False)
        except RequestError as error:
            code = 4 if isinstance(device, Bond) else 3
            raise RequestError(str(error), code=code, source=ADD_SOCK) from error
        self._change(free[0], socket_path=str(path))
        return free[0]

    async def remove_socket(
        self,
        path: Path | None,
        device: Attachment | str | None,
        *,
        conditional: bool = True,
        patience_s: float | None = None,
    ) -> None:
        if not self.dynamic_sockets:
            raise RequestError("remove_sock needs dynamic sockets")
        for relay, state in self.relays.items():
            there = state.attachment
            if there is None or state.socket_path is None:
                continue
            if path is not None and state.socket_path == str(path):
                if not _matches(there, device):
                    raise RequestError(f"{path} has {there}, not {device}", code=2, source=REMOVE_SOCK)
            elif path is not None or not _matches(there, device):
                continue
            await self.remove_vf(relay, None, conditional=False)
            self._change(relay, socket_path=None)
            return
        if not conditional:
            raise RequestError("no such socket", code=1, source=REMOVE_SOCK)

    def query_device(self, path: Path) -> Attachment | None:
        for state in self.relays.values():
            if state.socket_path == str(path):
                return state.attachment
        raise RequestError(f"{path} is not known", code=2, source=QUERY)

    async def set_cpus(self, cpus: Mapping[int, RelayCpus]) -> None:
        for relay, cpu in cpus.items():
            self._cpus[relay] = cpu
            state = self.relays[relay]
            self._change(
                relay,
                vf_cpu=None if state.vf_cpu is None else cpu.vf_to_vm,
                virtio_cpu=None if state.virtio_cpu is None else cpu.vm_to_vf,
            )

    def worker_cpus(self) -> Sequence[int]:
        return self._workers

    def relay_cpus(self) -> Mapping[int, RelayCpus]:
        return dict(self._cpus)

    def snapshot(self) -> Sequence[RelaySnapshot]:
        return [self.relays[relay] for relay in range(RELAYS)]

    def _placed(self, relay: int) -> RelayCpus:
        return self._cpus.setdefault(relay, RelayCpus(self._workers[0], self._workers[0]))

    def _attached(self) -> list[Attachment]:
        return [state.attachment for state in self.relays.values() if state.attachment is not None]

    def _change(self, relay: int, **changes: object) -> None:
        self.relays[relay] = replace(self.relays[relay], **changes)  # type: ignore[arg-type]


def _names(device: Attachment) -> frozenset[str]:
    """The names of all DPDK ports that a device occupies."""
    if isinstance(device, Device):
        return frozenset([device.name])
    return frozenset([device.name, *(member.name for member in device.members)])


def _matches(there: Attachment, device: Attachment | str | None) -> bool:
    return device is None or (there.name == device if isinstance(device, str) else there.name == device.name)
