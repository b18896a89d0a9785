"""The dead letters of a bus: what is kept, when, and how it is delivered again."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import stat
import subprocess
import sys
import threading
import weakref
from datetime import UTC, datetime

import pytest
from ironbus import (
    DeadLetter,
    DeadLetters,
    Event,
    EventBus,
    EventPriority,
    InvalidOption,
    InvalidPattern,
    NotStarted,
    RetryPolicy,
    StorageError,
    WouldDeadlock,
    WrongLoop,
)
from ironbus.recovery import DeadLetterQueue
from recovering import Clock, advance, still

KINDS = ["async", "suspending", "sync"]


def run(main, limit=60):
    async def limited():
        async with asyncio.timeout(limit):
            return await main

    return asyncio.run(limited())


@pytest.fixture(params=["memory", "file"])
def path(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "orders.dead"


class Handler:
    """Fails for as long as it has a bug, and notes what it could do."""

    def __init__(self, kind="async"):
        self.bug = True
        self.error = KeyError
        self.calls = []
        self.done = []
        self.handle = {"async": self._async, "suspending": self._suspending, "sync": self._work}[kind]

    def _work(self, event):
        self.calls.append(event.data)
        if self.bug is True or event.data in (self.bug or ()):
            self.fail()
        self.done.append(event.data)

    def fail(self):
        raise self.error("the secret of the event")

    async def _async(self, event):
        self._work(event)

    async def _suspending(self, event):
        await asyncio.sleep(0)
        self._work(event)


def bus_with(path=None, handler=None, name="bill", topic="order.*", options=None, **settings):
    bus = EventBus(dead_letters=DeadLetters(path=path, **settings))
    if handler is not None:
        bus.subscribe(topic, handler.handle, name=name, **(options or {}))
    return bus


async def publish(bus, count, event_type="order.paid"):
    return [await bus.publish(Event(event_type, n)) for n in range(count)]


# What is kept ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_poison_event_is_one_dead_letter(path, kind):
    """With all that a person needs to understand it, after all its attempts, and settled as dead."""

    async def main():
        handler = Handler(kind)
        handler.bug = [1]
        retry = RetryPolicy(max_attempts=3, initial_delay=0, jitter=False)
        bus = bus_with(path, handler, options={"retry": retry})
        async with bus:
            receipts = [
                await bus.publish(Event("order.paid", n, source="shop"), key="k", headers={"a": "b"}, priority=1)
                for n in range(3)
            ]
            outcomes = [(await receipt.settled()).outcomes["bill"] for receipt in receipts]
            assert outcomes == ["done", "dead", "done"]
            assert handler.calls == [0, 1, 1, 1, 2]
            [letter] = [letter async for letter in bus.dead_letters]
            assert bus.audit().balanced
        assert isinstance(letter, DeadLetter)
        assert (letter.subscription, letter.handler) == ("bill", f"{__name__}.{handler.handle.__qualname__}")
        assert (letter.exception_type, letter.message) == ("KeyError", "'the secret of the event'")
        assert letter.traceback.rstrip().endswith("KeyError")
        assert "in fail" in letter.traceback
        assert letter.attempts == 3
        assert 0 <= letter.last_failure - letter.first_failure < 60
        assert len(letter.fingerprint) == 16
        assert not letter.in_process_only
        event = letter.event
        assert (event.type, event.data, event.source) == ("order.paid", 1, "shop")
        assert (event.key, dict(event.headers), event.priority) == ("k", {"a": "b"}, EventPriority.HIGH)
        assert (event.event_id, event.sequence) == (receipts[1].event_id, 2)
        assert "secret" not in repr(letter)

    run(main())


def test_a_letter_is_kept_before_the_next_event_starts(path):
    """Settlement and letter are one step: whoever sees the one sees the other."""

    async def main():
        seen = []
        bus = bus_with(path)

        def handler(event):
            seen.append(bus.sync.dead_letters.count())
            raise ValueError

        bus.subscribe("t", handler, name="s")
        async with bus:
            for _ in range(20):
                await bus.publish("t")
            await bus.drain()
        assert seen == list(range(20))

    run(main())


BLOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_and_other_subscriptions_go_on_while_a_letter_is_written(tmp_path, kind):
    """Another process holds the file: the lane of the letter waits for it, and nobody else."""

    async def main():
        path, poisoned, other = tmp_path / "x.dead", Handler(kind), Handler(kind)
        poisoned.bug, other.bug = [0], False
        bus = bus_with(path, poisoned, "poisoned", "t")
        bus.subscribe("t", other.handle, name="other")
        async with bus:
            with subprocess.Popen(
                [sys.executable, "-c", BLOCKER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as blocker:
                assert blocker.stdout.readline() == "held\n"
                receipts = await publish(bus, 50, "t")
                while len(other.done) < 50 or not poisoned.calls:
                    await asyncio.sleep(0)
                for _ in range(1000):
                    await asyncio.sleep(0)
                assert poisoned.calls == [0]
                ledger = bus.audit()
                assert ledger.balanced
                assert ledger.subscriptions["poisoned"].pending == 50
                blocker.stdin.write("go\n")
                blocker.stdin.flush()
                assert (await receipts[0].settled()).outcomes["poisoned"] == "dead"
            await bus.drain()
            assert poisoned.calls == list(range(50))
            assert await bus.dead_letters.count() == 1

    run(main())


def test_without_details_no_text_of_the_exception_is_kept(path):
    async def main():
        handler = Handler()
        bus = bus_with(path, handler, details=False)
        async with bus:
            await publish(bus, 1)
            await bus.drain()
            [letter] = [letter async for letter in bus.dead_letters]
        assert (letter.message, letter.traceback, letter.exception_type) == ("", "", "KeyError")

    run(main())


def test_an_exception_is_kept_with_those_that_it_came_from():
    async def main():
        bus = EventBus()

        def look():
            raise LookupError("first secret")

        async def handler(event):
            try:
                look()
            except LookupError as error:
                raise RuntimeError("second secret") from error

        bus.subscribe("t", handler)
        async with bus:
            await bus.publish("t")
            await bus.drain()
        [letter] = bus.dead_letters
        assert letter.message == "second secret"
        first, second = letter.traceback.split("The above exception was the direct cause")
        assert first.rstrip().endswith("LookupError")
        assert "in look" in first
        assert second.rstrip().endswith("RuntimeError")
        assert "secret" not in letter.traceback.replace('raise LookupError("first secret")', "").replace(
            'raise RuntimeError("second secret")', ""
        )

    run(main())


@pytest.mark.parametrize("when_full", ["park", "drop_oldest"])
def test_a_full_queue_parks_the_subscription_or_drops_its_oldest(path, when_full, caplog):
    """Nothing is lost without a word: the event waits in its place, or a letter that goes is counted."""

    async def main():
        handler, other = Handler(), Handler()
        other.bug = False
        bus = bus_with(path, handler, max_entries=2, when_full=when_full)
        bus.subscribe("*", other.handle, name="other")
        async with bus:
            await publish(bus, 4)
            await still(bus)
            ledger = bus.audit()
            assert ledger.balanced
            assert other.done == [0, 1, 2, 3]
            if when_full == "drop_oldest":
                assert handler.calls == [0, 1, 2, 3]
                assert [letter.event.data async for letter in bus.dead_letters] == [2, 3]
                assert bus._report()["dead_letters_dropped"] == 2
                return
            # The third has failed and cannot be kept; the fourth is not begun.
            assert handler.calls == [0, 1, 2]
            assert (ledger.subscriptions["bill"].dead, ledger.subscriptions["bill"].pending) == (2, 2)
            assert bus.metrics().subscriptions["bill"].state == "parked"
            assert [record.getMessage() for record in caplog.records if "parked" in record.getMessage()] == [
                "subscription bill is parked: the dead letter of event 3 could not be kept: the dead letter queue is "
                "full (2 entries); redrive or purge some, or raise its max_entries"
            ]
            [first, _] = [letter.id async for letter in bus.dead_letters]
            assert await bus.dead_letters.purge(first) == 1
            await still(bus)
            assert handler.calls == [0, 1, 2, 3]
            assert [letter.event.data async for letter in bus.dead_letters] == [1, 2]
            assert await bus.dead_letters.purge() == 2
            await bus.drain()
            assert [letter.event.data async for letter in bus.dead_letters] == [3]
            assert bus.audit().balanced

    run(main())


def test_room_that_another_process_made_is_found_in_a_while(tmp_path):
    """Nobody can tell this process, so a lane that is parked looks for itself."""

    async def main():
        clock, handler = Clock(), Handler()
        path = tmp_path / "x.dead"
        bus = EventBus(dead_letters=DeadLetters(path=path, max_entries=1), clock=clock)
        bus.subscribe("t", handler.handle, name="s")
        async with bus:
            await publish(bus, 2, "t")
            await still(bus)
            assert bus.metrics().subscriptions["s"].state == "parked"
            assert await EventBus(dead_letters=DeadLetters(path=path)).dead_letters.purge() == 1
            await advance(bus, clock, 6)
            assert bus.metrics().subscriptions["s"].state == "idle"
            assert [letter.event.data async for letter in bus.dead_letters] == [1]

    run(main())


@pytest.mark.parametrize("order", [{}, {"concurrency": 3, "ordered": False}, {"concurrency": 2}])
def test_a_redrive_makes_the_room_that_its_own_subscription_waits_for(path, order):
    """What is delivered again goes first there, or the two would wait for each other for ever."""

    async def main():
        handler = Handler()
        bus = bus_with(path, handler, max_entries=1, options=order)
        async with bus:
            await publish(bus, 2)
            await still(bus)
            assert bus.metrics().subscriptions["bill"].state == "parked"
            # The bug is still there: the letter stays, and so does the one that has no room.
            report = await bus.dead_letters.redrive()
            assert (report.failed, report.succeeded) == (1, 0)
            await still(bus)
            assert bus.metrics().subscriptions["bill"].state == "parked"
            handler.bug = False
            report = await bus.dead_letters.redrive()
            assert (report.failed, report.succeeded) == (0, 1)
            await bus.drain()
            assert await bus.dead_letters.count() == 1
            report = await bus.dead_letters.redrive()
            assert report.succeeded == 1
            assert sorted(handler.done) == [0, 1]
            assert bus.audit().balanced

    run(main())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("order", [{}, {"concurrency": 2, "retry_holds": "key"}])
def test_a_redrive_ends_though_its_subscription_parks_in_front_of_it(path, kind, key, order):
    """What is delivered again waits behind events that fail, and there is no room for their letters."""

    async def main():
        handler = Handler(kind)
        bus = EventBus(dead_letters=DeadLetters(path=path, max_entries=1))
        retry = RetryPolicy(max_attempts=2, initial_delay=0.01)
        subscription = bus.subscribe("t", handler.handle, name="s", retry=retry, **order)
        async with bus:
            await bus.publish("t", 7, key=key)
            await bus.drain()
            subscription.pause()
            for n in (1, 2, 3):
                await bus.publish("t", n, key=key)
            redrive = asyncio.create_task(bus.dead_letters.redrive())
            while bus.audit().accepted < 5:
                await asyncio.sleep(0)
            handler.bug = {1, 2, 3}
            subscription.resume()
            report = await redrive
            assert (report.succeeded, report.pending) == (1, 0)
            assert handler.done == [7]
            handler.bug = False
            while bus.audit().pending:
                await bus.dead_letters.redrive()
                await asyncio.sleep(0)
            while await bus.dead_letters.count():
                await bus.dead_letters.redrive()
            assert sorted(handler.done) == [1, 2, 3, 7]
            assert bus.audit().balanced

    run(main())


def test_letters_that_are_too_old_are_let_go(path):
    async def main():
        clock, handler = Clock(), Handler()
        bus = EventBus(dead_letters=DeadLetters(path=path, max_age=60), clock=clock)
        bus.subscribe("t", handler.handle)
        async with bus:
            await bus.publish("t", 1)
            await bus.drain()
            clock.now += 40
            await bus.publish("t", 2)
            await bus.drain()
            assert await bus.dead_letters.count() == 2
            clock.now += 40
            assert [letter.event.data async for letter in bus.dead_letters] == [2]
            assert bus._report()["dead_letters_expired"] == 1
            # Also without anybody who looks.
            clock.now += 100
            await bus.publish("t", 3)
            await bus.drain()
            assert bus._report()["dead_letters"] == 1

    run(main())


def test_a_file_is_private_and_outlives_the_bus(tmp_path):
    async def main():
        path, handler = tmp_path / "x.dead", Handler()
        bus = bus_with(path, handler)
        assert not path.exists()
        async with bus:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            await bus.publish(
                Event("order.paid", {"id": [1, None, "ä"]}, timestamp=5.5, event_id="e", source="shop"),
                key="k",
                headers={"h": "1"},
                priority=EventPriority.LOW,
                idempotency_key="once",
            )
            await bus.drain()
        other = bus_with(path, handler)
        handler.bug = False
        events = []
        other.subscribe("never", events.append, name="copies")
        async with other:
            [letter] = [letter async for letter in other.dead_letters]
            report = await other.dead_letters.redrive(into="copies")
        assert report.succeeded == 1
        for event in (letter.event, events[0]):
            assert (event.type, event.data, event.timestamp) == ("order.paid", {"id": [1, None, "ä"]}, 5.5)
            assert (event.event_id, event.source, event.key) == ("e", "shop", "k")
            assert (dict(event.headers), event.priority) == ({"h": "1"}, EventPriority.LOW)
            assert event.idempotency_key == "once"
        assert handler.calls == [{"id": [1, None, "ä"]}]

    run(main())


def test_a_queue_of_plain_calls_is_the_same_file(tmp_path):
    """``DeadLetterQueue`` and a bus read each other's letters."""

    async def main():
        queue = DeadLetterQueue(tmp_path)
        await queue.add_failed_event("order.paid", {"id": 7}, KeyError("price"), "pay-7", subscription="bill")
        queue.close()
        handler = Handler()
        handler.bug = False
        bus = bus_with(tmp_path / "dead_letters.db", handler)
        async with bus:
            [letter] = [letter async for letter in bus.dead_letters]
            assert (letter.id, letter.subscription, letter.attempts) == ("pay-7", "bill", 1)
            assert (await bus.dead_letters.redrive("pay-7")).succeeded == 1
        assert handler.done == [{"id": 7}]
        assert await queue.get_failed_events() == []

    run(main())


