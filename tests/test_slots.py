"""Handlers on the event loop and on threads: what one may do, and what the next must not notice."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import itertools
import logging
import sys
import threading
import time
import types

import pytest
from ironbus import EventBus, current_delivery
from ironbus.errors import IronbusError

VARIABLE = contextvars.ContextVar("variable", default="nothing")


def run(main, limit=60, **options):
    """Runs a test's coroutine with a deadline, so that a hang is a failure with a place."""

    async def limited():
        async with asyncio.timeout(limit):
            return await main

    with asyncio.Runner(**options) as runner:
        return runner.run(limited())


async def outcome(bus, *arguments, **options):
    """The outcome of an event for the one subscription that it goes to."""
    settlement = await (await bus.publish(*arguments, **options)).settled()
    [text] = settlement.outcomes.values()
    return text


# What a handler leaves behind -------------------------------------------------------


def cancel_only():
    asyncio.current_task().cancel()


def cancel_twice():
    asyncio.current_task().cancel()
    asyncio.current_task().cancel("again")


LEAVE_BEHIND = [cancel_only, cancel_twice]


async def next_is_unharmed(bus):
    """Everything that a stray cancellation would break, inside the next handlers."""
    seen = []

    async def checks(event):
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await asyncio.sleep(0)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(30)
        assert asyncio.current_task().cancelling() == 0
        seen.append(event.sequence)

    bus.subscribe("checks", checks)
    for _ in range(10):
        settlement = await (await bus.publish("checks", {})).settled()
        settlement.raise_for_failures()
    assert len(seen) == 10


@pytest.mark.parametrize("leave", LEAVE_BEHIND)
@pytest.mark.parametrize("suspends", [False, True])
def test_a_stray_cancel_hits_nobody(leave, suspends):
    """A handler that cancels its task and returns without another await does no harm to the next."""

    async def main():
        bus = EventBus()

        async def handler(event):
            if suspends:
                await asyncio.sleep(0)
            leave()

        bus.subscribe("t", handler)
        async with bus:
            for _ in range(10):
                assert await outcome(bus, "t", {}) == "done"
            await next_is_unharmed(bus)

    run(main())


def test_a_stray_cancel_between_queued_events():
    """The same with the next event already queued in the same lane, and other lanes in line."""

    async def main():
        bus = EventBus()
        seen = []

        def make(lane):
            async def handler(event):
                seen.append((lane, event.data["n"]))
                await asyncio.sleep(0)
                if event.data["n"] % 2:
                    asyncio.current_task().cancel()

            bus.subscribe("t", handler, name=f"lane {lane}")

        for lane in range(3):
            make(lane)
        await bus.publish_many([("t", {"n": n}) for n in range(20)])
        async with bus:
            await bus.drain(timeout=30)
            ledger = bus.audit()
            assert all(lane.done == 20 and lane.dead == 0 for lane in ledger.subscriptions.values())
            assert ledger.balanced
        for lane in range(3):
            assert [n for at, n in seen if at == lane] == list(range(20))

    run(main())


def test_a_swallowed_cancel_leaves_no_count():
    """A handler that swallows a cancellation leaves no cancel count for the next one's TaskGroup."""

    async def main():
        bus = EventBus()
        tasks, begun = [], asyncio.Event()

        async def handler(event):
            tasks.append(asyncio.current_task())
            begun.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)
            await asyncio.sleep(0)

        bus.subscribe("t", handler)
        async with bus:
            for _ in range(5):
                begun.clear()
                receipt = await bus.publish("t", {})
                await begun.wait()
                tasks[-1].cancel()
                assert (await receipt.settled()).ok
            await next_is_unharmed(bus)

    run(main())


