"""A bus with a path: what it accepts it keeps, and gives to each subscription after a restart as well."""

import asyncio
import json
import os
import sqlite3
import stat
import time
from datetime import UTC, datetime
from functools import partial

import pytest
from ironbus import (
    DeadLetters,
    Event,
    EventBus,
    EventPriority,
    InvalidEvent,
    InvalidOption,
    IronbusError,
    JournalInUse,
    NotStarted,
    PayloadNotEncodable,
    Reject,
    RetryPolicy,
    StorageError,
)


def run(main, limit=30):
    async def limited():
        async with asyncio.timeout(limit):
            return await main

    return asyncio.run(limited())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "orders.bus"


class Notes:
    """A handler that notes what it was given."""

    def __init__(self):
        self.data = []
        self.events = []

    async def __call__(self, event):
        self.events.append(event)
        self.data.append(event.data)


def named(bus, topic="*", name="notes", **options):
    notes = Notes()
    bus.subscribe(topic, notes, name=name, **options)
    return notes


async def session(path, *publishes, name="notes", topic="*", **options):
    """One life of a bus: publish, handle all there is, stop; what the handler was given."""
    bus = EventBus(path=path)
    notes = named(bus, topic, name, **options)
    async with bus:
        for type_, data in publishes:
            await bus.publish(type_, data)
        await bus.drain()
        assert bus.audit().balanced
    return notes.data


def jot(event):
    """A function of a module: its qualified name lasts."""


# The constructor -------------------------------------------------------------------


def test_making_a_bus_touches_nothing(path):
    bus = EventBus(path=path)
    named(bus)
    assert not path.exists()
    assert bus.describe()["path"] == os.fspath(path)
    assert bus.describe()["durability"] == "fsync"
    assert EventBus(path=path, durability="os").describe()["durability"] == "os"


@pytest.mark.parametrize("name", ["orders.bus", "orders.db", "orders.sqlite"])
def test_a_log_dir_that_names_a_file_is_a_slip(tmp_path, name):
    with pytest.raises(InvalidOption, match="did you mean path="):
        EventBus(tmp_path / name)


def test_a_log_dir_that_is_a_file_is_a_slip(tmp_path):
    (tmp_path / "events").write_text("")
    with pytest.raises(InvalidOption, match="did you mean path="):
        EventBus(tmp_path / "events")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"path": 7}, "path"),
        ({"path": ""}, "path"),
        ({"durability": "fsync"}, "durability"),
        ({"path": "x.bus", "durability": "memory"}, "durability"),
        ({"path": "x.bus", "overflow": "block"}, "overflow"),
        ({"overflow": "spill"}, "overflow"),
        ({"path": "x.bus", "dead_letters": DeadLetters(path="x.dead")}, "dead_letters.path"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, field):
    with pytest.raises(InvalidOption) as refused:
        EventBus(**settings)
    assert refused.value.field == field


# Publishing ------------------------------------------------------------------------


def test_a_receipt_tells_how_durable_the_event_is(path):
    async def main():
        async with EventBus(path=path) as bus:
            receipts = [await bus.publish("a", {"n": 1}), await bus.publish("a", {"n": 2}, durability="os")]
            assert [receipt.durability for receipt in receipts] == ["fsync", "os"]
            assert [receipt.sequence for receipt in receipts] == [1, 2]
            assert "durability='fsync'" in repr(receipts[0])
            batch = await bus.publish_many([("a", {"n": n}) for n in range(3)])
            assert batch.durability == "fsync"
            assert [receipt.sequence for receipt in batch.receipts] == [3, 4, 5]
            assert [receipt.durability for receipt in batch.receipts] == ["fsync"] * 3

    run(main())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_loop_publish_waits_for_the_flush(path):
    with EventBus(path=path) as bus:
        assert bus.sync.publish("a", {}).durability == "fsync"
        assert bus.sync.publish_many([("a", {})], durability="os").durability == "os"


def test_in_a_loop_the_receipt_of_publish_sync_rises(path):
    async def main():
        async with EventBus(path=path) as bus:
            receipt = bus.publish_sync("a", {})
            assert receipt.durability == "memory"
            await bus.publish("a", {})
            assert receipt.durability == "fsync"

    run(main())


