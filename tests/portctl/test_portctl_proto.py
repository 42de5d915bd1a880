"""The messages: the generated module is current, imports silently, and reads nothing wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vio4wd.errors import ProtocolError
from vio4wd.portctl.proto import parse
from vio4wd.portctl.proto.virtioforwarder_pb2 import CoreSchedRequest, PortControlRequest, StatsRequest

ROOT = Path(__file__).resolve().parent.parent.parent
GENERATED = ROOT / "vio4wd/portctl/proto"


def test_the_generated_module_is_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    subprocess.run([sys.executable, ROOT / "scripts/generate_proto.py", tmp_path], check=True, timeout=60)
    for suffix in ("py", "pyi"):
        name = f"virtioforwarder_pb2.{suffix}"
        fresh = (tmp_path / "vio4wd/portctl/proto" / name).read_text()
        assert fresh == (GENERATED / name).read_text(), "run scripts/generate_proto.py"


def test_the_generator_finds_its_python(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    if not (ROOT / ".venv").exists():
        pytest.skip("this checkout has no .venv")
    environment = {"PATH": "/usr/bin:/bin"}
    subprocess.run([ROOT / "scripts/generate_proto.py", tmp_path], check=True, timeout=60, env=environment)
    assert (tmp_path / "vio4wd/portctl/proto/virtioforwarder_pb2.py").exists()


def test_the_generated_module_imports_without_a_warning() -> None:
    code = "import vio4wd.portctl.proto.virtioforwarder_pb2"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60, cwd=ROOT)


def test_relays_are_read_packed_and_unpacked() -> None:
    assert list(parse(StatsRequest, b"\x0a\x02\x01\x05").relay) == [1, 5]
    assert list(parse(StatsRequest, b"\x08\x01\x08\x05").relay) == [1, 5]
    assert StatsRequest(relay=[1, 5]).SerializeToString() == b"\x0a\x02\x01\x05"


def test_defaults() -> None:
    assert parse(PortControlRequest, b"\x08\x00").conditional is True
    stats = parse(StatsRequest, b"")
    assert (stats.include_inactive, stats.delay) == (True, 0)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    for message_type in (PortControlRequest, StatsRequest, CoreSchedRequest):
        try:
            message = parse(message_type, data)
        except ProtocolError:
            continue
        assert message.IsInitialized()


def test_strings_must_be_utf8() -> None:
    with pytest.raises(ProtocolError, match="vhost_path is not UTF-8"):
        parse(PortControlRequest, b"\x08\x04\x3a\x01\xff")
    with pytest.raises(ProtocolError, match="devargs is not UTF-8"):
        parse(PortControlRequest, b"\x08\x00\xc2\x3e\x01\xff")
