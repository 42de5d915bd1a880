from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from dpdk_ffi_process import RunDpdk

pytestmark = pytest.mark.dpdk

VETH = ("ffi-a", "ffi-b")


@pytest.fixture
def veth() -> Iterator[str]:
    """One end of a veth pair, both up."""
    subprocess.run(["ip", "link", "add", VETH[0], "type", "veth", "peer", "name", VETH[1]], check=True)
    try:
        for name in VETH:
            subprocess.run(["ip", "link", "set", name, "up"], check=True)
        yield VETH[0]
    finally:
        subprocess.run(["ip", "link", "del", VETH[0]], check=True)


LIFE = """
    eal = Eal.init(options())
    pool = Mempool.create("pool", 4095)
    port = EthPort.probe(DEVARGS)
    assert port.name == DEVARGS.split(",")[0]
    info = port.info()
    assert info.driver == port.name.rstrip("0"), info
    assert info.max_rx_queues >= 1 and info.max_mtu >= 1500
    port.configure(1, 1, mtu=MTU)
    rx, tx = port.adjust_descriptors(512, 512)
    port.setup_rx(0, rx, pool)
    port.setup_tx(0, tx)
    error = error_of(port.burst, 0)
    assert "not started" in str(error)
    port.start()
    burst = port.burst(0)
    assert all((burst.rx_function, burst.rx_queue, burst.tx_function, burst.tx_queue)), burst
    assert port.mtu() == MTU
    assert port.link().up
    assert port.stats().rx_errors == 0
    assert "rx_good_packets" in port.xstats()
    assert len(port.mac().split(":")) == 6
    assert port.set_promiscuous(True) in (True, False)
    assert port.set_allmulticast(True) in (True, False)
    error = error_of(EthPort.probe, DEVARGS)
    assert error.errno == 17 and port.name in str(error)
    port.stop()
    port.start()
    port.remove()
    assert find_port(load(), port.name) is None and ports(load()) == []
    assert pool.in_use() == 0
    pool.free()
    eal.cleanup()
"""


@pytest.mark.parametrize("devargs", ["net_null0,size=60", "net_ring0", "net_tap0,iface=ffi-tap0"])
def test_life_of_a_port(run_dpdk: RunDpdk, devargs: str) -> None:
    run_dpdk(f"DEVARGS = {devargs!r}\nMTU = 1500\nif True:{LIFE}")


def test_life_of_an_af_packet_port(run_dpdk: RunDpdk, veth: str) -> None:
    run_dpdk(f"DEVARGS = 'net_af_packet0,iface={veth}'\nMTU = 1500\nif True:{LIFE}")


def test_burst_pointers_and_mbuf_layout_are_right(run_dpdk: RunDpdk) -> None:
    """A burst from net_null, called and read by addresses alone, as the compiled loop does it."""
    run_dpdk(
        """
        import ctypes
        from vio4wd.dpdk_ffi.layouts import View
        eal = Eal.init(options())
        pool = Mempool.create("pool", 1023, cache_size=0)
        port = EthPort.probe("net_null0,size=77")
        port.configure(2, 2)
        for queue in range(2):
            port.setup_rx(queue, 512, pool)
            port.setup_tx(queue, 512)
        port.start()
        Burst = ctypes.CFUNCTYPE(ctypes.c_uint16, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint16)
        assert port.burst(0).rx_queue != port.burst(1).rx_queue
        pointers = port.burst(1)
        packets = (ctypes.c_void_p * 32)()
        assert Burst(pointers.rx_function)(pointers.rx_queue, packets, 32) == 32
        assert pool.in_use() == 32 and pool.available() == 1023 - 32
        layout = load().layout
        for address in packets:
            mbuf = View(layout.structs["rte_mbuf"], address)
            assert mbuf["pkt_len"] == mbuf["data_len"] == 77
            assert mbuf["pool"] == pool.address and mbuf["nb_segs"] == mbuf["refcnt"] == 1
            assert mbuf["port"] == port.port_id and mbuf["next"] == 0
            assert mbuf["buf_len"] == pool.data_room and mbuf["data_off"] == layout.constants["RTE_PKTMBUF_HEADROOM"]
        view = View(layout.structs["rte_mempool"], pool.address)
        assert (view.text("name"), view["size"], view["populated_size"]) == ("pool", 1023, 1023)
        table, ops = layout.structs["rte_mempool_ops_table"], layout.structs["rte_mempool_ops"]
        first = load().address("rte_mempool_ops_table") + table.offset("ops")
        assert View(ops, first + view["ops_index"] * ops.size).text("name") == "ring_mp_mc"
        assert Burst(pointers.tx_function)(pointers.tx_queue, packets, 32) == 32
        assert pool.in_use() == 0
        assert port.stats().rx_pkts == port.stats().tx_pkts == 32
        port.remove()
        eal.cleanup()
        """
    )