def test_a_commit_of_many_publishers_is_told_to_all(path):
    async def main():
        async with EventBus(path=path) as bus:
            receipts = await asyncio.gather(*(bus.publish("a", {"n": n}) for n in range(500)))
            assert sorted(receipt.sequence for receipt in receipts) == list(range(1, 501))
            assert {receipt.durability for receipt in receipts} == {"fsync"}

    run(main())


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"a": [1, (2, 3)]}, "data.a[1]"),
        ({"a": {1: 2}}, "data.a"),
        ({"a": {"b": object()}}, "data.a.b"),
        ({"a": float("nan")}, "data.a"),
        (["\ud83d\ude00"], "data[0]"),
    ],
)
def test_what_json_does_not_give_back_is_refused_with_its_path(path, data, where):
    async def main():
        async with EventBus(path=path) as bus:
            with pytest.raises(InvalidEvent) as refused:
                await bus.publish("a", data)
            assert refused.value.field == where
            with pytest.raises(InvalidEvent, match=r"events\[1\]"):
                await bus.publish_many([("a", {}), ("a", data)])
            ledger = bus.audit()
            assert (ledger.accepted, ledger.balanced) == (0, True)
            assert (await bus.publish("a", {})).sequence == 1

    run(main())


def test_an_event_with_more_than_the_five_fields_is_refused(path):
    class Mine(Event):
        pass

    async def main():
        async with EventBus(path=path) as bus:
            with pytest.raises(InvalidEvent, match="five fields"):
                await bus.publish(Mine("a", {}))
            with pytest.raises(InvalidEvent, match="timestamp"):
                await bus.publish(Event("a", {}, timestamp="now"))
            assert bus.audit().balanced

    run(main())


def test_a_batch_is_stored_as_a_whole_or_not_at_all(path):
    async def main():
        async with EventBus(path=path) as bus:
            with pytest.raises(InvalidEvent, match=r"events\[2\]"):
                await bus.publish_many([("a", {}), ("a", {}), ("a", {"t": ()})])
            batch = await bus.publish_many(
                [("a", {"n": n}, {"idempotency_key": key}) for n, key in enumerate(["x", "y", "x"])]
            )
            assert (batch.accepted, batch.duplicates) == (2, 1)
            assert [receipt.sequence for receipt in batch.receipts] == [1, 2, None]
            assert bus.audit().balanced

    run(main())


def test_durability_is_an_option_of_a_bus_with_a_path():
    async def main():
        bus = EventBus()
        with pytest.raises(InvalidOption, match="path"):
            await bus.publish("a", {}, durability="fsync")
        assert (await bus.publish("a", {}, durability="memory")).durability == "memory"
        assert bus.audit().balanced

    run(main())


# Restarts --------------------------------------------------------------------------


def test_after_a_restart_each_gets_what_it_had_not_settled(path):
    async def main():
        bus = EventBus(path=path)
        notes, stuck = named(bus), []
        bus.subscribe("*", stuck.append, name="stuck").pause()
        async with bus:
            for n in range(10):
                await bus.publish("a", n or {"zero": 0}, priority=n % 4)
            await bus.stop(timeout=0.2)
        assert len(notes.data) == 10
        assert await session(path, name="notes") == []
        left = await session(path, name="stuck")
        levels = [[n for n in range(10) if n % 4 == level] for level in range(4)]
        assert left == [n or {"zero": 0} for level in levels for n in level]
        assert await session(path, name="stuck") == []

    run(main())


