"""A journal that is bounded: old events and absent subscriptions are let go of, by the bus's clock."""

from __future__ import annotations

import asyncio
import logging

import pytest
from ironbus import EventBus, Idempotency, InvalidOption, RetryPolicy, _core
from ironbus.journal import Journal
from running import run

DAY = 86_400.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "orders.bus"


class Clock:
    """Seconds that a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def handle(event):
    pass


async def keep(bus):
    """A round of what comes each minute."""
    await bus._disk.run(bus._keep_journal)


async def kept(path):
    return [event.sequence async for event in Journal(path).events()]


def clean(path):
    return _core.verify_journal(path)["clean"]


def size(path):
    return _core.journal_status(path)["bytes"]


def test_old_events_go_and_what_is_needed_stays(path):
    async def main():
        clock = Clock()
        bus = EventBus(path=path, clock=clock, retention=DAY, idempotency=Idempotency(ttl=1))

        def bill(event):
            if event.data == "bad":
                raise ValueError

        bus.subscribe("a", bill, name="bill", retry=RetryPolicy(max_attempts=1))
        ship = bus.subscribe("b", handle, name="ship")
        async with bus:
            await bus.publish_many([("a", "bad"), ("a", 2), ("b", 3)])
            await bus.drain()
            ship.pause()
            await bus.publish_many([("b", 4), ("a", 5)])
            clock.now += DAY - 1
            await keep(bus)
            assert await kept(path) == [1, 2, 3, 4, 5], "none is old"
            clock.now += 2
            await keep(bus)
            assert await kept(path) == [1, 4, 5], "a dead letter, and all that comes behind what one has not had"
            ship.resume()
            await bus.drain()
            await keep(bus)
            assert await kept(path) == [1]
            # A replay begins with what is there.
            await bus.publish("a", 6)
            assert [event.sequence async for event in bus.events(since=2)] == [6]
            assert await bus.dead_letters.purge() == 1
            await bus.drain()
            await keep(bus)
            assert await kept(path) == [6], "purged, it is free"
        assert clean(path)
        bus = EventBus(path=path, retention=DAY)
        got = []
        bus.subscribe("a", lambda event: got.append(event.data), name="late", since="start")
        async with bus:
            await bus.drain()
        assert got == [6]

    run(main())


def test_keys_outlast_their_retention(path):
    """From the events the keys come back: they are kept at least as long."""

    async def main():
        clock = Clock()

        def fresh():
            return EventBus(path=path, clock=clock, retention=10, idempotency=Idempotency(ttl=1000))

        bus = fresh()
        async with bus:
            await bus.publish("a", 1, idempotency_key="k")
            clock.now += 500
            await keep(bus)
        # A bus begins with the machine's time.
        bus = fresh()
        async with bus:
            assert (await bus.publish("a", 1, idempotency_key="k")).duplicate
            clock.now += 500
            await keep(bus)
            assert await kept(path) == [1]
            clock.now += 501
            await keep(bus)
            assert await kept(path) == []
            assert not (await bus.publish("a", 1, idempotency_key="k")).duplicate

    run(main())


def test_a_subscription_that_never_comes_back(path, caplog):
    """It holds events back until it has been absent for absent_ttl; then the file does not grow any more."""

    async def main():
        clock = Clock()

        def fresh():
            bus = EventBus(path=path, clock=clock, retention=60, absent_ttl=DAY, idempotency=Idempotency(ttl=1))
            bus.subscribe("*", handle, name="here")
            return bus

        bus = fresh()
        bus.subscribe("*", handle, name="gone")
        async with bus:
            pass
        bus = fresh()

        async def hour():
            for _ in range(4):
                await bus.publish_many([("a", "x" * 1000)] * 250)
            await bus.drain()
            clock.now += 3600
            await keep(bus)

        async with bus:
            for _ in range(3):
                await hour()
            assert len(await kept(path)) == 3000
            assert bus.describe()["absent"] == ["gone"]
            clock.now += DAY
            with caplog.at_level(logging.WARNING, "ironbus"):
                await keep(bus)
            assert [record.message for record in caplog.records] == [
                "subscription gone has been absent for absent_ttl: the journal has let go of it,"
                " and of what it had to do"
            ]
            assert await kept(path) == []
            assert bus.describe()["absent"] == []
            await hour()
            before = size(path)
            for _ in range(3):
                await hour()
            assert await kept(path) == []
            assert size(path) == before, "its pages are used again"
            assert bus._report()["journal"]["expired"] == 1
        assert clean(path)

    run(main())


def test_none_keeps_everything(path):
    async def main():
        clock = Clock()
        bus = EventBus(path=path, clock=clock, retention=None, absent_ttl=None)
        bus.subscribe("*", handle, name="gone")
        async with bus:
            await bus.publish("a")
            await bus.drain()
        bus = EventBus(path=path, clock=clock, retention=None, absent_ttl=None)
        async with bus:
            clock.now += 1e9
            await keep(bus)
            assert bus.describe()["absent"] == ["gone"]
        assert await kept(path) == [1]

    run(main())


def test_it_comes_by_itself(path):
    """With the start, and then now and then."""

    async def main():
        def fresh():
            return EventBus(path=path, retention=0, idempotency=Idempotency(ttl=0.001))

        async with fresh() as bus:
            await bus.publish("a")
        async with fresh() as bus, asyncio.timeout(30):
            while await kept(path):
                await asyncio.sleep(0.001)
            assert bus.describe()["retention"] == 0

    run(main())


@pytest.mark.parametrize("name", ["retention", "absent_ttl"])
def test_what_cannot_be_set(path, name):
    for wrong in (-1, "7d", True, float("nan")):
        with pytest.raises(InvalidOption) as refused:
            EventBus(path=path, **{name: wrong})
        assert refused.value.field == name
    with pytest.raises(InvalidOption, match=f"{name} needs a path"):
        EventBus(**{name: None})


def test_what_is_set_is_told(path):
    told = EventBus(path=path).describe()
    assert (told["retention"], told["absent_ttl"]) == (7 * DAY, 30 * DAY)
    told = EventBus().describe()
    assert (told["retention"], told["absent_ttl"]) == (None, None)
