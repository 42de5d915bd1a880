"""The flat lines that scripts grep."""

from __future__ import annotations

from vio4wd.portctl.proto.virtioforwarder_pb2 import StatsResponse
from vio4wd.stats.view import flat_lines, protobuf_text

State = StatsResponse.RelayState
RATES_THERE = dict.fromkeys(
    ("pkt_rate_rx_from_vf", "byte_rate_rx_from_vf", "pkt_rate_tx_to_vm", "byte_rate_tx_to_vm"), 0.0
)
RATES_BACK = dict.fromkeys(
    ("pkt_rate_rx_from_vm", "byte_rate_rx_from_vm", "pkt_rate_tx_to_vf", "byte_rate_tx_to_vf"), 0.0
)
RESPONSE = StatsResponse(
    status=StatsResponse.OK,
    relay=[
        State(
            id=1,
            active=True,
            cpu=State.CPU(vf_to_vm=2),
            vhost=State.VHOST(vhost_socket_name="/tmp/virtio-forwarder/virtio-forwarder1.sock"),
            vf=State.VF(pci_addr_str="0000:05:08.1"),
            vf_to_vm=State.VFtoVM(
                active=True,
                internal_state="DPDK_ADDED",
                pkts_rx_from_vf=123,
                bytes_rx_from_vf=0,
                **{**RATES_THERE, "pkt_rate_rx_from_vf": 1.5},
                work=State.Work(cycles=7, load=0.25),
            ),
            vm_to_vf=State.VMtoVF(active=False, internal_state="VIRTIO_UNINIT", pkts_rx_from_vm=0, **RATES_BACK),
            socket_id=0,
            fault="no such VF",
        )
    ],
)


def test_flat_lines() -> None:
    assert list(flat_lines(RESPONSE)) == [
        "relay_1.id=1",
        "relay_1.active=True",
        "relay_1.cpu.vf_to_vm=2",
        "relay_1.vhost.vhost_socket_name=/tmp/virtio-forwarder/virtio-forwarder1.sock",
        "relay_1.vf.pci_addr_str=0000:05:08.1",
        "relay_1.vf_to_vm.active=True",
        "relay_1.vf_to_vm.internal_state=DPDK_ADDED",
        "relay_1.vf_to_vm.cpu_2.pkts_rx_from_vf=123",
        "relay_1.vf_to_vm.cpu_2.bytes_rx_from_vf=0",
        "relay_1.vf_to_vm.cpu_2.pkt_rate_rx_from_vf=1.50",
        "relay_1.vf_to_vm.cpu_2.byte_rate_rx_from_vf=0.00",
        "relay_1.vf_to_vm.cpu_2.pkt_rate_tx_to_vm=0.00",
        "relay_1.vf_to_vm.cpu_2.byte_rate_tx_to_vm=0.00",
        "relay_1.vf_to_vm.cpu_2.work.cycles=7",
        "relay_1.vf_to_vm.cpu_2.work.load=0.25",
        "relay_1.vm_to_vf.active=False",
        "relay_1.vm_to_vf.internal_state=VIRTIO_UNINIT",
        "relay_1.vm_to_vf.pkts_rx_from_vm=0",
        "relay_1.vm_to_vf.pkt_rate_rx_from_vm=0.00",
        "relay_1.vm_to_vf.byte_rate_rx_from_vm=0.00",
        "relay_1.vm_to_vf.pkt_rate_tx_to_vf=0.00",
        "relay_1.vm_to_vf.byte_rate_tx_to_vf=0.00",
        "relay_1.socket_id=0",
        "relay_1.fault=no such VF",
    ]


def test_zero_counters_can_be_left_out_and_states_never() -> None:
    lines = list(flat_lines(RESPONSE, suppress_zero=True))
    assert [line for line in lines if ".vf_to_vm." in line] == [
        "relay_1.vf_to_vm.active=True",
        "relay_1.vf_to_vm.internal_state=DPDK_ADDED",
        "relay_1.vf_to_vm.cpu_2.pkts_rx_from_vf=123",
        "relay_1.vf_to_vm.cpu_2.pkt_rate_rx_from_vf=1.50",
        "relay_1.vf_to_vm.cpu_2.work.cycles=7",
        "relay_1.vf_to_vm.cpu_2.work.load=0.25",
    ]
    assert [line for line in lines if ".vm_to_vf." in line] == [
        "relay_1.vm_to_vf.active=False",
        "relay_1.vm_to_vf.internal_state=VIRTIO_UNINIT",
    ]


def test_protobuf_text() -> None:
    assert protobuf_text(RESPONSE).startswith("status: OK\nrelay {\n  id: 1\n  active: true\n")