def test_cancelled_from_outside_is_a_failed_attempt():
    """Somebody cancels the task of a handler that waits: its event is dead, and the lane goes on."""

    async def main():
        bus = EventBus()
        tasks, begun, seen = [], asyncio.Event(), []

        async def handler(event):
            seen.append(event.sequence)
            if event.data.get("hang"):
                tasks.append(asyncio.current_task())
                begun.set()
                await asyncio.sleep(1000)

        bus.subscribe("t", handler)
        async with bus:
            for round_ in range(5):
                begun.clear()
                hanging = await bus.publish("t", {"hang": True})
                following = await bus.publish("t", {"n": 1})
                await begun.wait()
                tasks[-1].cancel()
                settlement = await hanging.settled()
                assert list(settlement.outcomes.values()) == ["dead"]
                with pytest.raises(BaseExceptionGroup) as caught:
                    settlement.raise_for_failures()
                assert isinstance(caught.value.exceptions[0], asyncio.CancelledError)
                assert (await following.settled()).ok
                assert len(seen) == 2 * (round_ + 1)
            await next_is_unharmed(bus)
            assert bus.audit().balanced

    run(main())


def test_a_raised_cancellederror_is_a_failed_attempt():
    """A handler that raises CancelledError by itself, with nobody cancelling, has failed."""

    async def main():
        bus = EventBus()

        async def handler(event):
            if event.data:
                await asyncio.sleep(0)
            raise asyncio.CancelledError

        def sync_handler(event):
            raise asyncio.CancelledError

        bus.subscribe("t", handler)
        bus.subscribe("s", sync_handler)
        async with bus:
            assert [await outcome(bus, *what) for what in (("t", {}), ("t", {"x": 1}), ("s", {}))] == ["dead"] * 3
            await next_is_unharmed(bus)

    run(main())


@pytest.mark.parametrize("kind", ["async", "suspending", "sync"])
def test_context_variables_reach_nobody(kind):
    """What a handler sets is seen by no other handler, no later event, and not by the publisher."""

    async def main():
        bus = EventBus()
        seen = []

        async def handler(event):
            seen.append(VARIABLE.get())
            VARIABLE.set("handler")
            if kind == "suspending":
                await asyncio.sleep(0)
                assert VARIABLE.get() == "handler"

        def sync_handler(event):
            seen.append(VARIABLE.get())
            VARIABLE.set("handler")

        async with bus:
            for name in ("one", "two"):
                bus.subscribe("t", sync_handler if kind == "sync" else handler, name=name)
            VARIABLE.set("publisher")
            for _ in range(20):
                await bus.publish("t", {})
            await bus.drain(timeout=30)
            assert VARIABLE.get() == "publisher"
        assert seen == ["nothing"] * 40

    contextvars.Context().run(run, main())


@pytest.mark.parametrize("kind", ["async", "suspending", "sync"])
def test_context_of_the_publisher(kind):
    """With context="publisher" a handler sees what its publisher had set, and still changes nothing there."""

    async def main():
        bus = EventBus(context="publisher")
        seen = []

        async def handler(event):
            if kind == "suspending":
                await asyncio.sleep(0)
            seen.append((VARIABLE.get(), event.data["n"]))
            VARIABLE.set("handler")

        def sync_handler(event):
            seen.append((VARIABLE.get(), event.data["n"]))
            VARIABLE.set("handler")

        bus.subscribe("t", sync_handler if kind == "sync" else handler, context="publisher")
        async with bus:

            async def publisher(number):
                VARIABLE.set(number)
                for _ in range(5):
                    await bus.publish("t", {"n": number})
                    await asyncio.sleep(0)
                assert VARIABLE.get() == number

            await asyncio.gather(*(publisher(number) for number in range(5)))
            await bus.drain(timeout=30)
        assert len(seen) == 25
        assert all(got == number for got, number in seen)

    run(main())


# What a handler may do ---------------------------------------------------------------


