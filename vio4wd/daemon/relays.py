"""The controller of all relays: keeps what is wanted, has workers carry it out, and puts it back when one dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vio4wd.daemon import request_codes as codes
from vio4wd.daemon.relay_state import Relay, device_names, ports_of
from vio4wd.devices import Attachment, Bond
from vio4wd.errors import ForwarderError, RequestError, WorkerError
from vio4wd.relay.interface import RELAYS, RelayCpus, RelaySnapshot
from vio4wd.relay.lanes import LaneTable
from vio4wd.relay.messages import Event, attachment_to_json
from vio4wd.relay.placement import Placement
from vio4wd.relay.workers import Slot, Workers
from vio4wd.vhostuser.broker import Broker
from vio4wd.vhostuser.endpoint import Endpoint

log = logging.getLogger(__name__)

ADD_LIMIT_S = 30.0
"""Probing a PCI device resets it, which takes a second and more."""

RETRY_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Waits between attempts to put back a VF that a new worker could not take; the last repeats."""


class Relays:
    """All relays of the daemon; a RelayController, a back end for the session broker, and the workers' listener.

    ``endpoint(path)`` says how a vhost-user socket is to be opened. ``connect`` completes it.
    """

    def __init__(
        self,
        table: LaneTable,
        placement: Placement,
        endpoint: Callable[[Path], Endpoint],
        *,
        dynamic_sockets: bool,
    ) -> None:
        self._table = table
        self._placement = placement
        self._dynamic = dynamic_sockets
        self._relays = [Relay(number) for number in range(RELAYS)]
        self._claims: dict[str, int] = {}
        self._retries: dict[int, asyncio.Task[None]] = {}
        self._endpoint = endpoint
        self.workers: Workers
        self.broker: Broker

    def connect(self, workers: Workers, broker: Broker) -> None:
        """Set the parts that in turn know this controller."""
        self.workers, self.broker = workers, broker

    async def set_pins(self, pins: Mapping[int, RelayCpus]) -> None:
        """Replace the pins of the configuration; relays that are placed move to their new pins at once."""
        self._placement.pins = dict(pins)
        await self.set_cpus({relay: cpus for relay, cpus in pins.items() if relay in self._placement.placed})

    async def open_socket(self, relay: int, path: Path) -> None:
        """Open a relay's vhost-user socket.

        Raises:
            ForwarderError: it cannot be opened.
        """
        await self.broker.open(relay, self._endpoint(path))
        self._relays[relay].socket = path

    # What port control asks

    async def add_vf(self, relay: int, device: Attachment, *, conditional: bool = True) -> None:
        """See RelayController.add_vf."""
        codes.check_relay(relay, codes.add_source(device))
        state = self._relays[relay]
        async with state.lock:
            if state.attachment is not None:
                self._check_same(state, device, conditional=conditional)
                return
            with self._claimed(relay, device):
                try:
                    await self._put_vf(state, device)
                except WorkerError as error:
                    raise codes.add_error(device, error) from error
                state.attachment = device
                state.fault = None
        log.info("relay %d: %s added", relay, device)

    async def remove_vf(self, relay: int, device: Attachment | str | None, *, conditional: bool = True) -> None:
        """See RelayController.remove_vf."""
        codes.check_relay(relay, codes.REMOVE_VF)
        state = self._relays[relay]
        async with state.lock:
            if state.attachment is None:
                if conditional:
                    return
                raise RequestError(f"relay {relay} has no VF", code=4, source=codes.REMOVE_VF)
            if not _names(device, state.attachment):
                raise RequestError(
                    f"relay {relay} has {state.attachment}, not {device}", code=3, source=codes.REMOVE_VF
                )
            await self._take_vf(state)
        log.info("relay %d: VF removed", relay)

    async def add_socket(self, path: Path, device: Attachment, *, conditional: bool = True) -> int:
        """See RelayController.add_socket."""
        self._need_dynamic(codes.ADD_SOCKET, 5)
        known = self._by_path(path)
        if known is not None:
            if conditional and known.attachment is not None and _names(device, known.attachment):
                return known.number
            raise RequestError(f"{path} is in use by relay {known.number}", code=1, source=codes.ADD_SOCKET)
        holder = next((self._claims[name] for name in device_names(device) if name in self._claims), None)
        if holder is not None:
            raise RequestError(f"{device} is attached to relay {holder}", code=-17, source=codes.ADD_SOCKET)
        state = self._free_relay()
        state.socket = path
        try:
            await self._add_pair(state, path, device)
        except BaseException:
            state.socket = None
            raise
        return state.number

    async def remove_socket(
        self, path: Path | None, device: Attachment | str | None, *, conditional: bool = True
    ) -> None:
        """See RelayController.remove_socket."""
        self._need_dynamic(codes.REMOVE_SOCKET, 3)
        if path is None and device is None:
            raise RequestError("neither a vhost path nor a device is given", code=-1, source=codes.REMOVE_SOCKET)
        state = self._by_path(path) if path is not None else self._by_device(device)
        if state is None:
            if conditional:
                return
            raise RequestError(f"{path or device} is not on any relay", code=1, source=codes.REMOVE_SOCKET)
        if state.attachment is not None and not _names(device, state.attachment):
            message = f"{path} belongs to {state.attachment}, not {device}"
            raise RequestError(message, code=2, source=codes.REMOVE_SOCKET)
        try:
            await self.broker.close(state.number)
        except ForwarderError as error:
            raise RequestError(str(error), code=3, source=codes.REMOVE_SOCKET) from error
        try:
            await self.remove_vf(state.number, None)
        except RequestError as error:
            raise RequestError(str(error), code=4, source=codes.REMOVE_SOCKET) from error
        finally:
            state.socket = None

    def query_device(self, path: Path) -> Attachment | None:
        """See RelayController.query_device."""
        state = self._by_path(path)
        if state is None:
            raise RequestError(f"no relay has the socket {path}", code=2, source=codes.QUERY)
        return state.attachment

    async def set_cpus(self, cpus: Mapping[int, RelayCpus]) -> None:
        """See RelayController.set_cpus."""
        for relay, wanted in cpus.items():
            codes.check_relay(relay, "set_cpus()")
            for cpu in (wanted.vf_to_vm, wanted.vm_to_vf):
                if cpu not in self._placement.cpus:
                    message = f"CPU {cpu} is not a worker CPU: these are {', '.join(map(str, self._placement.cpus))}"
                    raise RequestError(message, code=2, source="set_cpus()")
        for relay, wanted in cpus.items():
            self._placement.move(relay, wanted)
            await self._place(self._relays[relay])

    def worker_cpus(self) -> Sequence[int]:
        """See RelayController.worker_cpus."""
        return self._placement.cpus

    def relay_cpus(self) -> Mapping[int, RelayCpus]:
        """See RelayController.relay_cpus."""
        return self._placement.placed

    def snapshot(self) -> Sequence[RelaySnapshot]:
        """See RelayController.snapshot."""
        return [state.snapshot(self._table, self._placement) for state in self._relays]

    # What the session broker asks

    async def attach(self, relay: int, path: Path) -> None:
        """See BackEnd.attach."""
        state = self._relays[relay]
        if state.slot is None:
            self._enter(state, self.workers.slots[0])
        await self._place(state)
        await self._slot(state).call("attach", relay=relay, path=str(path))

    async def detach(self, relay: int, path: Path) -> None:
        """See BackEnd.detach."""
        state = self._relays[relay]
        await self._slot(state).call("detach", relay=relay, path=str(path))
        self._leave_if_idle(state)

    async def pause(self, relay: int) -> None:
        """See BackEnd.pause."""
        await self._slot(self._relays[relay]).call("pause", relay=relay)

    async def resume(self, relay: int) -> None:
        """See BackEnd.resume."""
        await self._slot(self._relays[relay]).call("resume", relay=relay)

    def saved_ring_base(self, relay: int, ring: int) -> int | None:
        """See BackEnd.saved_ring_base: the library engine saves none."""
        return None

    # What workers report

    def worker_lost(self, slot: Slot) -> None:
        """See Listener.worker_lost."""
        for number in slot.relays:
            self._relays[number].vf_up = False
            self._relays[number].guest_up = False
        self.broker.worker_lost(sorted(slot.relays))

    async def worker_back(self, slot: Slot) -> None:
        """See Listener.worker_back: VFs first, then sessions, every relay by itself."""
        await asyncio.gather(*(self._put_back(self._relays[number]) for number in sorted(slot.relays)))

    def worker_event(self, slot: Slot, event: Event) -> None:
        """See Listener.worker_event."""
        if event.event == "guest":
            state = self._relays[event.args["relay"]]
            state.guest_up = event.args["connected"]
            if state.guest_up and event.args["numa_node"] >= 0:
                state.numa_node = event.args["numa_node"]
        elif event.event == "lane_fault":
            log.warning("relay %(relay)d: %(direction)s lane of queue pair %(queue_pair)d: %(message)s", event.args)

    async def close(self) -> None:
        """Stop retrying; workers and broker are stopped by their owner."""
        for task in self._retries.values():
            task.cancel()

    # How it is done

    async def _put_vf(self, state: Relay, device: Attachment) -> None:
        """Have a worker add the VF, moving the relay to a process with room if need be."""
        ports = ports_of(device)
        slot = await self.workers.reserve(ports)
        try:
            if state.slot is not None and state.slot is not slot:
                await self._move(state, slot)
            self._enter(state, slot)
            await self._place(state)
            arguments = attachment_to_json(device)
            result = await slot.process.call("add_port", limit_s=ADD_LIMIT_S, relay=state.number, **arguments)
        except BaseException:
            slot.ports -= ports
            self._leave_if_idle(state)
            raise
        state.numa_node = result["numa_node"]
        state.vf_up = True

    async def _move(self, state: Relay, slot: Slot) -> None:
        """Take the relay's session, if any, from its worker to another one."""
        self.broker.worker_lost([state.number])
        self._leave(state)
        self._enter(state, slot)
        await self.broker.replay(state.number)

    async def _take_vf(self, state: Relay) -> None:
        assert state.attachment is not None
        state.removing = True
        try:
            if state.vf_up:
                await self._slot(state).call("remove_port", relay=state.number)
        except WorkerError as error:
            if self._slot(state).process.alive:
                raise codes.remove_error(error) from error
        finally:
            state.removing = False
        self._slot(state).ports -= ports_of(state.attachment)
        for name in device_names(state.attachment):
            self._claims.pop(name, None)
        state.attachment, state.vf_up, state.fault = None, False, None
        self._leave_if_idle(state)

    async def _add_pair(self, state: Relay, path: Path, device: Attachment) -> None:
        try:
            await self.add_vf(state.number, device, conditional=False)
        except RequestError as error:
            code = 4 if isinstance(device, Bond) else 3
            raise RequestError(str(error), code=code, source=codes.ADD_SOCKET) from error
        try:
            await self.broker.open(state.number, self._endpoint(path))
        except (ForwarderError, OSError) as error:
            await self.remove_vf(state.number, None)
            raise RequestError(f"{path}: {error}", code=5, source=codes.ADD_SOCKET) from error

    async def _place(self, state: Relay) -> None:
        cpus = self._placement.place(state.number)
        if state.slot is not None:
            await state.slot.call("place", relay=state.number, vf_cpu=cpus.vf_to_vm, virtio_cpu=cpus.vm_to_vf)

    async def _put_back(self, state: Relay) -> None:
        """Give a new worker what its predecessor had of a relay."""
        async with state.lock:
            await self._place(state)
            if state.attachment is not None and not state.vf_up:
                await self._try_vf(state)
        await self.broker.replay(state.number)

    async def _try_vf(self, state: Relay) -> None:
        assert state.attachment is not None
        arguments = attachment_to_json(state.attachment)
        try:
            await self._slot(state).process.call("add_port", limit_s=ADD_LIMIT_S, relay=state.number, **arguments)
        except WorkerError as error:
            if state.fault != str(error):
                log.error(
                    "relay %d: %s could not be put back and is tried again: %s", state.number, state.attachment, error
                )
            state.fault = str(error)
            self._retry_later(state)
        else:
            state.vf_up, state.fault = True, None

    def _retry_later(self, state: Relay) -> None:
        task = self._retries.get(state.number)
        if task is None or task.done():
            self._retries[state.number] = asyncio.get_running_loop().create_task(self._retry(state))

    async def _retry(self, state: Relay) -> None:
        attempt = 0
        while state.fault is not None:
            await asyncio.sleep(RETRY_DELAYS_S[min(attempt, len(RETRY_DELAYS_S) - 1)])
            attempt += 1
            async with state.lock:
                if state.attachment is not None and not state.vf_up and self._slot(state).process.alive:
                    await self._try_vf(state)

    def _check_same(self, state: Relay, device: Attachment, *, conditional: bool) -> None:
        assert state.attachment is not None
        if not (conditional and _names(device, state.attachment)):
            message = f"relay {state.number} has {state.attachment} already"
            raise RequestError(message, code=codes.RELAY_BUSY, source=codes.add_source(device))

    @contextmanager
    def _claimed(self, relay: int, device: Attachment) -> Iterator[None]:
        """Claim the names of a device for a relay; given up again if the block fails."""
        names = device_names(device)
        for name in names:
            if name in self._claims:
                code = codes.MEMBER_IN_USE if isinstance(device, Bond) else codes.PROBE_FAILED
                message = f"{name} is in use by relay {self._claims[name]}"
                raise RequestError(message, code=code, source=codes.add_source(device))
        self._claims.update(dict.fromkeys(names, relay))
        try:
            yield
        except BaseException:
            for name in names:
                del self._claims[name]
            raise

    def _need_dynamic(self, source: str, code: int) -> None:
        if not self._dynamic:
            raise RequestError("dynamic sockets are off: set VIRTIOFWD_DYNAMIC_SOCKETS", code=code, source=source)

    def _free_relay(self) -> Relay:
        for state in self._relays:
            if state.socket is None and state.attachment is None and not state.lock.locked():
                return state
        raise RequestError(f"all {RELAYS} relays are in use", code=2, source=codes.ADD_SOCKET)

    def _by_path(self, path: Path) -> Relay | None:
        return next((state for state in self._relays if state.socket == path), None)

    def _by_device(self, device: Attachment | str | None) -> Relay | None:
        return next((s for s in self._relays if s.attachment is not None and _names(device, s.attachment)), None)

    def _slot(self, state: Relay) -> Slot:
        if state.slot is None:
            raise WorkerError(f"relay {state.number} is on no worker")
        return state.slot

    def _enter(self, state: Relay, slot: Slot) -> None:
        slot.relays.add(state.number)
        state.slot = slot

    def _leave(self, state: Relay) -> None:
        if state.slot is not None:
            state.slot.relays.discard(state.number)
            state.slot = None

    def _leave_if_idle(self, state: Relay) -> None:
        if state.idle and not self.broker.connected(state.number):
            self._leave(state)
            self._placement.release(state.number)


def _names(wanted: Attachment | str | None, attachment: Attachment) -> bool:
    """Whether a removal request means this attachment."""
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return wanted == attachment.name
    return wanted.name == attachment.name