class Odd:
    def __str__(self):
        return "an odd thing"


def test_a_payload_without_json_is_redriven_as_it_is_in_its_process_only(path):
    async def main():
        handler, odd = Handler(), {"odd": Odd()}
        bus = bus_with(path, handler)
        async with bus:
            await bus.publish("order.paid", odd)
            await bus.drain()
            [letter] = [letter async for letter in bus.dead_letters]
            assert letter.in_process_only
            assert letter.event.data is odd
            assert json.loads(json.dumps(letter.to_dict()))["data"] == '{"odd": "an odd thing"}'
            if path is not None:
                # As another process sees it.
                other = bus_with(path, handler)
                async with other:
                    [seen] = [letter async for letter in other.dead_letters]
                    assert (seen.event.data, seen.in_process_only) == ('{"odd": "an odd thing"}', True)
                    report = await other.dead_letters.redrive()
                    assert (report.delivered, report.skipped) == (0, {"payload_elsewhere": 1})
            handler.bug = False
            assert (await bus.dead_letters.redrive()).succeeded == 1
            assert handler.done[-1] is odd
            assert await bus.dead_letters.count() == 0

    run(main())


def test_in_memory_a_payload_comes_back_as_the_very_object():
    async def main():
        handler, data = Handler(), {"pair": (1, 2), 3: "three"}
        bus = bus_with(None, handler)
        async with bus:
            await bus.publish("order.paid", data)
            await bus.drain()
            handler.bug = False
            await bus.dead_letters.redrive()
            assert handler.done[0] is data

    run(main())