def test_the_tools_of_asyncio_work_in_handlers():
    """timeout, wait_for, gather, TaskGroup, create_task, Lock, Queue and to_thread inside a handler."""

    async def main():
        bus = EventBus()
        lock, queue, seen = asyncio.Lock(), asyncio.Queue(), []

        async def handler(event):
            task = asyncio.current_task()
            assert task is not None
            assert not task.done()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.sleep(1000)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.001)
            assert await asyncio.wait_for(asyncio.sleep(0, "slept"), 30) == "slept"
            assert await asyncio.gather(asyncio.sleep(0, 1), asyncio.sleep(0, 2)) == [1, 2]
            results = await asyncio.gather(asyncio.sleep(0, 1), fails(), return_exceptions=True)
            assert isinstance(results[1], KeyError)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(asyncio.sleep(0, n)) for n in range(3)]
            assert [task.result() for task in tasks] == [0, 1, 2]
            with pytest.raises(ExceptionGroup):
                await group_that_fails()
            async with lock:
                await asyncio.sleep(0)
            await queue.put(event.sequence)
            assert await queue.get()
            assert await asyncio.to_thread(lambda: 7) == 7
            assert await asyncio.shield(asyncio.sleep(0, "s")) == "s"
            assert task.cancelling() == 0
            seen.append(event.sequence)

        async def fails():
            raise KeyError

        async def group_that_fails():
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                await asyncio.sleep(1000)

        bus.subscribe("t", handler, concurrency=4, ordered=False)
        async with bus:
            receipts = [await bus.publish("t", {}) for _ in range(20)]
            for receipt in receipts:
                (await receipt.settled()).raise_for_failures()
        assert sorted(seen) == list(range(1, 21))

    run(main())


def test_a_hundred_suspended_at_once():
    """Handlers that wait keep nothing from going on, in their lane and in others."""

    async def main():
        bus = EventBus()
        waiting, go_on, quick = 0, asyncio.Event(), []

        async def slow(event):
            nonlocal waiting
            waiting += 1
            await go_on.wait()

        async def fast(event):
            quick.append(event.sequence)

        bus.subscribe("slow", slow, concurrency=100, ordered=False)
        bus.subscribe("fast", fast)
        async with bus:
            for _ in range(150):
                await bus.publish("slow", {})
                await (await bus.publish("fast", {})).settled()
            while waiting < 100:
                await asyncio.sleep(0)
            assert bus.metrics().subscriptions[next(iter(bus.audit().subscriptions))].running == 100
            assert len(quick) == 150
            go_on.set()
            await bus.drain(timeout=30)
            assert waiting == 150
            assert bus.audit().balanced

    run(main())


def test_a_bare_future_and_other_awaitables():
    """Handlers may wait for a future that a thread resolves, and for any object with __await__."""

    async def main():
        bus = EventBus()
        loop = asyncio.get_running_loop()
        seen = []

        class Twice:
            def __await__(self):
                yield
                yield
                return "twice"

        async def handler(event):
            future = loop.create_future()
            threading.Thread(target=loop.call_soon_threadsafe, args=(future.set_result, "future")).start()
            seen.append(await future)
            seen.append(await Twice())

            @types.coroutine
            def generator():
                yield
                return "generator"

            seen.append(await generator())

        bus.subscribe("t", handler)
        async with bus:
            assert await outcome(bus, "t", {}) == "done"
        assert seen == ["future", "twice", "generator"]

    run(main())


@pytest.mark.parametrize("what", ["coroutine", "future", "task", "object"])
def test_a_sync_handler_that_returns_an_awaitable(what):
    """What a plain function returns to be awaited runs on the loop, in order, with its failures."""

    async def main():
        bus = EventBus()
        loop, seen = asyncio.get_running_loop(), []

        async def rest(event):
            assert asyncio.get_running_loop() is loop
            assert current_delivery() is None or current_delivery().attempt == 1
            await asyncio.sleep(0)
            seen.append(event.data["n"])
            if event.data["n"] == 3:
                raise ValueError

        class Object:
            def __init__(self, event):
                self.event = event

            def __await__(self):
                return rest(self.event).__await__()

        def handler(event):
            assert threading.current_thread() is not threading.main_thread()
            match what:
                case "coroutine":
                    return rest(event)
                case "future":
                    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(rest(event), loop), loop=loop)
                case "task":
                    return asyncio.run_coroutine_threadsafe(make_task(event), loop).result(30)
                case _:
                    return Object(event)

        async def make_task(event):
            return asyncio.create_task(rest(event))

        bus.subscribe("t", handler)
        async with bus:
            receipts = [await bus.publish("t", {"n": n}) for n in range(6)]
            outcomes = [next(iter((await receipt.settled()).outcomes.values())) for receipt in receipts]
            assert bus.audit().balanced
        assert seen == [0, 1, 2, 3, 4, 5]
        assert outcomes == ["done"] * 3 + ["dead"] + ["done"] * 2

    run(main())


