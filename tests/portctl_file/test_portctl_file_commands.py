"""The command file, driven as shells and programs write it."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portctl_file.recording import RecordingController, becomes, eventually
from vio4wd.portctl.command_file import MAX_FILE_BYTES, CommandFile
from vio4wd.portctl.commands import AddPort, CommandFailed, CommandRunner, DelPort, parse_command
from vio4wd.portctl.resolver import DeviceResolver
from vio4wd.tasks import supervised

NULL = [f"net_null{number}" for number in range(200)]


class Watched:
    """A command file that is being watched, and what it drives."""

    def __init__(self, path: Path, reserved: frozenset[int] = frozenset()) -> None:
        self.path = path
        self.controller = RecordingController()
        runner = CommandRunner(self.controller, DeviceResolver(path.parent / "sys"), lambda: reserved)
        self.file = CommandFile(path, runner)

    def shell(self, command: str) -> None:
        """Run a shell command; FILE in it is the path. Blocks the loop, as a hurried writer may."""
        subprocess.run(["bash", "-c", command.replace("FILE", str(self.path))], check=True, timeout=10)

    async def emptied(self) -> None:
        await eventually(lambda: self.path.stat().st_size == 0, "the file is emptied")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def watch(path: Path, test: Callable[[Watched], Awaitable[None]], reserved: frozenset[int] = frozenset()) -> None:
    """Run a test beside the watcher. The test fails where the watcher does."""

    async def main() -> None:
        watched = Watched(path, reserved)
        task = asyncio.create_task(supervised("command file", watched.file.run))
        try:
            async with asyncio.timeout(30):
                await test(watched)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_add_and_delete_by_echo(directory: Path) -> None:
    async def test(watched: Watched) -> None:
        watched.shell("echo add_port net_null0 > FILE")
        await becomes(watched.controller, {0: "net_null0"})
        await watched.emptied()
        watched.shell("echo add_port net_null1 >> FILE; echo add_port net_null2 >> FILE")
        await becomes(watched.controller, {0: "net_null0", 1: "net_null1", 2: "net_null2"})
        watched.shell("echo del_port net_null1 > FILE")
        await becomes(watched.controller, {0: "net_null0", 2: "net_null2"})
        watched.shell("echo add_port net_null3 > FILE")
        await becomes(watched.controller, {0: "net_null0", 1: "net_null3", 2: "net_null2"})
        await watched.emptied()

    watch(directory / "vio_cmd", test)


def test_commands_that_were_there_before_the_start(directory: Path) -> None:
    (directory / "vio_cmd").write_text("add_port net_null0\nadd_port net_null1 9\n")

    async def test(watched: Watched) -> None:
        await becomes(watched.controller, {0: "net_null0", 9: "net_null1"})
        await watched.emptied()

    watch(directory / "vio_cmd", test)


def test_lowest_free_relay_is_not_a_reserved_one(directory: Path) -> None:
    async def test(watched: Watched) -> None:
        watched.shell("printf 'add_port net_null0\\nadd_port net_null1\\n' > FILE")
        await becomes(watched.controller, {1: "net_null0", 3: "net_null1"})

    watch(directory / "vio_cmd", test, reserved=frozenset({0, 2}))


def test_netdev_names_go_through_sysfs(directory: Path) -> None:
    pci = directory / "sys/devices/0000:05:08.1"
    pci.mkdir(parents=True)
    netdev = directory / "sys/class/net/eth100"
    netdev.mkdir(parents=True)
    (netdev / "device").symlink_to(pci)

    async def test(watched: Watched) -> None:
        watched.shell("echo add_port eth100 > FILE")
        await becomes(watched.controller, {0: "0000:05:08.1"})
        (netdev / "device").unlink()
        netdev.rmdir()
        watched.shell("echo del_port eth100 > FILE")
        await becomes(watched.controller, {})

    watch(directory / "vio_cmd", test)


def test_the_same_device_again_changes_nothing(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(watched: Watched) -> None:
        watched.shell("printf 'add_port net_null0 5\\nadd_port net_null0\\nadd_port net_null0 5\\n' > FILE")
        await eventually(lambda: caplog.text.count("is on relay 5 already") == 2)
        assert watched.controller.devices == {5: "net_null0"}

    with caplog.at_level(logging.INFO):
        watch(directory / "vio_cmd", test)


def test_full(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = "".join(f"add_port {name}\n" for name in NULL[:65])

    async def test(watched: Watched) -> None:
        watched.path.write_text(lines)
        await becomes(watched.controller, {number: NULL[number] for number in range(64)})
        await eventually(lambda: "none of the 64 relays is free" in caplog.text)

    watch(directory / "vio_cmd", test)


def test_partial_line_waits_for_its_end(directory: Path) -> None:
    async def test(watched: Watched) -> None:
        watched.shell("printf 'add_port net_null0\\nadd_port net_nu' > FILE")
        await becomes(watched.controller, {0: "net_null0"})
        await asyncio.sleep(0.3)
        assert watched.path.read_text() == "add_port net_nu"
        watched.shell("printf 'll1 7\\n' >> FILE")
        await becomes(watched.controller, {0: "net_null0", 7: "net_null1"})
        await watched.emptied()

    watch(directory / "vio_cmd", test)


@pytest.mark.parametrize("mode", ["w", "a"])
def test_writer_that_keeps_the_file_open(directory: Path, mode: str) -> None:
    async def test(watched: Watched) -> None:
        with watched.path.open(mode) as writer:
            for number in range(3):
                writer.write(f"add_port {NULL[number]}\nadd_p")
                writer.flush()
                await becomes(watched.controller, {n: NULL[n] for n in range(number + 1)})
                writer.write(f"ort {NULL[number]}\n")
                writer.flush()
                await asyncio.sleep(0.05)
        await eventually(lambda: len(watched.controller.requests) == 3)

    watch(directory / "vio_cmd", test)


def test_concurrent_writers_lose_nothing(directory: Path) -> None:
    """Sixteen writers append eight lines each, all through short-lived opens, while the file is being emptied."""

    async def test(watched: Watched) -> None:
        script = "for i in 0 1 2 3; do echo add_port net_null$((WRITER * 4 + i)) >> FILE; done"
        writers = [
            await asyncio.create_subprocess_exec(
                "bash", "-c", script.replace("WRITER", str(writer)).replace("FILE", str(watched.path))
            )
            for writer in range(16)
        ]
        for writer in writers:
            assert await writer.wait() == 0
        await eventually(lambda: sorted(watched.controller.devices.values()) == sorted(NULL[:64]))
        await watched.emptied()

    watch(directory / "vio_cmd", test)


def test_garbage_is_named_consumed_and_passed_over(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(watched: Watched) -> None:
        watched.path.write_bytes(
            b"frobnicate\n\n# comment\nadd_port\nadd_port net_null1 64\n\xff\xfe\x00\x01\n"
            + b"x" * 3000
            + b"\nadd_port ../../etc\nadd_port net_null0\r\ndel_port net_null9\n"
        )
        await becomes(watched.controller, {0: "net_null0"})
        await watched.emptied()
        await eventually(lambda: "more lines like these" in caplog.text)

    watch(directory / "vio_cmd", test)
    assert "'frobnicate'" in caplog.text
    assert "'64' is not a number in 0..63" in caplog.text
    assert "comment" not in caplog.text


def test_refused_by_the_controller(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(watched: Watched) -> None:
        watched.shell("printf 'add_port net_missing0\\nadd_port net_null0\\n' > FILE")
        await becomes(watched.controller, {0: "net_null0"})
        await eventually(lambda: "add_port net_missing0': net_missing0: there is no such device" in caplog.text)

    watch(directory / "vio_cmd", test)


def _symlink(path: Path) -> None:
    path.with_name("target").write_text("add_port net_null0\n")
    path.symlink_to("target")


def _second_link(path: Path) -> None:
    path.write_text("add_port net_null0\n")
    path.with_name("other").hardlink_to(path)


def _foreign(path: Path) -> None:
    path.write_text("add_port net_null0\n")
    os.chown(path, 12345, 12345)


def _group_writable(path: Path) -> None:
    path.write_text("add_port net_null0\n")
    path.chmod(0o664)


def _world_writable(path: Path) -> None:
    path.write_text("add_port net_null0\n")
    path.chmod(0o646)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_symlink, "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (Path.mkdir, "is not a regular file"),
        (_second_link, "has 2 links"),
        pytest.param(
            _foreign,
            "belongs to user 12345",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away"),
        ),
        (_group_writable, "can be written by group or others"),
        (_world_writable, "can be written by group or others"),
    ],
)
def test_files_that_are_not_obeyed(
    directory: Path, make: Callable[[Path], None], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = directory / "vio_cmd"
    make(path)

    async def test(watched: Watched) -> None:
        await eventually(lambda: says in caplog.text, says)
        (directory / "noise").write_text("an event in the directory")
        os.utime(path, follow_symlinks=False)
        await asyncio.sleep(0.2)
        assert caplog.text.count(says) == 1
        assert watched.controller.requests == []
        path.rename(directory / "aside")
        watched.shell("echo add_port net_null1 > FILE")
        await becomes(watched.controller, {0: "net_null1"})

    watch(path, test)
    if make is _symlink:
        assert (directory / "target").read_text() == "add_port net_null0\n"


def test_deleted_replaced_and_directory_missing(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = directory / "run/virtio-forwarder"

    async def test(watched: Watched) -> None:
        await eventually(lambda: "cannot watch" in caplog.text)
        home.mkdir(parents=True)
        watched.shell("echo add_port net_null0 > FILE")
        await becomes(watched.controller, {0: "net_null0"})
        watched.path.unlink()
        watched.shell("echo add_port net_null1 > FILE")
        await becomes(watched.controller, {0: "net_null0", 1: "net_null1"})
        watched.shell("echo add_port net_null2 > FILE.new; mv FILE.new FILE")
        await becomes(watched.controller, {number: NULL[number] for number in range(3)})
        home.rename(directory / "old")
        home.mkdir()
        watched.shell("echo add_port net_null3 > FILE")
        await becomes(watched.controller, {number: NULL[number] for number in range(4)})
        watched.path.unlink()
        home.rmdir()
        await asyncio.sleep(1.2)
        home.mkdir()
        watched.shell("echo add_port net_null4 > FILE")
        await becomes(watched.controller, {number: NULL[number] for number in range(5)})

    watch(home / "vio_cmd", test)
    assert caplog.text.count("cannot watch") == 2


def test_too_large_is_emptied_unread(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(watched: Watched) -> None:
        watched.path.write_bytes(b"add_port net_null0\n" * (MAX_FILE_BYTES // 10))
        await watched.emptied()
        assert watched.controller.requests == []
        watched.path.write_bytes(b"x" * (MAX_FILE_BYTES - 1))
        await watched.emptied()
        watched.shell("echo add_port net_null1 > FILE")
        await becomes(watched.controller, {0: "net_null1"})

    watch(directory / "vio_cmd", test)
    assert "emptied unread" in caplog.text


def test_flood_leaves_the_loop_to_others(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(watched: Watched) -> None:
        loop = asyncio.get_running_loop()
        watched.path.write_bytes(b"junk\n" * 10_000)
        worst = 0.0
        end = loop.time() + 1.5
        while loop.time() < end:
            before = loop.time()
            await asyncio.sleep(0.01)
            worst = max(worst, loop.time() - before)
        assert worst < 0.25
        assert 0 < len(caplog.records) < 200

    watch(directory / "vio_cmd", test)


def test_a_bug_in_a_command_does_not_end_it(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(watched: Watched) -> None:
        real = watched.controller.snapshot
        watched.controller.snapshot = None  # type: ignore[assignment]
        watched.shell("echo add_port net_null0 > FILE")
        await eventually(lambda: "TypeError" in caplog.text)
        watched.controller.snapshot = real  # type: ignore[method-assign]
        watched.shell("echo add_port net_null1 > FILE")
        await becomes(watched.controller, {0: "net_null1"})

    watch(directory / "vio_cmd", test)


def test_descriptors_are_not_leaked(directory: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def test(watched: Watched) -> None:
        for number in range(40):
            (directory / "x").write_text(f"add_port {NULL[number]}\n" if number % 2 else "nonsense\n")
            (directory / "x").rename(watched.path)
            await eventually(lambda: watched.path.stat().st_size == 0)

    before = descriptors()
    watch(directory / "vio_cmd", test)
    assert descriptors() == before


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("add_port eth1", AddPort("eth1")),
        ("  add_port\teth1   63 \r", AddPort("eth1", 63)),
        ("add_port net_null0,size=60 0", AddPort("net_null0,size=60", 0)),
        ("del_port eth1", DelPort("eth1")),
        ("", None),
        ("   ", None),
        ("# add_port eth1", None),
    ],
)
def test_parse(line: str, command: AddPort | DelPort | None) -> None:
    assert parse_command(line) == command


@pytest.mark.parametrize(
    "line",
    ["add_port", "add_port a 1 2", "add_port a -1", "add_port a 64", "add_port a ٣", "del_port a 1", "ADD_PORT a"],
)
def test_parse_refuses(line: str) -> None:
    with pytest.raises(CommandFailed):
        parse_command(line)


@given(line=st.text())
def test_parse_raises_nothing_else(line: str) -> None:
    try:
        parse_command(line)
    except CommandFailed as error:
        assert str(error)
