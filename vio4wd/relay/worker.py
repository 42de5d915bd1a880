"""The worker process: its own DPDK primary, with the lcores that run the relay loop.

Started by the supervisor as ``python -m vio4wd.relay.worker CHANNEL_FD LANES_FD OPTIONS``. It ends, cleanly and within
two seconds, on the command ``stop``, on SIGTERM, and when the supervisor goes away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vio4wd.dpdk_ffi.eal import Eal, EalOptions
from vio4wd.dpdk_ffi.loader import load
from vio4wd.dpdk_ffi.log import LogLevel
from vio4wd.errors import ForwarderError, ProtocolError
from vio4wd.relay import mbuf
from vio4wd.relay.blame import Notes
from vio4wd.relay.channel import Channel, ChannelLogHandler
from vio4wd.relay.compiled_cache import use_cache
from vio4wd.relay.direct.attach import DirectRings
from vio4wd.relay.guests import Guests
from vio4wd.relay.interface import RelayCpus
from vio4wd.relay.lane_control import LaneControl
from vio4wd.relay.lanes import LaneTable
from vio4wd.relay.lcore_record import FUNCTIONS
from vio4wd.relay.lcores import Lcores
from vio4wd.relay.loop import compile_loop
from vio4wd.relay.messages import Command, Event, Reply, attachment_from_json
from vio4wd.relay.ports import PortError, Ports, longest_frame
from vio4wd.relay.watchdog import FREEING_SIGNAL, CallWatchdog
from vio4wd.relay.work_thread import WorkThread
from vio4wd.relay.worker_options import WorkerOptions

log = logging.getLogger(__name__)

CLOSE_LIMIT_S = 1.8
"""A worker that takes longer to release everything is ended by the kernel, which releases it too."""

FAULT_POLL_S = 0.25
"""How often lanes are looked at for broken rings."""


WAKEUP_BYTES = 4096


class Worker:
    """Carries out the supervisor's commands.

    VF commands and guest commands have a thread each: probing a PCI device takes a second, and guests must not wait.
    """

    def __init__(self, options: WorkerOptions, channel: Channel, table: LaneTable) -> None:
        self._channel = channel
        cached = use_cache()  # before anything is compiled, the binding's log writer included
        dpdk = load()
        mbuf.check(dpdk.layout)
        with _sigterm_later():  # EAL, interrupted, would leave files
            self._eal = Eal.init(
                EalOptions(
                    main_cpu=options.main_cpu,
                    worker_cpus=options.worker_cpus,
                    file_prefix=options.name,
                    huge_dir=Path(options.huge_dir) if options.huge_dir else None,
                    log_level=LogLevel.INFO if options.log_level <= logging.DEBUG else LogLevel.NOTICE,
                    vfio_vf_token=options.vfio_vf_token or None,
                )
            )
        functions = {field: dpdk.address(symbol) for field, symbol in FUNCTIONS.items()}
        notes = Notes(len(options.worker_cpus))
        self._lcores = Lcores(self._eal, functions, notes, table.address, idle_sleep_max_us=options.idle_sleep_max_us)
        self._lanes = LaneControl(
            table, self._lcores, DirectRings(options.ring_engine), notes, longest=longest_frame(options.mtu)
        )
        self._ports = Ports(self._lanes, mtu=options.mtu, in_use=self._has_guest)
        self._port_thread = WorkThread("ports")
        self._guest_thread = WorkThread("guests")
        self._guests = Guests(
            self._lanes, self._ports.mempool, self._guest_changed, self._guest_later, options.disabled_features
        )
        self._loop = compile_loop(cached=cached)
        notes.watch(cached=cached)
        self._lcores.start(self._loop.address)
        self._watchdog = CallWatchdog(self._lanes.call_fds, self._lanes.rest, self._guest_blocked)
        self._watchdog.start()
        ready = {"pid": os.getpid(), "abi": dpdk.abi, "dpdk": dpdk.version, "tsc_hz": self._eal.tsc_hz}
        channel.send(Event("ready", ready | {"max_ports": dpdk.max_ports}))

    def handle(self, command: Command) -> bool:
        """Begin a command; answers False when the worker is to end."""
        if command.op == "stop":
            return False
        operations: dict[str, tuple[Callable[..., dict[str, Any] | None], WorkThread]] = {
            "add_port": (self._add_port, self._port_thread),
            "remove_port": (self._remove_port, self._port_thread),
            "attach": (self._attach, self._guest_thread),
            "detach": (self._detach, self._guest_thread),
            "pause": (self._pause, self._guest_thread),
            "resume": (self._resume, self._guest_thread),
            "place": (self._place, self._guest_thread),
            "set_log_level": (self._set_log_level, self._guest_thread),
        }
        operation, thread = operations.get(command.op, (self._unknown, self._guest_thread))
        thread.submit(self._run, command, operation)
        return True

    def report_faults(self) -> None:
        """Tell the supervisor of lanes that have come to rest by themselves."""
        for fault in self._lanes.faults():
            arguments = {
                "relay": fault.relay,
                "queue_pair": fault.queue_pair,
                "direction": fault.direction.name.lower(),
            }
            self._channel.send(Event("lane_fault", arguments | {"message": fault.message}))

    def report_lost_vfs(self) -> None:
        """Tell the supervisor of VFs that are to be opened anew."""
        for relay, reason in self._ports.newly_lost():
            self._channel.send(Event("vf_lost", {"relay": relay, "message": reason}))

    def close(self) -> None:
        """Release everything; the lcores stop last."""
        self._guest_thread.shutdown(cancel_futures=True)
        self._port_thread.shutdown(cancel_futures=True)
        self._guests.close()
        self._ports.close()
        self._lcores.stop()
        self._watchdog.stop()
        self._eal.cleanup()

    def _run(self, command: Command, operation: Callable[..., dict[str, Any] | None]) -> None:
        try:
            reply = Reply(command.id, operation(**command.args) or {})
        except PortError as error:
            reply = Reply(command.id, error_kind=error.stage.value, error_message=str(error))
        except ForwarderError as error:
            reply = Reply(command.id, error_kind="error", error_message=str(error))
        except Exception as error:
            log.exception("command %s %s failed", command.op, command.args)
            reply = Reply(command.id, error_kind="internal", error_message=f"{command.op}: {error!r}")
        self._channel.send(reply)

    def _has_guest(self, relay: int) -> bool:
        return self._guests.connected(relay)

    def _guest_changed(self, relay: int, connected: bool, numa_node: int) -> None:
        self._channel.send(Event("guest", {"relay": relay, "connected": connected, "numa_node": numa_node}))

    def _guest_blocked(self, relay: int, fd: int) -> None:
        message = f"it holds the worker up: the counter of a call eventfd is full, and writing to it blocks (fd {fd})"
        self._channel.send(Event("guest_blocks", {"relay": relay, "message": message}))

    def _guest_later(self, function: Callable[[int], None], relay: int) -> None:
        def guarded() -> None:
            try:
                function(relay)
            except ForwarderError as error:
                log.error("relay %d: the guest's rings cannot be taken over: %s", relay, error)
            except Exception:
                log.exception("relay %d: the guest's rings cannot be taken over", relay)

        self._guest_thread.submit(guarded)

    def _add_port(self, relay: int, degraded: bool = False, **attachment: Any) -> dict[str, Any]:
        return {"numa_node": self._ports.add(relay, attachment_from_json(attachment), degraded=degraded)}

    def _remove_port(self, relay: int) -> None:
        self._ports.remove(relay)

    def _attach(self, relay: int, path: str) -> None:
        self._guests.attach(relay, Path(path))

    def _detach(self, relay: int, path: str) -> None:
        self._guests.detach(relay, Path(path))
        self._port_thread.submit(self._ports.release_mempool, relay)

    def _pause(self, relay: int) -> None:
        self._lanes.set(relay, paused=True)

    def _resume(self, relay: int, interrupt: bool = False) -> None:
        self._guests.refresh(relay)
        if interrupt:
            self._guests.interrupt(relay)
        self._lanes.set(relay, paused=False)

    def _place(self, relay: int, vf_cpu: int, virtio_cpu: int) -> None:
        self._lanes.set(relay, cpus=RelayCpus(vf_cpu, virtio_cpu))

    @staticmethod
    def _set_log_level(level: int) -> None:
        logging.getLogger().setLevel(level)

    @staticmethod
    def _unknown(**args: Any) -> None:
        raise ProtocolError(f"unknown worker command, arguments {args}")


@contextlib.contextmanager
def _sigterm_later() -> Iterator[None]:
    """Have SIGTERM end the process afterwards only. (Blocking it would leave it to libraries' own threads.)"""
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in came:
            signal.raise_signal(number)


def _serve(worker: Worker, channel: Channel, wakeup: socket.socket) -> None:
    """Take commands until told to stop, by command, by signal, or by the supervisor's end."""
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        selector.register(wakeup, selectors.EVENT_READ)
        while True:
            worker.report_faults()
            worker.report_lost_vfs()
            for key, _ in selector.select(FAULT_POLL_S):
                if key.fileobj is wakeup:
                    if signal.SIGTERM in wakeup.recv(WAKEUP_BYTES):
                        log.info("worker stops on a signal")
                        return
                    continue
                message = channel.receive()
                if message is None or (isinstance(message, Command) and not worker.handle(message)):
                    return


def main() -> int:
    """Run a worker; answers its exit status."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    wakeup, signalled = socket.socketpair()
    signalled.setblocking(False)
    signal.set_wakeup_fd(signalled.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(FREEING_SIGNAL, lambda *_: None)
    try:
        options = WorkerOptions.decode(sys.argv[3])
        logging.basicConfig(level=options.log_level, handlers=[ChannelLogHandler(channel)], format="%(message)s")
        worker = Worker(options, channel, LaneTable(int(sys.argv[2])))
    except ForwarderError as error:
        channel.send(Event("failed", {"message": str(error)}))
        return 1
    signal.signal(signal.SIGTERM, lambda *_: None)  # until here it has ended the process at once
    status = 0
    try:
        _serve(worker, channel, wakeup)
    except ProtocolError as error:
        log.error("the worker ends, since it cannot read a command: %s", error)
        status = 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, CLOSE_LIMIT_S)  # SIGALRM's default action ends a process that hangs
        worker.close()
    return status


if __name__ == "__main__":
    sys.exit(main())