def test_payloads_go_with_their_letters(path):
    """A letter that is purged, or makes room, keeps nothing alive."""

    class Thing:
        pass

    async def main():
        async def fail(event):
            raise ValueError

        bus = bus_with(path, max_entries=100, when_full="drop_oldest")
        bus.subscribe("order.*", fail)
        async with bus:
            purged = Thing()
            alive = weakref.ref(purged)
            await bus.publish("order.paid", purged)
            await bus.drain()
            del purged
            gc.collect()
            assert alive() is not None
            await bus.dead_letters.purge()
            gc.collect()
            assert alive() is None
            dropped = Thing()
            alive = weakref.ref(dropped)
            await bus.publish("order.paid", dropped)
            del dropped
            for _ in range(300):
                await bus.publish("order.paid", Thing())
            await bus.drain()
            gc.collect()
            assert alive() is None

    run(main())


def test_a_bus_is_collected_with_letters_that_refer_to_it():
    def make():
        async def main():
            bus = bus_with(None, Handler())
            async with bus:
                await bus.publish("order.paid", {"bus": bus})
                await bus.drain()
            assert len(bus.dead_letters) == 1
            return weakref.ref(bus)

        return run(main())

    alive = make()
    gc.collect()
    assert alive() is None


# Delivering again ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_redrive_stops_with_the_bug_and_goes_through_without(path, kind):
    """With the bug still there the first one fails, and the others are left alone."""

    async def main():
        handler = Handler(kind)
        bus = bus_with(path, handler)
        async with bus:
            await publish(bus, 50)
            await bus.drain()
            handler.calls.clear()
            before = [letter async for letter in bus.dead_letters]
            [fingerprint] = {letter.fingerprint for letter in before}
            report = await bus.dead_letters.redrive()
            assert handler.calls == [0]
            assert (report.delivered, report.succeeded, report.failed) == (1, 0, 1)
            assert (report.stopped, report.skipped, report.pending) == ((fingerprint,), {"same_cause": 49}, 0)
            after = [letter async for letter in bus.dead_letters]
            assert [letter.attempts for letter in after] == [2] + [1] * 49
            assert [letter.id for letter in after] == [letter.id for letter in before]
            assert after[0].first_failure == before[0].first_failure
            handler.bug = False
            report = await bus.dead_letters.redrive()
            assert (report.delivered, report.succeeded, report.stopped) == (50, 50, ())
            assert handler.done == list(range(50))
            assert await bus.dead_letters.count() == 0
            ledger = bus.audit()
            assert ledger.balanced
            assert (ledger.accepted, ledger.subscriptions["bill"].dead) == (101, 51)

    run(main())


