"""The OVSDB monitor against a real ovsdb-server, driven by ovs-vsctl and ovsdb-client."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest

from portctl_file.recording import becomes, eventually
from portctl_ovsdb.following import Following, follow
from portctl_ovsdb.ovsdb_servers import OvsdbServer
from vio4wd.config.model import StaticVf
from vio4wd.devices import Device


def test_every_event(server: OvsdbServer) -> None:
    server.start()
    server.add("early", 3, "net_null3,size=60")

    async def test(following: Following) -> None:
        relays = following.controller
        await becomes(relays, {3: "net_null3,size=60"})
        server.add("eth100", 1, "net_null1")
        await becomes(relays, {3: "net_null3,size=60", 1: "net_null1"})
        server.add("plain", devargs="net_null2")
        server.tag("plain", 2)
        await becomes(relays, {3: "net_null3,size=60", 1: "net_null1", 2: "net_null2"})
        server.tag("eth100", 63)
        await becomes(relays, {3: "net_null3,size=60", 63: "net_null1", 2: "net_null2"})
        server.untag("plain")
        await becomes(relays, {3: "net_null3,size=60", 63: "net_null1"})
        assert "plain" in server.vsctl("list-ports", "br-virtio")
        server.vsctl("del-port", "early")
        await becomes(relays, {63: "net_null1"})
        server.vsctl("set", "interface", "eth100", "external_ids:virtio_forwarder_devargs=net_null9")
        await becomes(relays, {63: "net_null9"})
        server.vsctl("set", "interface", "eth100", 'external_ids:virtio_forwarder_devargs="net_null9,size=70"')
        await becomes(relays, {63: "net_null9,size=70"})
        server.vsctl("del-br", "br-virtio")
        await becomes(relays, {})

    follow(server.socket, test)


def test_both_keys(server: OvsdbServer) -> None:
    server.start()

    async def test(following: Following) -> None:
        server.add("old", 5, "net_null5", key="virtio_relay")
        await becomes(following.controller, {5: "net_null5"})
        server.tag("old", 6)
        await becomes(following.controller, {6: "net_null5"})
        server.untag("old")
        await becomes(following.controller, {5: "net_null5"})
        server.untag("old", key="virtio_relay")
        await becomes(following.controller, {})

    follow(server.socket, test)


def test_rows_written_by_ovsdb_client(server: OvsdbServer) -> None:
    server.start()
    insert = """["Open_vSwitch",
      {"op": "insert", "table": "Interface", "uuid-name": "i", "row": {"name": "raw0",
       "external_ids": ["map", [["virtio_forwarder", "8"], ["virtio_forwarder_devargs", "net_null8"]]]}},
      {"op": "insert", "table": "Port", "uuid-name": "p", "row": {"name": "raw0", "interfaces": ["named-uuid", "i"]}},
      {"op": "insert", "table": "Bridge", "uuid-name": "b", "row": {"name": "raw", "ports": ["named-uuid", "p"]}},
      {"op": "mutate", "table": "Open_vSwitch", "where": [],
       "mutations": [["bridges", "insert", ["set", [["named-uuid", "b"]]]]]}]"""
    update = """["Open_vSwitch", {"op": "mutate", "table": "Interface", "where": [["name", "==", "raw0"]],
      "mutations": [["external_ids", "delete", ["set", ["virtio_forwarder"]]],
                    ["external_ids", "insert", ["map", [["virtio_forwarder", "9"], ["noise", "\\u00e9\\u4e2d"]]]]]}]"""

    async def test(following: Following) -> None:
        server.transact(insert)
        await becomes(following.controller, {8: "net_null8"})
        server.transact(update)
        await becomes(following.controller, {9: "net_null8"})

    follow(server.socket, test)


def test_swapped_in_one_transaction(server: OvsdbServer) -> None:
    server.start()
    server.add("a", 1, "net_null1")
    server.add("b", 2, "net_null2")

    async def test(following: Following) -> None:
        await becomes(following.controller, {1: "net_null1", 2: "net_null2"})
        tag = "external_ids:virtio_forwarder"
        server.vsctl("set", "interface", "a", f"{tag}=2", "--", "set", "interface", "b", f"{tag}=1")
        await becomes(following.controller, {1: "net_null2", 2: "net_null1"})

    follow(server.socket, test)


def test_device_from_dpdk_devargs_and_sysfs(server: OvsdbServer, tmp_path: Path) -> None:
    pf = tmp_path / "devices/0000:03:00.0"
    vf = tmp_path / "devices/0000:03:00.3"
    for directory in (pf, vf, tmp_path / "class/net/rep1", tmp_path / "bus/pci/devices"):
        directory.mkdir(parents=True)
    (pf / "virtfn1").symlink_to(vf)
    (tmp_path / "bus/pci/devices/0000:03:00.0").symlink_to(pf)
    (tmp_path / "class/net/rep1/device").symlink_to(pf)
    (tmp_path / "class/net/rep1/phys_port_name").write_text("pf0vf1\n")
    server.start()

    async def test(following: Following) -> None:
        server.add("rep1", 1)
        await becomes(following.controller, {1: "0000:03:00.3"})
        server.vsctl("del-port", "rep1")
        await becomes(following.controller, {})
        server.add("dpdk0")
        server.vsctl("set", "interface", "dpdk0", "type=dpdk", 'options:dpdk-devargs="05:08.1"')
        server.tag("dpdk0", 4)
        await becomes(following.controller, {4: "0000:05:08.1"})
        server.vsctl("set", "interface", "dpdk0", 'options:dpdk-devargs="0000:03:00.0,representor=[1]"')
        await becomes(following.controller, {4: "0000:03:00.3"})

    follow(server.socket, test, sysfs=tmp_path)


def test_netdev_that_appears_after_its_row_and_goes_to_vfio(
    server: OvsdbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.start()
    server.add("eth100", 1)
    netdev = tmp_path / "class/net/eth100"
    vf = tmp_path / "devices/0000:05:08.1"

    async def test(following: Following) -> None:
        await eventually(lambda: "there is no network interface eth100" in caplog.text)
        vf.mkdir(parents=True)
        netdev.mkdir(parents=True)
        (netdev / "device").symlink_to(vf)
        await becomes(following.controller, {1: "0000:05:08.1"})
        (netdev / "device").unlink()
        netdev.rmdir()
        server.add("other", 2, "net_null2")
        await becomes(following.controller, {1: "0000:05:08.1", 2: "net_null2"})

    follow(server.socket, test, sysfs=tmp_path)


BAD = {
    "bad0": ("64", "net_null10", "external_ids:virtio_forwarder is '64'"),
    "bad1": ("-1", "net_null11", "is '-1'"),
    "bad2": ("one", "net_null12", "is 'one'"),
    "bad3": ("", "net_null13", "is ''"),
    "bad4": ("4", "No!", "interface bad4: 'No!' is neither a PCI address"),
    "bad5": ("5", None, "there is no network interface bad5"),
    "a-name-of-more-than-15": ("6", None, "cannot be the name of a network interface"),
    "lo": ("7", None, "interface lo: network interface lo has no PCI device"),
}


def test_bad_interfaces_are_named_once_and_others_work(server: OvsdbServer, caplog: pytest.LogCaptureFixture) -> None:
    server.start()
    for name, (relay, devargs, _) in BAD.items():
        server.add(name, relay, devargs)

    async def test(following: Following) -> None:
        server.add("good", 1, "net_null1")
        await becomes(following.controller, {1: "net_null1"})
        for number in range(3):
            server.add(f"more{number}", 10 + number, f"net_null2{number}")
        await eventually(lambda: len(following.controller.devices) == 4)
        for _, _, says in BAD.values():
            assert caplog.text.count(says) == 1, says
        server.tag("bad0", 20)
        server.tag("bad2", 21)
        await eventually(lambda: following.controller.devices.get(20) == "net_null10")
        await eventually(lambda: following.controller.devices.get(21) == "net_null12")

    follow(server.socket, test, sysfs=Path("/sys"))


def test_two_interfaces_for_one_relay(server: OvsdbServer, caplog: pytest.LogCaptureFixture) -> None:
    server.start()
    server.add("b", 1, "net_null2")
    server.add("c", 2, "net_null2")

    async def test(following: Following) -> None:
        await becomes(following.controller, {1: "net_null2"})
        assert "OVSDB interface b (net_null2 on relay 1) and by OVSDB interface c (net_null2 on relay 2)" in caplog.text
        server.add("a", 1, "net_null1")
        await becomes(following.controller, {1: "net_null1", 2: "net_null2"})
        assert "OVSDB interface a (net_null1 on relay 1) and by OVSDB interface b (net_null2 on relay 1)" in caplog.text
        server.add("z", 30, "net_null30")
        await becomes(following.controller, {1: "net_null1", 2: "net_null2", 30: "net_null30"})
        assert caplog.text.count("is claimed by") == 2
        server.vsctl("del-port", "a")
        await becomes(following.controller, {1: "net_null2", 30: "net_null30"})

    follow(server.socket, test)


def test_server_absent_at_the_start_and_restarted(server: OvsdbServer, caplog: pytest.LogCaptureFixture) -> None:
    async def test(following: Following) -> None:
        relays = following.controller
        await eventually(lambda: "no answer from unix:" in caplog.text)
        await asyncio.sleep(1.5)
        assert caplog.text.count("no answer from") == 1
        server.start()
        server.add("a", 1, "net_null1")
        server.add("b", 2, "net_null2")
        await becomes(relays, {1: "net_null1", 2: "net_null2"})
        server.stop()
        await eventually(lambda: caplog.text.count("no answer from") == 2)
        await asyncio.sleep(1.5)
        assert relays.devices == {1: "net_null1", 2: "net_null2"}
        requests = len(relays.requests)
        server.start()
        await eventually(lambda: caplog.text.count("OVSDB: following") == 2)
        server.tag("b", 3)
        await becomes(relays, {1: "net_null1", 3: "net_null2"})
        assert len(relays.requests) == requests + 2, "a restart alone changes nothing"
        assert caplog.text.count("no answer from") == 2

    with caplog.at_level(logging.INFO):
        follow(server.socket, test)


def test_database_that_changed_while_the_monitor_was_not_looking(server: OvsdbServer) -> None:
    server.start()
    server.add("a", 1, "net_null1")
    server.add("b", 2, "net_null2")

    async def test(following: Following) -> None:
        await becomes(following.controller, {1: "net_null1", 2: "net_null2"})
        server.kill()
        server.socket.rename(server.socket.with_suffix(".hidden"))
        visible = server.socket
        server.socket = visible.with_suffix(".other")
        server.start()
        server.vsctl("del-port", "a")
        server.tag("b", 7)
        server.add("c", 1, "net_null3")
        server.kill()
        server.socket.unlink()
        server.socket = visible
        server.start()
        await becomes(following.controller, {1: "net_null3", 7: "net_null2"})
        server.kill()
        server.create()
        server.socket.unlink()
        server.start()
        await becomes(following.controller, {})

    follow(server.socket, test)


def test_stopped_server_blocks_nobody(server: OvsdbServer) -> None:
    server.start()
    server.add("a", 1, "net_null1")

    async def test(following: Following) -> None:
        loop = asyncio.get_running_loop()
        await becomes(following.controller, {1: "net_null1"})
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for _ in range(20):
                before = loop.time()
                await asyncio.sleep(0.02)
                assert loop.time() - before < 0.2
            assert following.controller.devices == {1: "net_null1"}
        finally:
            os.kill(server.pid, signal.SIGCONT)
        server.tag("a", 2)
        await becomes(following.controller, {2: "net_null1"})

    follow(server.socket, test)


@pytest.mark.parametrize(
    "said",
    [
        b"not json at all",
        b'{"id":null,"method":"update3","params":[1,2,3]}',
        b'{"id":null,"method":"update2","params":["x",{"Interface":{"y":{"insert":[]}}}]}',
        b'{"id":7,"result":[],"error":null}{"a":1}',
        b"[" * 2000,
    ],
)
def test_something_else_behind_the_socket(server: OvsdbServer, said: bytes) -> None:
    async def test(following: Following) -> None:
        spoken = asyncio.Event()

        async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(said)
            spoken.set()
            await asyncio.sleep(0.1)
            writer.close()

        other = await asyncio.start_unix_server(speak, server.socket)
        await asyncio.wait_for(spoken.wait(), 10)
        await asyncio.sleep(0.3)
        other.close()
        server.socket.unlink(missing_ok=True)
        server.start()
        server.add("a", 1, "net_null1")
        await eventually(lambda: following.controller.devices == {1: "net_null1"}, limit_s=20)

    follow(server.socket, test)


def test_many_interfaces_do_not_block_the_loop(server: OvsdbServer) -> None:
    """Two thousand interfaces, as on a host with many containers, of which 64 are ours."""
    server.start()
    server.vsctl("add-br", "br-virtio")
    for start in range(0, 2000, 250):
        arguments = []
        for number in range(start, start + 250):
            arguments += ["--", "add-port", "br-virtio", f"p{number}"]
            if number < 64:
                arguments += ["--", "set", "interface", f"p{number}", f"external_ids:virtio_forwarder={number}"]
                arguments += [f"external_ids:virtio_forwarder_devargs=net_null{number}"]
        server.vsctl(*arguments[1:])

    async def test(following: Following) -> None:
        loop = asyncio.get_running_loop()
        worst = 0.0
        while len(following.controller.devices) < 64:
            before = loop.time()
            await asyncio.sleep(0.005)
            worst = max(worst, loop.time() - before)
        assert worst < 0.3

    follow(server.socket, test)


def test_more_than_1024_descriptors(server: OvsdbServer) -> None:
    """A daemon with 64 sessions has more descriptors than select(2) can name."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1300:
        pytest.skip("the limit of open files is below 1300")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        server.start()
        server.add("a", 1, "net_null1")

        async def test(following: Following) -> None:
            await becomes(following.controller, {1: "net_null1"})
            server.tag("a", 2)
            await becomes(following.controller, {2: "net_null1"})

        follow(server.socket, test)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptor_or_thread_is_left(server: OvsdbServer) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    server.start()
    server.add("a", 1, "net_null1")

    async def test(following: Following) -> None:
        await becomes(following.controller, {1: "net_null1"})

    follow(server.socket, test)
    before = descriptors(), threads()
    for _ in range(5):
        follow(server.socket, test)
    deadline = time.monotonic() + 5
    while (descriptors(), threads()) > before and time.monotonic() < deadline:
        time.sleep(0.01)  # a thread that has been told to end takes a moment
    assert descriptors() <= before[0]
    assert threads() <= before[1]


