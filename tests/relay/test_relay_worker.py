"""A real worker process and commands that it cannot take in."""

from __future__ import annotations

import asyncio
import logging
import os

import pytest

from vio4wd.errors import WorkerError
from vio4wd.relay.lanes import LaneTable
from vio4wd.relay.worker_options import WorkerOptions
from vio4wd.relay.worker_process import WorkerProcess

pytestmark = pytest.mark.dpdk

CPUS = sorted(os.sched_getaffinity(0))
OPTIONS = WorkerOptions(
    name=f"test-{os.getpid()}",
    main_cpu=CPUS[0],
    worker_cpus=(CPUS[-1],),
    huge_dir="",
    mtu=1500,
    log_level=logging.INFO,
    idle_sleep_max_us=0,
    disabled_features=0,
)


async def _meets_a_command_that_it_cannot_read() -> None:
    table = LaneTable.create()
    process = WorkerProcess(OPTIONS, table.fd)
    await process.start()
    try:
        ended = asyncio.Event()
        process.on_exit = ended.set
        with pytest.raises(WorkerError, match="must be at most 65536"):
            await process.call("add_port", relay=1, device="net_null0," + "x" * 70_000)
        assert await process.call("add_port", relay=1, device="net_null0") == {"numa_node": 0}
        assert process._channel is not None
        process._channel.send(b'{"v":1,"id":9')
        async with asyncio.timeout(5):
            await ended.wait()
    finally:
        await process.kill()
    assert not process.crashed


def test_a_command_that_it_cannot_read_ends_it_in_one_line(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    asyncio.run(_meets_a_command_that_it_cannot_read())
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert errors[0].startswith("the worker ends, since it cannot read a command: not a worker message (JSONDecodeErr")
    assert errors[1] == f"{OPTIONS.name} ended with status 1"
    assert "Traceback" not in capfd.readouterr().err
