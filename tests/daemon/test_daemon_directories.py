"""Directories that the daemon makes or finds: their modes, and those where others could put their own sockets."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.daemon import Daemon
from vio4wd.config.model import Account, Config
from vio4wd.daemon.host import prepare_socket_directory, run_directory
from vio4wd.directories import check_directory, make_directory
from vio4wd.errors import StartupError

SOMEBODY, QEMU = 12345, 23456

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to others")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def sockets_in(directory: Path, *, vhost_client: bool = False) -> Config:
    account = Account("qemu", QEMU)
    return Config(
        socket_dir=directory, socket_owner_account=account, socket_group_account=account, vhost_client=vhost_client
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory in one that is everybody's, as /tmp is."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    made = tmp_path / "tmp" / "sockets"
    made.mkdir(0o755)
    return made


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_what_is_made_has_its_mode_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        assert make_directory(tmp_path / "a" / "b")
        assert not make_directory(tmp_path / "a" / "b")
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o755
    with pytest.raises(FileNotFoundError):
        make_directory(tmp_path / "x" / "y", parents=False)


@needs_root
@pytest.mark.parametrize("owner", [0, QEMU])
@pytest.mark.parametrize(("group", "bits"), [(SOMEBODY, 0o755), (0, 0o775), (QEMU, 0o770)])
def test_trusted_directories(directory: Path, owner: int, group: int, bits: int) -> None:
    os.chown(directory, owner, group)
    directory.chmod(bits)
    check_directory("directory", directory, owner=QEMU, group=QEMU)
    link = directory.with_name("link")
    link.symlink_to(directory)
    check_directory("directory", link, owner=QEMU, group=QEMU)


@needs_root
@pytest.mark.parametrize(
    ("owner", "group", "bits", "message"),
    [
        (SOMEBODY, 0, 0o755, f"belongs to user {SOMEBODY}, must belong to user 0 or {QEMU}"),
        (0, 0, 0o777, r"everybody can write it \(mode 0777\), must not: chmod o-w"),
        (0, 0, 0o1777, r"everybody can write it \(mode 1777\)"),
        (QEMU, SOMEBODY, 0o775, rf"group {SOMEBODY} can write it, must not \(but group 0 or {QEMU} could\): chmod g-w"),
    ],
)
def test_directories_where_others_could_exchange_sockets(
    directory: Path, owner: int, group: int, bits: int, message: str
) -> None:
    os.chown(directory, owner, group)
    directory.chmod(bits)
    link = directory.with_name("link")
    link.symlink_to(directory)
    for path in (directory, link):
        with pytest.raises(StartupError, match=f"socket directory {path}: {message}"):
            prepare_socket_directory(sockets_in(path))


@needs_root
def test_a_link_that_anybody_may_have_made(directory: Path) -> None:
    link = directory.with_name("link")
    for target in (directory, directory / "absent"):
        link.symlink_to(target)
        os.chown(link, SOMEBODY, SOMEBODY, follow_symlinks=False)
        with pytest.raises(StartupError, match=f"{link}: is a symbolic link that user {SOMEBODY} made, must be a dir"):
            prepare_socket_directory(Config(socket_dir=link))
        link.unlink()


def test_a_sticky_directory_will_do_where_only_owners_replace_files(directory: Path) -> None:
    check_directory("directory", directory.parent, sticky=True)
    directory.chmod(0o777)
    with pytest.raises(StartupError, match="everybody can write it"):
        check_directory("directory", directory, sticky=True)


@needs_root
def test_in_client_mode_the_directory_that_is_made_is_the_socket_owner_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for client, owner in ((True, QEMU), (False, 0)):
        prepare_socket_directory(sockets_in(tmp_path / str(client), vhost_client=client))
        found = (tmp_path / str(client)).stat()
        assert (found.st_uid, found.st_gid) == (owner, owner)
    assert caplog.text == ""


@needs_root
@pytest.mark.parametrize(
    ("owner", "group", "bits", "warned"),
    [
        (0, 0, 0o755, True),
        (0, 0, 0o775, True),
        (QEMU, 0, 0o500, True),
        (QEMU, 0, 0o755, False),
        (0, QEMU, 0o775, False),
        (0, QEMU, 0o755, True),
    ],
)
def test_in_client_mode_a_directory_that_the_socket_owner_cannot_write_is_warned_of(
    directory: Path, caplog: pytest.LogCaptureFixture, owner: int, group: int, bits: int, warned: bool
) -> None:
    os.chown(directory, owner, group)
    directory.chmod(bits)
    prepare_socket_directory(sockets_in(directory, vhost_client=True))
    message = f"socket directory {directory}: user qemu cannot make sockets there: chown qemu it"
    assert [record.getMessage() for record in caplog.records] == [message] * warned


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="socket directory .*/file: is not a directory"):
        prepare_socket_directory(Config(socket_dir=tmp_path / "file"))


def test_the_runtime_directory_is_nobody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/run:/nowhere")
    with umask(0):
        assert mode(run_directory()) == 0o755
    (tmp_path / "run").chmod(0o777)
    with pytest.raises(StartupError, match=f"runtime directory {tmp_path}/run: everybody can write it"):
        run_directory()


@pytest.mark.dpdk
def test_a_daemon_with_a_umask_of_077(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The users of its sockets get through the directories that it makes."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/run")
    stats = tmp_path / "run" / "stats"
    with umask(0o077):
        daemon = Daemon(tmp_path, VIRTIOFWD_SOCKET_DIR=f"{tmp_path}/made", VIRTIOFWD_ZMQ_STATS_EP=f"ipc://{stats}")
    made = [mode(path) for path in (tmp_path / "made", stats.parent)]
    sockets = [mode(path) for path in (tmp_path / "made" / "virtio-forwarder0.sock", stats)]
    assert daemon.stop() == 0
    assert made == [0o755] * 2
    assert sockets == [0o660] * 2
