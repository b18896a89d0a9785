"""Events ahead of their time, and events whose time has passed."""

from __future__ import annotations

import asyncio

import pytest
from ironbus import EventBus, EventPriority, InvalidTiming, RetryPolicy
from ironbus.testing import harness
from recovering import Clock, advance, letters, still


def run(main, limit=60):
    async def limited():
        async with asyncio.timeout(limit):
            return await main

    with asyncio.Runner() as runner:
        return runner.run(limited())


class Seen(list):
    """A handler that notes what it was given, and when."""

    def __init__(self, clock):
        self.clock = clock

    def __call__(self, event):
        self.append((round(self.clock.now - 1000, 3), event.data))


def times(t, name="s"):
    """When the handler was called, and with what."""
    return [(call.at, call.event.data) for call in t.calls(name)]


def test_a_delayed_event_comes_when_it_is_due():
    """Accepted and numbered at once, delivered later; what was published meanwhile does not wait for it."""

    async def main():
        bus = EventBus()
        bus.subscribe("t", lambda event: None, name="s")
        async with harness(bus, clock="virtual") as t:
            late = await bus.publish("t", "late", delay=60)
            soon = await bus.publish("t", "soon", delay=1.5)
            now = await bus.publish("t", "now")
            assert [receipt.sequence for receipt in (late, soon, now)] == [1, 2, 3]
            await t.settle()
            assert times(t) == [(0, "now")]
            statistics = bus.metrics().subscriptions["s"]
            assert (statistics.state, statistics.delayed, statistics.ledger.pending) == ("waiting", 2, 2)
            assert statistics.oldest_age == 0
            await t.advance(59.9)
            assert times(t) == [(0, "now"), (1.5, "soon")]
            await t.advance(1)
            assert times(t)[-1] == (60, "late")
            assert (await late.settled()).ok
            # The wait is counted from when it could start.
            assert bus.metrics().subscriptions["s"].wait.max < 1

    run(main())


def test_with_the_real_clock_and_from_a_thread():
    """The loop's timer is set by whoever publishes."""
    clock = type("Now", (), {"now": 1000.0})()
    seen = Seen(clock)
    bus = EventBus()
    bus.subscribe("t", seen)
    with bus:
        # Far enough from each other for a publisher that is held up between two.
        receipts = [bus.publish_sync("t", n, delay=delay) for n, delay in enumerate((0.9, 0.3, 0.6), 1)]
        for receipt in receipts:
            assert receipt.wait(30).ok
    assert [data for _, data in seen] == [2, 3, 1]


def test_due_events_go_by_their_time_and_before_the_queue():
    """Those whose time has come while the subscription was busy: by time, then by number, ahead of the line."""

    async def main():
        bus = EventBus()
        subscription = bus.subscribe("t", lambda event: None, name="s")
        async with harness(bus, clock="virtual") as t:
            subscription.pause()
            for data, delay in (("b1", 0.2), ("a1", 0.1), ("b2", 0.2), ("a2", 0.1)):
                await bus.publish("t", data, delay=delay)
            await bus.publish("t", "queued")
            await bus.publish("t", "urgent", priority=EventPriority.CRITICAL)
            await t.advance(0.5)
            subscription.resume()
            await t.settle()
            assert [data for _, data in times(t)] == ["urgent", "a1", "a2", "b1", "b2", "queued"]

    run(main())


def test_each_subscription_and_stream_gets_it_when_it_is_due():
    """The delay is the event's, not one subscription's."""

    async def main():
        bus = EventBus()
        bus.subscribe("t", lambda event: None, name="one")
        bus.subscribe("*", lambda event: None, name="two", concurrency=3)
        async with harness(bus, clock="virtual") as t, bus.stream("t") as stream:
            await bus.publish("t", 1, delay=10)
            await bus.publish("t", 2)
            assert (await anext(stream)).data == 2
            await t.advance(10)
            assert (await anext(stream)).data == 1
            assert [times(t, name) for name in ("one", "two")] == [[(0, 2), (10, 1)]] * 2

    run(main())


def test_a_delayed_event_counts_against_the_queue():
    """Also what is put off is kept somewhere, and bounded."""

    async def main():
        clock = Clock()
        bus = EventBus(clock=clock, max_queue_size=3)
        seen = Seen(clock)
        bus.subscribe("t", seen)
        async with bus:
            for n in range(1, 4):
                await bus.publish("t", n, delay=10)
            fourth = asyncio.create_task(bus.publish("t", 4))
            await advance(bus, clock, 5)
            assert not fourth.done()
            await advance(bus, clock, 5)
            await fourth
            await still(bus)
            assert [data for _, data in seen] == [1, 2, 3, 4]

    run(main())