# Timeouts ----------------------------------------------------------------------------


def test_timeout_of_an_async_handler():
    """A handler that takes too long is cancelled, fails with TimeoutError, and is counted dead."""

    async def main():
        bus = EventBus()
        cleaned = []

        async def handler(event):
            try:
                await asyncio.sleep(1000)
            finally:
                cleaned.append(event.sequence)

        bus.subscribe("t", handler, timeout=0.01, name="slow")
        async with bus:
            for number in range(3):
                settlement = await (await bus.publish("t", {})).settled()
                assert settlement.outcomes == {"slow": "dead"}
                [failure] = settlement.failures
                assert isinstance(failure, TimeoutError)
                assert bus.audit().subscriptions["slow"].dead == number + 1
            await next_is_unharmed(bus)
        assert cleaned == [1, 2, 3]

    run(main())


def test_a_timeout_after_a_longer_one():
    """A slot that served a subscription with a long timeout keeps to the short one of the next."""

    async def main():
        bus = EventBus()

        async def quick(event):
            await asyncio.sleep(0)

        async def hangs(event):
            await asyncio.sleep(1000)

        bus.subscribe("long", quick, timeout=500)
        bus.subscribe("short", hangs, timeout=0.02)
        async with bus:
            for _ in range(10):
                assert await outcome(bus, "long", {}) == "done"
                assert await asyncio.wait_for(outcome(bus, "short", {}), 10) == "dead"

    run(main())


def test_a_timeout_that_is_swallowed():
    """A handler that catches the cancellation of its timeout and returns has succeeded; nobody else notices."""

    async def main():
        bus = EventBus()

        async def handler(event):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)
            await asyncio.sleep(0)

        bus.subscribe("t", handler, timeout=0.01)
        async with bus:
            assert await outcome(bus, "t", {}) == "done"
            await next_is_unharmed(bus)

    run(main())


def test_a_timeout_in_a_handler_with_its_own():
    """The handler's inner asyncio.timeout and the bus's outer one do not mistake each other's cancellation."""

    async def main():
        bus = EventBus()
        seen = []

        async def handler(event):
            try:
                async with asyncio.timeout(event.data["inner"]):
                    await asyncio.sleep(1000)
            except TimeoutError:
                seen.append("inner")

        bus.subscribe("t", handler, timeout=0.05)
        async with bus:
            assert await outcome(bus, "t", {"inner": 0.001}) == "done"
            assert await outcome(bus, "t", {"inner": 500}) == "dead"
            assert seen == ["inner"]
            await next_is_unharmed(bus)

    run(main())


def test_timeout_of_a_sync_handler_is_recorded_when_it_returns():
    """A thread cannot be stopped: the timeout counts when the handler is back, and nothing overlaps it."""

    async def main():
        now = [10.0]
        bus = EventBus(clock=lambda: now[0])
        begun, go_on, seen = threading.Event(), threading.Event(), []

        def handler(event):
            seen.append(event.sequence)
            if event.data:
                begun.set()
                go_on.wait(30)

        bus.subscribe("t", handler, timeout=1.0, name="slow")
        async with bus:
            late = await bus.publish("t", {"slow": True})
            following = await bus.publish("t", {})
            await asyncio.to_thread(begun.wait, 30)
            now[0] += 5
            assert seen == [1]
            assert bus.audit().subscriptions["slow"].dead == 0
            go_on.set()
            settlement = await late.settled()
            assert settlement.outcomes == {"slow": "dead"}
            assert isinstance(settlement.failures[0], TimeoutError)
            assert (await following.settled()).ok

    run(main())


