from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vio4wd.dpdk_ffi.errors import DpdkMissingError
from vio4wd.dpdk_ffi.layouts import Field, Struct, View, layout_of
from vio4wd.dpdk_ffi.vhost import VhostFlags

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = ROOT / "scripts" / "generate_layouts"
LAYOUTS = ROOT / "vio4wd" / "dpdk_ffi" / "layouts"
ABIS = sorted(int(path.stem[3:]) for path in LAYOUTS.glob("abi*.py"))

STRUCT = Struct(16, {"small": Field(0, 2), "signed": Field(4, 4, signed=True), "bits": Field(8, 1, shift=2, bits=3)})


def have_headers() -> bool:
    return subprocess.run(["pkg-config", "--exists", "libdpdk"], check=False).returncode == 0


def test_the_installed_headers_give_the_committed_layout() -> None:
    if not have_headers():
        pytest.skip("DPDK's headers (libdpdk-dev) are not installed")
    version = subprocess.run(["pkg-config", "--modversion", "libdpdk"], capture_output=True, text=True, check=True)
    year = int(version.stdout.split(".")[0])
    module = LAYOUTS / f"abi{year + 1}.py"
    done = subprocess.run(
        [sys.executable, str(GENERATOR), "--check", str(module)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_compiler_agrees_on_every_offset_and_size(tmp_path: Path) -> None:
    """Not by way of the generator: one static assertion for each member, straight from the table."""
    if not have_headers():
        pytest.skip("DPDK's headers (libdpdk-dev) are not installed")
    flags = subprocess.run(["pkg-config", "--cflags", "libdpdk"], capture_output=True, text=True, check=True)
    version = subprocess.run(["pkg-config", "--modversion", "libdpdk"], capture_output=True, text=True, check=True)
    layout = layout_of(int(version.stdout.split(".")[0]) + 1)
    lines = ["#include <stddef.h>", "#include <rte_ethdev.h>", "#include <rte_eth_bond.h>", "#include <rte_vhost.h>"]
    for name, struct in layout.structs.items():
        lines.append(f'_Static_assert(sizeof(struct {name}) == {struct.size}, "{name}");')
        for member, field in struct.fields.items():
            if not field.bits:
                lines.append(f'_Static_assert(offsetof(struct {name}, {member}) == {field.offset}, "{name}.{member}");')
                lines.append(f'_Static_assert(sizeof(((struct {name} *)0)->{member}) == {field.size}, "{member}");')
    lines += [f'_Static_assert({name} == {value}ULL, "{name}");' for name, value in layout.constants.items()]
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines))
    command = ["gcc", "-w", "-DALLOW_EXPERIMENTAL_API", *flags.stdout.split(), "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_generator_names_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(GENERATOR), "--include", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "rte_config.h" in done.stderr


@pytest.mark.parametrize("abi", ABIS)
def test_every_layout_has_what_the_binding_uses(abi: int) -> None:
    layout = layout_of(abi)
    assert layout.abi == abi
    reference = layout_of(23)
    assert layout.structs.keys() == reference.structs.keys()
    for name, struct in reference.structs.items():
        assert struct.fields.keys() == layout.structs[name].fields.keys(), name
    for flag in VhostFlags:
        assert layout.constants[f"RTE_VHOST_USER_{flag.name}"] == flag


def test_a_release_without_a_table_is_named() -> None:
    with pytest.raises(DpdkMissingError, match="ABI 22 .*scripts/generate_layouts"):
        layout_of(22)


def test_view_reads_and_writes_members() -> None:
    view = View.allocate(STRUCT)
    view["small"], view["signed"] = 0xBEEF, -2
    assert (view["small"], view["signed"]) == (0xBEEF, -2)
    assert view["bits"] == 0
    with pytest.raises(OverflowError):
        view["small"] = 0x10000
    with pytest.raises(TypeError, match="bit-field"):
        view["bits"] = 1
    with pytest.raises(KeyError):
        view["none"]


def test_view_reads_bit_fields() -> None:
    backing = View.allocate(Struct(16, {"byte": Field(8, 1)}))
    backing["byte"] = 0b10100
    assert View(STRUCT, backing.address)["bits"] == 0b101
