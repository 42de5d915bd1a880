"""A Linux guest with a card of every shape that QEMU offers, each on a relay of its own, with both ring engines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.daemon import Daemon
from harness.guest_image import GuestImage
from harness.qemu import LinuxGuest, Nic
from harness.wire import DATA, Wire

pytestmark = pytest.mark.dpdk

CSUM, GUEST_CSUM, MRG_RXBUF, MQ, VERSION_1, RING_PACKED = 0, 1, 15, 22, 32, 34
OFFLOADS = {CSUM, GUEST_CSUM, *range(7, 15)}  # VirtIO 1.1, section 5.1.3


@dataclass(frozen=True)
class Shape:
    """A card: properties of the device, queue pairs, feature bits that it must and must not end up with."""

    device: str = ""
    queues: int = 1
    has: frozenset[int] = frozenset({VERSION_1, MRG_RXBUF})
    lacks: frozenset[int] = frozenset({RING_PACKED})


SHAPES = {
    "split": Shape(),
    "packed": Shape("packed=on", has=frozenset({VERSION_1, MRG_RXBUF, RING_PACKED}), lacks=frozenset()),
    "plain": Shape("mrg_rxbuf=off", has=frozenset({VERSION_1}), lacks=frozenset({MRG_RXBUF})),
    "packed-plain": Shape("packed=on,mrg_rxbuf=off", has=frozenset({RING_PACKED}), lacks=frozenset({MRG_RXBUF})),
    "legacy": Shape("disable-modern=on", has=frozenset({MRG_RXBUF}), lacks=frozenset({VERSION_1})),
    "legacy-plain": Shape("disable-modern=on,mrg_rxbuf=off", has=frozenset(), lacks=frozenset({VERSION_1, MRG_RXBUF})),
    "large": Shape("rx_queue_size=1024,tx_queue_size=1024"),
    "queues": Shape(queues=2, has=frozenset({MQ})),
}
NUMBERS = {name: number for number, name in enumerate(SHAPES)}


@dataclass(frozen=True)
class Bench:
    engine: str
    daemon: Daemon
    guest: LinuxGuest
    wires: tuple[Wire, ...]


@pytest.fixture(scope="module")
def bench(
    request: pytest.FixtureRequest, image: GuestImage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    directory: Path = tmp_path_factory.mktemp("shapes")
    engine = str(request.param)
    daemon = Daemon(directory, VIRTIOFWD_RING_ENGINE=engine)
    wires: list[Wire] = []
    try:
        for number in NUMBERS.values():
            wires.append(Wire(number))
            daemon.add(number, wires[-1].devargs)
        nics = [Nic(daemon.socket(number), shape.device, shape.queues) for number, shape in enumerate(SHAPES.values())]
        guest = LinuxGuest(image, directory, *nics)
        try:
            yield Bench(engine, daemon, guest, tuple(wires))
        finally:
            guest.stop()
        assert daemon.stop() == 0
    finally:
        daemon.stop()
        for wire in wires:
            wire.remove()


def check_packets_both_ways(bench: Bench, name: str) -> None:
    shape, number = SHAPES[name], NUMBERS[name]
    guest, wire = bench.guest, bench.wires[number]
    features = guest.features(number)
    assert shape.has <= features
    assert not (shape.lacks | OFFLOADS) & features
    if shape.queues > 1:
        guest.run(f"ethtool -L {wire.card} combined {shape.queues}")
    wire.configure(guest)
    for pings in (wire.ping(50), wire.pinged(guest, 20), wire.pinged(guest, 5, bytes_=1472)):
        assert pings.received == pings.sent
        assert pings.max_ms < 500
    data = DATA if name == "split" else DATA[: len(DATA) // 5]
    expected = hashlib.sha256(data).hexdigest()
    assert wire.send(guest, data) == expected
    assert wire.receive(guest) == expected
    if bench.engine == "direct":
        assert "rte_vhost works ring" not in bench.daemon.child.log


@pytest.mark.parametrize("bench", ["direct"], indirect=True, scope="module")
@pytest.mark.parametrize("name", SHAPES)
def test_packets_pass_both_ways(bench: Bench, name: str) -> None:
    check_packets_both_ways(bench, name)


@pytest.mark.parametrize("bench", ["library"], indirect=True, scope="module")
@pytest.mark.parametrize("name", ["split", "packed", "legacy-plain"])
def test_packets_pass_both_ways_by_rte_vhost(bench: Bench, name: str) -> None:
    check_packets_both_ways(bench, name)
