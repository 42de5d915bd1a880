"""The reconciler by itself: static VFs, failures, back-off, others' interference."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest

from portctl_file.recording import becomes, eventually
from portctl_ovsdb.following import Following, follow
from vio4wd.config.model import StaticVf
from vio4wd.devices import Attachment, Bond, Device
from vio4wd.portctl.claims import Claim, Source, merge


def null(number: int, arguments: str = "") -> Device:
    return Device(f"net_null{number}", arguments)


def test_static_vfs_at_the_start_and_after_reloads() -> None:
    bond = Bond("net_bonding0", (null(10), null(11)))

    async def test(following: Following) -> None:
        relays = following.controller
        await becomes(relays, {1: "net_null1", 2: "net_null2,size=60", 3: "net_bonding0"})
        following.static([StaticVf(1, null(1)), StaticVf(2, null(2, "size=70")), StaticVf(4, null(10))])
        await becomes(relays, {1: "net_null1", 2: "net_null2,size=70", 4: "net_null10"})
        assert ("remove", 1, "net_null1") not in relays.requests
        following.static([])
        await becomes(relays, {})

    follow(None, test, static=[StaticVf(1, null(1)), StaticVf(2, null(2, "size=60")), StaticVf(3, bond)])


def test_static_vf_that_an_operator_removed_stays_away() -> None:
    static = [StaticVf(1, null(1)), StaticVf(2, null(2))]

    async def test(following: Following) -> None:
        relays = following.controller
        await becomes(relays, {1: "net_null1", 2: "net_null2"})
        await relays.remove_vf(1, None)
        await asyncio.sleep(0.8)
        assert relays.devices == {2: "net_null2"}
        following.static([*static, StaticVf(3, null(3))])
        await becomes(relays, {2: "net_null2", 3: "net_null3"})
        await relays.add_vf(1, null(9))
        following.static([])
        await becomes(relays, {1: "net_null9"})

    follow(None, test, static=static)


def test_failed_add_is_tried_again_and_logged_once_per_reason(caplog: pytest.LogCaptureFixture) -> None:
    async def test(following: Following) -> None:
        relays = following.controller
        relays.broken["net_null1"] = "there is no such device"
        following.static([StaticVf(1, null(1)), StaticVf(2, null(2))])
        await becomes(relays, {2: "net_null2"})
        await eventually(lambda: relays.requests.count(("add", 1, "net_null1")) >= 4)
        assert caplog.text.count("there is no such device") == 1
        relays.broken["net_null1"] = "its driver is i40evf, must be vfio-pci"
        await eventually(lambda: "vfio-pci" in caplog.text)
        assert relays.requests.count(("add", 1, "net_null1")) < 40
        relays.broken.clear()
        await becomes(relays, {1: "net_null1", 2: "net_null2"})
        await eventually(lambda: "has net_null1 after" in caplog.text)
        assert caplog.text.count("could not be added") == 2

    with caplog.at_level(logging.INFO):
        follow(None, test)


def test_failed_remove_is_tried_again_and_device_moves_then(caplog: pytest.LogCaptureFixture) -> None:
    async def test(following: Following) -> None:
        relays = following.controller
        await becomes(relays, {1: "net_null1"})
        relays.broken["net_null1"] = "worker does not answer"
        following.static([StaticVf(5, null(1))])
        await eventually(lambda: len(relays.requests) >= 4)
        assert relays.devices == {1: "net_null1"}
        assert ("add", 5, "net_null1") not in relays.requests
        relays.broken.clear()
        await becomes(relays, {5: "net_null1"})
        assert caplog.text.count("could not be removed") == 1

    follow(None, test, static=[StaticVf(1, null(1))])


def test_slow_relay_holds_up_no_other() -> None:
    slow = Device("net_slow0")

    async def test(following: Following) -> None:
        following.controller.slow_s = 3.0
        following.static([StaticVf(0, slow), StaticVf(1, null(1))])
        await eventually(lambda: following.controller.devices == {1: "net_null1"}, limit_s=1)
        following.static([StaticVf(0, slow), StaticVf(2, null(1))])
        await eventually(lambda: following.controller.devices == {2: "net_null1"}, limit_s=1)
        following.static([StaticVf(2, null(1))])
        await eventually(lambda: ("remove", 0, "net_slow0") in following.controller.requests)
        assert following.controller.devices == {2: "net_null1"}

    follow(None, test)


def test_unexpected_error_is_logged_with_its_traceback_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    async def test(following: Following) -> None:
        relays = following.controller
        real = relays.add_vf

        async def add_vf(relay: int, device: Attachment, *, conditional: bool = True) -> None:
            if relay == 1:
                raise ZeroDivisionError("a bug")
            await real(relay, device, conditional=conditional)

        relays.add_vf = add_vf  # type: ignore[method-assign]
        following.static([StaticVf(1, null(1)), StaticVf(2, null(2))])
        await becomes(relays, {2: "net_null2"})
        await eventually(lambda: "ZeroDivisionError" in caplog.text and "Traceback" in caplog.text)
        relays.add_vf = real  # type: ignore[method-assign]
        await becomes(relays, {1: "net_null1", 2: "net_null2"})

    follow(None, test)


def test_error_of_the_controller_restarts_the_reconciler_which_remembers() -> None:
    async def test(following: Following) -> None:
        relays = following.controller
        await becomes(relays, {1: "net_null1"})
        real = relays.snapshot
        relays.snapshot = None  # type: ignore[assignment]
        following.static([])
        await asyncio.sleep(0.3)
        assert relays.requests == [("add", 1, "net_null1")]
        relays.snapshot = real  # type: ignore[method-assign]
        await becomes(relays, {})

    follow(None, test, static=[StaticVf(1, null(1))])


def test_cancelled_in_the_middle_of_an_add() -> None:
    """What was under way when the reconciler ended is known to be its own when it is started again."""

    async def main() -> None:
        following = Following(None, static=[StaticVf(0, Device("net_slow0"))])
        await eventually(lambda: bool(following.controller.requests))
        await following.stop()
        await following.controller.add_vf(0, Device("net_slow0"))
        following.tasks = [asyncio.create_task(following.reconciler.run())]
        following.static([])
        await becomes(following.controller, {})
        await following.stop()

    asyncio.run(main())


def test_cancellation_is_never_swallowed() -> None:
    async def main() -> None:
        for _ in range(200):
            following = Following(None)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            following.static([])
            async with asyncio.timeout(5):
                await following.stop()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(4))
def test_random_claims_refusals_and_interference(seed: int) -> None:
    """Whatever happened on the way, in the end the relays equal what OVSDB says."""
    chance = random.Random(seed)

    async def test(following: Following) -> None:
        relays = following.controller
        relays.slow_s = 0.02
        for _ in range(8):
            for _ in range(12):
                numbers = chance.sample(range(8), chance.randrange(8))
                wanted = {relay: chance.choice((Device(f"net_slow{n}"), null(n))) for relay, n in enumerate(numbers)}
                claims = [Claim(relay, device, f"interface {relay}") for relay, device in wanted.items()]
                following.reconciler.set_claims(Source.OVSDB, claims)
                relays.broken = {f"net_null{chance.randrange(8)}": "broken"}
                if chance.random() < 0.3:
                    await relays.remove_vf(chance.randrange(8), None)
                await asyncio.sleep(chance.random() * 0.03)
            relays.broken = {}
            await becomes(relays, {relay: device.devargs for relay, device in wanted.items()})

    follow(None, test)


def test_merge_prefers_static_and_the_first() -> None:
    static = Claim(1, null(1), "static"), Claim(2, Bond("net_bonding0", (null(5), null(6))), "static")
    ovsdb = (
        Claim(1, null(1), "same"),
        Claim(2, null(2), "relay taken"),
        Claim(3, null(6), "member taken"),
        Claim(4, null(7), "first"),
        Claim(5, null(7, "size=70"), "second"),
    )
    wanted, conflicts = merge({Source.OVSDB: ovsdb, Source.STATIC: static})
    assert {relay: claim.origin for relay, (_, claim) in wanted.items()} == {1: "static", 2: "static", 4: "first"}
    assert len(conflicts) == 3
    assert any("device net_null6 is claimed by static" in conflict for conflict in conflicts)


def test_conflict_is_warned_of_once_until_it_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    async def test(following: Following) -> None:
        conflicting = [StaticVf(1, null(1)), StaticVf(1, null(2))]
        for _ in range(3):
            following.static(conflicting)
        assert caplog.text.count("relay 1 is claimed by") == 1
        following.static([])
        following.static(conflicting)
        assert caplog.text.count("relay 1 is claimed by") == 2

    follow(None, test)
