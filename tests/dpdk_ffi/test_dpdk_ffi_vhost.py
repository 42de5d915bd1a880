from __future__ import annotations

import pytest
from dpdk_ffi_process import RunDpdk

pytestmark = pytest.mark.dpdk

DRIVER = """
SOCKET = os.environ["SCRATCH"] + "/v.sock"

class Events:
    def __init__(self):
        self.seen, self.fail, self.told = [], set(), threading.Condition()
    def note(self, name, *arguments):
        with self.told:
            self.seen.append((name, *arguments))
            self.told.notify_all()
        if name in self.fail:
            raise ValueError("as asked")
    def wait(self, name):
        with self.told:
            assert self.told.wait_for(lambda: any(event[0] == name for event in self.seen), 10), (name, self.seen)
            return next(event for event in self.seen if event[0] == name)
    def new_device(self, vid): self.note("new_device", vid)
    def destroy_device(self, vid): self.note("destroy_device", vid)
    def vring_state_changed(self, vid, ring, enabled): self.note("vring", vid, ring, enabled)
    def features_changed(self, vid, features): self.note("features", vid, features)
    def new_connection(self, vid): self.note("new_connection", vid)
    def destroy_connection(self, vid): self.note("destroy_connection", vid)
"""


def test_register_and_unregister(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        DRIVER
        + """
eal = Eal.init(options())
def cycle():
    driver = VhostDriver.register(SOCKET)
    offered = driver.features()
    driver.disable_features(1 << 15)
    assert driver.features() == offered & ~(1 << 15)
    driver.set_features(1 << 32 | 1 << 5)
    assert driver.features() == 1 << 32 | 1 << 5
    driver.set_protocol_features(driver.protocol_features() & ~(1 << 8))
    driver.set_callbacks(Events())
    driver.start()
    assert Path(SOCKET).is_socket()
    assert error_of(VhostDriver.register, SOCKET).errno == 17
    driver.unregister()
    Path(SOCKET).unlink(missing_ok=True)
cycle()
before = fds()
for _ in range(100):
    cycle()
assert fds() == before
driver = VhostDriver.register(SOCKET)
driver.unregister()
assert SOCKET in str(error_of(driver.unregister))
assert error_of(VhostDriver.register, "/tmp/" + "x" * 120).errno == 36
driver = VhostDriver.register("/nowhere/v.sock")
driver.set_callbacks(Events())
error = error_of(driver.start)
assert "/nowhere/v.sock" in str(error) and "No such file or directory" in str(error)
driver.unregister()
eal.cleanup()
"""
    )


def test_client_that_finds_nobody(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        DRIVER
        + """
eal = Eal.init(options())
driver = VhostDriver.register(SOCKET, VhostFlags.CLIENT | VhostFlags.NO_RECONNECT)
driver.set_callbacks(Events())
error = error_of(driver.start)
assert SOCKET in str(error) and "No such file or directory" in str(error)
driver.unregister()
eal.cleanup()
"""
    )


def test_device_of_a_real_front_end(run_dpdk: RunDpdk) -> None:
    """DPDK's own front end, virtio-user, in the same process; the guest's memory is the process's."""
    run_dpdk(
        DRIVER
        + """
eal = Eal.init(options())
pool = Mempool.create("pool", 511, cache_size=0)
driver, events = VhostDriver.register(SOCKET), Events()
driver.set_callbacks(events)
driver.start()
guest = EthPort.probe(f"net_virtio_user0,path={SOCKET},queues=1,queue_size=256")
guest.configure(1, 1)
guest.setup_rx(0, 256, pool)
guest.setup_tx(0, 256)
guest.start()
vid = events.wait("new_device")[1]
assert events.wait("new_connection") == ("new_connection", vid)
device = VhostDevice(vid)
assert device.ifname() == SOCKET
assert device.vring_num() == 2
assert device.numa_node() >= 0
assert device.mtu() is None or device.mtu() >= 68
features = device.negotiated_features()
assert features & 1 << 32 and features & ~driver.features() == 0
protocol = device.protocol_features()
assert protocol is None or protocol & ~driver.protocol_features() == 0
regions = device.memory_regions()
assert regions and all(region.size and region.host_user_addr >= region.mmap_addr for region in regions)
rings = [device.vring(ring) for ring in range(2)]
assert [ring.size for ring in rings] == [256, 256]
for ring in rings:
    assert ring.kickfd >= 0
    for address in (ring.desc, ring.avail, ring.used):
        assert any(region.host_user_addr <= address < region.host_user_addr + region.size for region in regions)
for ring in range(2):
    device.enable_guest_notification(ring, False)
assert device.avail_entries(0) == 256
avail, used = device.ring_base(0)
device.set_ring_base(0, avail, used)
assert device.ring_base(0) == (avail, used)
assert device.log_base() == (0, 0)
assert "vhost device" in str(error_of(device.vring, 9))
assert "vhost device 77" in str(error_of(VhostDevice(77).ifname))
guest.remove()
events.wait("destroy_device")
events.wait("destroy_connection")
driver.unregister()
eal.cleanup()
"""
    )


def test_callbacks_that_fail_are_logged_and_refuse(run_dpdk: RunDpdk) -> None:
    output = run_dpdk(
        DRIVER
        + """
eal = Eal.init(options())
pool = Mempool.create("pool", 511, cache_size=0)
driver, events = VhostDriver.register(SOCKET), Events()
events.fail = {"new_device", "destroy_connection"}
driver.set_callbacks(events)
driver.start()
guest = EthPort.probe(f"net_virtio_user0,path={SOCKET},queues=1,queue_size=256")
guest.configure(1, 1)
guest.setup_rx(0, 256, pool)
guest.setup_tx(0, 256)
try:
    guest.start()
except DpdkError:
    pass
events.wait("new_device")
guest.remove()
events.wait("destroy_connection")
assert not any(event[0] == "destroy_device" for event in events.seen), events.seen
driver.unregister()
eal.cleanup()
"""
    )
    assert "v.sock: new_device(0) failed" in output and "as asked" in output
    assert "v.sock: destroy_connection(0) failed" in output


def test_unregister_from_a_callback_is_refused(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        DRIVER
        + """
eal = Eal.init(options())
driver = VhostDriver.register(SOCKET)
class Unregisters(Events):
    def new_connection(self, vid):
        self.error = error_of(driver.unregister)
        self.note("new_connection", vid)
events = Unregisters()
driver.set_callbacks(events)
driver.start()
import socket
with socket.socket(socket.AF_UNIX) as front:
    front.connect(SOCKET)
    events.wait("new_connection")
    assert events.error.errno == 35
driver.unregister()
eal.cleanup()
"""
    )
