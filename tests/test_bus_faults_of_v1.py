"""The faults that the ``pm.events`` bus had, by their numbers in the contract: none may come back."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading

import pytest
from ironbus.bus import EventBus
from ironbus.errors import QueueFull

LIMIT = 20.0
SECRET = "s3cret-4111-1111"


def on_a_loop(test):
    """Run a test's coroutine on a loop of its own, within a limit."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        async def bounded():
            async with asyncio.timeout(LIMIT):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


@on_a_loop
async def test_fault_1_pattern_handlers_do_not_multiply():
    """v1.0 appended a pattern's handlers to the exact type's list with every event, so calls grew like n²."""
    exact, pattern = [], []

    async def on_exact(event):
        exact.append(event.sequence)

    async def on_pattern(event):
        pattern.append(event.sequence)

    bus = EventBus()
    bus.subscribe("a.b", on_exact)
    bus.subscribe("a.*", on_pattern)
    before = bus.get_subscribers()
    async with bus:
        for _ in range(100):
            await bus.publish("a.b", {})
        await bus.drain()
        assert bus.get_subscribers() == before == {"a.b": 1, "a.*": 1}
        bus.unsubscribe("a.*", on_pattern)
        await bus.publish("a.b", {})
        await bus.drain()
    assert exact == list(range(1, 102))
    assert pattern == list(range(1, 101))


def test_fault_2_sync_publishes_make_no_loops(monkeypatch):
    """v1.0 called asyncio.run for every publish_sync, and made a loop per thread that nobody closed."""
    seen = []

    async def handler(event):
        seen.append(event.data["n"])

    bus = EventBus()
    bus.subscribe("a", handler)

    def publish(numbers):
        for number in numbers:
            bus.publish_sync("a", {"n": number})
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()

    async def main():
        made = []
        original = asyncio.new_event_loop
        monkeypatch.setattr(asyncio, "new_event_loop", lambda: made.append(1) or original())
        monkeypatch.setattr(asyncio, "run", lambda *args, **kwargs: made.append(2))
        async with asyncio.timeout(LIMIT), bus:
            await asyncio.gather(*(asyncio.to_thread(publish, range(start, 1000, 4)) for start in range(4)))
            await bus.drain()
        assert made == []

    publish([-1])
    asyncio.run(main())
    assert sorted(seen) == list(range(-1, 1000))


@on_a_loop
async def test_fault_2_publishes_from_threads_do_not_race_the_loop():
    """v1.0 put into the loop's queue from other threads; the loop slept on, or an event was lost."""
    rounds, answers = 300, []
    answered = threading.Semaphore(0)

    async def handler(event):
        answers.append(event.data["n"])
        answered.release()

    bus = EventBus()
    bus.subscribe("a", handler)

    def publish_when_the_loop_sleeps():
        for number in range(rounds):
            bus.publish_sync("a", {"n": number})
            assert answered.acquire(timeout=LIMIT), "the loop was not woken"

    async with bus:
        await asyncio.to_thread(publish_when_the_loop_sleeps)
    assert answers == list(range(rounds))


class Gate:
    """A handler that waits until it is told, and says when it was called."""

    def __init__(self):
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.seen = []

    async def __call__(self, event):
        self.entered.set()
        await self.open.wait()
        self.seen.append(event.data["n"])


@on_a_loop
async def test_fault_3_a_full_queue_makes_publishers_wait():
    """v1.0's deque(maxlen) lost the oldest event without a word; the default is to lose none."""
    gate = Gate()
    bus = EventBus(max_queue_size=3)
    bus.subscribe("a", gate)
    async with bus:
        await bus.publish("a", {"n": 0})
        await gate.entered.wait()
        for number in range(1, 4):
            await bus.publish("a", {"n": number})
        waiting = [asyncio.create_task(bus.publish("a", {"n": number})) for number in range(4, 8)]
        while bus.audit().waiting < 4:
            await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        assert bus.audit().balanced
        with pytest.raises(QueueFull):
            bus.publish_sync("a", {"n": 99})  # a running loop cannot wait on its own thread
        gate.open.set()
        await asyncio.gather(*waiting)
        await bus.drain()
    assert gate.seen == list(range(8))
    ledger = bus.audit()
    assert ledger.balanced
    assert (ledger.offered, ledger.accepted, ledger.rejected) == (9, 8, 1)


@pytest.mark.parametrize(
    ("overflow", "kept", "dropped"),
    [("drop_oldest", [0, 4, 5], 3), ("drop_new", [0, 1, 2], 3), ("reject", [0, 1, 2], 0)],
)
@on_a_loop
async def test_fault_3_what_is_lost_by_choice_is_counted_and_told(overflow, kept, dropped):
    """Dropping is a policy that somebody set; counters and receipts say what went."""
    gate = Gate()
    bus = EventBus(max_queue_size=2, overflow=overflow)
    subscription = bus.subscribe("a", gate)
    refused, receipts = 0, []
    async with bus:
        receipts.append(await bus.publish("a", {"n": 0}))
        await gate.entered.wait()
        for number in range(1, 6):
            try:
                receipts.append(await bus.publish("a", {"n": number}))
            except QueueFull:
                refused += 1
        gate.open.set()
        await bus.drain()
        assert gate.seen == kept
        assert subscription.statistics().ledger.dropped == dropped
        assert refused == 3 - dropped
        outcomes = [next(iter((await receipt.settled()).outcomes.values())) for receipt in receipts]
        assert outcomes.count("dropped") == dropped
        assert outcomes.count("done") == 3
        assert bus.audit().rejected == refused
        assert bus.audit().balanced