def test_drop_oldest_lets_go_of_delayed_events_too():
    """An event that is put off is queued like any other; the line before it goes first."""

    async def main():
        clock = Clock()
        bus = EventBus(clock=clock)
        seen = Seen(clock)
        subscription = bus.subscribe("t", seen, name="s", overflow="drop_oldest", max_queue_size=3)
        async with bus:
            subscription.pause()
            for data, delay in (
                ("d1", 5),
                ("q1", None),
                ("d2", 3),
                ("q2", None),
                ("q3", None),
                ("q4", None),
                ("q5", None),
            ):
                await bus.publish("t", data, delay=delay)
            subscription.resume()
            await advance(bus, clock, 10)
            assert bus.audit().subscriptions["s"].dropped == 4
            assert bus.audit().balanced
            assert sorted(data for _, data in seen) == ["d1", "d2", "q5"]
            subscription.pause()
            for data in "abcd":
                await bus.publish("t", data, delay=50)
            subscription.resume()
            await advance(bus, clock, 100)
            assert [data for _, data in seen[3:]] == ["b", "c", "d"]

    run(main())


def test_a_delayed_event_before_the_start():
    """Its time counts from the publish, started or not."""

    async def main():
        clock = Clock()
        seen = Seen(clock)
        bus = EventBus(clock=clock)
        bus.subscribe("t", seen)
        await bus.publish("t", "past", delay=5)
        await bus.publish("t", "future", delay=50)
        clock.now += 10
        async with bus:
            await still(bus)
            assert seen == [(10, "past")]
            await advance(bus, clock, 100)
            assert seen == [(10, "past"), (50, "future")]

    run(main())


def test_stop_keeps_delayed_events():
    """They are queued, and the next start takes them on."""

    async def main():
        clock = Clock()
        seen = Seen(clock)
        bus = EventBus(clock=clock)
        bus.subscribe("t", seen)
        await bus.start()
        await bus.publish("t", 1, delay=5)
        report = await bus.stop(timeout=0)
        assert report.left == 1
        clock.now += 10
        async with bus:
            await bus.drain(timeout=30)
        assert seen == [(10, 1)]

    run(main())


def test_the_key_of_a_delayed_event_is_seen_at_once():
    """It is accepted when it is published: a second one is a duplicate long before the first is delivered."""

    async def main():
        clock = Clock()
        seen = Seen(clock)
        bus = EventBus(clock=clock)
        bus.subscribe("t", seen)
        async with bus:
            await bus.publish("t", 1, idempotency_key="k", delay=60)
            assert (await bus.publish("t", 1, idempotency_key="k")).duplicate
            await advance(bus, clock, 60)
            assert len(seen) == 1

    run(main())


def test_delayed_events_of_one_key_do_not_overlap():
    """A delayed event joins those of its key when its time has come."""

    async def main():
        clock = Clock()
        bus = EventBus(clock=clock)
        begun, ended, release = [], [], asyncio.Event()

        async def handler(event):
            begun.append(event.data)
            await release.wait()
            ended.append(event.data)

        bus.subscribe("t", handler, name="s", concurrency=4)
        bus.subscribe("t", handler, name="c", concurrency=4, order_by=lambda event: event.key)
        async with bus:
            await bus.publish("t", 1, key="k")
            await bus.publish("t", 2, key="k", delay=10)
            await bus.publish("t", 3, key="other", delay=10)
            while len(begun) < 2:
                await asyncio.sleep(0)
            clock.now += 11
            bus._tick()
            while len(begun) < 4:
                await asyncio.sleep(0)
            assert sorted(begun) == [1, 1, 3, 3]
            release.set()
            await bus.drain(timeout=30)
            assert sorted(ended) == [1, 1, 2, 2, 3, 3]

    run(main())


def test_an_event_whose_time_has_passed_is_not_delivered():
    """Its turn comes too late: outcome "expired", without a call, and without a dead letter."""

    async def main():
        clock = Clock()
        seen = Seen(clock)
        bus = EventBus(clock=clock)
        subscription = bus.subscribe("t", seen, name="s")
        async with bus:
            subscription.pause()
            receipts = [await bus.publish("t", n, expires_in=seconds) for n, seconds in enumerate((5, 50, None), 1)]
            clock.now += 5
            subscription.resume()
            settlements = [await receipt.settled() for receipt in receipts]
            assert [settlement.outcomes["s"] for settlement in settlements] == ["expired", "done", "done"]
            assert all(settlement.ok for settlement in settlements)
            assert [data for _, data in seen] == [2, 3]
            ledger = bus.audit()
            assert (ledger.subscriptions["s"].expired, ledger.balanced) == (1, True)
            assert letters(bus) == []

    run(main())