def test_a_hundred_ports_leave_nothing(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        eal = Eal.init(options())
        def cycle(number):
            pool = Mempool.create("pool", 2047)
            port = EthPort.probe(f"net_null{number % 3},size=60")
            port.configure(1, 1)
            port.setup_rx(0, 512, pool)
            port.setup_tx(0, 512)
            port.start()
            port.remove()
            assert pool.in_use() == 0
            pool.free()
        cycle(0)
        before = fds(), huge_kb(), ports(load())
        for number in range(100):
            cycle(number)
        assert (fds(), huge_kb(), ports(load())) == before
        eal.cleanup()
        """
    )


def test_all_ports_of_a_process_can_be_used(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        eal = Eal.init(options())
        most = load().max_ports
        made = [EthPort.probe(f"net_null{number}") for number in range(most)]
        assert ports(load()) == list(range(most))
        error = error_of(EthPort.probe, "net_null99")
        assert "net_null99" in str(error)
        for port in made:
            port.remove()
        EthPort.probe("net_null99").remove()
        eal.cleanup()
        """
    )


@pytest.mark.parametrize(
    ("devargs", "words"),
    [
        ("0000:7f:1f.7", ["there is no PCI device 0000:7f:1f.7"]),
        ("net_null0,nonsense=1", ["rte_dev_probe(net_null0,nonsense=1)", "cannot attach"]),
        ("net_af_packet0,iface=no-such", ["net_af_packet0", "no-such"]),
        ("no_such_driver0", ["no_such_driver0"]),
    ],
)
def test_a_device_that_cannot_be_attached_is_named(run_dpdk: RunDpdk, devargs: str, words: list[str]) -> None:
    run_dpdk(
        f"""
        eal = Eal.init(options())
        for turn in range(2):
            error = error_of(EthPort.probe, {devargs!r})
            for word in {words!r}:
                assert word in str(error), word
            assert ports(load()) == []
        port = EthPort.probe("net_null0")
        port.remove()
        eal.cleanup()
        """
    )


def test_pci_devices_are_left_alone_and_can_be_probed(run_dpdk: RunDpdk) -> None:
    """The start takes no device; a PCI address of this host is looked at only when asked for."""
    run_dpdk(
        """
        eal = Eal.init(options(log_level=LogLevel.DEBUG))
        assert ports(load()) == []
        devices = sorted(path.name for path in Path("/sys/bus/pci/devices").glob("*"))
        if devices:
            error = error_of(EthPort.probe, devices[-1])
            assert "Cannot find device" not in " ".join(error.reasons), "the bus did not scan"
        eal.cleanup()
        """
    )


def test_settings_that_a_port_does_not_take(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        eal = Eal.init(options())
        port = EthPort.probe("net_af_packet0,iface=lo")
        error = error_of(port.configure, 5, 5)
        assert error.errno == 22 and "net_af_packet0" in str(error)
        error = error_of(port.configure, 1, 1, mtu=20)
        assert "mtu" in str(error).lower()
        error = error_of(port.configure, 1, 1, rx_offloads=1 << 40)
        assert "offload" in str(error).lower()
        port.remove()
        eal.cleanup()
        """
    )


def test_a_refused_mode_is_no_error(run_dpdk: RunDpdk) -> None:
    """Drivers of VFs have any error for what a PF does not allow; here the interface behind the port is gone."""
    run_dpdk(
        """
        import subprocess
        subprocess.run("ip link add ffi-c type veth peer name ffi-d", shell=True, check=True)
        eal = Eal.init(options())
        port = EthPort.probe("net_af_packet0,iface=ffi-c")
        assert port.set_promiscuous(True)
        assert port.set_promiscuous(False)
        subprocess.run("ip link del ffi-c", shell=True, check=True)
        assert not port.set_promiscuous(True)
        assert not port.set_allmulticast(True)
        port.remove()
        eal.cleanup()
        """
    )


MODES_OFF = """
    flags = [Path(f"/sys/class/net/{name}/flags") for name in VETH]
    before = [path.read_text() for path in flags]
    eal = Eal.init(options())
    pool = Mempool.create("pool", 8191)
    members = [EthPort.probe(f"net_af_packet{i},iface={name}") for i, name in enumerate(VETH)]
    port = members[0]
    if BOND:
        port = BondPort.create("net_bonding0", 1)
        for member in members:
            port.add_member(member)
    port.configure(1, 1)
    port.setup_rx(0, 512, pool)
    port.setup_tx(0, 512)
    port.start()
    assert port.set_promiscuous(True)
    port.set_allmulticast(True)
    if BOND:
        port.set_primary(members[1])
        port.refresh_promiscuous()
    assert [path.read_text() for path in flags] != before
    if BOND:
        for member in members:
            port.remove_member(member)
        port.remove()
    for member in members:
        member.remove()
    assert [path.read_text() for path in flags] == before
    eal.cleanup()
"""


@pytest.mark.parametrize("bond", [False, True])
@pytest.mark.usefixtures("veth")
def test_the_interface_behind_a_port_is_left_as_it_was(run_dpdk: RunDpdk, bond: bool) -> None:
    run_dpdk(f"if True:\n    BOND, VETH = {bond}, {VETH}{MODES_OFF}")


def test_a_device_that_is_no_port_is_taken_back(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        eal = Eal.init(options())
        first = error_of(EthPort.probe, "crypto_null0")
        assert first.errno == 19 and "the device has no port" in str(first)
        assert error_of(load().call, "", "rte_eal_hotplug_remove", b"vdev", b"crypto_null0").errno
        assert str(error_of(EthPort.probe, "crypto_null0")) == str(first)
        eal.cleanup()
        """
    )


