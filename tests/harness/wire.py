"""A veth pair as a VF, with an address at its other end, and what goes between that end and a Linux guest."""

from __future__ import annotations

import hashlib
import random
import re
import socket
import subprocess
import threading
import time
from dataclasses import dataclass

from harness.netns import VethPair, run
from harness.qemu import LinuxGuest

PORT = 5001
TRANSFER_BYTES = 20_000_000
DATA = random.Random(20_000_000).randbytes(TRANSFER_BYTES)


@dataclass(frozen=True)
class Pings:
    """What ping reports: packets, and the longest round trip."""

    sent: int
    received: int
    max_ms: float

    @classmethod
    def parse(cls, text: str) -> Pings:
        """Read the summary of iputils' and busybox' ping."""
        counts = re.search(r"(\d+) packets transmitted, (\d+) (?:packets )?received", text)
        times = re.search(r"min/avg/max\S* = [\d.]+/[\d.]+/([\d.]+)", text)
        assert counts, text
        return cls(int(counts[1]), int(counts[2]), float(times[1]) if times else 0.0)


class Wire:
    """Network 10.77.``number``.0/24: the far end of the veth pair has .1, the guest's card ``eth<card>`` .2."""

    def __init__(self, number: int = 0, *, card: int | None = None) -> None:
        self.pair = VethPair()
        self.card = f"eth{number if card is None else card}"
        self.here, self.guest_address = f"10.77.{number}.1", f"10.77.{number}.2"
        # A packet that leaves the pair has to have its checksum: there is no card behind it that would fill it in.
        self._inside("ethtool", "-K", self.pair.peer, "tx", "off")
        self._inside("ip", "addr", "add", f"{self.here}/24", "dev", self.pair.peer)

    @property
    def devargs(self) -> str:
        """The VF for port control."""
        return f"net_af_packet_{self.pair.vf},iface={self.pair.vf}"

    def _inside(self, *command: str) -> str:
        return run("ip", "netns", "exec", self.pair.namespace, *command)

    def configure(self, guest: LinuxGuest) -> None:
        """Give the guest's card its address and wait until packets pass."""
        guest.run(f"ip addr add {self.guest_address}/24 dev {self.card}; ip link set {self.card} up")
        self.wait_reachable()

    def wait_reachable(self, seconds: float = 10) -> None:
        """Wait until the guest answers."""
        deadline = time.monotonic() + seconds
        while not self.ping(1, wait_s=0.2).received:
            assert time.monotonic() < deadline, f"{self.guest_address} does not answer within {seconds} s"

    def start_ping(self, count: int, *, interval_s: float = 0.01, wait_s: float = 2) -> subprocess.Popen[str]:
        """Begin to ping the guest; ``finish_ping`` waits for the end."""
        command = ["ip", "netns", "exec", self.pair.namespace, "ping", "-q", "-n"]
        command += ["-i", str(interval_s), "-W", str(wait_s), "-c", str(count), self.guest_address]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    @staticmethod
    def finish_ping(process: subprocess.Popen[str], seconds: float = 30) -> Pings:
        """The result of ``start_ping``."""
        try:
            return Pings.parse(process.communicate(timeout=seconds)[0])
        finally:
            process.kill()

    def ping(self, count: int, *, interval_s: float = 0.01, wait_s: float = 2) -> Pings:
        """Ping the guest."""
        return self.finish_ping(self.start_ping(count, interval_s=interval_s, wait_s=wait_s))

    def pinged(self, guest: LinuxGuest, count: int, *, interval_s: float = 0.02, bytes_: int = 56) -> Pings:
        """Have the guest ping this end."""
        command = f"ping -q -i {interval_s} -c {count} -s {bytes_} -W 2 {self.here}"
        return Pings.parse(guest.run(command, 20 + count * interval_s))

    def send(self, guest: LinuxGuest, data: bytes = DATA) -> str:
        """Send bytes to the guest by TCP, which keeps them in /tmp/data; answers its SHA-256 of them."""
        self.listen(guest)
        self.stream(data)
        return self.listened(guest)

    def listen(self, guest: LinuxGuest) -> None:
        """Have the guest wait for what ``stream`` sends."""
        guest.agent.send(f"nc -l -p {PORT} >/tmp/data")

    def stream(self, data: bytes = DATA, *, end_after: threading.Event | None = None) -> None:
        """Send bytes to the guest that listens, the last one not before ``end_after`` (60 s at the most)."""
        with self._connected() as sock:
            sock.settimeout(60)
            sock.sendall(data[:-1])
            if end_after is not None:
                end_after.wait(60)
            sock.sendall(data[-1:])

    def listened(self, guest: LinuxGuest) -> str:
        """Wait until the guest that listens has all; answers its SHA-256 of it."""
        guest.agent.finish(60)
        return guest.run("sha256sum /tmp/data").split()[0]

    def _connected(self, seconds: float = 10) -> socket.socket:
        deadline = time.monotonic() + seconds
        while True:
            with self.pair.entered():
                sock = socket.socket()
            try:
                sock.settimeout(seconds)
                sock.connect((self.guest_address, PORT))
            except ConnectionRefusedError:
                sock.close()
                assert time.monotonic() < deadline, f"the guest does not listen within {seconds} s"
                time.sleep(0.05)
            else:
                return sock

    def receive(self, guest: LinuxGuest) -> str:
        """Have the guest send its /tmp/data here by TCP; answers the SHA-256 of what came."""
        digest = hashlib.sha256()
        with self.pair.entered():
            listener = socket.socket()
        with listener:
            listener.settimeout(20)
            listener.bind((self.here, PORT))
            listener.listen()
            reader = threading.Thread(target=_digest, args=(listener, digest))
            reader.start()
            try:
                guest.run(f"nc {self.here} {PORT} </tmp/data", 40)
            finally:
                reader.join(40)
        return digest.hexdigest()

    def remove(self) -> None:
        """Take the pair away."""
        self.pair.remove()


def _digest(listener: socket.socket, digest: hashlib._Hash) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(20)
        while chunk := connection.recv(1 << 20):
            digest.update(chunk)