def test_a_redrive_goes_to_its_subscription_only_and_to_its_tail(path):
    """Beside the queue's bound, past its keys, behind what is there; other subscriptions see nothing."""

    async def main():
        handler, other = Handler(), Handler()
        other.bug = False
        bus = bus_with(path, handler, options={"max_queue_size": 2})
        bus.subscribe("*", other.handle, name="other")
        async with bus:
            await bus.publish("order.paid", "old", idempotency_key="once")
            await bus.drain()
            assert (await bus.publish("order.paid", "copy", idempotency_key="once")).duplicate
            handler.bug = False
            other.done.clear()
            [subscription] = bus._table._lanes["bill"].subscriptions
            subscription.pause()
            await bus.publish("order.paid", "a")
            await bus.publish("order.paid", "b")
            redrive = asyncio.create_task(bus.dead_letters.redrive())
            while bus.audit().subscriptions["bill"].pending < 3:
                await asyncio.sleep(0)
            subscription.resume()
            assert (await redrive).succeeded == 1
            assert handler.done == ["a", "b", "old"]
            assert other.done == ["a", "b"]

    run(main())


def test_a_redrive_goes_through_retries(path):
    async def main():
        handler = Handler()
        retry = RetryPolicy(max_attempts=2, initial_delay=0, jitter=False)
        bus = bus_with(path, handler, options={"retry": retry})
        async with bus:
            await publish(bus, 1)
            await bus.drain()
            await bus.dead_letters.redrive()
            assert len(handler.calls) == 4
            [letter] = [letter async for letter in bus.dead_letters]
            assert letter.attempts == 4

    run(main())


