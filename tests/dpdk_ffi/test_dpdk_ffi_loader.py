from __future__ import annotations

from pathlib import Path

import pytest
from dpdk_ffi_process import RunDpdk

pytestmark = pytest.mark.dpdk

SYSTEM = Path("/usr/lib/x86_64-linux-gnu")


def test_loads_what_is_installed(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        dpdk = load()
        assert dpdk is load()
        assert dpdk.version.startswith(f"DPDK {dpdk.layout.release}"), dpdk.version
        assert dpdk.abi == dpdk.layout.abi
        assert dpdk.max_ports >= 32
        assert dpdk.max_ports == dpdk.layout.constants["RTE_MAX_ETHPORTS"]
        assert {"net_null", "bus_vdev", "mempool_ring"} <= set(dpdk.drivers)
        assert dpdk.address("rte_vhost_enqueue_burst") != dpdk.address("rte_eth_fp_ops")
        error = error_of(dpdk.address, "rte_no_such_thing")
        assert "rte_no_such_thing" in str(error) and dpdk.layout.release in str(error)
        assert not dpdk.has("rte_no_such_thing")
        assert error_of(dpdk.call, "x", "rte_no_such_thing").errno == 38
        """
    )


def test_loading_is_quick(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        start = time.perf_counter()
        load()
        assert time.perf_counter() - start < 0.5
        """
    )


def test_missing_directory(run_dpdk: RunDpdk) -> None:
    run_dpdk(
        """
        text = str(error_of(load))
        assert "DPDK is not installed" in text and "/nowhere" in text and "22.11 (ABI 23)" in text
        assert "VIO4WD_DPDK_LIBDIR" in text
        """,
        VIO4WD_DPDK_LIBDIR="/nowhere",
    )


def test_unsupported_release(run_dpdk: RunDpdk, tmp_path: Path) -> None:
    (tmp_path / "librte_eal.so.22").touch()
    run_dpdk(
        """
        text = str(error_of(load))
        assert "unsupported" in text and "librte_eal.so.22" in text and "24.11 (ABI 25)" in text
        """,
        VIO4WD_DPDK_LIBDIR=str(tmp_path),
    )


def test_incomplete_installation(run_dpdk: RunDpdk, tmp_path: Path) -> None:
    found = sorted(SYSTEM.glob("librte_eal.so.2?"))
    if not found:
        pytest.skip("DPDK is not installed in the system's directory")
    abi = found[-1].suffix[1:]
    for library in ("eal", "ring", "mempool", "mbuf", "ethdev"):
        name = f"librte_{library}.so.{abi}"
        (tmp_path / name).symlink_to(SYSTEM / name)
    run_dpdk(
        f"""
        text = str(error_of(load))
        assert "librte_vhost.so.{abi}" in text and "librte-vhost{abi}" in text, text
        """,
        VIO4WD_DPDK_LIBDIR=str(tmp_path),
    )


def test_a_library_that_is_none(run_dpdk: RunDpdk, tmp_path: Path) -> None:
    (tmp_path / "librte_eal.so.23").write_text("not an ELF file")
    run_dpdk(
        """
        text = str(error_of(load))
        assert "librte_eal.so.23" in text and "cannot be loaded" in text, text
        """,
        VIO4WD_DPDK_LIBDIR=str(tmp_path),
    )
