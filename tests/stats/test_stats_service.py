"""The stats service: what is sent for each state of a relay, rates, selection and delays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from vio4wd.devices import Bond, Device
from vio4wd.errors import ProtocolError
from vio4wd.portctl.proto.virtioforwarder_pb2 import StatsRequest, StatsResponse
from vio4wd.relay.interface import (
    RELAYS,
    DirectionCounters,
    LaneBursts,
    RelayController,
    RelaySnapshot,
    VfState,
    VirtioState,
)
from vio4wd.stats.rates import MAX_DELAY_MS, DirectionRates, rates_between
from vio4wd.stats.service import MAX_DELAYED, StatsService

HZ = 1_000_000
NOTHING = DirectionCounters()
UNUSED = RelaySnapshot(0, VfState.UNINIT, VirtioState.UNINIT, None, None, None, None, 0, NOTHING, NOTHING)
COUNTED = DirectionCounters(*range(101, 114), lanes=(LaneBursts(0, 112, 100), LaneBursts(3, 0, 13)))
BOTH = replace(
    UNUSED,
    relay=2,
    vf_state=VfState.READY,
    virtio_state=VirtioState.READY,
    attachment=Device.parse("05:08.1"),
    socket_path="/tmp/two",
    vf_cpu=3,
    virtio_cpu=4,
    numa_node=1,
    vf_to_vm=COUNTED,
    vm_to_vf=replace(COUNTED, received_pkts=2**64 - 1),
)


class Relays(RelayController):
    """Relays as given; ``steps`` are added to relay 2's vf_to_vm counters at each reading."""

    def __init__(self, *special: RelaySnapshot, step: DirectionCounters = NOTHING) -> None:
        self._relays = {relay: replace(UNUSED, relay=relay) for relay in range(RELAYS)}
        self._relays.update({snapshot.relay: snapshot for snapshot in special})
        self._step = step

    def snapshot(self) -> Sequence[RelaySnapshot]:
        found = list(self._relays.values())
        two = self._relays[2]
        now = two.vf_to_vm
        grown = replace(
            now,
            received_pkts=now.received_pkts + self._step.received_pkts,
            received_bytes=now.received_bytes + self._step.received_bytes,
            sent_pkts=now.sent_pkts + self._step.sent_pkts,
            sent_bytes=now.sent_bytes + self._step.sent_bytes,
            cycles=now.cycles + self._step.cycles,
        )
        self._relays[2] = replace(two, vf_to_vm=grown)
        return found


def ask(controller: RelayController, **fields: object) -> StatsResponse:
    request = StatsRequest(**fields)  # type: ignore[arg-type]
    answer = asyncio.run(StatsService(controller, tsc_hz=lambda: HZ)(request.SerializeToString()))
    return StatsResponse.FromString(answer)


def test_an_active_relay() -> None:
    response = ask(Relays(BOTH), relay=[2])
    assert response.status == StatsResponse.OK
    (state,) = response.relay
    assert (state.id, state.active, state.socket_id) == (2, True, 1)
    assert (state.cpu.vf_to_vm, state.cpu.vm_to_vf) == (3, 4)
    assert state.vhost.vhost_socket_name == "/tmp/two"
    assert state.vf.pci_addr_str == "0000:05:08.1"
    there, back = state.vf_to_vm, state.vm_to_vf
    assert (there.active, there.internal_state) == (True, "DPDK_READY")
    assert (back.active, back.internal_state) == (True, "VIRTIO_READY")
    numbers = {field.number: value for field, value in there.ListFields()}
    assert [numbers[n] for n in range(3, 11)] == list(range(101, 109))
    assert back.pkts_rx_from_vm == 2**64 - 1 and back.bytes_dropped_vf_not_connected == 108
    assert (back.pkts_dropped_vf_too_long, back.bytes_dropped_vf_too_long) == (109, 110)
    assert (there.work.cycles, there.work.direct_bursts, there.work.library_bursts) == (111, 112, 113)
    bursts = [(lane.queue_pair, lane.direct_bursts, lane.library_bursts) for lane in there.work.lane]
    assert bursts == [(0, 112, 100), (3, 0, 13)]
    assert not state.HasField("fault") and not state.HasField("ident")


def test_an_unused_relay_has_all_counters_and_no_cpu() -> None:
    (state,) = ask(Relays(), relay=[0]).relay
    assert state.vhost.vhost_socket_name == "NONE"
    assert not (state.active or state.HasField("cpu") or state.HasField("vf"))
    for direction, more in ((state.vf_to_vm, []), (state.vm_to_vf, [1001, 1002])):
        assert not direction.active
        assert [field.number for field, _ in direction.ListFields()] == [*range(1, 15), 1000, *more]


@pytest.mark.parametrize(
    ("vf_state", "virtio_state", "expected"),
    [
        (VfState.ADDED, VirtioState.UNINIT, (False, True, False)),
        (VfState.READY, VirtioState.READY, (True, True, True)),
        (VfState.ADDED, VirtioState.READY, (False, True, True)),
        (VfState.UNINIT, VirtioState.READY, (False, False, True)),
        (VfState.REMOVING1, VirtioState.READY, (False, True, True)),
    ],
)
def test_what_is_active(vf_state: VfState, virtio_state: VirtioState, expected: tuple[bool, bool, bool]) -> None:
    relay = replace(BOTH, vf_state=vf_state, virtio_state=virtio_state)
    (state,) = ask(Relays(relay), relay=[2]).relay
    assert (state.active, state.vf_to_vm.active, state.vm_to_vf.active) == expected
    assert (state.cpu.HasField("vf_to_vm"), state.cpu.HasField("vm_to_vf")) == expected[1:]


