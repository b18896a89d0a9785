"""Races on the keys of a bus with a path: of many threads and tasks that publish the same key one wins, over restarts
too, and a key never swallows its own event, whose handler has failed. (What happens to keys while a disk fails, and at
the edge of their time to live, is in ``tests/engine_durable_keys.rs``.)
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections import Counter
from contextlib import closing

import pytest
from ironbus import EventBus, Idempotency, RetryPolicy, _core
from torture import control, done, times

THREADS = 4
TASKS = 8
KEYS = 25
LIVES = times(3, 40)


@pytest.fixture(autouse=True)
def _quiet():
    """Handlers fail here on purpose."""
    logger = logging.getLogger("ironbus")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


async def race(path, keyed):
    """Everybody publishes every key in every life; who was told to be the winner of which, and what was handled."""
    winners, handled = Counter(), Counter()

    async def handle(event):
        handled[event.data["key"]] += 1

    for life in range(LIVES):
        bus = EventBus(path=path, durability="os")
        bus.subscribe("*", handle, name="handle")
        # Half of the keys of a life were published in the one before.
        keys = [f"k{n}" for n in range(life * KEYS, (life + 2) * KEYS)]
        barrier = threading.Barrier(THREADS)

        def told(receipt, key):
            if not receipt.duplicate:
                winners[key] += 1

        def thread(bus=bus, keys=keys, barrier=barrier):
            barrier.wait(10)
            for key in keys:
                told(bus.sync.publish("e", {"key": key}, idempotency_key=key if keyed else None), key)

        async def task(bus=bus, keys=keys):
            for key in keys:
                told(await bus.publish("e", {"key": key}, idempotency_key=key if keyed else None), key)

        async with bus:
            threads = [asyncio.to_thread(thread) for _ in range(THREADS)]
            await asyncio.gather(*threads, *(task() for _ in range(TASKS)))
            await bus.drain()
            assert bus.audit().balanced
    return winners, handled


def check(path, winners, handled):
    """One winner for each key, whose event is stored and handled once."""
    expected = dict.fromkeys((f"k{n}" for n in range((LIVES + 1) * KEYS)), 1)
    with closing(sqlite3.connect(path)) as database:
        stored = dict(database.execute("SELECT json_extract(data, '$.key'), count(*) FROM event GROUP BY 1"))
    assert dict(winners) == expected, "not one winner for each key"
    assert stored == expected, "not one event for each key"
    assert dict(handled) == expected, "not one delivery for each key"


def test_of_threads_and_tasks_that_publish_the_same_keys_one_wins_over_restarts_too(tmp_path):
    winners, handled = asyncio.run(race(tmp_path / "x.bus", keyed=True))
    check(tmp_path / "x.bus", winners, handled)
    done("keys that had one winner", len(winners))
    done("publishes of a key that somebody had", 2 * KEYS * LIVES * (THREADS + TASKS) - len(winners))


def test_without_keys_everybody_wins(tmp_path):
    """The negative control: it is the keys."""
    winners, handled = asyncio.run(race(tmp_path / "x.bus", keyed=False))
    with pytest.raises(AssertionError, match="not one winner"):
        check(tmp_path / "x.bus", winners, handled)
    control()


class Time:
    """Of all lives of a bus."""

    now = 1_000_000.0

    def __call__(self):
        return self.now


async def fail_then_publish_again(path, lose):
    """An event fails, and is published again each time, over restarts: each is a duplicate, and it is delivered."""
    clock, attempts, duplicates = Time(), [], []
    retry = RetryPolicy(max_attempts=3, initial_delay=5, exponential_base=1, jitter=False)
    still_fails = True

    def life():
        bus = EventBus(path=path, clock=clock, idempotency=Idempotency(ttl=1000))
        assert _core.Harness(bus).set_epoch(0)

        async def handle(event):
            attempts.append((event.data["n"], event.delivery.attempt))
            if still_fails and event.data["n"] == 0:
                raise ConnectionError

        bus.subscribe("e", handle, name="handle", retry=retry)
        return bus

    async def still(bus):
        harness = _core.Harness(bus)
        while (future := harness.still_future(0)) is not None:
            await asyncio.wait([future], timeout=0.05)

    async def publish_again(bus, n):
        duplicates.append((await bus.publish("e", {"n": n}, idempotency_key="k")).duplicate)
        await still(bus)

    for attempt in (1, 2, 3):
        async with asyncio.timeout(30):
            bus = life()
            await bus.start()
            bus._tick()
            await still(bus)
            await publish_again(bus, attempt - 1)
            assert attempts == [(0, n) for n in range(1, attempt + 1)], "a failed event was swallowed by its key"
            if lose and attempt == 1:
                _core.Harness(bus).lose(bus._table.lanes()["handle"].handle)
                # Whoever took the key for done would have settled it.
                await bus.stop(timeout=0)
                with closing(sqlite3.connect(path)) as database, database:
                    database.execute("DELETE FROM straggler")
            else:
                await bus.stop(timeout=0)
        clock.now += 6
    bus = life()
    async with bus:
        [letter] = [letter async for letter in bus.dead_letters]
        assert (letter.event.data, letter.attempts) == ({"n": 0}, 3)
        # A dead letter is not done, and its key is not free: it is redriven, and not published again.
        await publish_again(bus, 3)
        still_fails = False
        report = await bus.dead_letters.redrive(letter.id)
        assert (report.succeeded, report.failed) == (1, 0)
        await publish_again(bus, 4)
        clock.now += 1000
        await publish_again(bus, 5)
        assert attempts == [(0, 1), (0, 2), (0, 3), (0, 1), (5, 1)]
        assert bus.audit().balanced
    assert duplicates == [False, True, True, True, True, False]


def test_a_failed_event_is_not_swallowed_by_its_own_key(tmp_path):
    asyncio.run(fail_then_publish_again(tmp_path / "x.bus", lose=False))
    done("failed events whose keys were published again", 1)


def test_an_event_that_is_swallowed_is_noticed(tmp_path):
    """The negative control."""
    with pytest.raises(AssertionError, match="swallowed"):
        asyncio.run(fail_then_publish_again(tmp_path / "x.bus", lose=True))
    control()