def test_an_event_comes_back_as_it_was(path):
    async def main():
        bus = EventBus(path=path)
        notes = named(bus)
        async with bus:
            made = Event("order.paid", {"id": 7, "größe": "ü€😀\ud83d", "n": [1.5, None, True]}, source="shop")
            first = await bus.publish(
                made, priority=EventPriority.HIGH, key="k", headers={"a": "b"}, idempotency_key="pay-7"
            )
            await bus.drain()
        bus = EventBus(path=path)
        # Before the start, so that it gets none before it is paused.
        bus.subscribe("*", jot, name="late", since="start").pause()
        async with bus:
            await bus.stop(timeout=0)
        again = EventBus(path=path)
        late = named(again, name="late")
        async with again:
            await again.drain()
        names = ["type", "data", "timestamp", "event_id", "source", "sequence", "priority", "key", "idempotency_key"]
        for event in (notes.events[0], late.events[0]):
            for name in names:
                assert getattr(event, name) == getattr(notes.events[0], name), name
            assert dict(event.headers) == {"a": "b"}
            assert event.event_id == first.event_id == made.event_id
            assert (event.correlation_id, event.causation_id) == (notes.events[0].correlation_id, None)

    run(main())


def test_what_was_published_before_the_start_reaches_who_subscribes_before_it(path):
    async def main():
        bus = EventBus(path=path)
        receipt = await bus.publish("a", 1)
        assert receipt.durability == "fsync"
        notes = named(bus)
        async with bus:
            await bus.drain()
            assert (await receipt.settled()).outcomes == {"notes": "done"}
        assert notes.data == [1]
        assert await session(path) == []

    run(main())


def test_a_bus_may_be_stopped_and_started_again(path):
    async def main():
        bus = EventBus(path=path)
        notes = named(bus)
        async with bus:
            await bus.publish("a", 1)
            await bus.drain()
        between = await bus.publish("a", 2)
        assert between.sequence == 2
        assert await session_refused(path) == os.getpid()
        async with bus:
            last = await bus.publish("a", 3)
            await bus.drain()
            assert (await between.settled()).ok
            assert (await last.settled()).ok
            assert bus.audit().balanced
        assert notes.data == [1, 2, 3]

    async def session_refused(path):
        with pytest.raises(JournalInUse, match=str(os.getpid())):
            await EventBus(path=path).start()
        return os.getpid()

    run(main())


def test_what_is_left_at_a_stop_is_there_at_the_next_start(path):
    async def main():
        bus = EventBus(path=path)
        notes = named(bus)
        subscription = bus._table._lanes["notes"].subscriptions[0]
        subscription.pause()
        async with bus:
            receipts = [await bus.publish("a", n + 1) for n in range(5)]
            report = await bus.stop(timeout=0.05)
            assert report.left == 5
        subscription.resume()
        async with bus:
            await bus.drain()
            assert [(await receipt.settled()).outcomes for receipt in receipts] == [{"notes": "done"}] * 5
            assert bus.audit().balanced
        assert notes.data == [1, 2, 3, 4, 5]

    run(main())


def test_a_new_subscription_begins_where_it_is_told_to(path):
    async def main():
        async with EventBus(path=path) as bus:
            for n in range(1, 4):
                await bus.publish("a", n)
            between = time.time()
            for n in range(4, 7):
                await bus.publish("a", n)
            wanted = {
                "from the start": ("start", [1, 2, 3, 4, 5, 6, 7]),
                "from a number": (5, [5, 6, 7]),
                "from a time": (between, [4, 5, 6, 7]),
                "from a moment": (datetime.fromtimestamp(between, UTC), [4, 5, 6, 7]),
                "from now": (None, [7]),
            }
            notes = {name: named(bus, name=name, since=since) for name, (since, _) in wanted.items()}
            await bus.publish("a", 7)
            await bus.drain()
            for name, (_, expected) in wanted.items():
                assert notes[name].data == expected, name
            assert bus.audit().balanced

    run(main())


@pytest.mark.parametrize("since", ["end", -1, True, datetime(2026, 1, 1), [1]])
def test_where_it_begins_must_be_a_place(path, since):
    with pytest.raises(InvalidOption) as refused:
        EventBus(path=path).subscribe("a", jot, since=since)
    assert refused.value.field == "since"


def test_a_name_that_is_known_goes_on_where_it_was_whatever_since_says(path):
    async def main():
        assert await session(path, ("a", 1)) == [1]
        assert await session(path, ("a", 2), since="start") == [2]

    run(main())