def test_one_cause_that_is_back_does_not_keep_another_from_going_through(path):
    async def main():
        class Two(Handler):
            def fail(self):
                if self.calls[-1] % 2:
                    raise KeyError
                raise ValueError

        handler = Two()
        bus = bus_with(path, handler)
        async with bus:
            await publish(bus, 10)
            await bus.drain()
            handler.bug = [n for n in range(10) if n % 2]
            report = await bus.dead_letters.redrive()
            assert (report.succeeded, report.failed, report.skipped) == (5, 1, {"same_cause": 4})
            assert [letter.event.data async for letter in bus.dead_letters] == [1, 3, 5, 7, 9]
            assert {letter.exception_type async for letter in bus.dead_letters} == {"KeyError"}

    run(main())


def test_what_a_redrive_is_of(path):
    """One, a filter, all; and at most so many."""

    async def main():
        handler = Handler()
        bus = bus_with(path, handler)
        async with bus:
            for n in range(6):
                await bus.publish(Event("order.paid" if n % 2 else "order.sent", n))
            await bus.drain()
            handler.bug = False
            ids = {letter.event.data: letter.id async for letter in bus.dead_letters}
            assert (await bus.dead_letters.redrive(ids[3])).succeeded == 1
            assert (await bus.dead_letters.redrive(ids[3])).delivered == 0
            assert (await bus.dead_letters.filter(type="order.s*").redrive(limit=2)).succeeded == 2
            assert (await bus.dead_letters.redrive(limit=0)).delivered == 0
            assert (await bus.dead_letters.filter(type="order.paid").redrive(ids[4])).delivered == 0
            assert handler.done == [3, 0, 2]
            assert (await bus.dead_letters.redrive()).succeeded == 3
            assert handler.done == [3, 0, 2, 1, 4, 5]

    run(main())


def test_letters_that_cannot_be_delivered_are_named_by_reason(path):
    async def main():
        handler = Handler()
        bus = bus_with(path, handler, options={"where": lambda event: event.data != 1 or handler.bug})
        gone = bus.subscribe("order.*", handler.handle, name="gone")
        async with bus:
            await publish(bus, 2)
            await bus.drain()
            gone.cancel()
            handler.bug = False
            report = await bus.dead_letters.redrive()
            assert (report.succeeded, report.failed) == (1, 0)
            assert report.skipped == {"no_subscription": 2, "not_handled": 1}
            # What the filter did not want is nobody's, and stays.
            again = await bus.dead_letters.filter(subscription="bill").redrive()
            assert again.skipped == {"not_handled": 1}
            assert await bus.dead_letters.count() == 3
            assert bus.audit().balanced

    run(main())


def test_a_subscription_that_is_cancelled_with_a_letter_in_its_queue_gives_it_back(path):
    async def main():
        handler = Handler()
        bus = bus_with(path)
        subscription = bus.subscribe("t", handler.handle, name="s")
        async with bus:
            await publish(bus, 1, "t")
            await bus.drain()
            subscription.pause()
            redrive = asyncio.create_task(bus.dead_letters.redrive())
            while not bus.audit().pending:
                await asyncio.sleep(0)
            subscription.cancel()
            report = await redrive
            assert report.skipped == {"not_handled": 1}
            handler.bug = False
            bus.subscribe("t", handler.handle, name="s")
            assert (await bus.dead_letters.redrive()).succeeded == 1

    run(main())


def test_what_one_redrive_has_another_leaves_alone(path):
    async def main():
        handler = Handler()
        bus = bus_with(path, handler)
        async with bus:
            await publish(bus, 1)
            await bus.drain()
            handler.bug = False
            [subscription] = bus._table._lanes["bill"].subscriptions
            subscription.pause()
            first = asyncio.create_task(bus.dead_letters.redrive())
            while not bus.audit().pending:
                await asyncio.sleep(0)
            assert (await bus.dead_letters.redrive()).skipped == {"held": 1}
            subscription.resume()
            assert (await first).succeeded == 1
            assert handler.done == [0]

    run(main())


def test_a_lease_that_has_ended_does_not_deliver_twice_in_one_process(path):
    """Who waited for the delivery is gone and renews nothing; the delivery is still there."""

    async def main():
        clock, handler = Clock(), Handler()
        bus = EventBus(dead_letters=DeadLetters(path=path), clock=clock)
        subscription = bus.subscribe("t", handler.handle, name="s")
        async with bus:
            await publish(bus, 1, "t")
            await bus.drain()
            subscription.pause()
            handler.bug = False
            redrive = asyncio.create_task(bus.dead_letters.redrive())
            while not bus.audit().pending:
                await asyncio.sleep(0)
            redrive.cancel()
            with pytest.raises(asyncio.CancelledError):
                await redrive
            clock.now += 1000
            assert (await bus.dead_letters.redrive()).skipped == {"held": 1}
            subscription.resume()
            await bus.drain()
            # It went on by itself.
            assert handler.done == [0]
            assert await bus.dead_letters.count() == 0

    run(main())