# What a handler may ask -------------------------------------------------------------


def test_current_delivery():
    """Any handler may ask what it is in the middle of; others are told that they are not."""

    async def main():
        bus = EventBus()
        seen = []

        def note(event):
            delivery = current_delivery()
            assert delivery == event.delivery
            seen.append((delivery.attempt, delivery.subscription))

        async def handler(event):
            note(event)
            await asyncio.sleep(0)
            note(event)

            async def child():
                assert current_delivery() is None

            await asyncio.create_task(child())
            await asyncio.to_thread(lambda: seen.append(current_delivery()))

        bus.subscribe("t", handler, name="async")
        bus.subscribe("t", note, name="sync")
        async with bus:
            assert current_delivery() is None
            settlement = await (await bus.publish("t", {})).settled()
            settlement.raise_for_failures()
            assert current_delivery() is None
        assert sorted(map(str, seen)) == sorted(map(str, [(1, "async"), (1, "async"), None, (1, "sync")]))

    run(main())


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_correlation_and_causation(kind):
    """An event that a handler publishes names its cause and the first event of the chain."""

    async def main():
        bus = EventBus()
        events = []

        async def handler(event):
            events.append(event)
            if event.data["n"]:
                await asyncio.sleep(0)
                await bus.publish("t", {"n": event.data["n"] - 1})

        def sync_handler(event):
            events.append(event)
            if event.data["n"]:
                bus.publish_sync("t", {"n": event.data["n"] - 1})

        bus.subscribe("t", handler if kind == "async" else sync_handler)
        async with bus:
            await (await bus.publish("t", {"n": 3})).settled(cascade=True)
        assert len(events) == 4
        first = events[0]
        assert first.causation_id is None
        for cause, event in itertools.pairwise(events):
            assert event.causation_id == cause.event_id
            assert event.correlation_id == first.event_id

    run(main())


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_filter_that_raises_is_a_failure(kind, caplog):
    """where= runs with the handler: what it raises is counted as dead, and the handler is not called."""

    async def main():
        bus = EventBus()
        called = []

        def where(event):
            if event.data["n"] == 1:
                raise RuntimeError("secret")
            return event.data["n"] == 2

        async def handler(event):
            called.append(event.data["n"])

        def sync_handler(event):
            called.append(event.data["n"])

        bus.subscribe("t", handler if kind == "async" else sync_handler, where=where)
        async with bus:
            assert [await outcome(bus, "t", {"n": n}) for n in range(3)] == ["filtered", "dead", "done"]
            assert bus.audit().balanced
        assert called == [2]
        assert "secret" not in caplog.text
        assert "RuntimeError" in caplog.text

    with caplog.at_level(logging.ERROR, "ironbus"):
        run(main())


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("fault", ["raises", "unhashable"])
def test_an_order_that_cannot_be_told_is_a_failure(kind, fault):
    """order_by= that raises, or gives what has no hash, fails the event and holds up nothing."""

    async def main():
        bus = EventBus()
        called = []

        def order_by(event):
            if event.data["n"] % 3 == 1:
                if fault == "raises":
                    raise RuntimeError
                return []
            return event.data["n"] % 2

        async def handler(event):
            called.append(event.data["n"])

        def sync_handler(event):
            called.append(event.data["n"])

        bus.subscribe("t", handler if kind == "async" else sync_handler, order_by=order_by, concurrency=3)
        async with bus:
            receipts = [await bus.publish("t", {"n": n}) for n in range(30)]
            outcomes = [next(iter((await receipt.settled()).outcomes.values())) for receipt in receipts]
            assert bus.audit().balanced
        assert outcomes == ["dead" if n % 3 == 1 else "done" for n in range(30)]
        assert sorted(called) == [n for n in range(30) if n % 3 != 1]

    run(main())