def test_bonds_virtual_devices_and_faults() -> None:
    members = (Device.parse("05:08.1"), Device.parse("net_null0"))
    bond = replace(BOTH, relay=1, attachment=Bond("net_bonding0", members), fault="the VF is gone")
    virtual = replace(BOTH, attachment=Device.parse("net_null0,size=60"))
    first, second = ask(Relays(bond, virtual), relay=[1, 2]).relay
    assert (first.vf.pci_addr_str, first.fault) == ("net_bonding0", "the VF is gone")
    assert second.vf.pci_addr_str == "net_null0,size=60"


def test_selection() -> None:
    relays = Relays(BOTH)
    assert [state.id for state in ask(relays).relay] == list(range(RELAYS))
    assert [state.id for state in ask(relays, relay=[5, 2, 5, 64, 2**32 - 1]).relay] == [2, 5]
    assert [state.id for state in ask(relays, relay=[99]).relay] == []
    assert [state.id for state in ask(relays, include_inactive=False).relay] == [2]
    assert [state.id for state in ask(relays, relay=[1], include_inactive=False).relay] == []
    assert len(ask(relays, relay=range(RELAYS)).relay) == RELAYS
    assert ask(relays, relay=[1] * (RELAYS + 1)) == StatsResponse(status=StatsResponse.E2BIG)


def test_rates_between() -> None:
    after = DirectionCounters(received_pkts=10, received_bytes=20, sent_pkts=30, sent_bytes=40, cycles=HZ)
    assert rates_between(NOTHING, after, 2.0, HZ) == DirectionRates(5, 10, 15, 20, 0.5)
    assert rates_between(NOTHING, after, 0.0, HZ) == DirectionRates()
    assert rates_between(NOTHING, after, 0.5, HZ).load == 1.0
    assert rates_between(NOTHING, after, 2.0, None).load is None


def test_rates_are_measured_over_the_delay() -> None:
    step = DirectionCounters(
        received_pkts=1000, received_bytes=60_000, sent_pkts=900, sent_bytes=54_000, cycles=HZ // 20
    )
    started = time.monotonic()
    (state,) = ask(Relays(BOTH, step=step), relay=[2], delay=100).relay
    elapsed = time.monotonic() - started
    there = state.vf_to_vm
    assert 0.1 <= elapsed < 1
    assert 1000 / elapsed <= there.pkt_rate_rx_from_vf <= 10_000
    assert there.byte_rate_tx_to_vm == pytest.approx(there.pkt_rate_rx_from_vf * 54)
    assert 0.05 / elapsed <= there.work.load <= 0.501
    assert there.pkts_rx_from_vf == 1101
    assert state.vm_to_vf.pkt_rate_rx_from_vm == 0


def test_without_a_delay_rates_are_zero() -> None:
    (state,) = ask(Relays(BOTH, step=COUNTED), relay=[2]).relay
    assert state.vf_to_vm.pkt_rate_rx_from_vf == 0
    assert not state.vf_to_vm.work.HasField("load")


def test_delays_run_at_the_same_time() -> None:
    async def many() -> float:
        service = StatsService(Relays())
        request = StatsRequest(delay=200).SerializeToString()
        started = time.monotonic()
        await asyncio.gather(*(service(request) for _ in range(50)))
        return time.monotonic() - started

    assert asyncio.run(many()) < 2


def test_too_many_delayed_requests_are_answered_with_what_is_known() -> None:
    """At once, with the rates since the request began whose time is nearest to the delay."""
    step = DirectionCounters(received_pkts=1000)

    async def scenario() -> tuple[StatsResponse, float, float]:
        service = StatsService(Relays(BOTH, step=step))
        long = StatsRequest(relay=[0], delay=60_000).SerializeToString()
        begun = time.monotonic()
        waiting = [asyncio.create_task(service(long))]
        await asyncio.sleep(0.3)
        waiting += [asyncio.create_task(service(long)) for _ in range(MAX_DELAYED)]
        await asyncio.sleep(0)
        assert sum(task.done() for task in waiting) == 1
        started = time.monotonic()
        answer = await service(StatsRequest(relay=[2], delay=400).SerializeToString())
        now = time.monotonic()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert StatsResponse.FromString(await service(StatsRequest(delay=1).SerializeToString())).relay
        return StatsResponse.FromString(answer), now - started, now - begun

    answer, took_s, elapsed_s = asyncio.run(scenario())
    assert took_s < 0.3
    readings = MAX_DELAYED + 1
    rate = answer.relay[0].vf_to_vm.pkt_rate_rx_from_vf
    assert rate == pytest.approx(readings * step.received_pkts / elapsed_s, rel=0.2)


def test_an_absurd_delay_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("vio4wd.stats.service.asyncio.sleep", sleep)
    assert ask(Relays(), delay=2**32 - 1).status == StatsResponse.OK
    assert slept == [MAX_DELAY_MS / 1000]


def test_garbage() -> None:
    service = StatsService(Relays())
    with pytest.raises(ProtocolError):
        asyncio.run(service(b"\xff" * 10))
    assert StatsResponse.FromString(service.refusal) == StatsResponse(status=StatsResponse.EBADR)
