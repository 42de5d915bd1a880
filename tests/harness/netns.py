"""Network namespaces with a veth pair, and raw frames on it."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

_numbers = itertools.count()
ETH_P_ALL = 0x0003


def run(*arguments: str) -> str:
    """Run a command that must succeed; answers its output."""
    return subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=20).stdout


class VethPair:
    """A veth pair: ``vf`` in the root namespace, ``peer`` in a namespace of its own: nothing else talks on it."""

    def __init__(self) -> None:
        number = f"{os.getpid() % 100000}{next(_numbers)}"
        self.namespace, self.vf, self.peer = f"vio{number}", f"vf{number}", f"pe{number}"
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", self.vf, "type", "veth", "peer", "name", self.peer, "netns", self.namespace)
        for prefix in ([], ["-n", self.namespace]):
            name = self.peer if prefix else self.vf
            run("ip", *prefix, "link", "set", name, "addrgenmode", "none")
            run("ip", *prefix, "link", "set", name, "up")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run a block with this thread in the namespace: sockets that it makes are inside."""
        before = os.open("/proc/self/ns/net", os.O_RDONLY)
        inside = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        try:
            os_setns(inside)
            yield
        finally:
            os_setns(before)
            os.close(before)
            os.close(inside)

    def open(self) -> socket.socket:
        """A raw socket on the peer's end."""
        with self.entered():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
        sock.bind((self.peer, 0))
        sock.setblocking(False)
        return sock

    def remove(self) -> None:
        """Delete the namespace and with it the pair."""
        subprocess.run(["ip", "link", "delete", self.vf], check=False, capture_output=True, timeout=20)
        subprocess.run(["ip", "netns", "delete", self.namespace], check=False, capture_output=True, timeout=20)


def os_setns(fd: int) -> None:
    """setns(2) for this thread's network namespace (os.setns is new in Python 3.12)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")


def received(sock: socket.socket, wanted: int, seconds: float) -> list[bytes]:
    """Frames that arrive from the other end within a time, at most ``wanted``; frames that we sent do not count."""
    frames: list[bytes] = []
    deadline = time.monotonic() + seconds
    while len(frames) < wanted and time.monotonic() < deadline:
        try:
            frame, address = sock.recvfrom(65536)
        except BlockingIOError:
            time.sleep(0.001)
            continue
        if address[2] != socket.PACKET_OUTGOING:
            frames.append(frame)
    return frames