@on_a_loop
async def test_fault_4_a_slow_handler_holds_up_itself_alone():
    """v1.0 awaited all handlers of an event before it looked at the next one."""
    slow_async, release = Gate(), threading.Event()
    fast, fast_sync = [], []

    def slow_sync(event):
        assert release.wait(LIMIT)

    async def quick(event):
        fast.append(event.data["n"])

    bus = EventBus(workers=2)
    bus.subscribe("a", slow_async)
    slow = bus.subscribe("a", slow_sync)
    names = [bus.subscribe("a", quick).name, bus.subscribe("a", lambda event: fast_sync.append(event.data["n"])).name]
    await bus.start()
    try:
        for number in range(100):
            await bus.publish("a", {"n": number})
        while any(bus.audit().subscriptions[name].done < 100 for name in names):
            await asyncio.sleep(0)
        assert fast == fast_sync == list(range(100))
        assert slow_async.seen == []
        assert slow.statistics().ledger.done == 0
    finally:
        release.set()
        slow_async.open.set()
        await bus.stop()
    assert slow_async.seen == list(range(100))


@on_a_loop
async def test_fault_4_a_slow_type_does_not_stop_other_types():
    """Different handlers have different queues, on the loop and on threads, even when a thread is just idle."""
    release = threading.Event()
    quick = []
    bus = EventBus(workers=2)
    bus.subscribe("warm", lambda event: None)
    bus.subscribe("slow", lambda event: release.wait(LIMIT))
    bus.subscribe("quick", quick.append)
    await bus.start()
    try:
        await (await bus.publish("warm", {})).settled()
        for _ in range(20):
            await bus.publish("slow", {})
            receipt = await bus.publish("quick", {})
            assert (await receipt.settled()).ok
        assert len(quick) == 20
        assert not release.is_set()
    finally:
        release.set()
        await bus.stop()


@on_a_loop
async def test_fault_7_stop_handles_what_is_queued():
    """v1.0 cancelled its loop and left the queue to the garbage collector."""
    seen, sync_seen = [], []

    async def handler(event):
        await asyncio.sleep(0)
        seen.append(event.data["n"])

    bus = EventBus()
    bus.subscribe("a", handler)
    bus.subscribe("a", lambda event: sync_seen.append(event.data["n"]))
    await bus.start()
    for number in range(500):
        await bus.publish("a", {"n": number})
    report = await bus.stop()
    assert seen == sync_seen == list(range(500))
    assert (report.drained, report.left, report.interrupted) == (True, 0, 0)


@on_a_loop
async def test_fault_7_what_stop_does_not_handle_waits_for_the_next_start():
    """Out of time is no reason to lose anything either."""
    gate = Gate()
    bus = EventBus()
    bus.subscribe("a", gate)
    await bus.start()
    for number in range(5):
        await bus.publish("a", {"n": number})
    await gate.entered.wait()
    report = await bus.stop(timeout=0)
    assert (report.drained, report.left, report.interrupted) == (False, 5, 1)
    assert bus.audit().pending == 5
    await bus.publish("a", {"n": 5})
    gate.open.set()
    async with bus:
        await bus.drain()
    assert gate.seen == list(range(6))
    assert bus.audit().balanced


@on_a_loop
async def test_fault_7_a_sync_handler_that_outlives_the_stop_loses_nothing():
    """It cannot be stopped; it keeps its thread, and the next start goes on behind it."""
    entered, release = threading.Event(), threading.Event()
    seen = []

    def slow(event):
        entered.set()
        release.wait(LIMIT)
        seen.append(event.data["n"])

    bus = EventBus(workers=1)
    bus.subscribe("a", slow)
    others = []
    bus.subscribe("b", others.append)
    await bus.start()
    first = await bus.publish("a", {"n": 0})
    await bus.publish("a", {"n": 1})
    await asyncio.to_thread(entered.wait, LIMIT)
    report = await bus.stop(timeout=0)
    assert (report.drained, report.left) == (False, 2)
    await bus.start()
    other = await bus.publish("b", {})
    release.set()
    assert (await first.settled()).ok
    assert (await other.settled()).ok
    await bus.drain()
    await bus.stop()
    assert seen == [0, 1]
    assert len(others) == 1
    assert bus.audit().balanced


@on_a_loop
async def test_fault_7_errors_are_logged_not_printed_and_quote_no_payload(capfd, caplog):
    """v1.0 printed f"{e}", which held customers' data, or said nothing."""

    async def broken(event):
        raise ValueError(event.data["card"])

    def broken_too(event):
        raise ValueError(event.data["card"]) from KeyError(event.data["card"])

    bus = EventBus()
    bus.subscribe("a", broken)
    bus.subscribe("a", broken_too)
    with caplog.at_level(logging.DEBUG):
        async with bus:
            settlement = await (await bus.publish("a", {"card": SECRET})).settled()
    assert [str(error) for error in settlement.failures] == [SECRET] * 2, "the publisher may look"
    assert len([record for record in caplog.records if record.name == "ironbus"]) == 2
    assert SECRET not in caplog.text
    printed = capfd.readouterr()
    assert printed.out == ""
    assert SECRET not in printed.err
