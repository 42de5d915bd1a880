"""Which packet buffers the engine takes: those that were given back last are still in the CPU's caches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from drivers import WRAP, PackedDriver, Piece, SplitDriver
from rig import Rig

VERSION_1, PACKED = 1 << 32, 1 << 34
TO_VM, TO_VF = 0, 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(("delivered", "collected"), [(20, 20), (32, 10), (5, 12)])
def test_last_in_first_out(rig: Callable[..., Rig], delivered: int, collected: int, pieces: int, packed: bool) -> None:
    """Packets for the guest, then from the guest: the same buffers, the last first, and then others."""
    features, position = VERSION_1 | (PACKED if packed else 0), WRAP if packed else 0
    rig_ = rig(TO_VM, features=features, position=position)
    driver = PackedDriver(rig_) if packed else SplitDriver(rig_)

    def offer(count: int) -> None:
        for _ in range(count):
            guest = rig_.allocate(100 * pieces)
            writable = rig_.lane["direction"][0] == TO_VM
            driver.add([Piece(guest + 100 * i, 100, writable) for i in range(pieces)])

    packets = [rig_.pool.packet([bytes(60)]) for _ in range(delivered)]
    below = [rig_.pool.take() for _ in range(max(0, collected - delivered))]
    for packet in reversed(below):
        rig_.pool.give(packet)
    offer(delivered)
    rig_.offer(*packets)
    rig_.step()
    assert rig_.counter("sent_pkts") == delivered
    driver.used()

    rig_.turn(TO_VF)
    offer(collected)
    rig_.step()
    taken = [int(packet) for packet in rig_.queue[4 + delivered : 4 + delivered + collected]]
    assert taken == [*reversed(packets), *below][:collected]
    assert rig_.sent() == [bytes(100 * pieces - 12)] * collected
    expected = 0 if pieces > 1 else delivered + collected
    assert rig_.view["simple_pkts"] == expected, "both ways of copying are tried"
