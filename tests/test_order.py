"""Order: what is promised per subscription, level and key, under many publishers at once."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import defaultdict

import pytest
from ironbus import EventBus, EventPriority
from ironbus.errors import QueueFull

LEVELS = list(EventPriority)
#: Within how many starts an aged event moves while one level above it is busy.
WINDOW = 16


def run(main, limit=60):
    """Runs a test's coroutine with a deadline, so that a hang is a failure with a place."""

    async def limited():
        async with asyncio.timeout(limit):
            return await main

    return asyncio.run(limited())


def in_threads(count, body):
    """Starts threads that begin together; returns a function that joins them."""
    barrier = threading.Barrier(count)
    failures = []

    def work(number):
        try:
            barrier.wait(30)
            body(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()

    def join():
        for thread in threads:
            thread.join(60)
        assert not failures
        assert not any(thread.is_alive() for thread in threads)

    return join


@pytest.mark.parametrize("bound", [100_000, 3], ids=["roomy", "tight"])
def test_order_of_sequence_under_eight_publishers(bound):
    """Every subscription sees each level in publish order, and numbers have no gap and no repeat."""

    async def main():
        bus = EventBus(max_queue_size=bound)
        seen = defaultdict(list)

        async def quick(event):
            seen["quick"].append((event.priority, event.sequence))

        async def slow(event):
            await asyncio.sleep(0)
            seen["slow"].append((event.priority, event.sequence))

        def sync(event):
            seen["sync"].append((event.priority, event.sequence))

        for handler in (quick, slow, sync):
            bus.subscribe("t.*", handler)
        numbers = []
        async with bus:

            def from_thread(number):
                for index in range(150):
                    receipt = bus.publish_sync(f"t.{number}", {"n": index}, priority=LEVELS[index % 4])
                    numbers.append(receipt.sequence)

            async def from_task(number):
                for index in range(150):
                    receipt = await bus.publish(f"t.{number}", {"n": index}, priority=LEVELS[(index + number) % 4])
                    numbers.append(receipt.sequence)

            join = in_threads(4, from_thread)
            await asyncio.gather(*(from_task(number) for number in range(4, 8)))
            await asyncio.to_thread(join)
            await bus.drain(timeout=30)
            assert bus.audit().balanced
        assert sorted(numbers) == list(range(1, 1201))
        for name in ("quick", "slow", "sync"):
            assert sorted(number for _, number in seen[name]) == list(range(1, 1201)), name
            for level in LEVELS:
                of_level = [number for at, number in seen[name] if at == level]
                assert of_level == sorted(of_level), (name, level)

    run(main())


def test_one_publisher_sees_its_own_order():
    """What one task publishes is handled in that order, for each publisher at the same time."""

    async def main():
        bus = EventBus()
        seen = defaultdict(list)

        async def handler(event):
            seen[event.data["who"]].append(event.data["n"])

        bus.subscribe("t", handler)

        async def publisher(who):
            for index in range(100):
                await bus.publish("t", {"who": who, "n": index})

        async with bus:
            await asyncio.gather(*(publisher(who) for who in range(8)))
            await bus.drain(timeout=30)
        assert all(seen[who] == list(range(100)) for who in range(8))

    run(main())


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("by", ["key", "order_by"])
def test_keys_keep_their_order_and_never_overlap(kind, by):
    """With concurrency, a key is in order on each level, and never handled twice at once on any level."""

    async def main():
        bus = EventBus(workers=8)
        lock = threading.Lock()
        active, overlaps, seen = set(), [], defaultdict(list)

        def enter(event):
            with lock:
                key = event.data["key"]
                if key in active:
                    overlaps.append(key)
                active.add(key)
                seen[key, event.priority].append(event.sequence)

        def leave(event):
            with lock:
                active.discard(event.data["key"])

        async def handler(event):
            enter(event)
            for _ in range(event.sequence % 3):
                await asyncio.sleep(0)
            leave(event)

        def sync_handler(event):
            enter(event)
            if event.sequence % 3 == 0:
                threading.Event().wait(0.0002)  # lets another thread in; nothing depends on it
            leave(event)

        options = {"order_by": lambda event: event.data["key"]} if by == "order_by" else {}
        bus.subscribe("t", handler if kind == "async" else sync_handler, concurrency=8, **options)
        async with bus:

            async def publisher(number):
                for index in range(100):
                    key = f"k{(index * 7 + number) % 5}"
                    await bus.publish("t", {"key": key}, key=key, priority=LEVELS[(index + number) % 4])

            await asyncio.gather(*(publisher(number) for number in range(8)))
            await bus.drain(timeout=40)
            assert bus.audit().balanced
        assert not overlaps
        assert sum(map(len, seen.values())) == 800
        assert all(numbers == sorted(numbers) for numbers in seen.values())

    run(main())


def test_a_busy_key_holds_up_no_other():
    """Order is per key: one key that hangs leaves the slots to the others."""

    async def main():
        bus = EventBus()
        go_on, others = asyncio.Event(), []

        async def handler(event):
            if event.key == "stuck":
                await go_on.wait()
            else:
                others.append(event.sequence)

        bus.subscribe("t", handler, concurrency=2)
        async with bus:
            for _ in range(50):
                await bus.publish("t", {}, key="stuck")
            receipts = [await bus.publish("t", {}, key="free") for _ in range(5)]
            for receipt in receipts:
                await receipt.settled()
            assert others == [51, 52, 53, 54, 55]
            go_on.set()

    run(main())


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("how", ["unordered", "different keys"])
def test_concurrency_overlaps(kind, how):
    """Concurrency is real: eight handlers meet, each waiting for all the others."""

    async def main():
        bus = EventBus(workers=8)
        barrier, meeting = threading.Barrier(8), asyncio.Barrier(8)

        async def handler(event):
            await meeting.wait()

        def sync_handler(event):
            barrier.wait(30)

        options = {"ordered": False} if how == "unordered" else {}
        bus.subscribe("t", handler if kind == "async" else sync_handler, concurrency=8, **options)
        async with bus:
            receipts = [await bus.publish("t", {}, key=f"k{number}") for number in range(8)]
            settlements = [await receipt.settled() for receipt in receipts]
            assert all(settlement.ok for settlement in settlements)

    run(main())


def test_concurrency_is_a_limit():
    """No more handlers run at once than were asked for."""

    async def main():
        bus = EventBus()
        active = most = 0

        async def handler(event):
            nonlocal active, most
            active += 1
            most = max(most, active)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            active -= 1

        bus.subscribe("t", handler, concurrency=3, ordered=False)
        async with bus:
            await bus.publish_many([("t", {})] * 100)
            await bus.drain(timeout=30)
        assert most == 3

    run(main())


def test_a_failure_keeps_the_order():
    """A handler that fails is followed by the next event, after its own outcome is settled."""

    async def main():
        bus = EventBus()
        seen = []

        async def handler(event):
            seen.append(event.sequence)
            await asyncio.sleep(0)
            if event.sequence % 2:
                raise ValueError

        bus.subscribe("t", handler)
        async with bus:
            receipts = [await bus.publish("t", {}) for _ in range(20)]
            outcomes = [next(iter((await receipt.settled()).outcomes.values())) for receipt in receipts]
        assert seen == list(range(1, 21))
        assert outcomes == ["dead", "done"] * 10

    run(main())


async def occupied(bus, clock=None):
    """A subscription whose handler is in the middle of an event; returns the record and what ends it."""
    seen, begun, go_on = [], asyncio.Event(), asyncio.Event()

    async def handler(event):
        seen.append((event.priority.name, event.data.get("n")))
        if event.data.get("first"):
            begun.set()
            await go_on.wait()

    bus.subscribe("t", handler)
    await bus.start()
    await bus.publish("t", {"first": True})
    await begun.wait()
    seen.clear()
    return seen, go_on


def test_critical_is_started_next():
    """A CRITICAL event goes before all that is queued, and levels go in their order."""

    async def main():
        bus = EventBus(clock=lambda: 1.0)
        seen, go_on = await occupied(bus)
        for level in ("LOW", "NORMAL", "HIGH"):
            for number in range(3):
                await bus.publish("t", {"n": number}, priority=EventPriority[level])
        await bus.publish("t", {"n": 0}, priority=EventPriority.CRITICAL)
        go_on.set()
        await bus.drain(timeout=30)
        await bus.stop()
        rest = [(level, number) for level in ("HIGH", "NORMAL", "LOW") for number in range(3)]
        assert seen == [("CRITICAL", 0), *rest]

    run(main())


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_critical_from_a_handler_is_started_next(kind):
    """No event is taken in advance: what a handler publishes as CRITICAL is the very next."""

    async def main():
        bus = EventBus(clock=lambda: 1.0)
        seen = []

        def note(event):
            seen.append(event.data["n"])
            return event.data["n"] == 5

        async def handler(event):
            if note(event):
                await bus.publish("t", {"n": "critical"}, priority=EventPriority.CRITICAL)

        def sync_handler(event):
            if note(event):
                bus.publish_sync("t", {"n": "critical"}, priority=EventPriority.CRITICAL)

        bus.subscribe("t", handler if kind == "async" else sync_handler)
        await bus.publish_many([("t", {"n": number}) for number in range(10)])
        async with bus:
            await bus.drain(timeout=30)
        assert seen == [0, 1, 2, 3, 4, 5, "critical", 6, 7, 8, 9]

    run(main())


def test_an_aged_low_moves_within_the_bound():
    """Under endless CRITICAL an event that has waited for a second moves, and takes no more than its share."""

    async def main():
        now = [100.0]
        bus = EventBus(clock=lambda: now[0])
        seen, begun, go_on = [], asyncio.Event(), asyncio.Event()

        async def handler(event):
            if event.data.get("first"):
                begun.set()
                await go_on.wait()
                return
            seen.append(event.priority.name)
            if event.priority is EventPriority.CRITICAL and seen.count("LOW") < 5:
                await bus.publish("t", {}, priority=EventPriority.CRITICAL)

        bus.subscribe("t", handler)
        async with bus:
            await bus.publish("t", {"first": True})
            await begun.wait()
            for _ in range(5):
                await bus.publish("t", {}, priority=EventPriority.LOW)
            await bus.publish("t", {}, priority=EventPriority.CRITICAL)
            now[0] += 1.5
            go_on.set()
            await bus.drain(timeout=30)
        places = [place for place, level in enumerate(seen) if level == "LOW"]
        assert len(places) == 5
        assert places[0] < WINDOW
        assert [later - earlier for earlier, later in itertools.pairwise(places)] == [WINDOW] * 4

    run(main())


def test_what_has_not_aged_waits():
    """Before its second is over, a LOW event goes after every CRITICAL."""

    async def main():
        now = [100.0]
        bus = EventBus(clock=lambda: now[0])
        seen, go_on = await occupied(bus)
        await bus.publish("t", {}, priority=EventPriority.LOW)
        for _ in range(40):
            await bus.publish("t", {}, priority=EventPriority.CRITICAL)
        now[0] += 0.9
        go_on.set()
        await bus.drain(timeout=30)
        await bus.stop()
        assert [level for level, _ in seen] == ["CRITICAL"] * 40 + ["LOW"]

    run(main())


def test_a_flood_of_low_keeps_no_critical_out():
    """Each level has its own bound: a full LOW refuses LOW alone."""

    async def main():
        bus = EventBus(max_queue_size=4, overflow="reject", clock=lambda: 1.0)
        seen, go_on = await occupied(bus)
        for number in range(4):
            await bus.publish("t", {"n": number}, priority=EventPriority.LOW)
        with pytest.raises(QueueFull):
            await bus.publish("t", {}, priority=EventPriority.LOW)
        for number in range(4):
            await bus.publish("t", {"n": number}, priority=EventPriority.CRITICAL)
        go_on.set()
        await bus.drain(timeout=30)
        await bus.stop()
        assert [level for level, _ in seen] == ["CRITICAL"] * 4 + ["LOW"] * 4
        assert bus.audit().balanced

    run(main())


def test_waiting_low_publishers_hold_up_no_critical_one():
    """A publisher that waits for room on one level is no obstacle to another level."""

    async def main():
        bus = EventBus(max_queue_size=1, clock=lambda: 1.0)
        seen, go_on = await occupied(bus)
        await bus.publish("t", {"n": 0}, priority=EventPriority.LOW)
        waiting = [asyncio.create_task(bus.publish("t", {"n": n}, priority=EventPriority.LOW)) for n in (1, 2)]
        while bus.audit().waiting < 2:
            await asyncio.sleep(0)
        await asyncio.wait_for(bus.publish("t", {"n": 9}, priority=EventPriority.CRITICAL), 5)
        go_on.set()
        await asyncio.gather(*waiting)
        await bus.drain(timeout=30)
        await bus.stop()
        assert seen == [("CRITICAL", 9), ("LOW", 0), ("LOW", 1), ("LOW", 2)]

    run(main())


def test_numbers_have_no_gap_after_refusals():
    """A refused event has no number: the next accepted one follows the last accepted one."""

    async def main():
        bus = EventBus(max_queue_size=1, overflow="reject")
        _, go_on = await occupied(bus)
        first = await bus.publish("t", {})
        for _ in range(5):
            with pytest.raises(QueueFull):
                await bus.publish("t", {})
        other = await bus.publish("elsewhere", {})
        go_on.set()
        await bus.drain(timeout=30)
        await bus.stop()
        assert (first.sequence, other.sequence) == (2, 3)

    run(main())