def test_a_subscription_that_is_gone_finds_its_events_waiting(path):
    async def main():
        assert await session(path, ("a", 1)) == [1]
        assert await session(path, ("a", 2), ("b", 3), name="other") == [2, 3]
        assert await session(path, topic="a") == [2]

    run(main())


def test_topics_that_are_added_later_count_from_then_on(path):
    async def main():
        bus = EventBus(path=path)
        handler = Notes()

        async with bus:
            bus.subscribe("a", handler, name="s")
            await bus.publish_many([("a", 1), ("b", 2)])
            await bus.drain()
        bus = EventBus(path=path)
        bus.subscribe("b", handler, name="s")
        async with bus:
            await bus.publish_many([("a", 3), ("b", 4)])
            await bus.drain()
        assert handler.data == [1, 4]

    run(main())


def test_plain_subscriptions_of_one_function_share_their_place(path):
    seen = []

    async def main():
        bus = EventBus(path=path)
        async with bus:
            bus.subscribe("a", module_handler)
            bus.subscribe("b", module_handler)
            bus.subscribe("*", module_handler)
            await bus.publish_many([("a", 1), ("b", 2), ("c", 3)])
            await bus.drain()
            assert bus.audit().balanced
        assert bus.metrics().subscriptions[f"{__name__}.module_handler"].ledger.done == 3

    _seen.clear()
    run(main())
    seen.extend(_seen)
    assert seen == [1, 2, 3], "once each, however many topics match"


_seen = []


async def module_handler(event):
    _seen.append(event.data)


# Names -----------------------------------------------------------------------------


def a_closure():
    return lambda event: None


@pytest.mark.parametrize("handler", [lambda event: None, a_closure(), partial(jot), Notes().__call__, print])
def test_a_handler_without_a_name_that_lasts_must_be_given_one(path, handler):
    bus = EventBus(path=path)
    with pytest.raises(InvalidOption, match="name") as refused:
        bus.subscribe("a", handler)
    assert refused.value.field == "name"
    assert bus.subscribe("a", handler, name="mine").name == "mine"


def test_a_name_that_is_taken_is_refused(path):
    bus = EventBus(path=path)
    bus.subscribe("a", jot)
    bus.subscribe("a", lambda event: None, name="mine")
    with pytest.raises(InvalidOption, match="taken"):
        bus.subscribe("a", Notes(), name="mine")
    with pytest.raises(InvalidOption, match="taken"):
        bus.subscribe("a", Notes(), name=f"{__name__}.jot")
    assert bus.get_subscribers() == {"a": 2}


def test_a_function_that_is_defined_again_takes_the_place_of_the_old_one(path):
    cell = "async def again(event):\n    notes.append((version, event.data))\n"
    notes = []

    async def main():
        bus = EventBus(path=path)
        async with bus:
            for version in (1, 2):
                names = {"notes": notes, "version": version, "__name__": "notebook"}
                exec(cell, names)
                bus.subscribe("a", names["again"])
                await bus.publish("a", version)
                await bus.drain()
            assert bus.get_subscribers() == {"a": 1}
        assert notes == [(1, 1), (2, 2)]

    run(main())


def test_a_subscription_keeps_its_place_when_it_is_cancelled(path):
    async def main():
        bus = EventBus(path=path)
        notes = named(bus)
        [subscription] = bus._table._lanes["notes"].subscriptions
        async with bus:
            subscription.pause()
            await bus.publish("a", 1)
            subscription.cancel()
            await bus.publish("a", 2)
            assert notes.data == []
            again = named(bus)
            await bus.drain()
            assert again.data == [1, 2]
            assert bus.audit().balanced

    run(main())


def test_a_subscription_that_nobody_has_is_named_and_can_be_dropped(path):
    async def main():
        assert await session(path, ("a", 1), name="old") == [1]
        bus = EventBus(path=path)
        named(bus, name="new")
        with pytest.raises(NotStarted):
            await bus.drop_subscription("old")
        async with bus:
            assert bus.describe()["absent"] == ["old"]
            for name in ("new", "neither", ""):
                with pytest.raises(InvalidOption) as refused:
                    await bus.drop_subscription(name)
                assert refused.value.field == "name"
            await bus.publish("a", 2)
            await bus.drop_subscription("old")
            assert bus.describe()["absent"] == []
        assert await session(path, name="old") == [], "it is a new one, and begins with what comes"

    run(main())
    with EventBus(path=path) as bus:
        assert bus.describe()["absent"] == ["new", "old"]
        bus.sync.drop_subscription("old")
        assert bus.describe()["absent"] == ["new"]
    with pytest.raises(InvalidOption):
        EventBus().sync.drop_subscription("old")