def test_a_timeout_ends_the_redrive_and_not_the_deliveries(path):
    async def main():
        handler = Handler()
        bus = bus_with(path, handler)
        async with bus:
            await publish(bus, 3)
            await bus.drain()
            handler.bug = False
            [subscription] = bus._table._lanes["bill"].subscriptions
            subscription.pause()
            report = await bus.dead_letters.redrive(timeout=0.05)
            assert (report.delivered, report.pending, report.succeeded) == (1, 1, 0)
            subscription.resume()
            await bus.drain()
            assert handler.done == [0]
            assert await bus.dead_letters.count() == 2

    run(main())


def test_what_is_under_way_at_a_stop_goes_on_at_the_next_start(path):
    async def main():
        handler = Handler()
        bus = bus_with(path, handler)
        async with bus:
            await publish(bus, 1)
            await bus.drain()
            handler.bug = False
            [subscription] = bus._table._lanes["bill"].subscriptions
            subscription.pause()
            redrive = asyncio.create_task(bus.dead_letters.redrive())
            while not bus.audit().pending:
                await asyncio.sleep(0)
            assert (await bus.stop(timeout=0)).left == 1
            with pytest.raises(NotStarted, match="start"):
                await bus.dead_letters.redrive()
            assert await bus.dead_letters.count() == 1
            subscription.resume()
            await bus.start()
            assert (await redrive).succeeded == 1
            assert await bus.dead_letters.count() == 0
            assert bus.audit().balanced

    run(main())


def test_a_redrive_inside_its_own_handler_cannot_wait_for_itself(path):
    async def main():
        raised = []
        bus = bus_with(path)

        async def handler(event):
            if event.data == "redrive":
                try:
                    await bus.dead_letters.redrive()
                except WouldDeadlock as error:
                    raised.append(error)
            else:
                raise ValueError

        bus.subscribe("t", handler, name="s")
        async with bus:
            await bus.publish("t", "poison")
            await bus.publish("t", "redrive")
            await bus.drain()
            assert len(raised) == 1
            # It was delivered all the same, and has failed again.
            [letter] = [letter async for letter in bus.dead_letters]
            assert letter.attempts == 2

    run(main())


def test_threads_and_programs_without_a_loop(path, tmp_path):
    handler = Handler("sync")
    bus = bus_with(path, handler)
    with bus:
        for n in range(40):
            bus.sync.publish(Event("order.paid", n))
        bus.sync.drain()
        letters = bus.sync.dead_letters
        assert len(letters) == letters.count() == len(bus.dead_letters) == 40
        assert [letter.event.data for letter in letters] == list(range(40))
        first = next(iter(bus.dead_letters))
        assert letters.get(first.id) == first
        assert letters.get("nothing") is None
        report = letters.redrive()
        assert (report.failed, report.skipped) == (1, {"same_cause": 39})
        assert letters.redrive(timeout=0).delivered == 0
        handler.bug = False
        assert letters.filter(subscription="bill").redrive(first.id).succeeded == 1
        reports = []
        threads = [threading.Thread(target=lambda: reports.append(letters.redrive())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(report.succeeded for report in reports) == 39
        assert sorted(handler.done) == list(range(40))
        handler.bug = True
        bus.sync.publish("order.paid", "x")
        bus.sync.drain()
        assert letters.export(tmp_path / "out.jsonl") == 1
        assert letters.purge() == 1
        assert bus.audit().balanced


def test_a_sync_handler_may_redrive_what_another_failed(path):
    """Another thread stands in for the one that waits."""
    handler = Handler("sync")
    bus = EventBus(dead_letters=DeadLetters(path=path), workers=1)
    bus.subscribe("order.paid", handler.handle, name="bill")
    reports = []
    bus.subscribe("fixed", lambda event: reports.append(bus.sync.dead_letters.redrive()), name="operator")
    with bus:
        bus.sync.publish("order.paid", 1)
        bus.sync.drain()
        handler.bug = False
        bus.sync.publish("fixed")
        bus.sync.drain(timeout=30)
    assert [report.succeeded for report in reports] == [1]


# Looking, purging, exporting -------------------------------------------------------


def test_filters(path):
    async def main():
        clock = Clock()
        bus = EventBus(dead_letters=DeadLetters(path=path), clock=clock)
        handler, other = Handler(), Handler()
        other.error = ValueError
        bus.subscribe("order.*", handler.handle, name="bill")
        bus.subscribe("order.sent", other.handle, name="ship")
        moments = []
        async with bus:
            for n, event_type in enumerate(["order.paid", "order.sent", "order.paid"]):
                await bus.publish(Event(event_type, n))
                await bus.drain()
                clock.now += 10
                moments.append(max([letter.last_failure async for letter in bus.dead_letters]))
            letters = bus.dead_letters

            async def data(**wanted):
                return [(letter.subscription, letter.event.data) async for letter in letters.filter(**wanted)]

            assert sorted(await data()) == [("bill", 0), ("bill", 1), ("bill", 2), ("ship", 1)]
            assert await data(type="order.paid") == [("bill", 0), ("bill", 2)]
            assert len(await data(type="*.sent")) == 2
            assert await data(subscription="ship") == [("ship", 1)]
            [ship] = [letter async for letter in letters.filter(subscription="ship")]
            assert await data(fingerprint=ship.fingerprint) == [("ship", 1)]
            assert await data(since=moments[2] - 1) == [("bill", 2)]
            assert await data(until=moments[0] + 1) == [("bill", 0)]
            assert await data(since=datetime.fromtimestamp(moments[2] - 1, UTC)) == [("bill", 2)]
            assert await letters.filter(type="order.sent").filter(subscription="bill").count() == 1
            assert await letters.filter(type="nothing").count() == 0
            assert await letters.filter(type="order.paid").get(ship.id) is None
            assert await letters.get(ship.id) == ship
            assert await letters.filter(subscription="bill", type="order.sent").purge() == 1
            assert await letters.purge("nothing") == 0
            assert await letters.count() == 3

    run(main())


def test_filters_that_make_no_sense_are_refused():
    letters = EventBus().dead_letters
    for wanted, field in [
        ({"type": 7}, "type"),
        ({"type": ""}, "type"),
        ({"subscription": 7}, "subscription"),
        ({"fingerprint": "xyz"}, "fingerprint"),
        ({"fingerprint": 7}, "fingerprint"),
        ({"since": "yesterday"}, "since"),
        ({"since": float("nan")}, "since"),
        ({"until": datetime(2026, 1, 1)}, "until"),
    ]:
        with pytest.raises((InvalidOption, InvalidPattern)) as caught:
            letters.filter(**wanted)
        assert caught.value.field == field
        with pytest.raises((InvalidOption, InvalidPattern)):
            EventBus().sync.dead_letters.filter(**wanted)
    with pytest.raises(InvalidOption, match="type was given before"):
        letters.filter(type="a").filter(type="b")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"limit": -1}, "limit"),
        ({"limit": True}, "limit"),
        ({"timeout": "soon"}, "timeout"),
        ({"into": ""}, "into"),
        ({"id": 7}, "id"),
    ],
)
def test_redrives_that_make_no_sense_are_refused(arguments, field):
    with pytest.raises(InvalidOption) as caught:
        EventBus().sync.dead_letters.redrive(**arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"path": 7}, "path"),
        ({"max_entries": 0}, "max_entries"),
        ({"max_age": -1}, "max_age"),
        ({"when_full": "refuse"}, "when_full"),
        ({"details": None}, "details"),
        ({"durability": "memory"}, "durability"),
    ],
)
def test_settings_are_checked_where_they_are_made(settings, field):
    with pytest.raises(InvalidOption) as caught:
        DeadLetters(**settings)
    assert caught.value.field == field


