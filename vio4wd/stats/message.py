"""A relay's snapshot and rates as the RelayState message of the stats service."""

from __future__ import annotations

from vio4wd.portctl.proto.virtioforwarder_pb2 import StatsResponse
from vio4wd.relay.interface import DirectionCounters, RelaySnapshot, VfState, VirtioState
from vio4wd.stats.rates import DirectionRates

NO_SOCKET = "NONE"

RelayState = StatsResponse.RelayState


def relay_state(snapshot: RelaySnapshot, vf_to_vm: DirectionRates, vm_to_vf: DirectionRates) -> RelayState:
    """The message of one relay. A direction is active while its near side is not DPDK_UNINIT or VIRTIO_UNINIT."""
    state = RelayState(
        id=snapshot.relay,
        active=snapshot.active,
        vhost=RelayState.VHOST(vhost_socket_name=snapshot.socket_path or NO_SOCKET),
        vf_to_vm=_vf_to_vm(snapshot, vf_to_vm),
        vm_to_vf=_vm_to_vf(snapshot, vm_to_vf),
        socket_id=max(0, snapshot.numa_node),
    )
    if state.vf_to_vm.active and snapshot.vf_cpu is not None:
        state.cpu.vf_to_vm = snapshot.vf_cpu
    if state.vm_to_vf.active and snapshot.virtio_cpu is not None:
        state.cpu.vm_to_vf = snapshot.virtio_cpu
    if snapshot.attachment is not None:
        state.vf.pci_addr_str = str(snapshot.attachment)
    if snapshot.fault is not None:
        state.fault = snapshot.fault
    return state


def _vf_to_vm(snapshot: RelaySnapshot, rates: DirectionRates) -> RelayState.VFtoVM:
    counters = snapshot.vf_to_vm
    return RelayState.VFtoVM(
        active=snapshot.vf_state is not VfState.UNINIT,
        internal_state=snapshot.vf_state.value,
        pkts_rx_from_vf=counters.received_pkts,
        bytes_rx_from_vf=counters.received_bytes,
        pkts_tx_to_vm=counters.sent_pkts,
        bytes_tx_to_vm=counters.sent_bytes,
        pkts_dropped_vm_queue_full=counters.queue_full_pkts,
        bytes_dropped_vm_queue_full=counters.queue_full_bytes,
        pkts_dropped_vm_not_connected=counters.not_connected_pkts,
        bytes_dropped_vm_not_connected=counters.not_connected_bytes,
        pkt_rate_rx_from_vf=rates.received_pps,
        byte_rate_rx_from_vf=rates.received_bytes_per_s,
        pkt_rate_tx_to_vm=rates.sent_pps,
        byte_rate_tx_to_vm=rates.sent_bytes_per_s,
        work=_work(counters, rates),
    )


def _vm_to_vf(snapshot: RelaySnapshot, rates: DirectionRates) -> RelayState.VMtoVF:
    counters = snapshot.vm_to_vf
    return RelayState.VMtoVF(
        active=snapshot.virtio_state is not VirtioState.UNINIT,
        internal_state=snapshot.virtio_state.value,
        pkts_rx_from_vm=counters.received_pkts,
        bytes_rx_from_vm=counters.received_bytes,
        pkts_tx_to_vf=counters.sent_pkts,
        bytes_tx_to_vf=counters.sent_bytes,
        pkts_dropped_vf_queue_full=counters.queue_full_pkts,
        bytes_dropped_vf_queue_full=counters.queue_full_bytes,
        pkts_dropped_vf_not_connected=counters.not_connected_pkts,
        bytes_dropped_vf_not_connected=counters.not_connected_bytes,
        pkts_dropped_vf_too_long=counters.too_long_pkts,
        bytes_dropped_vf_too_long=counters.too_long_bytes,
        pkt_rate_rx_from_vm=rates.received_pps,
        byte_rate_rx_from_vm=rates.received_bytes_per_s,
        pkt_rate_tx_to_vf=rates.sent_pps,
        byte_rate_tx_to_vf=rates.sent_bytes_per_s,
        work=_work(counters, rates),
    )


def _work(counters: DirectionCounters, rates: DirectionRates) -> RelayState.Work:
    return RelayState.Work(
        cycles=counters.cycles,
        load=rates.load,
        direct_bursts=counters.direct_bursts,
        library_bursts=counters.library_bursts,
        lane=[
            RelayState.Work.Lane(queue_pair=lane.queue_pair, direct_bursts=lane.direct, library_bursts=lane.library)
            for lane in counters.lanes
        ],
    )