# The window ------------------------------------------------------------------------


@pytest.mark.parametrize("publish", ["one by one", "at once"])
def test_what_there_is_no_room_for_comes_out_of_the_file_in_order(path, publish):
    """With room for ten events and a handler that is slower than its publisher."""

    async def main():
        bus = EventBus(path=path, max_queue_size=10)
        notes = named(bus)
        slow = []

        async def handle(event):
            await asyncio.sleep(0)
            slow.append(event.data)
            depth = bus.metrics().subscriptions["slow"].depth
            assert max(depth.values()) <= 10

        bus.subscribe("*", handle, name="slow")
        expected = list(range(1, 1001))
        async with bus:
            if publish == "at once":
                batch = await bus.publish_many([("a", n) for n in expected])
                receipts = batch.receipts
            else:
                receipts = await asyncio.gather(*(bus.publish("a", n) for n in expected))
            await bus.drain()
            assert slow == notes.data == expected
            for receipt in receipts:
                assert (await receipt.settled()).outcomes == {"notes": "done", "slow": "done"}
            assert bus.audit().balanced

    run(main())


def test_a_paused_subscription_holds_up_nobody(path):
    async def main():
        bus = EventBus(path=path, max_queue_size=5)
        notes = named(bus)
        late = named(bus, name="late")
        [subscription] = bus._table._lanes["late"].subscriptions
        subscription.pause()
        async with bus:
            for n in range(1, 101):
                await bus.publish("a", n)
            while len(notes.data) < 100:
                await asyncio.sleep(0)
            assert sum(bus.metrics().subscriptions["late"].depth.values()) == 5
            subscription.resume()
            await bus.drain()
        assert late.data == list(range(1, 101))

    run(main())


def test_critical_events_do_not_wait_behind_others_in_the_file(path):
    async def main():
        bus = EventBus(path=path, max_queue_size=4)
        notes = named(bus)
        [subscription] = bus._table._lanes["notes"].subscriptions
        subscription.pause()
        async with bus:
            for n in range(1, 21):
                await bus.publish("a", n, priority=EventPriority.LOW)
            await bus.publish("a", 0.5, priority=EventPriority.CRITICAL)
            subscription.resume()
            await bus.drain()
        assert notes.data == [0.5, *range(1, 21)]

    run(main())


def test_a_subscription_that_comes_late_catches_up_while_others_publish(path):
    async def main():
        bus = EventBus(path=path, max_queue_size=50)
        async with bus:
            await bus.publish_many([("a", n) for n in range(1, 2001)])
            notes = named(bus, since="start")
            for n in range(2001, 4001, 100):
                await bus.publish_many([("a", n + each) for each in range(100)])
            await bus.drain()
            assert notes.data == list(range(1, 4001))
            assert bus.audit().balanced

    run(main())


# Failures --------------------------------------------------------------------------


def test_attempts_are_kept_over_a_restart(path):
    attempts = []

    def fails(event):
        attempts.append(event.delivery.attempt)
        raise KeyError("no")

    async def life():
        bus = EventBus(path=path)
        retry = RetryPolicy(max_attempts=4, initial_delay=0.05, exponential_base=1, jitter=False)
        bus.subscribe("*", fails, name="fails", retry=retry)
        before = len(attempts)
        async with bus:
            if not before:
                await bus.publish("a", 1)
            while len(attempts) < before + 2:
                await asyncio.sleep(0.001)
            if len(attempts) >= 4:
                await bus.drain()
                assert await bus.dead_letters.count() == 1
            else:
                await bus.stop(timeout=0)
        return bus

    run(life())
    run(life())
    assert attempts == [1, 2, 3, 4]


