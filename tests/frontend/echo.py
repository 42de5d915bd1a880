"""Traffic with a VF that gives back what is sent to it (net_ring): what the guest sends it receives again."""

from __future__ import annotations

import itertools
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


NUMBER_BYTES = 8


class Traffic:
    """Numbered frames, so many ``sent`` and ``received``, which come back in order, and none of them twice.

    Who holds ``lock`` has the rings to himself.
    """

    def __init__(self, vm: FrontEnd) -> None:
        self.lock = threading.Lock()
        self.sent = self.received = self._last = 0
        self._vm = vm
        self._contents = [data[NUMBER_BYTES:] for data in frames(64)]

    def send(self, count: int, parts: int = 1) -> None:
        """Send so many frames, each of so many descriptors, if they all have room now."""
        self._vm.reclaim()
        if len(self._vm.pairs[0].tx.free) >= count * parts:
            numbers = range(self.sent + 1, self.sent + count + 1)
            batch = [number.to_bytes(NUMBER_BYTES, "little") + self._content(number) for number in numbers]
            self._vm.send_all(batch, parts=parts)
            self.sent += count

    def poll(self) -> int:
        """Receive what has come back, and check it; answers how many frames."""
        packets = self._vm.poll()
        for packet in packets:
            number = int.from_bytes(packet.data[:NUMBER_BYTES], "little")
            if number:  # else one of those by which ``ready`` found the relay ready
                assert number > self._last, f"frame {number} after frame {self._last}"
                assert packet.data[NUMBER_BYTES:] == self._content(number), f"frame {number}"
                self.received += 1
                self._last = number
        return len(packets)

    def _content(self, number: int) -> bytes:
        return self._contents[number % len(self._contents)]


@contextmanager
def endless_traffic(vm: FrontEnd) -> Iterator[Traffic]:
    """Send frames of one descriptor and of several, and receive them, all the time, on a thread.

    What is on its way at the end is received, too.
    """
    traffic, stop, shapes = Traffic(vm), threading.Event(), itertools.cycle((1, 1, 3))

    def run() -> None:
        while not stop.wait(0.0002):
            with traffic.lock:
                traffic.poll()
                traffic.send(64, next(shapes))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield traffic
    finally:
        stop.set()
        thread.join()
    vm.await_sent()
    while traffic.poll():
        time.sleep(0.05)
