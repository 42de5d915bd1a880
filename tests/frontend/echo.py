"""Traffic with a VF that gives back what is sent to it (net_ring): what the guest sends it receives again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from frontend.vm import FrontEnd


def frames(count: int, seed: int = 1) -> list[bytes]:
    """So many frames of random lengths and contents."""
    source = random.Random(seed)
    return [source.randbytes(source.randint(60, 1514)) for _ in range(count)]


def ready(vm: FrontEnd) -> None:
    """Wait until a frame comes back."""
    deadline = time.monotonic() + 10
    while not vm.poll():
        assert time.monotonic() < deadline, "no frame came back"
        vm.send(bytes(60))
        time.sleep(0.01)
    time.sleep(0.05)
    vm.poll()


def echo(vm: FrontEnd, sent: list[bytes], **how: object) -> None:
    """Send frames (``how`` as for ``FrontEnd.send_all``) and check that the same come back."""
    for start in range(0, len(sent), 32):
        part = sent[start : start + 32]
        vm.send_all(part, **how)  # type: ignore[arg-type]
        assert [packet.data for packet in vm.receive_all(len(part))] == part


@contextmanager
def endless_traffic(vm: FrontEnd) -> Iterator[threading.Lock]:
    """Send and receive all the time, on a thread; who holds the lock that this yields has the rings to himself."""
    lock, stop, batch = threading.Lock(), threading.Event(), frames(64)

    def run() -> None:
        while not stop.wait(0.0002):
            with lock:
                vm.poll()
                vm.reclaim()
                if len(vm.pairs[0].tx.free) >= len(batch):
                    vm.send_all(batch)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lock
    finally:
        stop.set()
        thread.join()
