"""What workers have of the relays: gives them what is wanted, and gives it to their successors when they die."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from pathlib import Path

from vio4wd.daemon.patience import Patience
from vio4wd.daemon.relay_state import Relay, ports_of
from vio4wd.devices import Attachment
from vio4wd.errors import WorkerError
from vio4wd.relay.direct.ring_record import SavedPosition, saved_positions
from vio4wd.relay.lanes import LaneMode, LaneTable, relay_lanes
from vio4wd.relay.messages import Event, attachment_to_json
from vio4wd.relay.placement import Placement
from vio4wd.relay.ports import PortStage
from vio4wd.relay.worker_process import CommandError, WorkerProcess
from vio4wd.relay.workers import Slot, Workers
from vio4wd.tasks import supervised
from vio4wd.vhostuser.broker import Broker

log = logging.getLogger(__name__)

ADD_LIMIT_S = 30.0
"""Probing a PCI device resets it, which takes a second and more."""

RETRY_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Waits between attempts to put back what a new worker could not take; the last repeats."""

RESTART_PATIENCE_S = 1.5
"""How long an addition waits for a worker that is being replaced."""

VF_FIRST_S = 0.5
"""How long a new worker may take for a VF before the guest gets its session back without it.

With the VF first the guest's packets wait in its rings; but a guest that waits for an answer must not wait long.
"""


