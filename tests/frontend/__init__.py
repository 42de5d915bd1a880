"""A vhost-user front end in Python, for tests: a virtio-net driver whose every message and ring entry can be played.

    with FrontEnd(path) as vm:
        vm.handshake()
        vm.post_rx()
        vm.send(b"...")
        packet = vm.receive(timeout=2)

Nothing here shares code with the daemon but the names of the requests.
"""

from frontend.memory import GuestMemory
from frontend.packed import PackedRing
from frontend.split import SplitRing
from frontend.vm import FrontEnd, Packet, fd_count
from frontend.wire import Closed, Wire, listen

__all__ = ["Closed", "FrontEnd", "GuestMemory", "Packet", "PackedRing", "SplitRing", "Wire", "fd_count", "listen"]
