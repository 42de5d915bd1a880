from __future__ import annotations

from vio4wd.config import Changes, Config, StaticVf, changes
from vio4wd.devices import Device
from vio4wd.relay.interface import RelayCpus

ONE = StaticVf(1, Device("net_null0"))
TWO = StaticVf(2, Device("net_null1"))


def test_no_change() -> None:
    assert changes(Config(), Config(warnings=("other",))) == Changes()
    assert not changes(Config(), Config(scheduler_sensitivity=0.5))


def test_what_can_be_reloaded() -> None:
    new = Config(log_level=7, cpu_pins={1: RelayCpus(1, 2)}, static_vfs=(TWO,))
    assert changes(Config(static_vfs=(ONE,)), new) == Changes(
        log_level=7, cpu_pins_changed=True, static_vfs_removed=(ONE,), static_vfs_added=(TWO,)
    )


def test_a_vf_that_moves_is_removed_and_added() -> None:
    moved = StaticVf(3, ONE.attachment)
    found = changes(Config(static_vfs=(ONE, TWO)), Config(static_vfs=(TWO, moved)))
    assert (found.static_vfs_removed, found.static_vfs_added) == ((ONE,), (moved,))


def test_what_needs_a_restart_is_named() -> None:
    found = changes(Config(), Config(worker_cpus=(3,), jumbo=True, log_level=5, core_sched_enabled=True))
    assert found.not_reloadable == ("VIRTIOFWD_CPU_MASK", "VIRTIOFWD_JUMBO", "VIO4WD_CORE_SCHED_ENABLE")
    assert found.log_level == 5
