"""The controller of all relays: keeps what is wanted of each, and has it carried out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from vio4wd.daemon import request_codes as codes
from vio4wd.daemon.carrier import Carrier
from vio4wd.daemon.patience import Patience
from vio4wd.daemon.relay_state import Relay, device_names
from vio4wd.devices import Attachment, Bond, Device
from vio4wd.errors import ForwarderError, RequestError, WorkerError
from vio4wd.relay.interface import RELAYS, RelayCpus, RelaySnapshot
from vio4wd.relay.lanes import LaneTable
from vio4wd.relay.placement import Placement
from vio4wd.relay.workers import Workers
from vio4wd.vhostuser.broker import Broker
from vio4wd.vhostuser.endpoint import Endpoint

log = logging.getLogger(__name__)


class Relays:
    """All relays of the daemon; a RelayController. ``carrier`` is its side towards workers and session broker.

    ``endpoint(path)`` says how a vhost-user socket is to be opened. ``reserved`` tells the relays that dynamic sockets
    leave alone because a VF is still to come there. ``connect`` completes it.
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
        self._endpoint = endpoint
        self._relays = [Relay(number) for number in range(RELAYS)]
        self._claims: dict[str, int] = {}
        self._turns: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()
        self._broker: Broker
        self.carrier = Carrier(self._relays, placement, table)
        self.reserved: Callable[[], Collection[int]] = frozenset

    def connect(self, workers: Workers, broker: Broker) -> None:
        """Set the parts that in turn know the carrier."""
        self._broker = broker
        self.carrier.connect(workers, broker)

    async def set_pins(self, pins: Mapping[int, RelayCpus]) -> None:
        """Replace the pins of the configuration.

        Relays that are placed move at once to their new pins, those that have none any more to any CPUs.

        Raises:
            WorkerError: a worker refused; all relays are where they were, and placed by the new pins from now on.
        """
        released = self._placement.pins.keys() - pins.keys()
        self._placement.pins = dict(pins)
        moves = {relay: pins.get(relay) for relay in (*pins, *released) if relay in self._placement.placed}
        await self._move(moves)

    async def open_socket(self, relay: int, path: Path) -> None:
        """Open a relay's vhost-user socket.

        Raises:
            ForwarderError: it cannot be opened.
        """
        await self._broker.open(relay, self._endpoint(path))
        self._relays[relay].socket = path

    # RelayController

    async def add_vf(
        self, relay: int, device: Attachment, *, conditional: bool = True, patience_s: float | None = None
    ) -> None:
        """See RelayController.add_vf."""
        codes.check_relay(relay, codes.add_source(device))
        state, patience = self._relays[relay], Patience(f"relay {relay}", patience_s)
        async with codes.answered(partial(codes.add_error, device)), patience.turn(state.lock):
            if state.attachment is None:
                await self._put_vf(state, device, patience)
            elif not (conditional and _same(device, state.attachment)):
                other = ", with another mode, members or arguments" if _names(device, state.attachment) else ""
                message = f"relay {relay} has {state.attachment} already{other if conditional else ''}"
                raise RequestError(message, code=codes.RELAY_BUSY, source=codes.add_source(device))

    async def remove_vf(
        self,
        relay: int,
        device: Attachment | str | None,
        *,
        conditional: bool = True,
        patience_s: float | None = None,
    ) -> None:
        """See RelayController.remove_vf."""
        codes.check_relay(relay, codes.REMOVE_VF)
        state, patience = self._relays[relay], Patience(f"relay {relay}", patience_s)
        async with codes.answered(codes.remove_error), patience.turn(state.lock):
            if state.attachment is None:
                if conditional:
                    return
                raise RequestError(f"relay {relay} has no VF", code=4, source=codes.REMOVE_VF)
            if not _names(device, state.attachment):
                message = f"relay {relay} has {state.attachment}, not {device}"
                raise RequestError(message, code=3, source=codes.REMOVE_VF)
            async with self.carrier.removal_turn(state, patience):
                await self._take_vf(state)

    async def add_socket(
        self, path: Path, device: Attachment, *, conditional: bool = True, patience_s: float | None = None
    ) -> int:
        """See RelayController.add_socket."""
        self._need_dynamic(codes.ADD_SOCKET, codes.SOCKET_FAILED)
        endpoint = self._usable(path)
        patience = Patience(str(path), patience_s)
        async with codes.answered(partial(codes.add_socket_error, device)), patience.turn(self._turn(path)):
            known = self._by_path(path)
            if known is not None:
                if conditional and known.attachment is not None and _same(device, known.attachment):
                    return known.number
                raise RequestError(f"{path} is in use by relay {known.number}", code=1, source=codes.ADD_SOCKET)
            holder = next((self._claims[name] for name in device_names(device) if name in self._claims), None)
            if holder is not None:
                raise RequestError(f"{device} is attached to relay {holder}", code=-17, source=codes.ADD_SOCKET)
            return await self._put_pair(endpoint, device, patience)

    async def remove_socket(
        self,
        path: Path | None,
        device: Attachment | str | None,
        *,
        conditional: bool = True,
        patience_s: float | None = None,
    ) -> None:
        """See RelayController.remove_socket."""
        self._need_dynamic(codes.REMOVE_SOCKET, 3)
        if path is None and device is None:
            raise RequestError("neither a vhost path nor a device is given", code=-1, source=codes.REMOVE_SOCKET)
        what, patience = path or device, Patience(str(path or device), patience_s)
        both = path is not None and device is not None
        if path is None and (holder := self._by_device(device)) is not None:
            path = holder.socket
        if path is not None:
            async with codes.answered(codes.remove_socket_error), patience.turn(self._turn(path)):
                state = self._by_path(path)
                if state is not None:
                    await self._take_pair(state, path, device, patience)
                    return
        if both and (holder := self._by_device(device)) is not None:
            message = f"{path} is not on any relay, and {device} belongs to {holder.socket}"
            raise RequestError(message, code=2, source=codes.REMOVE_SOCKET)
        if not conditional:
            raise RequestError(f"{what} is not on any relay", code=1, source=codes.REMOVE_SOCKET)

    def query_device(self, path: Path) -> Attachment | None:
        """See RelayController.query_device."""
        state = self._by_path(path)
        if state is None:
            raise RequestError(f"no relay has the socket {path}", code=2, source=codes.QUERY)
        return state.attachment

    async def set_cpus(self, cpus: Mapping[int, RelayCpus]) -> None:
        """See RelayController.set_cpus."""
        for relay, wanted in cpus.items():
            codes.check_relay(relay, codes.SET_CPUS)
            for cpu in (wanted.vf_to_vm, wanted.vm_to_vf):
                if cpu not in self._placement.cpus:
                    message = f"CPU {cpu} is not a worker CPU: these are {', '.join(map(str, self._placement.cpus))}"
                    raise RequestError(message, code=2, source=codes.SET_CPUS)
        await self._move(cpus)

    async def _move(self, cpus: Mapping[int, RelayCpus | None]) -> None:
        """Move relays to CPUs, or back where that fails; to any where None is given."""
        before = {relay: self._placement.placed.get(relay) for relay in cpus}
        if failures := await self._place(cpus):
            for failure in await self._place(before):
                log.error("a worker stays with CPUs that were refused: %s", failure)
            raise failures[0]

    def worker_cpus(self) -> Sequence[int]:
        """See RelayController.worker_cpus."""
        return self._placement.cpus

    def relay_cpus(self) -> Mapping[int, RelayCpus]:
        """See RelayController.relay_cpus."""
        return self._placement.placed

    def snapshot(self) -> Sequence[RelaySnapshot]:
        """See RelayController.snapshot."""
        return [state.snapshot(self._table, self._placement) for state in self._relays]

    async def _place(self, cpus: Mapping[int, RelayCpus | None]) -> Sequence[BaseException]:
        """Place relays and have workers follow; answers what went wrong there."""
        for relay, wanted in cpus.items():
            if wanted is None:
                self._placement.release(relay)
            else:
                self._placement.move(relay, wanted)
        carried = (self._relays[relay] for relay in cpus if self._relays[relay].slot is not None)
        results = await asyncio.gather(*map(self.carrier.place, carried), return_exceptions=True)
        return [result for result in results if result is not None]

    # How it is done; the relay's lock is held

    async def _put_vf(self, state: Relay, device: Attachment, patience: Patience) -> None:
        with self._claimed(state.number, device):
            await self.carrier.put_vf(state, device, patience)
            state.attachment = device
        log.info("relay %d: %s added", state.number, device)

    async def _take_vf(self, state: Relay) -> None:
        assert state.attachment is not None
        names = device_names(state.attachment)
        await self.carrier.take_vf(state)
        for name in names:
            del self._claims[name]
        log.info("relay %d: VF removed", state.number)

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

    # Sockets with their devices; the path's turn is held

    def _turn(self, path: Path) -> asyncio.Lock:
        """Requests for one path take turns: the lock is shared while anybody holds it or waits for it."""
        return self._turns.setdefault(path, asyncio.Lock())

    async def _put_pair(self, endpoint: Endpoint, device: Attachment, patience: Patience) -> int:
        while True:
            state = self._free_relay()
            state.socket = endpoint.path
            opened = False
            try:
                async with patience.turn(state.lock):
                    if state.attachment is None:  # else somebody was quicker who asked for this very relay
                        await self._put_vf_and_socket(state, endpoint, device, patience)
                        opened = True
                        return state.number
            finally:
                if not opened:
                    state.socket = None

    async def _put_vf_and_socket(
        self, state: Relay, endpoint: Endpoint, device: Attachment, patience: Patience
    ) -> None:
        try:
            await self._put_vf(state, device, patience)
        except RequestError as error:
            raise codes.add_socket_error(device, error) from error
        try:
            await self._broker.open(state.number, endpoint)
        except (ForwarderError, OSError) as error:
            try:
                async with self.carrier.removal_turn(state, Patience(str(endpoint.path))):
                    await self._take_vf(state)
            except WorkerError as stays:
                log.error("relay %d: %s stays there without a socket: %s", state.number, device, stays)
            raise RequestError(str(error), code=codes.SOCKET_FAILED, source=codes.ADD_SOCKET) from error
        log.info("relay %d: socket %s opened for %s", state.number, endpoint.path, device)

    async def _take_pair(self, state: Relay, path: Path, device: Attachment | str | None, patience: Patience) -> None:
        async with patience.turn(state.lock):
            if state.attachment is not None and not _names(device, state.attachment):
                message = f"{path} belongs to {state.attachment}, not {device}"
                raise RequestError(message, code=2, source=codes.REMOVE_SOCKET)
            async with self.carrier.removal_turn(state, patience):
                try:
                    await self._broker.close(state.number)
                except (ForwarderError, OSError) as error:
                    raise RequestError(f"{path}: {error}", code=3, source=codes.REMOVE_SOCKET) from error
                if state.attachment is not None:
                    try:
                        await self._take_vf(state)
                    except WorkerError:
                        await self._reopen(state, path)
                        raise
            state.socket = None
            self.carrier.leave_if_idle(state)
        log.info("relay %d: socket %s removed", state.number, path)

    async def _reopen(self, state: Relay, path: Path) -> None:
        try:
            await self._broker.open(state.number, self._endpoint(path))
        except (ForwarderError, OSError) as error:
            state.socket = None
            log.error("relay %d: %s stays there without a socket: %s", state.number, state.attachment, error)

    def _need_dynamic(self, source: str, code: int) -> None:
        if not self._dynamic:
            raise RequestError("dynamic sockets are off: set VIRTIOFWD_DYNAMIC_SOCKETS", code=code, source=source)

    def _usable(self, path: Path) -> Endpoint:
        """How to open a socket there; checked before a device is reset in vain."""
        endpoint = self._endpoint(path)
        try:
            endpoint.check()
        except ForwarderError as error:
            raise RequestError(str(error), code=codes.SOCKET_FAILED, source=codes.ADD_SOCKET) from error
        return endpoint

    def _free_relay(self) -> Relay:
        reserved = self.reserved()
        for state in self._relays:
            in_use = state.socket is not None or state.attachment is not None or state.lock.locked()
            if not in_use and state.number not in reserved:
                return state
        raise RequestError(f"all {RELAYS} relays are in use", code=2, source=codes.ADD_SOCKET)

    def _by_path(self, path: Path) -> Relay | None:
        return next((state for state in self._relays if state.socket == path), None)

    def _by_device(self, device: Attachment | str | None) -> Relay | None:
        """The relay with that device and a socket; VFs on relays without one came otherwise, and go otherwise."""
        for state in self._relays:
            if state.socket is not None and state.attachment is not None and _names(device, state.attachment):
                return state
        return None


def _same(wanted: Attachment, attachment: Attachment) -> bool:
    """Whether an addition asks for what is there: bonds of one mode over the same devices, arguments if it has any."""
    if isinstance(wanted, Device):
        there = attachment if isinstance(attachment, Device) and wanted.name == attachment.name else None
        return there is not None and wanted.arguments in ("", there.arguments)
    if not isinstance(attachment, Bond) or (wanted.name, wanted.mode) != (attachment.name, attachment.mode):
        return False
    members = {member.name: member for member in attachment.members}
    same = (member.name in members and _same(member, members[member.name]) for member in wanted.members)
    return len(wanted.members) == len(members) and all(same)


def _names(wanted: Attachment | str | None, attachment: Attachment) -> bool:
    """Whether a removal means this attachment."""
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return wanted == attachment.name
    return wanted.name == attachment.name