def test_static_vf_of_the_same_pair_stays(server: OvsdbServer, caplog: pytest.LogCaptureFixture) -> None:
    server.start()
    server.add("a", 1, "net_null1")
    static = StaticVf(1, Device("net_null1")), StaticVf(4, Device("net_null4"))

    async def test(following: Following) -> None:
        await becomes(following.controller, {1: "net_null1", 4: "net_null4"})
        server.add("b", 2, "net_null2")
        await becomes(following.controller, {1: "net_null1", 2: "net_null2", 4: "net_null4"})
        server.vsctl("del-br", "br-virtio")
        await becomes(following.controller, {1: "net_null1", 4: "net_null4"})
        server.add("a", 1, "net_null1")
        following.static(())
        await becomes(following.controller, {1: "net_null1"})
        server.vsctl("del-br", "br-virtio")
        await becomes(following.controller, {})

    follow(server.socket, test, static=static)
    assert "claimed" not in caplog.text


def test_what_others_put_there_is_not_removed(server: OvsdbServer) -> None:
    server.start()

    async def test(following: Following) -> None:
        relays = following.controller
        await relays.add_vf(1, Device("net_null1"))
        await relays.add_vf(2, Device("net_null2"))
        server.add("same", 1, "net_null1")
        server.add("in-the-way", 2, "net_null3")
        server.add("free", 4, "net_null4")
        await becomes(relays, {1: "net_null1", 2: "net_null2", 4: "net_null4"})
        await relays.remove_vf(2, None)
        await becomes(relays, {1: "net_null1", 2: "net_null3", 4: "net_null4"})
        server.vsctl("del-br", "br-virtio")
        await becomes(relays, {1: "net_null1"})

    follow(server.socket, test)