# What ends the program ----------------------------------------------------------------


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_an_ending_from_an_async_handler(ending, suspends):
    """KeyboardInterrupt and SystemExit end the loop once; the event is put back for the next start."""
    bus = EventBus()
    seen, armed = [], [True]

    async def handler(event):
        seen.append((event.sequence, event.delivery.attempt))
        if suspends:
            await asyncio.sleep(0)
        if armed[0]:
            raise ending

    bus.subscribe("t", handler)

    async def main():
        await bus.publish_many([("t", {}), ("t", {})])
        await bus.start()
        await asyncio.sleep(30)

    with pytest.raises(ending):
        run(main())
    assert seen == [(1, 1)]
    armed[0] = False

    async def again():
        async with bus:
            await bus.drain(timeout=30)
        assert bus.audit().balanced

    run(again())
    assert seen == [(1, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_an_ending_from_a_sync_handler(ending, monkeypatch):
    """On a worker thread the event is put back and the subscription held until it is resumed."""
    hooked = []
    monkeypatch.setattr(threading, "excepthook", lambda args: hooked.append(args.exc_type))

    async def main():
        bus = EventBus()
        seen, armed = [], [True]

        def handler(event):
            seen.append((event.sequence, event.delivery.attempt))
            if armed[0]:
                raise ending

        subscription = bus.subscribe("t", handler)
        async with bus:
            receipt = await bus.publish("t", {})
            while subscription.statistics().state != "paused":
                await asyncio.sleep(0)
            armed[0] = False
            subscription.resume()
            assert (await receipt.settled()).ok
            assert bus.audit().balanced
        assert seen == [(1, 1), (1, 1)]

    run(main())
    assert hooked in ([], [ending])


# Loops of other kinds -------------------------------------------------------------------


async def mixed_workload():
    """Something of everything; checks that all of it is accounted for."""
    bus = EventBus(max_queue_size=50, workers=4)
    counts = {"quick": 0, "slow": 0, "sync": 0, "chain": 0, "late": 0}

    async def quick(event):
        counts["quick"] += 1

    async def slow(event):
        await asyncio.sleep(0.0001)
        counts["slow"] += 1

    def sync(event):
        counts["sync"] += 1

    async def chain(event):
        counts["chain"] += 1
        if event.data["n"] % 10 == 0:
            await bus.publish("chained", {"n": 1})

    async def late(event):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.0001):
                await asyncio.sleep(1000)
        counts["late"] += 1

    bus.subscribe("t", quick)
    bus.subscribe("t", slow, concurrency=10, ordered=False)
    bus.subscribe("t", sync, concurrency=2)
    bus.subscribe("*", chain)
    bus.subscribe("chained", late)
    async with bus:

        async def publisher(number):
            for n in range(50):
                await bus.publish("t", {"n": n}, key=str(number))

        def thread():
            for n in range(50):
                bus.publish_sync("t", {"n": n})

        await asyncio.gather(*(publisher(number) for number in range(4)), asyncio.to_thread(thread))
        await bus.drain(timeout=30)
        assert bus.audit().balanced
    assert counts == {"quick": 250, "slow": 250, "sync": 250, "chain": 275, "late": 25}


def test_uvloop():
    """Everything works on uvloop, whose futures and handles are not those of the standard library."""
    uvloop = pytest.importorskip("uvloop")
    run(mixed_workload(), loop_factory=uvloop.new_event_loop)


def test_debug_mode():
    """asyncio's debug mode checks threads and coroutines more closely, and formats them."""

    async def main():
        asyncio.get_running_loop().slow_callback_duration = 100
        await mixed_workload()
        bus = EventBus()
        told = []

        async def handler(event):
            told.append(repr(asyncio.current_task()))
            asyncio.current_task().get_stack()
            await asyncio.sleep(0)
            told.append(repr(asyncio.current_task()))

        bus.subscribe("t", handler)
        async with bus:
            assert await outcome(bus, "t", {}) == "done"
            for task in asyncio.all_tasks():
                told.append(repr(task))
                task.get_stack()
            publish = asyncio.create_task(bus.publish("t", {}))
            told.append(repr(publish))
            await publish
        assert any("ironbus" in text for text in told)

    run(main(), debug=True)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_task_factory():
    """Under an eager task factory publishes start at once, slots do not, and everything is accounted for."""

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        await mixed_workload()
        bus = EventBus(max_queue_size=1)
        seen = []

        async def handler(event):
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(0))
            seen.append(event.sequence)

        bus.subscribe("t", handler)
        async with bus:
            await asyncio.gather(*(asyncio.create_task(bus.publish("t", {})) for _ in range(20)))
            await bus.drain(timeout=30)
        assert seen == list(range(1, 21))

    run(main())