EVENTS = """
    import ctypes
    eal = Eal.init(options())
    eal_library, ethdev = (load()._libraries[name] for name in ("eal", "ethdev"))

    def reset(name):
        # what a VF's driver does when its PF was reset
        ethdev.rte_eth_dev_allocated.restype = ctypes.c_void_p
        device = ctypes.c_void_p(ethdev.rte_eth_dev_allocated(name))
        ethdev.rte_eth_dev_callback_process(device, 3, None)

    def want_back(name):
        # what DPDK does when the kernel is to take a device from vfio-pci
        eal_library.rte_dev_event_callback_process(name, 1)
"""


def test_ports_to_be_opened_anew(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        f"if True:{EVENTS}"
        + """
    one, other = EthPort.probe("net_null0"), EthPort.probe("net_null1")
    assert one.trouble == other.trouble == ""
    reset(b"net_null0")
    assert "PF was reset" in one.trouble and other.trouble == ""
    want_back(b"net_null1")
    assert "wants the device back" in other.trouble
    for port in (one, other):
        port.remove()
    for name in ("net_null0", "net_null1"):
        assert EthPort.probe(name).trouble == ""
    eal.cleanup()
    """
    )


def test_a_bond_gives_up_members_that_are_to_be_opened_anew(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        f"if True:{EVENTS}"
        + """
    from vio4wd.devices import Bond, Device
    from vio4wd.relay.bonds import OpenBond
    devices = Device("net_null0"), Device("net_null1")
    bond = OpenBond(Bond("net_bonding0", devices), BondPort.create("net_bonding0", 1))
    bond.open_members(degraded=False)
    assert bond.stale(replaced=False) == []
    reset(b"net_null1")
    assert bond.stale(replaced=False) == bond.members[1:]
    bond.close()
    eal.cleanup()
    """
    )


def test_mempools(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        eal = Eal.init(options())
        pages = huge_kb()
        pool = Mempool.create("pool", 4095, cache_size=128, data_room=9300)
        assert (pool.count, pool.data_room, pool.available(), pool.in_use()) == (4095, 9300, 4095, 0)
        assert error_of(Mempool.create, "pool", 100, cache_size=0).errno == 17
        assert error_of(Mempool.create, "x" * 40, 100, cache_size=0).errno == 36
        assert error_of(Mempool.create, "cache", 100, cache_size=600).errno == 22
        error = error_of(Mempool.create, "far", 100, cache_size=0, socket_id=99)
        assert "far: 100 buffers of 2176 bytes, cache 0, NUMA node 99" in str(error)
        pool.free()
        pool.free()
        assert huge_kb() == pages
        Mempool.create("pool", 100, cache_size=0).free()
        eal.cleanup()
        """
    )


def test_buffers_that_an_lcore_keeps_are_given_back(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        import ctypes, threading
        from vio4wd.dpdk_ffi.layouts import View
        from vio4wd.dpdk_ffi.mempool import flush
        eal = Eal.init(options())
        pool = Mempool.create("pool", 1023, cache_size=256)
        port = EthPort.probe("net_null0,size=77")
        port.configure(1, 1)
        port.setup_rx(0, 512, pool)
        port.setup_tx(0, 512)
        port.start()
        Burst = ctypes.CFUNCTYPE(ctypes.c_uint16, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint16)
        pointers, packets = port.burst(0), (ctypes.c_void_p * 32)()
        assert Burst(pointers.rx_function)(pointers.rx_queue, packets, 32) == 32
        structs = load().layout.structs
        cache = View(structs["rte_mempool_cache"], View(structs["rte_mempool"], pool.address)["local_cache"])
        kept = cache["len"]
        assert kept > 0 and pool.available() == 1023 - 32
        thread = threading.Thread(target=flush, args=(pool.address, 0))
        thread.start()
        thread.join()
        assert cache["len"] == 0 and pool.available() == 1023 - 32
        assert Burst(pointers.tx_function)(pointers.tx_queue, packets, 32) == 32
        assert cache["len"] == 32 and pool.in_use() == 0
        port.remove()
        eal.cleanup()
        """
    )
