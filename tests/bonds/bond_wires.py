"""Veth pairs as a bond's members: one end in the daemon's namespace, the other in a namespace of its own."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess

from harness.netns import ETH_P_ALL, os_setns, run

_numbers = itertools.count()


class Wires:
    """Veth pairs whose far ends share a namespace. ``near`` and ``far`` are their interfaces."""

    def __init__(self, count: int = 2) -> None:
        tag = f"{os.getpid() % 100000}{next(_numbers)}"
        self.namespace = f"wires{tag}"
        self.near = [f"bn{tag}x{index}" for index in range(count)]
        self.far = [f"bf{tag}x{index}" for index in range(count)]
        run("ip", "netns", "add", self.namespace)
        run("ip", "-n", self.namespace, "link", "set", "lo", "up")
        for index in range(count):
            self.lay(index)

    def lay(self, index: int) -> None:
        """Make a pair and set it up."""
        near, far = self.near[index], self.far[index]
        run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", self.namespace)
        run("ip", "link", "set", near, "addrgenmode", "none", "up")
        run("ip", "-n", self.namespace, "link", "set", far, "addrgenmode", "none", "up")

    def cut(self, index: int) -> None:
        """Delete a pair."""
        run("ip", "link", "delete", self.near[index])

    def down(self, index: int) -> None:
        """Set the far end down: the near end loses its carrier."""
        run("ip", "-n", self.namespace, "link", "set", self.far[index], "down")

    def up(self, index: int) -> None:
        """Set the far end up."""
        run("ip", "-n", self.namespace, "link", "set", self.far[index], "up")

    def devargs(self) -> list[str]:
        """The near ends as DPDK devices."""
        return [f"net_af_packet{index},iface={near}" for index, near in enumerate(self.near)]

    def open(self, index: int) -> socket.socket:
        """A raw socket on a far end."""
        return self.open_interface(self.far[index])

    def open_interface(self, name: str) -> socket.socket:
        """A raw socket on an interface of the namespace."""
        before = os.open("/proc/self/ns/net", os.O_RDONLY)
        inside = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        try:
            os_setns(inside)
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        finally:
            os_setns(before)
            os.close(before)
            os.close(inside)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        sock.bind((name, 0))
        sock.setblocking(False)
        return sock

    def remove(self) -> None:
        """Delete the pairs and the namespace."""
        for near in self.near:
            subprocess.run(["ip", "link", "delete", near], check=False, capture_output=True, timeout=20)
        subprocess.run(["ip", "netns", "delete", self.namespace], check=False, capture_output=True, timeout=20)
