"""The front end itself: handshake, step by step, and packets with their virtio-net headers."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from frontend.memory import GuestMemory, GuestRegion
from frontend.packed import PackedRing
from frontend.ring import Buffer, Ring
from frontend.split import SplitRing
from frontend.wire import Reply, Wire
from vio4wd.vhostuser.requests import Feature, ProtocolFeature, Request

F_MRG_RXBUF = 1 << 15
F_EVENT_IDX = 1 << 29
F_INDIRECT = 1 << 28
F_RING_PACKED = 1 << 34
DEFAULT_FEATURES = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | F_MRG_RXBUF | F_INDIRECT
DEFAULT_PROTOCOL_FEATURES = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.NET_MTU

BUFFER_BYTES = 2048
U64 = struct.Struct("<Q")
STATE = struct.Struct("<II")


@dataclass(frozen=True)
class Packet:
    """A received frame with its virtio-net header; ``buffers`` is how many ring buffers it came in."""

    data: bytes
    header: bytes
    buffers: int = 1


class Pair:
    """One queue pair: receive ring 2N and transmit ring 2N + 1."""

    def __init__(self, memory: GuestMemory, size: int, region: int, *, packed: bool) -> None:
        kind = PackedRing if packed else SplitRing
        self.rx: Ring = kind(memory, size, region=region)
        self.tx: Ring = kind(memory, size, region=region)
        self.rx_buffers: dict[int, int] = {}
        self.tx_buffers: dict[int, list[int]] = {}
        self.tx_free: list[int] = []

    @property
    def rings(self) -> tuple[Ring, Ring]:
        return self.rx, self.tx


class FrontEnd:
    """A virtio-net driver over vhost-user.

    ``path`` is the socket to connect to, or ``sock`` an accepted one (server mode). ``features`` and
    ``protocol_features`` are what it wants; it negotiates what is offered of them. Its rings are packed if it wants
    that.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        sock: socket.socket | None = None,
        queue_pairs: int = 1,
        ring_size: int = 256,
        memory: GuestMemory | None = None,
        features: int = DEFAULT_FEATURES,
        protocol_features: int = DEFAULT_PROTOCOL_FEATURES,
        timeout: float = 10.0,
    ) -> None:
        self.memory = memory or GuestMemory(size=4 << 20 if queue_pairs == 1 else 32 << 20)
        self.wanted = features
        self.wanted_protocol = protocol_features
        self.features = 0
        self.protocol_features = 0
        self.ring_size = ring_size
        self.sent = 0
        self.received = 0
        self._kept: dict[int, list[Packet]] = {}
        self._withdrawn: GuestRegion | None = None
        self._rings_in = len(self.memory.regions) - 1
        self.pairs = [self._new_pair() for _ in range(queue_pairs)]
        try:
            if sock is not None:
                self.wire = Wire(sock, timeout)
            else:
                assert path is not None
                self.wire = Wire.connect(path, timeout)
        except BaseException:
            self._close_memory()
            raise

    def _new_pair(self) -> Pair:
        return Pair(self.memory, self.ring_size, self._rings_in, packed=bool(self.wanted & F_RING_PACKED))

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave as a process that is killed: no message, only closed descriptors."""
        self.wire.close()
        self._close_memory()

    def _close_memory(self) -> None:
        for pair in self.pairs:
            for ring in pair.rings:
                ring.close()
        self.memory.close()

    # Handshake

    @property
    def rings(self) -> list[Ring]:
        """All rings by number."""
        return [ring for pair in self.pairs for ring in pair.rings]

    @property
    def header_bytes(self) -> int:
        """Size of the virtio-net header as negotiated."""
        return 12 if self.features & (Feature.VERSION_1 | F_MRG_RXBUF) else 10

    def handshake(self) -> None:
        """Do all steps."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[str]:
        """Do one step of the handshake per item, and answer its name; stop iterating to stop there."""
        offered = self.ask_u64(Request.GET_FEATURES)
        self.features = offered & self.wanted
        yield "GET_FEATURES"
        if self.features & Feature.PROTOCOL_FEATURES:
            offered = self.ask_u64(Request.GET_PROTOCOL_FEATURES)
            yield "GET_PROTOCOL_FEATURES"
            self.protocol_features = offered & self.wanted_protocol
            self.set_u64(Request.SET_PROTOCOL_FEATURES, self.protocol_features)
            yield "SET_PROTOCOL_FEATURES"
            if self.protocol_features & ProtocolFeature.MQ:
                assert self.ask_u64(Request.GET_QUEUE_NUM) >= len(self.pairs)
                yield "GET_QUEUE_NUM"
        self.wire.send(Request.SET_OWNER)
        yield "SET_OWNER"
        self.set_u64(Request.SET_FEATURES, self.features)
        yield "SET_FEATURES"
        self.set_memory()
        yield "SET_MEM_TABLE"
        for index in range(len(self.rings)):
            yield from self.start_ring(index)
        if self.features & Feature.PROTOCOL_FEATURES:
            for index in range(len(self.rings)):
                self.enable(index)
                yield f"SET_VRING_ENABLE {index}"

    def start_ring(self, index: int) -> Iterator[str]:
        """Set one ring up, from where the driver is; one step per item."""
        ring = self.rings[index]
        self.set_state(Request.SET_VRING_NUM, index, ring.size)
        yield f"SET_VRING_NUM {index}"
        self.set_state(Request.SET_VRING_BASE, index, ring.used_index())
        yield f"SET_VRING_BASE {index}"
        self.set_address(index)
        yield f"SET_VRING_ADDR {index}"
        self.set_u64(Request.SET_VRING_CALL, index, [ring.call_fd])
        yield f"SET_VRING_CALL {index}"
        self.set_u64(Request.SET_VRING_KICK, index, [ring.kick_fd])
        yield f"SET_VRING_KICK {index}"

    def restart_rings(self) -> None:
        """Set all rings up again and enable them."""
        for index in range(len(self.rings)):
            for _ in self.start_ring(index):
                pass
            self.enable(index)

    def renew(self, pair: int = 0) -> None:
        """Have new rings in place of a pair's, which are stopped, and none of the old buffers: the driver's reset."""
        for ring in self.pairs[pair].rings:
            ring.close()
        self.pairs[pair] = self._new_pair()

    def set_address(self, index: int, *, logged: bool = False) -> None:
        """Tell where the ring is; ``logged``: what is written to its used part is to be logged, too."""
        ring, user = self.rings[index], self.memory.user
        addresses = (user(ring.descriptors), user(ring.used), user(ring.available), ring.used if logged else 0)
        self.wire.send(Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", index, int(logged), *addresses))

    def set_memory(self) -> None:
        """SET_MEM_TABLE with all regions."""
        self.wire.send(Request.SET_MEM_TABLE, self.memory_table(), [region.fd for region in self.memory.regions])

    def memory_table(self) -> bytes:
        regions = self.memory.regions
        payload = struct.pack("<II", len(regions), 0)
        return payload + b"".join(struct.pack("<QQQQ", r.guest, r.size, r.user, r.offset) for r in regions)

    def enable(self, index: int, enabled: bool = True) -> None:
        self.set_state(Request.SET_VRING_ENABLE, index, int(enabled))

    def stop_ring(self, index: int) -> int:
        """GET_VRING_BASE: stops the ring and answers where it was."""
        reply = self.wire.ask(Request.GET_VRING_BASE, STATE.pack(index, 0))
        answered, base = STATE.unpack(reply.payload)
        assert answered == index
        return int(base)

    def ask_u64(self, request: Request) -> int:
        return self.wire.ask(request).u64

    def set_u64(self, request: Request, value: int, fds: list[int] | None = None) -> None:
        self.wire.send(request, U64.pack(value), fds or [])

    def set_state(self, request: Request, index: int, value: int) -> None:
        self.wire.send(request, STATE.pack(index, value))

    def acknowledged(self, request: Request, payload: bytes, fds: list[int] | None = None) -> Reply:
        """Send with need_reply and wait for the acknowledgement (REPLY_ACK negotiated)."""
        return self.wire.ask(request, payload, fds or [], flags=1 | 1 << 3)

    def barrier(self) -> None:
        """Return when the back end has handled all messages so far."""
        self.ask_u64(Request.GET_FEATURES)

    # Packets

    def post_rx(self, count: int | None = None, *, pair: int = 0, size: int = BUFFER_BYTES, region: int = 0) -> int:
        """Give the device ``count`` receive buffers (default: as many as fit); answers how many."""
        queue = self.pairs[pair]
        count = len(queue.rx.free) if count is None else count
        for _ in range(count):
            self._offer_rx(queue, self.memory.alloc(size, region=region), size)
        queue.rx.publish()
        queue.rx.kick()
        return count

    def withdraw_rx(self, region: GuestRegion) -> None:
        """Offer receive buffers in this region no more, once the device has given them back."""
        self._withdrawn = region

    def _offer_rx(self, queue: Pair, guest: int, size: int) -> None:
        head = queue.rx.add([Buffer(guest, size, writable=True)])
        queue.rx_buffers[head] = guest

    def send(self, data: bytes, *, pair: int = 0, parts: int = 1, indirect: bool = False, header: bytes = b"") -> None:
        """Send one frame of up to 2036 bytes, its header in the first of ``parts`` descriptors; waits for room."""
        self.send_all([data], pair=pair, parts=parts, indirect=indirect, header=header)

    def send_all(
        self,
        frames: list[bytes],
        *,
        pair: int = 0,
        parts: int = 1,
        indirect: bool = False,
        header: bytes = b"",
        headers: list[bytes] | None = None,
    ) -> None:
        """Send frames, published together as far as the ring has room; ``headers`` has one for each."""
        queue = self.pairs[pair]
        needed = 1 if indirect else parts
        plain = header or bytes(self.header_bytes)
        for data, own in zip(frames, headers or [plain] * len(frames), strict=True):
            content = own + data
            if len(queue.tx.free) < needed:
                queue.tx.publish()
                queue.tx.kick()
                self._await_room(queue, needed)
            guest = self._tx_buffer(queue)
            self.memory.write(guest, content)
            cuts = [len(content) * i // parts for i in range(parts + 1)]
            chain = [Buffer(guest + a, b - a) for a, b in zip(cuts, cuts[1:], strict=False)]
            head = queue.tx.add(chain, guest + BUFFER_BYTES if indirect else None)
            queue.tx_buffers[head] = [guest]
            self.sent += 1
        queue.tx.publish()
        queue.tx.kick()

    def _tx_buffer(self, queue: Pair) -> int:
        return queue.tx_free.pop() if queue.tx_free else self.memory.alloc(BUFFER_BYTES + 256)

    def reclaim(self, pair: int = 0) -> int:
        """Take back what the device has sent; answers how many frames."""
        queue = self.pairs[pair]
        done = queue.tx.take_used()
        for head, _ in done:
            queue.tx_free.extend(queue.tx_buffers.pop(head))
        return len(done)

    def outstanding(self, pair: int = 0) -> int:
        """Frames that the device has not given back."""
        self.reclaim(pair)
        return len(self.pairs[pair].tx_buffers)

    def _await_room(self, queue: Pair, needed: int, timeout: float = 5.0) -> None:
        deadline = time.monotonic() + timeout
        while len(queue.tx.free) < needed:
            self.reclaim(self.pairs.index(queue))
            if time.monotonic() > deadline:
                raise TimeoutError("the device does not take frames")
            time.sleep(0)

    def await_sent(self, timeout: float = 5.0, pair: int = 0) -> None:
        """Wait until the device has given all sent frames back."""
        deadline = time.monotonic() + timeout
        while self.outstanding(pair):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.outstanding(pair)} frames were not taken")
            time.sleep(0.0005)

    def poll(self, pair: int = 0) -> list[Packet]:
        """Frames that have arrived; their buffers are offered again."""
        queue = self.pairs[pair]
        packets: list[Packet] = []
        # Heads may be taken anew as soon as a buffer is offered again: look all of them up before.
        done = [(queue.rx_buffers.pop(head), written) for head, written in queue.rx.take_used()]
        while done:
            first = self.memory.read(*done[0])
            header = first[: self.header_bytes]
            count = struct.unpack_from("<H", header, 10)[0] if self.features & F_MRG_RXBUF else 1
            assert 1 <= count <= len(done), f"a frame of {count} buffers, {len(done)} are there"
            rest = b"".join(self.memory.read(guest, written) for guest, written in done[1:count])
            packets.append(Packet(first[self.header_bytes :] + rest, header, count))
            for guest, _ in done[:count]:
                if self._withdrawn is None or guest not in self._withdrawn:
                    self._offer_rx(queue, guest, BUFFER_BYTES)
            done = done[count:]
        if packets:
            queue.rx.publish()
            queue.rx.kick()
        self.received += len(packets)
        return packets

    def receive(self, timeout: float = 2.0, pair: int = 0) -> Packet:
        """The next frame. Frames that come with it are kept for the next call."""
        kept = self._kept.setdefault(pair, [])
        deadline = time.monotonic() + timeout
        while not kept:
            kept.extend(self.poll(pair))
            if not kept and time.monotonic() > deadline:
                raise TimeoutError("no frame arrived")
            if not kept:
                time.sleep(0.0005)
        return kept.pop(0)

    def receive_all(self, count: int, timeout: float = 5.0, pair: int = 0) -> list[Packet]:
        """Exactly ``count`` frames."""
        return [self.receive(timeout, pair) for _ in range(count)]


def fd_count() -> int:
    """Open descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