# Publishing -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "suspending", "sync"])
def test_a_tight_loop_of_publishes_starves_nobody(kind):
    """50,000 publishes without a pause: the loop turns, and consumers keep up while they are published."""

    async def main():
        bus = EventBus()
        ticks = handled = 0
        running = True

        async def ticker():
            nonlocal ticks
            while running:
                ticks += 1
                await asyncio.sleep(0)

        async def handler(event):
            nonlocal handled
            handled += 1
            if kind == "suspending":
                await asyncio.sleep(0)

        def sync_handler(event):
            nonlocal handled
            handled += 1

        bus.subscribe("t", sync_handler if kind == "sync" else handler)
        async with bus:
            task = asyncio.create_task(ticker())
            for _ in range(50_000):
                await bus.publish("t", {})
            assert ticks >= 50_000 // 256 - 1
            assert handled > 0
            at_the_end = handled
            await bus.drain(timeout=60)
            running = False
            await task
            assert handled == 50_000
        if kind == "async":
            assert at_the_end > 40_000

    run(main())


def test_busy_handlers_leave_the_loop_its_turns():
    """A long queue of quick handlers is served in portions: timers and other tasks get their turn."""

    async def main():
        bus = EventBus()
        handled, at_tick = 0, []

        async def handler(event):
            nonlocal handled
            handled += 1

        bus.subscribe("t", handler)
        await bus.publish_many([("t", {})] * 50_000)
        async with bus:
            while handled < 50_000:
                await asyncio.sleep(0)
                at_tick.append(handled)
        assert len(at_tick) > 10

    run(main())


def test_lanes_share_the_loop_fairly():
    """A flooded subscription does not keep another one waiting until it is done."""

    async def main():
        bus = EventBus()
        flood, place = 0, []

        async def flooded(event):
            nonlocal flood
            flood += 1

        async def other(event):
            place.append(flood)

        bus.subscribe("flood", flooded)
        bus.subscribe("other", other)
        await bus.publish_many([("flood", {})] * 20_000)
        await bus.publish("other", {})
        async with bus:
            await bus.drain(timeout=30)
        assert place[0] < 5000

    run(main())


@pytest.mark.parametrize("method", ["publish", "publish_many"])
def test_a_forgotten_await_warns(method):
    """Nothing happens before a publish is awaited, and one that never is says so."""
    bus = EventBus()
    with pytest.warns(RuntimeWarning, match=rf"{method}' was never awaited"):
        getattr(bus, method)(*(["t", {}] if method == "publish" else [[("t", {})]]))
    assert bus.audit().offered == 0


@pytest.mark.parametrize("method", ["publish", "publish_many"])
def test_awaiting_twice_raises(method):
    """A publish is a coroutine: it is awaited once."""

    async def main():
        bus = EventBus()
        publish = bus.publish("t", {}) if method == "publish" else bus.publish_many([("t", {})])
        await publish
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            await publish
        assert bus.audit().accepted == 1

    run(main())


def to_the_end(coroutine):
    while True:
        coroutine.send(None)