def test_what_others_take_away_is_put_back(server: OvsdbServer) -> None:
    server.start()
    server.add("a", 1, "net_null1")

    async def test(following: Following) -> None:
        await becomes(following.controller, {1: "net_null1"})
        await following.controller.remove_vf(1, None)
        await becomes(following.controller, {1: "net_null1"})

    follow(server.socket, test)


@pytest.mark.parametrize("seed", range(3))
def test_random_transactions_and_kills(server: OvsdbServer, seed: int) -> None:
    """After any sequence of transactions, refusals and server deaths the relays equal the database."""
    chance = random.Random(seed)
    server.start()
    server.vsctl("add-br", "br-virtio")
    rows: dict[str, int | None] = {}

    def act(following: Following) -> None:
        what = chance.choice(["add", "add", "tag", "tag", "untag", "delete", "kill", "term", "break", "mend"])
        if what == "add":
            name = f"if{chance.randrange(12)}"
            if name not in rows:
                rows[name] = chance.randrange(8)
                server.add(name, rows[name], f"net_null_{name}")
        elif what in ("kill", "term"):
            (server.kill if what == "kill" else server.stop)()
            server.socket.unlink(missing_ok=True)
            server.start()
        elif what == "break":
            following.controller.broken[f"net_null_if{chance.randrange(12)}"] = f"broken {chance.random()}"
        elif what == "mend":
            following.controller.broken.clear()
        elif rows:
            name = chance.choice(sorted(rows))
            if what == "tag":
                rows[name] = chance.randrange(8)
                server.tag(name, rows[name])
            elif what == "untag":
                rows[name] = None
                server.untag(name)
            else:
                del rows[name]
                server.vsctl("del-port", name)

    def expected() -> dict[int, str]:
        wanted: dict[int, str] = {}
        for name, relay in sorted(rows.items()):
            if relay is not None:
                wanted.setdefault(relay, f"net_null_{name}")
        return wanted

    async def test(following: Following) -> None:
        for step in range(60):
            await asyncio.to_thread(act, following)
            if step % 20 == 19:
                following.controller.broken.clear()
                await becomes(following.controller, expected())

    follow(server.socket, test)
