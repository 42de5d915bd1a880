"""The installed file, the documentation, and what people's scripts do to the file."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from vio4wd.config import Config, Host, StaticVf, document, load
from vio4wd.config.file import parse
from vio4wd.config.keys import KEYS
from vio4wd.devices import Device

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ROOT / "etc/default/virtioforwarder"


def test_the_table_has_one_key_for_each_field() -> None:
    fields = [spec.field for spec in KEYS.values()]
    assert sorted([*fields, "warnings"]) == sorted(field.name for field in dataclasses.fields(Config))


def test_options_are_unique() -> None:
    names = [name for spec in KEYS.values() if spec.option for name in (spec.option.short, spec.option.long) if name]
    assert len(set(names)) == len(names)


def test_generated_texts_are_current() -> None:
    assert INSTALLED.read_text() == document.default_file(), "run scripts/config-docs"
    assert (ROOT / "docs/configuration.md").read_text() == document.page(), "run scripts/config-docs"


def test_installed_file_is_the_defaults_with_every_key(host: Host, bare_host: Host) -> None:
    parsed = parse(INSTALLED.read_text(), "f")
    assert set(parsed.assignments) == set(KEYS) and not parsed.problems
    for machine in (host, bare_host):
        assert load(INSTALLED, host=machine) == load(None, host=machine)


def test_examples_can_be_uncommented(tmp_path: Path, host: Host) -> None:
    file = tmp_path / "conf"
    file.write_text(re.sub("^#(?=VI[RO])", "", INSTALLED.read_text(), flags=re.MULTILINE))
    config = load(file, host=host)
    assert config.zmq_stats_ep == "ipc:///var/run/virtio-forwarder/stats"
    assert config.worker_cpus == (1, 2) and len(config.static_vfs) == 2


@pytest.mark.parametrize(
    ("script", "field", "value"),
    [
        ("s/^VIRTIOFWD_CPU_MASK=.*/VIRTIOFWD_CPU_MASK=3,4/", "worker_cpus", (3, 4)),
        ("s/^#\\?VIRTIOFWD_CPU_MASK=.*/VIRTIOFWD_CPU_MASK=0x18/", "worker_cpus", (3, 4)),
        ("s/^VIRTIOFWD_CPU_MASK=.*/VIRTIOFWD_CPU_MASK=\"3,4\"  # ours\\r/", "worker_cpus", (3, 4)),
        ("s/^VIRTIOFWD_LOG_LEVEL=.*/VIRTIOFWD_LOG_LEVEL=7   /", "log_level", 7),
        ("s/^VIRTIOFWD_LOG_LEVEL=.*/VIRTIOFWD_LOG_LEVEL=/", "log_level", 6),
        ("s/^#VIRTIOFWD_ZMQ_STATS_EP/VIRTIOFWD_ZMQ_STATS_EP/", "zmq_stats_ep",
         "ipc:///var/run/virtio-forwarder/stats"),
        ("s|^VIRTIOFWD_ZMQ_STATS_EP=.*|VIRTIOFWD_ZMQ_STATS_EP=ipc:///tmp/s|", "zmq_stats_ep", "ipc:///tmp/s"),
        ("s/^VIRTIOFWD_SOCKET_OWNER=.*/VIRTIOFWD_SOCKET_OWNER=/", "socket_owner", None),
        ("s/^VIRTIOFWD_SOCKET_OWNER=.*/VIRTIOFWD_SOCKET_OWNER=0/", "socket_owner", 0),
        ("s/^VIRTIOFWD_SOCKET_GROUP=.*/VIRTIOFWD_SOCKET_GROUP=1000/", "socket_group", 1000),
        ("s/^VIRTIOFWD_JUMBO=.*/VIRTIOFWD_JUMBO=y/", "jumbo", True),
        ("s/^VIRTIOFWD_JUMBO=.*/VIRTIOFWD_JUMBO=n/", "jumbo", True),
        ("s/^VIRTIOFWD_VHOST_CLIENT=.*/VIRTIOFWD_VHOST_CLIENT=n/", "vhost_client", False),
        ("s/$/\\r/; s/^VIRTIOFWD_LOG_LEVEL=.*/VIRTIOFWD_LOG_LEVEL=4\\r/", "log_level", 4),
        ("$ a VIRTIOFWD_LOG_LEVEL=3\\nVIRTIOFWD_LOG_LEVEL='5'", "log_level", 5),
        ("s/^VIRTIOFWD_STATIC_VFS=.*/VIRTIOFWD_STATIC_VFS=(0000:05:08.1=1\\n  net_tap0,iface=t0=2 )/", "static_vfs",
         (StaticVf(1, Device("0000:05:08.1")), StaticVf(2, Device("net_tap0", "iface=t0")))),
        ("/^VIRTIOFWD_CPU_MASK=/d", "worker_cpus", (1, 2)),
    ],
)  # fmt: skip
def test_edited_with_sed(script: str, field: str, value: object, tmp_path: Path, host: Host) -> None:
    file = tmp_path / "virtioforwarder"
    file.write_text(INSTALLED.read_text())
    subprocess.run(["sed", "-i", script, file], check=True, timeout=20)
    config = load(file, host=host)
    assert getattr(config, field) == value
    unedited = dataclasses.replace(load(None, host=host), warnings=config.warnings)
    changed = [spec.field for spec in KEYS.values() if getattr(config, spec.field) != getattr(unedited, spec.field)]
    assert len(changed) <= 1