def test_a_retry_holds_its_level_after_a_restart_too(path):
    order = []

    async def handle(event):
        order.append((event.data, event.delivery.attempt))
        if event.data == 1 and event.delivery.attempt == 1:
            raise KeyError

    async def life(publish):
        bus = EventBus(path=path)
        retry = RetryPolicy(max_attempts=3, initial_delay=0.2, jitter=False)
        bus.subscribe("*", handle, name="handle", retry=retry)
        async with bus:
            if publish:
                await bus.publish_many([("a", 1), ("a", 2)])
                while not order:
                    await asyncio.sleep(0.001)
                await bus.stop(timeout=0)
            else:
                await bus.drain()

    run(life(True))
    run(life(False))
    assert order == [(1, 1), (1, 2), (2, 1)]


@pytest.mark.parametrize("kind", ["async", "suspending", "sync"])
@pytest.mark.parametrize("order", ["level", "key", "computed"])
def test_order_holds_through_failures_a_small_window_and_a_restart(path, kind, order):
    """With room for seven events and failures in between; per key where handlers run side by side."""
    options = {
        "level": {},
        "key": {"concurrency": 4, "retry_holds": "key"},
        "computed": {"concurrency": 4, "retry_holds": "key", "order_by": lambda event: event.key},
    }[order]
    seen, failed = {}, set()

    def work(event):
        number = event.data
        if number % 17 == 0 and number not in failed:
            failed.add(number)
            raise KeyError
        seen.setdefault(event.key, []).append(number)

    async def handle(event):
        if kind == "suspending":
            await asyncio.sleep(0)
        work(event)

    async def life(publish):
        bus = EventBus(path=path, max_queue_size=7)
        retry = RetryPolicy(max_attempts=5, initial_delay=0.001, jitter=False)
        bus.subscribe("*", work if kind == "sync" else handle, name="handle", retry=retry, **options)
        async with bus:
            if publish:
                await bus.publish_many([("a", n, {"key": f"k{n % 5}"}) for n in range(1, 601)])
                while not seen:
                    await asyncio.sleep(0)
                await bus.stop(timeout=0)
            else:
                await bus.drain()
                assert bus.audit().balanced

    run(life(True))
    run(life(False))
    # A sync handler goes on over a stop: what it had then may come again, and counts where it came first.
    first = {key: list(dict.fromkeys(numbers)) for key, numbers in seen.items()}
    assert first == {f"k{k}": [n for n in range(1, 601) if n % 5 == k] for k in range(5)}


def test_a_dead_letter_and_its_settlement_are_one(path):
    async def main():
        bus = EventBus(path=path)

        def rejects(event):
            raise Reject("no")

        bus.subscribe("*", rejects, name="rejects")
        async with bus:
            receipt = await bus.publish("a", {"n": 1}, key="k")
            assert (await receipt.settled()).outcomes == {"rejects": "dead"}
            [letter] = [letter async for letter in bus.dead_letters]
            assert (letter.subscription, letter.event.data, letter.attempts) == ("rejects", {"n": 1}, 1)
            assert bus.audit().balanced
        # It is in the file, and the delivery is settled.
        bus = EventBus(path=path)
        notes = named(bus, name="rejects")
        async with bus:
            await bus.drain()
            assert notes.data == []
            assert await bus.dead_letters.count() == 1
            report = await bus.dead_letters.redrive()
            assert (report.succeeded, report.failed) == (1, 0)
            assert (notes.data, notes.events[0].key) == ([{"n": 1}], "k")
            assert await bus.dead_letters.count() == 0
        bus = EventBus(path=path)
        notes = named(bus, name="rejects")
        async with bus:
            await bus.drain()
            assert (notes.data, await bus.dead_letters.count()) == ([], 0)

    run(main())


def test_a_full_dead_letter_queue_parks_the_subscription_and_loses_nothing(path):
    async def main():
        bus = EventBus(path=path, dead_letters=DeadLetters(max_entries=1))

        def rejects(event):
            raise Reject

        bus.subscribe("*", rejects, name="rejects")
        async with bus:
            await bus.publish_many([("a", n) for n in range(1, 4)])
            while bus.metrics().subscriptions["rejects"].state != "parked":
                await asyncio.sleep(0.001)
            assert await bus.dead_letters.count() == 1
            await bus.stop(timeout=0.05)
        bus = EventBus(path=path)
        notes = named(bus, name="rejects")
        async with bus:
            await bus.drain()
            assert notes.data == [2, 3]

    run(main())