def test_the_bus_tells_how_it_keeps_them(tmp_path):
    bus = EventBus(dead_letters=DeadLetters(path=tmp_path / "x.dead", max_entries=7))
    assert bus.describe()["dead_letters"] == {
        "path": str(tmp_path / "x.dead"),
        "max_entries": 7,
        "max_age": None,
        "when_full": "park",
        "details": True,
        "durability": "os",
    }
    assert not (tmp_path / "x.dead").exists()
    with pytest.raises(InvalidOption, match=r"dead_letters must be an ironbus\.DeadLetters"):
        EventBus(dead_letters=str(tmp_path))


def test_export_writes_json_lines_to_a_private_file(path, tmp_path):
    async def main():
        bus = bus_with(path, Handler())
        async with bus:
            await publish(bus, 150)
            await bus.publish("order.odd", Odd())
            await bus.drain()
            out = tmp_path / "letters.jsonl"
            out.write_text("old")
            assert await bus.dead_letters.export(out) == 151
            assert stat.S_IMODE(out.stat().st_mode) == 0o600
            assert sorted(os.listdir(tmp_path)) == sorted(
                {"letters.jsonl"} | ({"orders.dead", "orders.dead-shm", "orders.dead-wal"} if path else set())
            )
            lines = [json.loads(line) for line in out.read_text().splitlines()]
            assert [line["data"] for line in lines] == [*range(150), '"an odd thing"']
            assert set(lines[0]) == {
                "id", "type", "data", "event_id", "timestamp", "source", "sequence", "priority", "key", "headers",
                "idempotency_key", "correlation_id", "causation_id", "subscription", "handler", "exception_type",
                "message", "traceback", "attempts", "first_failure", "last_failure", "fingerprint", "in_process_only",
            }  # fmt: skip
            text = io.StringIO()
            assert await bus.dead_letters.filter(type="order.odd").export(text) == 1
            assert json.loads(text.getvalue())["in_process_only"] is True
            for nowhere in (tmp_path / "no" / "folder", tmp_path):
                with pytest.raises(StorageError, match="cannot be written"):
                    await bus.dead_letters.export(nowhere)
            with pytest.raises(InvalidOption, match="file must be a path"):
                await bus.dead_letters.export(7)
            assert await bus.dead_letters.count() == 151

    run(main())


def test_a_loop_never_waits_for_the_file(tmp_path):
    """The blocking forms say what to use instead; in memory they block nobody."""

    async def main(path):
        bus = bus_with(path)
        return (
            lambda: len(bus.dead_letters),
            lambda: list(bus.dead_letters),
            lambda: len(bus.sync.dead_letters),
            lambda: bus.sync.dead_letters.count(),
            lambda: bus.sync.dead_letters.get("x"),
            lambda: bus.sync.dead_letters.purge(),
            lambda: bus.sync.dead_letters.export(io.StringIO()),
        )

    async def in_file():
        for call in await main(tmp_path / "x.dead"):
            with pytest.raises(WrongLoop, match=r"use (await|async for)"):
                call()

    async def in_memory():
        for call in await main(None):
            call()

    run(in_file())
    run(in_memory())