@pytest.mark.parametrize("options", [{}, {"concurrency": 3}, {"concurrency": 3, "order_by": lambda event: event.data}])
def test_many_expired_events_hold_up_nobody(options):
    """They end one after the other, and other subscriptions have their turn in between."""

    async def main():
        clock = Clock()
        seen = Seen(clock)
        bus = EventBus(clock=clock)
        subscription = bus.subscribe("t", seen, name="s", **options)
        async with bus:
            subscription.pause()
            await bus.publish_many([("t", n, {"expires_in": 5, "key": str(n % 7)}) for n in range(10_000)])
            last = await bus.publish("t", "last")
            clock.now += 5
            subscription.resume()
            await last.settled()
            await still(bus)
            assert [data for _, data in seen] == ["last"]
            assert bus.audit().subscriptions["s"].expired == 10_000
            assert bus.audit().balanced

    run(main())


def test_a_retry_that_comes_too_late_expires():
    """The expiry counts for every attempt; what has begun is not interrupted."""

    async def main():
        clock, calls = Clock(), []
        bus = EventBus(clock=clock)

        async def handler(event):
            calls.append(clock.now - 1000)
            raise ConnectionError

        policy = RetryPolicy(max_attempts=10, initial_delay=10, exponential_base=1, jitter=False)
        bus.subscribe("t", handler, name="s", retry=policy)
        async with bus:
            receipt = await bus.publish("t", expires_in=25)
            await advance(bus, clock, 100)
            assert [round(call) for call in calls] == [0, 10, 20]
            assert (await receipt.settled()).outcomes == {"s": "expired"}

    run(main())


def test_an_expired_event_leaves_a_dead_letter_if_asked_to():
    """``dead_letter="expired"`` keeps those as well."""

    async def main():
        clock = Clock()
        bus = EventBus(clock=clock)
        subscription = bus.subscribe("t", lambda event: None, name="s", dead_letter="expired")
        async with bus:
            subscription.pause()
            receipt = await bus.publish("t", 7, expires_in=5)
            clock.now += 5
            subscription.resume()
            assert (await receipt.settled()).outcomes == {"s": "expired"}
            [letter] = letters(bus)
            assert (letter["exception_type"], letter["attempts"], letter["data"]) == ("expired", 0, 7)

    run(main())


def test_without_dead_letters():
    """``dead_letter=False``: the outcome is dead all the same, and nothing is kept."""

    async def main():
        bus = EventBus()

        def handler(event):
            raise ValueError

        bus.subscribe("t", handler, name="s", dead_letter=False)
        async with bus:
            assert (await (await bus.publish("t")).settled()).outcomes == {"s": "dead"}
            assert letters(bus) == []
            assert bus.audit().balanced

    run(main())


def test_a_payload_that_has_no_json_keeps_its_text():
    """And says that only this process could deliver it again."""

    class Odd:
        def __repr__(self):
            return "an odd thing"

    async def main():
        bus = EventBus()

        def handler(event):
            raise ValueError

        bus.subscribe("t", handler)
        async with bus:
            await bus.publish("t", Odd())
            await bus.publish("t", {"fine": [1.5, None]})
            await bus.drain()
        first, second = letters(bus)
        assert (first["data"], first["in_process_only"]) == ('"an odd thing"', True)
        assert (second["data"], second["in_process_only"]) == ({"fine": [1.5, None]}, False)

    run(main())


def test_in_a_batch_each_event_has_its_own_times():
    """The arguments of publish_many are the defaults of all."""

    async def main():
        clock = Clock()
        seen = Seen(clock)
        bus = EventBus(clock=clock)
        bus.subscribe("t", seen)
        async with bus:
            await bus.publish_many([("t", 1), ("t", 2, {"delay": 5}), ("t", 3, {"delay": 0})], delay=10)
            await advance(bus, clock, 100)
            assert seen == [(0, 3), (5, 2), (10, 1)]

    run(main())


WRONG = [
    ({"delay": -1}, "delay"),
    ({"delay": "1"}, "delay"),
    ({"delay": True}, "delay"),
    ({"delay": float("nan")}, "delay"),
    ({"delay": 1e10}, "delay"),
    ({"delay": 10**400}, "delay"),
    ({"expires_in": -0.5}, "expires_in"),
    ({"expires_in": [1]}, "expires_in"),
    ({"delay": 5, "expires_in": 5}, "expires_in"),
]


@pytest.mark.parametrize(("options", "field"), WRONG)
def test_wrong_times_are_refused(options, field):
    """At the caller, with the field and the fix, and nothing is left of the event."""

    async def main():
        bus = EventBus()
        for publish in (
            lambda: bus.publish("t", None, **options),
            lambda: bus.publish_many([("t", None)], **options),
        ):
            with pytest.raises(InvalidTiming) as caught:
                await publish()
            assert field in caught.value.field
        with pytest.raises(InvalidTiming) as caught:
            bus.publish_sync("t", None, **options)
        assert caught.value.field == field
        assert "seconds" in str(caught.value) or "longer" in str(caught.value)
        assert bus.audit().accepted == 0
        assert bus.audit().balanced

    run(main())
