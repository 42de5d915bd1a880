"""The folder of compiled code: nothing that is wrong with it keeps a worker from starting."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FULL_BYTES = 64 << 10

WRITER = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
from vio4wd.relay.compiled_cache import use_cache
from vio4wd.dpdk_ffi.log_writer import compile_writer
print(use_cache(), bool(compile_writer().address), bool(compile_writer().address))
"""


def run(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a folder for compiled code."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CACHE_DIRECTORY": str(cache)},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def compile_twice(cache: Path) -> str:
    """Compile a function two times in a process; its warnings."""
    done = run(cache, "-c", WRITER)
    assert done.stdout.split()[1:] == ["True", "True"], done.stdout + done.stderr
    return done.stderr


def kept(cache: Path, suffix: str = "") -> list[Path]:
    """The files of compiled code."""
    return sorted(path for path in cache.rglob(f"*{suffix}") if path.is_file())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a function, but not for all of them."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={FULL_BYTES}", "small", directory], check=True, timeout=10)
    yield directory
    subprocess.run(["umount", directory], check=True, timeout=10)


@pytest.mark.slow
def test_a_full_disk_does_not_stop_the_loop(small_disk: Path) -> None:
    done = run(small_disk, "-m", "vio4wd.relay.precompile")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"cannot be kept in {small_disk}/compiled-" in done.stderr
    assert "No space left on device" in done.stderr
    assert not list(small_disk.iterdir())


def test_a_disk_without_any_room(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(FULL_BYTES))
    warnings = compile_twice(small_disk)
    assert warnings.count("WARNING") == 1, warnings
    assert "No space left on device" in warnings


def test_a_place_that_cannot_be_written() -> None:
    warnings = compile_twice(Path("/proc"))
    assert warnings.count("WARNING") == 1, warnings
    assert "/proc/compiled-" in warnings


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_damaged_code_is_removed_and_made_anew(tmp_path: Path, suffix: str, share: float) -> None:
    assert compile_twice(tmp_path) == ""
    whole = kept(tmp_path)
    [damaged] = kept(tmp_path, suffix)
    os.truncate(damaged, int(damaged.stat().st_size * share))
    warnings = compile_twice(tmp_path)
    assert warnings.count("WARNING") == 1, warnings
    assert "is removed" in warnings
    assert kept(tmp_path) == []
    assert compile_twice(tmp_path) == ""
    assert kept(tmp_path) == whole


def test_code_that_others_could_have_put_there_is_not_run(tmp_path: Path) -> None:
    assert compile_twice(tmp_path) == ""
    [folder] = tmp_path.iterdir()
    folder.chmod(0o777)
    warnings = compile_twice(tmp_path)
    assert warnings.count("WARNING") == 1, warnings
    assert "everybody can write it" in warnings
