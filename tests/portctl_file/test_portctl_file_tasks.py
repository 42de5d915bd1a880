"""supervised: restarts, back-off, endings."""

from __future__ import annotations

import asyncio
import logging

import pytest

from vio4wd.tasks import Backoff, supervised

QUICK = Backoff(first_s=0.01, most_s=0.04)


def test_backoff_grows_and_is_bounded() -> None:
    backoff = Backoff(first_s=0.5, most_s=3.0)
    assert [backoff.delay_s(n) for n in (1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.delay_s(1_000_000) == 3.0


def test_restarts_until_it_returns(caplog: pytest.LogCaptureFixture) -> None:
    runs = []

    async def fragile() -> None:
        runs.append(None)
        if len(runs) < 4:
            raise ValueError(f"run {len(runs)}")

    with caplog.at_level(logging.ERROR):
        asyncio.run(asyncio.wait_for(supervised("fragile thing", fragile, backoff=QUICK), 5))
    assert len(runs) == 4
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert len(tracebacks) == 3
    assert "fragile thing" in caplog.text
    assert "Traceback" in caplog.text
    assert "run 3" in caplog.text


def test_waits_grow_and_start_over_after_a_healthy_run() -> None:
    starts: list[float] = []

    async def fragile() -> None:
        starts.append(asyncio.get_running_loop().time())
        if len(starts) == 5:
            await asyncio.sleep(0.1)
        if len(starts) < 7:
            raise RuntimeError

    asyncio.run(asyncio.wait_for(supervised("t", fragile, backoff=Backoff(0.02, 1.0), healthy_s=0.09), 10))
    gaps = [later - earlier for earlier, later in zip(starts, starts[1:], strict=False)]
    assert gaps[0] >= 0.02
    assert gaps[3] >= 0.16
    assert gaps[5] < 0.16


def test_cancellation_ends_it() -> None:
    async def main() -> None:
        entered = asyncio.Event()

        async def forever() -> None:
            entered.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(supervised("forever", forever))
        await asyncio.wait_for(entered.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)

    asyncio.run(main())


def test_a_cancelled_helper_is_a_failure_not_an_end(caplog: pytest.LogCaptureFixture) -> None:
    runs = []

    async def awaits_cancelled() -> None:
        runs.append(None)
        if len(runs) == 1:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

    asyncio.run(asyncio.wait_for(supervised("helped", awaits_cancelled, backoff=QUICK), 5))
    assert len(runs) == 2
    assert "was cancelled from within" in caplog.text