def test_delays_and_deadlines_count_over_a_restart(path):
    now = [1000.0]

    async def life(step):
        bus = EventBus(path=path, clock=lambda: now[0])
        notes = named(bus)
        async with bus:
            if step == 1:
                await bus.publish("later", 1, delay=60)
                await bus.publish("never", 2, delay=100, expires_in=120)
                await bus.publish("now", 3)
                while not notes.data:
                    await asyncio.sleep(0.001)
            else:
                while not notes.data:
                    now[0] += 61
                    bus._tick()
                    await asyncio.sleep(0.001)
                now[0] += 1000
                bus._tick()
                await bus.drain()
            await bus.stop(timeout=0.05)
        return notes.data, bus.audit().subscriptions["notes"].expired

    assert run(life(1)) == ([3], 0)
    assert run(life(2)) == ([1], 1)


# Keys ------------------------------------------------------------------------------


def test_keys_count_over_a_restart_until_their_deadline(path):
    async def life(bus, *expected):
        async with bus:
            receipts = [await bus.publish("a", {"n": n}, idempotency_key=f"k{n}") for n in range(len(expected))]
        assert [receipt.duplicate for receipt in receipts] == list(expected)
        return receipts

    async def main():
        from ironbus import Idempotency

        ttl = Idempotency(ttl=3600)
        await life(EventBus(path=path, idempotency=ttl), False, False)
        [first, *_] = await life(EventBus(path=path, idempotency=ttl), True, True, False)
        assert (first.sequence, first.durability) == (None, "os")
        await life(EventBus(path=path, idempotency=Idempotency(ttl=0.000001)), False, False, False)

    run(main())


def test_content_counts_over_a_restart(path):
    async def main():
        for duplicate in (False, True):
            async with EventBus(path=path, idempotency="content") as bus:
                assert (await bus.publish("a", {"n": 1})).duplicate is duplicate

    run(main())


def test_of_publishers_of_one_key_one_wins(path):
    async def main():
        async with EventBus(path=path) as bus:
            receipts = await asyncio.gather(*(bus.publish("a", {"n": n}, idempotency_key="k") for n in range(50)))
            assert sum(not receipt.duplicate for receipt in receipts) == 1
            ledger = bus.audit()
            assert (ledger.accepted, ledger.duplicate, ledger.balanced) == (1, 49, True)

    run(main())


# Files that are not to be had ------------------------------------------------------


async def refused(path, kind=StorageError):
    bus = EventBus(path=path)
    with pytest.raises(kind) as by_start:
        await bus.start()
    with pytest.raises(kind):
        await bus.publish("a", {})
    assert bus.audit().balanced
    return str(by_start.value)


def test_a_folder_is_no_journal(tmp_path):
    assert "not a regular file" in run(refused(tmp_path))


def test_a_text_file_is_no_journal_and_stays_as_it_is(path):
    path.write_text("my diary\n" * 1000)
    assert "not a SQLite database" in run(refused(path))
    assert path.read_text() == "my diary\n" * 1000
    assert os.listdir(path.parent) == [path.name]


