"""The threads that do a worker's work."""

from __future__ import annotations

import threading

import pytest

from vio4wd.relay.work_thread import WorkThread


def test_what_work_raises_is_logged_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with WorkThread("guests") as thread:
        thread.submit(int, "seven")
        assert thread.submit(lambda: threading.current_thread().name).result(5).startswith("guests")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "work of thread guests failed: ValueError" in caplog.text
    assert "Traceback" in caplog.text


def test_cancelled_work_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    begun, go_on = threading.Event(), threading.Event()
    thread = WorkThread("ports")
    thread.submit(lambda: (begun.set(), go_on.wait(5)))
    later = thread.submit(int, "seven")
    assert begun.wait(5)
    thread.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    thread.shutdown()
    assert later.cancelled()
    assert caplog.text == ""