# Files that cannot be used ---------------------------------------------------------


def test_a_file_that_cannot_be_used_is_said_at_the_start(tmp_path):
    foreign = tmp_path / "notes.txt"
    foreign.write_text("not a database, but long enough to be looked at. " * 20)

    async def main():
        for path in (tmp_path, foreign, tmp_path / "no" / "x.dead"):
            bus = bus_with(path, Handler())
            with pytest.raises(StorageError, match=str(path)):
                await bus.start()
            assert not bus.describe()["running"]

    run(main())
    assert foreign.read_text().startswith("not a database")
    bus = bus_with(tmp_path, Handler())
    with pytest.raises(StorageError):
        bus.sync.start()
    assert not any(thread.name == "ironbus-loop" for thread in threading.enumerate())


def by_another_program(path, statement):
    """In another process: two copies of SQLite in one would drop each other's locks."""
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(path), statement], check=True, timeout=60)


REFUSE = "CREATE TRIGGER refuse BEFORE {} ON dead_letter BEGIN SELECT RAISE(ABORT, 'the disk is upset'); END"


def test_a_file_that_fails_parks_the_subscription_until_it_works(tmp_path, caplog):
    """The letter is not kept anywhere else, so its event waits, over a stop and a start as well."""

    async def main():
        clock, path, handler = Clock(), tmp_path / "x.dead", Handler()
        bus = EventBus(dead_letters=DeadLetters(path=path), clock=clock)
        bus.subscribe("t", handler.handle, name="s")
        async with bus:
            by_another_program(path, REFUSE.format("INSERT"))
            await publish(bus, 2, "t")
            await still(bus)
            await advance(bus, clock, 60)
            assert bus.metrics().subscriptions["s"].state == "parked"
            assert handler.calls == [0]
            [line] = [record.getMessage() for record in caplog.records if "parked" in record.getMessage()]
            assert f"dead letter queue {path}: SQLite error: the disk is upset" in line
            assert (await bus.stop(timeout=0)).left == 2
            await bus.start()
            by_another_program(path, "DROP TRIGGER refuse")
            handler.bug = False
            await advance(bus, clock, 6)
            assert handler.calls == [0, 1]
            assert [letter.event.data async for letter in bus.dead_letters] == [0]
            assert bus.audit().balanced

    run(main())


def test_a_letter_whose_end_cannot_be_written_stays(tmp_path, caplog):
    """The handler succeeded, so nothing is held up; the letter may be delivered once more."""

    async def main():
        path, handler = tmp_path / "x.dead", Handler()
        bus = bus_with(path, handler)
        async with bus:
            await publish(bus, 1)
            await bus.drain()
            handler.bug = False
            by_another_program(path, REFUSE.format("DELETE"))
            assert (await bus.dead_letters.redrive()).succeeded == 1
            [letter] = [letter async for letter in bus.dead_letters]
            assert f"its dead letter {letter.id} stays as it is: dead letter queue {path}" in caplog.text
            assert bus.audit().balanced
            by_another_program(path, "DROP TRIGGER refuse")

    run(main())


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be deleted there")
def test_a_file_that_is_deleted_under_the_bus_is_noticed(tmp_path, caplog):
    """No letter is acknowledged that nobody could read: the subscription is parked until that is put right."""

    async def main():
        clock, path = Clock(), tmp_path / "x.dead"
        bus = EventBus(dead_letters=DeadLetters(path=path), clock=clock)
        bus.subscribe("t", Handler().handle, name="s")
        async with bus:
            await publish(bus, 1, "t")
            await bus.drain()
            path.unlink()
            receipt = await bus.publish(Event("t", 1))
            await still(bus)
            assert bus.metrics().subscriptions["s"].state == "parked"
            assert "x.dead: was moved, replaced or deleted" in caplog.text
            assert not path.exists()
            await advance(bus, clock, 6)
            # A new file would take what is in the log of the old one for its own.
            with pytest.raises(StorageError, match="is not there, but its -wal is"):
                await bus.dead_letters.count()
            tmp_path.joinpath("x.dead-wal").unlink()
            await advance(bus, clock, 6)
            assert (await receipt.settled()).outcomes["s"] == "dead"
            assert [letter.event.data async for letter in bus.dead_letters] == [1]
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        queue = DeadLetterQueue(tmp_path)
        await queue.add_failed_event("t", 1, "error")
        file, moved = tmp_path / "dead_letters.db", tmp_path / "elsewhere"
        file.rename(moved)
        with pytest.raises(StorageError, match="was moved, replaced or deleted"):
            await queue.add_failed_event("t", 2, "error")
        moved.rename(file)
        await queue.add_failed_event("t", 2, "error")
        assert [event.event_data for event in await queue.get_failed_events()] == [1, 2]

    run(main())