class Carrier:
    """Has workers carry relays; the session broker's back end and the workers' listener. ``connect`` completes it.

    A relay is *on* a slot (a worker process and its successors) while it has a VF or a front end.
    """

    def __init__(self, relays: Sequence[Relay], placement: Placement, table: LaneTable) -> None:
        self._relays = relays
        self._table = table
        self._placement = placement
        self._retries: dict[int, asyncio.Task[None]] = {}
        self._taking_back: set[asyncio.Task[None]] = set()
        self._positions: dict[int, dict[int, SavedPosition]] = {}
        self._workers: Workers
        self._broker: Broker

    def connect(self, workers: Workers, broker: Broker) -> None:
        """Set the parts that in turn know this one."""
        self._workers, self._broker = workers, broker

    async def close(self) -> None:
        """Stop retrying; workers and broker are stopped by their owner."""
        tasks = (*self._retries.values(), *self._taking_back)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What the controller asks; it holds the relay's lock

    async def put_vf(self, state: Relay, device: Attachment, patience: Patience) -> None:
        """Have a worker add a device, moving the relay with its session to a process with room if need be.

        Cancelled while the worker is at it, it has the device removed again later.

        Raises:
            WorkerError: the device was not added, or it was too late to begin; a relay that was moved stays there.
        """
        ports = ports_of(device)
        async with AsyncExitStack() as undo:
            slot = await self._workers.reserve(ports, state.slot)
            undo.callback(self._unreserve, state, slot, ports)
            async with AsyncExitStack() as turn:
                await turn.enter_async_context(patience.turn(slot.port_turn))
                await _restarted(slot)
                if state.slot is None:
                    self._enter(state, slot)
                elif state.slot is not slot:
                    await self._move(state, slot)
                await self.place(state)
                patience.check()
                adding = asyncio.create_task(self._add_port(state, slot, device))
                try:
                    await asyncio.shield(adding)
                except asyncio.CancelledError:
                    self._take_back_later(adding, state, slot.process, undo.pop_all(), turn.pop_all())
                    raise
            undo.pop_all()

    def removal_turn(self, state: Relay, patience: Patience) -> AbstractAsyncContextManager[None]:
        """What is to be held around ``take_vf``, if there is anything to take.

        Raises:
            WorkerError: on entry: others have held it for too long.
        """
        return patience.turn(_slot(state).port_turn) if state.attachment is not None else nullcontext()

    async def take_vf(self, state: Relay) -> None:
        """Have the worker remove the relay's device. A worker that dies meanwhile has removed it, too.

        Raises:
            WorkerError: the worker refused or did not answer in time; the device is still wanted, and down where DPDK
                did not let go of it.
        """
        assert state.attachment is not None
        slot = _slot(state)
        state.removing = True
        try:
            await self._remove_port(state, slot)
        finally:
            state.removing = False
        slot.ports -= ports_of(state.attachment)
        state.attachment, state.vf_up, state.fault = None, False, None
        self.leave_if_idle(state)

    async def place(self, state: Relay) -> None:
        """Tell the worker the relay's CPUs. One that is away is told when it is back.

        Raises:
            CommandError: a living worker refused.
        """
        cpus = self._placement.place(state.number)
        if state.slot is None:
            return
        try:
            await state.slot.call("place", relay=state.number, vf_cpu=cpus.vf_to_vm, virtio_cpu=cpus.vm_to_vf)
        except CommandError:
            raise
        except WorkerError as error:
            log.debug("relay %d: its CPUs are told to the next worker process: %s", state.number, error)

    def leave_if_idle(self, state: Relay) -> None:
        """Take a relay that has neither VF nor front end off its worker and its CPUs."""
        if state.attachment is None and not self._broker.connected(state.number):
            self._leave(state)
            self._placement.release(state.number)

    # What the session broker asks

    async def attach(self, relay: int, path: Path) -> None:
        """See BackEnd.attach."""
        state = self._relays[relay]
        if state.slot is None:
            self._enter(state, self._workers.slots[0])
        if not _slot(state).process.alive:
            self._broker.worker_lost([relay])
            raise WorkerError(f"relay {relay}: the session waits for the next worker process")
        await self.place(state)
        await _slot(state).call("attach", relay=relay, path=str(path))

    async def detach(self, relay: int, path: Path) -> None:
        """See BackEnd.detach."""
        try:
            await _slot(self._relays[relay]).call("detach", relay=relay, path=str(path))
        except CommandError as error:
            log.error("relay %d: the worker could not forget a session: %s", relay, error)

    async def pause(self, relay: int) -> None:
        """See BackEnd.pause."""
        await _slot(self._relays[relay]).call("pause", relay=relay)

    async def resume(self, relay: int, *, interrupt: bool = False) -> None:
        """See BackEnd.resume."""
        await _slot(self._relays[relay]).call("resume", relay=relay, interrupt=interrupt)

    def saved_position(self, relay: int, ring: int) -> SavedPosition | None:
        """See BackEnd.saved_position."""
        return self._positions.get(relay, {}).get(ring)

    def front_end_changed(self, relay: int) -> None:
        """A front end has connected or left; a change of the relay that is under way looks at its end by itself."""
        state = self._relays[relay]
        if not state.lock.locked():
            self.leave_if_idle(state)

    # What workers report

    def worker_lost(self, slot: Slot) -> None:
        """See Listener.worker_lost."""
        for number in slot.relays:
            self._relays[number].vf_up = False
            self._relays[number].guest_up = False
            self._save_positions(number)
        culprits = [number for number in sorted(slot.relays) if self._table.died_of(number)]
        self._broker.worker_lost(sorted(slot.relays), crashed=slot.process.crashed, culprits=culprits)

    async def worker_back(self, slot: Slot) -> None:
        """See Listener.worker_back: VFs first, then sessions, every relay by itself."""
        await asyncio.gather(*(self._put_back(self._relays[number]) for number in sorted(slot.relays)))

    def worker_event(self, slot: Slot, event: Event) -> None:
        """See Listener.worker_event."""
        if event.event == "guest":
            state = self._relays[event.args["relay"]]
            if state.slot is not slot:
                return
            state.guest_up = event.args["connected"]
            if state.guest_up and event.args["numa_node"] >= 0:
                state.numa_node = event.args["numa_node"]
        elif event.event == "lane_fault":
            log.warning("relay %(relay)d: %(direction)s lane of queue pair %(queue_pair)d: %(message)s", event.args)
        elif event.event == "guest_blocks":
            if self._relays[event.args["relay"]].slot is slot:
                self._broker.offended(event.args["relay"], event.args["message"])
        elif event.event == "vf_lost":
            state = self._relays[event.args["relay"]]
            if state.slot is slot:
                log.warning("relay %(relay)d: the VF is opened anew: %(message)s", event.args)
                state.fault = event.args["message"]
                self._retry_later(state)

    # How it is done

    def _save_positions(self, relay: int) -> None:
        """Note where a dead worker was in a relay's rings, before its successor begins anew with their records."""
        lanes = self._table.lanes[relay_lanes(relay).start : relay_lanes(relay).stop]  # a ring's number is its lane's
        before = self._positions.get(relay, {})
        # What a worker never got to is where its predecessor left it.
        untouched = {ring: before[ring] for ring in before if lanes["mode"][ring] == LaneMode.OFF}
        self._positions[relay] = untouched | saved_positions(lanes["view"])

    async def _add_port(self, state: Relay, slot: Slot, device: Attachment, *, degraded: bool = False) -> None:
        process = slot.process
        arguments = attachment_to_json(device) | ({"degraded": True} if degraded else {})
        result = await process.call("add_port", limit_s=ADD_LIMIT_S, relay=state.number, **arguments)
        state.numa_node = result["numa_node"]
        # A worker may answer and die before this is resumed; its successor is then being told already.
        state.vf_up = process.alive and slot.process is process

    def _unreserve(self, state: Relay, slot: Slot, ports: int) -> None:
        slot.ports -= ports
        self.leave_if_idle(state)

    def _take_back_later(
        self, adding: asyncio.Task[None], state: Relay, process: WorkerProcess, *held: AsyncExitStack
    ) -> None:
        """Have the device of a cancelled addition removed; until then what is ``held``, last its turn, stays held."""

        async def take_back() -> None:
            async with AsyncExitStack() as stack:
                for exit_stack in held:
                    await stack.enter_async_context(exit_stack)
                try:
                    await adding
                    state.vf_up = False
                    await process.call("remove_port", relay=state.number)
                except WorkerError as error:
                    log.warning("relay %d: its VF, whose addition was cancelled: %s", state.number, error)

        task = asyncio.create_task(take_back(), name=f"cancelled addition on relay {state.number}")
        self._taking_back.add(task)
        task.add_done_callback(self._taking_back.discard)

    async def _remove_port(self, state: Relay, slot: Slot) -> None:
        process = slot.process
        try:
            if state.vf_up:
                await process.call("remove_port", relay=state.number)
        except CommandError as error:
            if error.kind == PortStage.DETACH.value:  # the worker has given the port up all the same
                state.vf_up, state.fault = False, str(error)
            if error.kind != PortStage.NO_VF.value:  # a removal that was cancelled has been carried out
                raise
        except WorkerError:
            if process.alive:
                raise

    async def _drop_port(self, state: Relay, slot: Slot) -> None:
        """Have the worker let go of a VF that is still wanted."""
        state.vf_up = False
        try:
            await slot.call("remove_port", relay=state.number)
        except CommandError as error:
            log.warning("relay %d: %s: %s", state.number, state.attachment, error)

    async def _move(self, state: Relay, slot: Slot) -> None:
        """Take the relay's session, if any, from its worker to another one."""
        log.info("relay %d: moves from worker process %d to %d", state.number, _slot(state).number, slot.number)
        await self._broker.release(state.number)
        self._leave(state)
        self._enter(state, slot)
        try:
            await self.place(state)
        finally:
            await self._replay(state)  # nobody else would: the session has left its worker

    async def _put_back(self, state: Relay) -> None:
        """Give a new worker what its predecessor had of a relay."""
        vf = asyncio.ensure_future(self._restore_vf(state))
        try:
            await asyncio.wait([vf], timeout=VF_FIRST_S)
            await self._replay(state)
            await vf
        except Exception as error:
            log.exception("relay %d: could not be put back and is tried again", state.number)
            state.fault, state.session_waits = repr(error), True
            self._retry_later(state)
        finally:
            vf.cancel()

    async def _restore_vf(self, state: Relay) -> None:
        """Have the worker add the VF that is wanted, if it has not; try again later if it cannot."""
        async with state.lock:
            slot = state.slot
            if state.attachment is None:
                state.fault = None
            if slot is None or state.attachment is None:
                return
            try:
                await self.place(state)
                async with slot.port_turn:
                    if not slot.process.alive:  # the next process is told when it is there
                        return
                    if state.vf_up and state.fault is None:
                        return
                    if state.vf_up:
                        await self._drop_port(state, slot)
                    await self._add_port(state, slot, state.attachment, degraded=True)
            except WorkerError as error:
                if state.fault != str(error):
                    message = "relay %d: %s could not be put back and is tried again: %s"
                    log.error(message, state.number, state.attachment, error)
                state.fault = str(error)
                self._retry_later(state)
                return
            if state.fault is not None:
                log.info("relay %d: %s is back", state.number, state.attachment)
            state.fault = None

    async def _replay(self, state: Relay) -> None:
        """Give the relay's session, if it waits for one, to the worker; try again later if that refuses."""
        try:
            await self._broker.replay(state.number)
        except WorkerError as error:
            log.error("%s; it is tried again", error)
            state.session_waits = True
            self._retry_later(state)
        else:
            state.session_waits = False
            self._positions.pop(state.number, None)

    def _retry_later(self, state: Relay) -> None:
        task = self._retries.get(state.number)
        if task is None or task.done():
            retry = supervised(f"retry of relay {state.number}", lambda: self._retry(state))
            self._retries[state.number] = asyncio.create_task(retry)

    async def _retry(self, state: Relay) -> None:
        attempt = 0
        while state.fault is not None or state.session_waits:
            await asyncio.sleep(RETRY_DELAYS_S[min(attempt, len(RETRY_DELAYS_S) - 1)])
            attempt += 1
            await self._restore_vf(state)
            if state.session_waits:
                await self._replay(state)

    def _enter(self, state: Relay, slot: Slot) -> None:
        slot.relays.add(state.number)
        state.slot = slot

    def _leave(self, state: Relay) -> None:
        if state.slot is not None:
            state.slot.relays.discard(state.number)
        state.slot, state.guest_up = None, False


def _slot(state: Relay) -> Slot:
    if state.slot is None:
        raise WorkerError(f"relay {state.number} is on no worker")
    return state.slot


async def _restarted(slot: Slot) -> None:
    """Wait a little for a process that is being replaced."""
    with suppress(TimeoutError):
        async with asyncio.timeout(RESTART_PATIENCE_S):
            while not slot.process.alive:
                await asyncio.sleep(0.01)
