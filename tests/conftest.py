"""Puts the folder of tests on sys.path, so that all tests share its packages (``from frontend import FrontEnd``)."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness.process import Child

LOG_BYTES = 6000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the programs that it ran had to say."""
    report = yield
    if report.failed:
        for child in Child.running:
            report.sections.append((f"log of {child.log_path.name}, pid {child.pid}", child.log[-LOG_BYTES:]))
    return report
