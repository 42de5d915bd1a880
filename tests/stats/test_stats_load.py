"""The bars of worker CPU load."""

from __future__ import annotations

from vio4wd.cli.monitor_load import CpuLoad, bars, cpu_loads
from vio4wd.portctl.proto.virtioforwarder_pb2 import StatsResponse

State = StatsResponse.RelayState


def relay(there: int, back: int | None, load: float | None, pps: float) -> State:
    state = State()
    state.cpu.vf_to_vm = there
    state.vf_to_vm.pkt_rate_rx_from_vf = pps
    state.vm_to_vf.pkt_rate_rx_from_vm = pps
    if back is not None:
        state.cpu.vm_to_vf = back
    if load is not None:
        state.vf_to_vm.work.load = state.vm_to_vf.work.load = load
    return state


def test_loads_add_up_by_cpu() -> None:
    response = StatsResponse(relay=[relay(2, 3, 0.25, 1e6), relay(2, None, 0.5, 2e6)])
    assert cpu_loads(response, (1, 2)) == [CpuLoad(1, 0.0, 0.0, 0), CpuLoad(2, 0.75, 3e6, 2), CpuLoad(3, 0.25, 1e6, 1)]


def test_bars_show_load() -> None:
    idle, half = bars([CpuLoad(1, 0.0, 0.0, 0), CpuLoad(12, 0.5, 1.5e6, 2)])
    assert idle == f"CPU   1 [{' ' * 50}]   0%    0.000 Mpps 0 directions"
    assert half == f"CPU  12 [{'#' * 25}{' ' * 25}]  50%    1.500 Mpps 2 directions"


def test_bars_compare_rates_where_no_load_is_known() -> None:
    response = StatsResponse(relay=[relay(2, 3, None, 1e6), relay(2, None, None, 1e6)])
    busy, other = bars(cpu_loads(response, ()))
    assert busy.count("#") == 50 and other.count("#") == 25 and "-" in busy


def test_no_cpu() -> None:
    assert list(bars([])) == ["no worker CPU serves a relay"]