def test_a_database_of_somebody_else_is_no_journal(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (a)")
    database.close()
    assert "another program" in run(refused(path))


def test_a_journal_of_a_newer_ironbus_is_left_alone(path):
    run(session(path, ("a", 1)))
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 999")
    database.close()
    before = path.read_bytes()
    assert "upgrade ironbus" in run(refused(path))
    assert path.read_bytes() == before


def test_no_folder_no_journal(tmp_path):
    assert "create the folder first" in run(refused(tmp_path / "nowhere" / "x.bus"))


# The end of a process --------------------------------------------------------------


def test_a_bus_that_nobody_stops_leaves_its_file_in_order(path):
    import subprocess
    import sys

    script = f"""
import asyncio
from ironbus import EventBus
bus = EventBus(path={os.fspath(path)!r})
async def main():
    await bus.start()
    for n in range(1, 6):
        await bus.publish("a", n)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(path.parent) == [path.name], "no log and no lock are left"
    assert run(session(path, since="start")) == [1, 2, 3, 4, 5]


def test_a_bus_that_is_dropped_lets_go_of_its_file(path):
    import gc

    async def main():
        bus = EventBus(path=path)
        await bus.publish("a", 1)
        del bus

    async def again():
        # Where the thread of the journal was the last to have the bus, it is through a moment later.
        while True:
            try:
                return await session(path, since="start")
            except JournalInUse:
                await asyncio.sleep(0.001)

    run(main())
    gc.collect()
    assert run(again()) == [1]


@pytest.mark.parametrize("restart", [False, True])
def test_what_is_published_while_the_bus_stops_is_not_passed_over(path, restart):
    """Nothing is handled any more, and the file is still open: who was through with everything is not any more."""
    got = []

    async def handle(event):
        got.append(event.data)

    def fresh():
        bus = EventBus(path=path)
        bus.subscribe("a", handle, name="s")
        return bus

    async def main():
        bus = fresh()
        await bus.start()
        await bus.publish("a", 1)
        await bus.drain()
        put_down = bus._put_down

        async def late():
            await bus.publish("a", 2)
            await put_down()

        bus._put_down = late  # type: ignore[method-assign]
        await bus.stop()
        del bus._put_down
        if restart:
            bus = fresh()
        async with bus:
            await bus.drain()
            await bus.publish("a", 3)
            await bus.drain()
            assert bus.audit().balanced

    run(main())
    assert got == [1, 2, 3]


def test_the_file_is_read_by_anybody_meanwhile(path):
    async def main():
        async with EventBus(path=path) as bus:
            await bus.publish("a", {"n": 1})
            reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            [(sequence, data)] = reader.execute("SELECT sequence, data FROM events").fetchall()
            reader.close()
            assert (sequence, json.loads(data)) == (1, {"n": 1})
            await bus.publish("a", {"n": 2})

    run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_the_process_leaves_the_file_to_its_parent(path):
    import subprocess
    import sys

    script = f"""
import asyncio, os, sys
from ironbus import EventBus, Forked, JournalInUse

def child(work, error):
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            work()
        except error:
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1]

async def main():
    bus = EventBus(path={os.fspath(path)!r})
    async with bus:
        await bus.publish("a", 1)
        print(child(lambda: bus.publish_sync("a", 2), Forked))
        loop = asyncio.events._get_running_loop()
        asyncio.events._set_running_loop(None)
        try:
            print(child(lambda: asyncio.run(bus.start()), JournalInUse))
        finally:
            asyncio.events._set_running_loop(loop)
        print((await bus.publish("a", 3)).durability)

asyncio.run(main())
"""
    # CPython 3.12 and later warn of what is tested here.
    quiet = "ignore:This process:DeprecationWarning"
    done = subprocess.run([sys.executable, "-W", quiet, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["0", "0", "fsync"])
    assert os.listdir(path.parent) == [path.name]
    assert run(session(path, since="start")) == [1, 3]


def test_a_harness_works_on_a_durable_bus_and_never_without_its_file(path):
    from ironbus.testing import harness

    async def main():
        bus = EventBus(path=path)
        notes = named(bus)
        with pytest.raises(InvalidOption) as refused:
            harness(bus, durable=False)
        assert refused.value.field == "durable"
        async with harness(bus, clock="virtual") as t:
            await bus.publish("a", 1, delay=60)
            await bus.publish("a", 2)
            await t.settle()
            assert notes.data == [2]
            await t.advance(61)
            assert notes.data == [2, 1]
            t.assert_conserved()

    run(main())


def test_every_error_of_storage_is_ironbus_s():
    from ironbus import DurabilityUnknown, JournalReadOnly

    for error in (JournalInUse, JournalReadOnly, DurabilityUnknown, PayloadNotEncodable):
        assert issubclass(error, IronbusError)
