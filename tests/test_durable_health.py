"""Health of a bus with a path: the journal, its size, and subscriptions that are not there."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from ironbus import EventBus, Health, HealthReason, HealthThresholds, StorageError
from running import run

OK = Health("ok", ())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "orders.bus"


async def handle(event):
    pass


async def comes(bus, wanted):
    """The thread of the journal brings it, in real time: the last health that was not it, for ever otherwise."""
    async with asyncio.timeout(30):
        while not wanted(health := bus.health()):
            bus._journal_watch._next = 0.0
            await asyncio.sleep(0.001)
    return health


READ_ONLY = """
import asyncio, logging, os, resource, signal, sys
from ironbus import DurabilityUnknown, EventBus, JournalReadOnly

logging.getLogger("ironbus").setLevel(logging.CRITICAL)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that grows too much is an error and no death
path = sys.argv[1]

def codes(bus):
    return [(reason.code, reason.severity) for reason in bus.health().reasons]

async def handle(event):
    pass

async def main():
    bus = EventBus(path=path)
    bus.subscribe("a", handle, name="s")
    async with bus:
        assert codes(bus) == []
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = max(os.stat(path + end).st_size for end in ("", "-wal"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, hard))
        try:
            for _ in range(1000):
                await bus.publish("a", "x" * 1000)
            raise AssertionError("the disk is never full")
        except DurabilityUnknown:
            pass
        assert codes(bus) == [("journal_read_only", "failing")], bus.health()
        assert bus.audit().unknown == 1 and bus.audit().balanced
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        try:
            await bus.publish("a")
            raise AssertionError("it is written to again by itself")
        except JournalReadOnly:
            pass
        await bus.stop()
        await bus.start()
        await bus.publish("a")
        assert codes(bus) == [], bus.health()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of files here")
def test_a_journal_that_cannot_be_written_any_more(path):
    """A disk that is full; it goes with the next start. What is unknown is in its account, and not lost."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", READ_ONLY, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_subscription_that_is_not_there(path):
    async def main():
        now = [0.0]
        bus = EventBus(path=path, clock=lambda: now[0])
        bus.subscribe("a", handle, name="here")
        bus.subscribe("a", handle, name="gone")
        async with bus:
            await comes(bus, OK.__eq__)
        bus = EventBus(path=path, clock=lambda: now[0])
        bus.subscribe("a", handle, name="here")
        assert bus.health() == OK
        async with bus:
            assert bus.health() == OK
            await bus._disk.run(bus._look_at_journal)
            assert bus.health() == OK, "it has a minute to come"
            now[0] += 100
            health = await comes(bus, OK.__ne__)
            reason = HealthReason("subscription_absent", "degraded", pytest.approx(100, abs=30), 60, "gone")
            assert health == Health("degraded", (reason,))
            bus.subscribe("a", handle, name="gone")
            await comes(bus, OK.__eq__)
        assert bus.health() == OK

    run(main())


def test_a_journal_that_has_grown(path):
    async def main():
        bus = EventBus(path=path, health=HealthThresholds(journal_size=1_000_000))
        bus.subscribe("a", handle, name="s")
        async with bus:
            await bus._disk.run(bus._look_at_journal)
            assert bus.health() == OK
            await bus.publish_many([("a", "x" * 1000)] * 2000)
            # It may have been looked at while that was being written.
            health = await comes(bus, lambda health: any(reason.value > 2_000_000 for reason in health.reasons))
            [reason] = health.reasons
            assert (reason.code, reason.severity, reason.threshold) == ("journal_size", "degraded", 1_000_000)
            assert reason.value < 20_000_000
        assert bus.health() == OK, "nobody holds a journal that is closed"

    run(main())


def test_a_journal_that_cannot_be_read(path):
    async def main():
        bus = EventBus(path=path)

        def burns():
            raise StorageError("the file is on fire", "path")

        async with bus:
            bus._look_at_journal = burns  # type: ignore[method-assign]
            health = await comes(bus, OK.__ne__)
            assert health == Health("failing", (HealthReason("journal_unreadable", "failing", 1, 1),))
            assert bus.health() == health
            await bus.stop()
            assert bus.health() == OK
            del bus._look_at_journal
            await bus.start()
            assert await comes(bus, OK.__eq__)

    run(main())


@pytest.mark.parametrize("is_async", [True, False])
def test_a_window_that_is_full_keeps_no_publisher_waiting(path, is_async):
    """What is behind it waits in the journal: that is degraded, for its age and depth, and the ledger balances."""

    async def main():
        now = [0.0]
        bus = EventBus(path=path, max_queue_size=10, clock=lambda: now[0])
        subscription = bus.subscribe("a", handle if is_async else lambda event: None, name="s")
        async with bus:
            subscription.pause()
            await bus.publish_many([("a", n) for n in range(50)])
            # The window is filled beside the loop.
            assert await comes(bus, lambda health: [each.code for each in health.reasons] == ["lane_filling"])
            now[0] += 60
            health = bus.health()
            assert [each.code for each in health.reasons] == ["lane_filling", "oldest_event"]
            assert health.status == "degraded"
            subscription.resume()
            await bus.drain()
            assert bus.health() == OK
            assert bus.audit().balanced

    run(main())


def test_a_durable_bus_under_way_is_well(path):
    """Asked at any moment: neither its backlog nor what is being written is in no account."""

    async def main():
        bus = EventBus(path=path, max_queue_size=64, health=HealthThresholds(lane_filling=None))
        bus.subscribe("a", handle, name="one")
        bus.subscribe("a", lambda event: None, name="two")
        seen = set()
        async with bus:
            publishing = asyncio.gather(*(bus.publish_many([("a", n) for n in range(200)]) for _ in range(10)))
            while not publishing.done():
                seen.add(bus.health())
                await asyncio.sleep(0)
            await publishing
            for _ in range(100):
                seen.add(bus.health())
                await asyncio.sleep(0)
            await bus.drain()
            seen.add(bus.health())
        assert seen == {OK}

    run(main())


@pytest.mark.parametrize("what", ["checkpoint", "upkeep"])
def test_what_keeps_a_journal_small_has_failed(path, what):
    async def main():
        bus = EventBus(path=path)
        native = bus._report

        def report(latencies=False):
            found = native(latencies)
            assert found["journal"][f"{what}_failed"] is False
            found["journal"][f"{what}_failed"] = True
            return found

        async with bus:
            assert bus.health() == OK
            bus._report = report  # type: ignore[method-assign]
            assert bus.health() == Health("degraded", (HealthReason(f"journal_{what}", "degraded", 1, 1),))
            del bus._report

    run(main())
