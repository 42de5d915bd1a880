"""What the supervisor knows of one relay: what is wanted on it and what a worker has of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from vio4wd.devices import Attachment, Bond
from vio4wd.relay.interface import RelaySnapshot, VfState, VirtioState
from vio4wd.relay.lanes import Direction, LaneTable
from vio4wd.relay.placement import Placement
from vio4wd.relay.workers import Slot


@dataclass
class Relay:
    """One relay. ``lock`` serializes its changes.

    ``attachment`` and ``socket`` are what is wanted; ``vf_up`` and ``guest_up`` what the worker of ``slot`` has.
    ``fault`` is why the last worker could not take the VF, or why one that is up has to be opened anew;
    ``session_waits``: a worker could not take the session.
    """

    number: int
    attachment: Attachment | None = None
    socket: Path | None = None
    slot: Slot | None = None
    vf_up: bool = False
    guest_up: bool = False
    removing: bool = False
    numa_node: int = 0
    fault: str | None = None
    session_waits: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def vf_state(self) -> VfState:
        """The VF side's state."""
        if self.removing:
            return VfState.REMOVING1
        if not self.vf_up:
            return VfState.UNINIT
        return VfState.READY if self.guest_up else VfState.ADDED

    @property
    def virtio_state(self) -> VirtioState:
        """The VM side's state."""
        return VirtioState.READY if self.guest_up else VirtioState.UNINIT

    @property
    def _absence(self) -> str | None:
        """Why the VF is not being served where no worker has refused it."""
        absent = self.attachment is not None and not self.vf_up and not self.removing
        return f"{self.attachment} waits for a worker process" if absent else None

    def snapshot(self, table: LaneTable, placement: Placement) -> RelaySnapshot:
        """The relay as stats show it."""
        cpus = placement.placed.get(self.number)
        return RelaySnapshot(
            relay=self.number,
            vf_state=self.vf_state,
            virtio_state=self.virtio_state,
            attachment=self.attachment,
            socket_path=str(self.socket) if self.socket else None,
            vf_cpu=cpus.vf_to_vm if cpus and self.vf_up else None,
            virtio_cpu=cpus.vm_to_vf if cpus and self.guest_up else None,
            numa_node=self.numa_node,
            vf_to_vm=table.counters(self.number, Direction.VF_TO_VM),
            vm_to_vf=table.counters(self.number, Direction.VM_TO_VF),
            fault=self.fault or self._absence,
        )


def ports_of(attachment: Attachment) -> int:
    """DPDK ports that an attachment takes."""
    return 1 + len(attachment.members) if isinstance(attachment, Bond) else 1


def device_names(attachment: Attachment) -> tuple[str, ...]:
    """Names of all devices that an attachment claims, its own first."""
    if isinstance(attachment, Bond):
        return (attachment.name, *(member.name for member in attachment.members))
    return (attachment.name,)