@pytest.mark.parametrize("method", ["publish", "publish_many"])
def test_closing_and_throwing(method):
    """close() and throw() before the first step leave no trace; afterwards it is used up."""

    async def main():
        bus = EventBus()

        def make():
            return bus.publish("t", {}) if method == "publish" else bus.publish_many([("t", {})])

        closed = make()
        closed.close()
        closed.close()
        with pytest.raises(RuntimeError):
            await closed
        thrown = make()
        with pytest.raises(KeyError):
            thrown.throw(KeyError("x"))
        with pytest.raises(RuntimeError):
            await thrown
        thrown_class = make()
        with pytest.raises(asyncio.CancelledError):
            thrown_class.throw(asyncio.CancelledError)
        stepped = make()
        with pytest.raises(StopIteration) as ended:
            to_the_end(stepped)
        assert ended.value.value is not None
        stepped.close()
        assert bus.audit().offered == 1

    run(main())


def test_publish_is_recognised_as_a_coroutine_everywhere():
    """gather, wait_for, create_task, TaskGroup and run_coroutine_threadsafe take it as it is."""

    async def main():
        bus = EventBus()
        async with bus:
            await asyncio.gather(bus.publish("t", {}), bus.publish("t", {}))
            await asyncio.wait_for(bus.publish("t", {}), 10)
            await asyncio.create_task(bus.publish("t", {}))
            async with asyncio.TaskGroup() as group:
                group.create_task(bus.publish("t", {}))
                group.create_task(bus.publish_many([("t", {})]))
            loop = asyncio.get_running_loop()
            future = asyncio.run_coroutine_threadsafe(bus.publish("t", {}), loop)
            await asyncio.wrap_future(future)
            publish = bus.publish("t", {})
            assert asyncio.iscoroutine(publish)
            publish.close()
            assert bus.audit().accepted == 7
        assert inspect.iscoroutinefunction(bus.publish)

    run(main())


def test_publish_from_another_loop():
    """A loop in another thread publishes, waits for room and for settlement."""

    async def main():
        bus = EventBus(max_queue_size=2)
        seen = []

        async def handler(event):
            await asyncio.sleep(0)
            seen.append(event.sequence)

        bus.subscribe("t", handler)
        async with bus:

            async def elsewhere():
                for _ in range(50):
                    receipt = await bus.publish("t", {})
                assert (await receipt.settled()).ok
                await bus.drain(timeout=30)

            await asyncio.to_thread(asyncio.run, elsewhere())
        assert seen == list(range(1, 51))

    run(main())


def test_an_error_in_a_handler_says_no_payload(caplog):
    """The log names where and how a handler failed, and quotes neither payload nor message."""

    async def main():
        bus = EventBus()

        async def handler(event):
            raise ValueError(f"bad {event.data['card']}")

        bus.subscribe("t", handler)
        async with bus:
            assert await outcome(bus, "t", {"card": "4711"}) == "dead"

    with caplog.at_level(logging.DEBUG, "ironbus"):
        run(main())
    assert "ValueError" in caplog.text
    assert "4711" not in caplog.text


def test_the_loop_stays_quick_under_sync_load():
    """Workers that compute give the interpreter back: the loop still turns many times a second."""

    async def main():
        bus = EventBus(workers=2)
        running, ticks = True, 0

        def busy(event):
            total = 0
            for number in range(2000):
                total += number
            return None

        bus.subscribe("t", busy, concurrency=2, ordered=False)
        await bus.publish_many([("t", {})] * 2000)
        started = time.perf_counter()
        async with bus:
            while running:
                ticks += 1
                await asyncio.sleep(0)
                running = any(lane.pending for lane in bus.audit().subscriptions.values())
        assert ticks > 20 * (time.perf_counter() - started)

    run(main())


def test_errors_are_of_one_family():
    """What the bus itself raises can be caught as IronbusError."""

    async def main():
        bus = EventBus()
        with pytest.raises(IronbusError):
            await bus.publish("", {})

    run(main())
