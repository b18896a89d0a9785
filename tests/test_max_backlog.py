"""The limit of what a bus with a path keeps undone: who waits for whom, who does not, and what is left of whom."""

from __future__ import annotations

import asyncio
import shutil
import threading

import pytest
from ironbus import EventBus, EventPriority, HealthThresholds, InvalidEvent, InvalidOption, QueueFull, RetryPolicy
from running import run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "orders.bus"


async def turns(count=5):
    """Gives the loop some turns, for what is ready to happen."""
    for _ in range(count):
        await asyncio.sleep(0)


def number(event):
    """An event of 0 comes as one without data."""
    return event.data or 0


class Slow:
    """A subscription that is let go on event by event, or for good."""

    def __init__(self, bus, topic="t", name="slow", **options):
        self.seen: list[object] = []
        self._permits = asyncio.Semaphore(0)
        self._free = False

        async def handle(event):
            if not self._free:
                await self._permits.acquire()
            self.seen.append(number(event))

        self.subscription = bus.subscribe(topic, handle, name=name, **options)

    def go_on(self, count=1):
        for _ in range(count):
            self._permits.release()

    def free(self):
        self._free = True
        self.go_on(100)

    async def has_seen(self, count):
        while len(self.seen) < count:
            await asyncio.sleep(0)


def waiting(bus, count):
    """Publishers that wait for the subscription, and not for the disk."""

    async def until():
        while bus._report()["journal"]["publishers"] != count:
            await asyncio.sleep(0)

    return until()


def backlog(bus):
    return bus.metrics().backlog


# Who waits --------------------------------------------------------------------------


def test_publishers_wait_until_the_subscription_has_got_on(path):
    async def main():
        bus = EventBus(path=path, max_backlog=3)
        slow = Slow(bus)
        async with bus:
            for n in range(3):
                await bus.publish("t", n)
            assert backlog(bus) == 3
            task = asyncio.create_task(bus.publish("t", 3))
            await waiting(bus, 1)
            # Nothing of the event exists.
            assert (bus.audit().accepted, bus.audit().waiting, backlog(bus)) == (3, 1, 3)
            assert (await bus.query("SELECT count(*) FROM event")).rows == [(3,)]
            slow.go_on()
            receipt = await task
            assert (receipt.sequence, receipt.durability, backlog(bus)) == (4, "fsync", 3)
            slow.free()
            await bus.drain()
            assert backlog(bus) == 0
            assert bus.audit().balanced
        assert slow.seen == [0, 1, 2, 3]

    run(main())


def test_who_waits_is_served_first_come_first_served(path):
    """Tasks and threads, single events and batches; a small one does not overtake a large one that does not fit yet."""

    async def main():
        bus = EventBus(path=path, max_backlog=4)
        slow = Slow(bus)
        async with bus:
            await bus.publish_many([("t", n) for n in range(4)])
            first = asyncio.create_task(bus.publish_many([("t", 4), ("t", 5), ("t", 6)]))
            await waiting(bus, 1)
            second = asyncio.create_task(asyncio.to_thread(bus.publish_sync, "t", 7))
            await waiting(bus, 2)
            third = asyncio.create_task(bus.publish("t", 8, priority=EventPriority.CRITICAL))
            await waiting(bus, 3)
            slow.go_on(2)
            while backlog(bus) > 2:
                await asyncio.sleep(0)
            await turns()
            assert not any(task.done() for task in (first, second, third))
            slow.free()
            batch, one, other = await asyncio.gather(first, second, third)
            assert [receipt.sequence for receipt in batch.receipts] == [5, 6, 7]
            assert (one.sequence, other.sequence) == (8, 9)
            await bus.drain()
            assert bus.audit().balanced
        assert sorted(slow.seen) == list(range(9))

    run(main())


def test_a_limit_of_one(path):
    """One event at a time: a hundred publishers take turns, and nothing is lost or deadlocks."""

    async def main():
        bus = EventBus(path=path, durability="os", max_backlog=1)
        slow = Slow(bus)
        slow.free()
        async with bus:
            receipts = await asyncio.gather(*(bus.publish("t", n) for n in range(100)))
            assert [receipt.sequence for receipt in receipts] == list(range(1, 101))
            await bus.drain()
            assert bus.audit().balanced
        assert slow.seen == list(range(100))

    run(main())


def test_cancelling_a_publish_that_waits_leaves_nothing(path):
    async def main():
        bus = EventBus(path=path, max_backlog=2)
        slow = Slow(bus)
        async with bus:
            await bus.publish_many([("t", 0), ("t", 1)])
            gone = asyncio.create_task(bus.publish_many([("t", "gone"), ("t", "gone")], key="k"))
            await waiting(bus, 1)
            keyed = asyncio.create_task(bus.publish("t", "gone", idempotency_key="k"))
            await waiting(bus, 2)
            last = asyncio.create_task(bus.publish("t", 2))
            await waiting(bus, 3)
            slow.go_on()
            while backlog(bus) > 1:
                await asyncio.sleep(0)
            # The large batch at the head does not fit yet; without it, the last one does.
            for task in (keyed, gone):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert (await last).sequence == 3
            slow.free()
            await bus.drain()
            assert (bus.audit().cancelled, bus.audit().accepted, bus.audit().waiting) == (3, 3, 0)
            assert bus.audit().balanced
            # The key is nobody's.
            assert not (await bus.publish("t", 3, idempotency_key="k")).duplicate
            await bus.drain()
        assert slow.seen == [0, 1, 2, 3]

    run(main())


def test_a_key_in_line_is_nobodys_and_its_duplicate_is_told(path):
    """Two with one key wait: the first gets in, and the second is a duplicate when it is its turn."""

    async def main():
        bus = EventBus(path=path, max_backlog=1)
        slow = Slow(bus)
        async with bus:
            await bus.publish("t", 0)
            tasks = [asyncio.create_task(bus.publish("t", n, idempotency_key="k")) for n in (1, 2)]
            mixed = asyncio.create_task(bus.publish_many([("t", 3, {"idempotency_key": "k"})]))
            await waiting(bus, 3)
            slow.free()
            receipts = await asyncio.gather(*tasks)
            assert [receipt.duplicate for receipt in receipts] == [False, True]
            assert [receipt.duplicate for receipt in (await mixed).receipts] == [True]
            await bus.drain()
            ledger = bus.audit()
            assert (ledger.accepted, ledger.duplicate, ledger.waiting) == (2, 2, 0)
            assert ledger.balanced
        assert slow.seen == [0, 1]

    run(main())


def test_publish_sync_inside_a_loop_is_refused_and_says_why(path):
    async def main():
        bus = EventBus(path=path, max_backlog=1)
        slow = Slow(bus)
        async with bus:
            bus.publish_sync("t", 0)
            with pytest.raises(QueueFull, match=r"slow is max_backlog=1 events behind.*raise max_backlog") as refused:
                bus.publish_sync("t", "hunter2", idempotency_key="k")
            assert "hunter2" not in str(refused.value)
            task = asyncio.create_task(bus.publish("t", 1))
            await waiting(bus, 1)
            slow.go_on()
            await task
            slow.free()
            await bus.drain()
            assert (await bus.publish("t", 2, idempotency_key="k")).duplicate is False
            await bus.drain()
            assert (bus.audit().rejected, bus.audit().accepted) == (1, 3)
            assert bus.audit().balanced
        assert slow.seen == [0, 1, 2]

    run(main())


def test_publish_sync_on_a_thread_without_a_loop_waits(path):
    """And so does the batch of a program that has no loop at all."""
    bus = EventBus(path=path, durability="os", max_backlog=2)
    begun, go_on, seen = threading.Event(), threading.Event(), []

    def handle(event):
        begun.set()
        assert go_on.wait(30)
        seen.append(number(event))

    bus.subscribe("t", handle, name="slow")
    with bus:
        bus.sync.publish_many([("t", 0), ("t", 1)])
        assert begun.wait(30)
        receipts = []
        thread = threading.Thread(target=lambda: receipts.append(bus.publish_sync("t", 2)))
        thread.start()
        while bus.audit().waiting != 1:
            pass
        assert receipts == []
        go_on.set()
        thread.join(30)
        assert [receipt.sequence for receipt in receipts] == [3]
        bus.sync.publish_many([("t", 3), ("t", 4)])
        bus.sync.drain()
    assert seen == [0, 1, 2, 3, 4]


def test_a_batch_that_would_never_fit_is_refused_at_the_call(path):
    async def main():
        bus = EventBus(path=path, max_backlog=2)
        Slow(bus).free()
        async with bus:
            with pytest.raises(InvalidEvent, match=r"at most max_backlog=2 events; .* raise max_backlog"):
                await bus.publish_many([("t", n) for n in range(3)])
            with pytest.raises(InvalidEvent, match="max_backlog=2"):
                await asyncio.to_thread(bus.sync.publish_many, [("t", n) for n in range(3)])
            assert (bus.audit().rejected, bus.audit().accepted) == (6, 0)
            assert len(await bus.publish_many([("t", 0), ("t", 1)])) == 2

    run(main())


# Who does not -----------------------------------------------------------------------


def test_a_handler_of_the_bus_does_not_wait_for_itself(path):
    """It holds the backlog itself: awaiting, from a task of its own, on a thread, and in a transaction."""

    async def main():
        bus = EventBus(path=path, max_backlog=1)
        seen = []

        async def handle(event):
            seen.append(number(event))
            if number(event) == 0:
                await bus.publish("t", 1)
                await asyncio.create_task(bus.publish("t", 2))
                with event.delivery.transaction() as tx:
                    tx.publish("t", 3)

        def on_a_thread(event):
            bus.publish_sync("t", 4)

        bus.subscribe("t", handle, name="handle")
        bus.subscribe("u", on_a_thread, name="on a thread")
        async with bus:
            await bus.publish("t", 0)
            await bus.drain()
            await bus.publish("u", 0)
            await bus.drain()
            assert bus.audit().balanced
        assert seen == [0, 1, 2, 3, 4]

    run(main())


def test_a_redrive_waits_for_nobody(path):
    async def main():
        bus = EventBus(path=path, max_backlog=1)
        fails = [True]

        async def handle(event):
            if fails.pop() if fails else False:
                raise ValueError

        bus.subscribe("t", handle, name="failing", retry=RetryPolicy(max_attempts=1))
        slow = Slow(bus, "u")
        async with bus:
            await bus.publish("t", 0)
            await bus.drain()
            await bus.publish("u", 0)
            assert backlog(bus) == 1
            assert (await bus.dead_letters.redrive()).succeeded == 1
            slow.free()
            await bus.drain()
            assert bus.audit().subscriptions["failing"].done == 1

    run(main())


def test_an_absent_subscription_keeps_nobody_waiting(path):
    async def main():
        bus = EventBus(path=path, max_backlog=2)
        Slow(bus, name="gone").free()
        async with bus:
            await bus.publish("t", 0)
            await bus.drain()
        bus = EventBus(path=path, max_backlog=2)
        here = Slow(bus, name="here")
        here.free()
        async with bus:
            assert bus.describe()["absent"] == ["gone"]
            for n in range(10):
                await bus.publish("t", n)
            await bus.drain()
            assert backlog(bus) == 0
            await bus.drop_subscription("gone")
            await bus.publish("t", 10)
        assert here.seen == list(range(11))

    run(main())


def test_nobody_waits_where_nobody_listens(path):
    async def main():
        async with EventBus(path=path, max_backlog=1) as bus:
            for n in range(10):
                await bus.publish("t", n)
            assert backlog(bus) == 0

    run(main())


@pytest.mark.parametrize("how", ["pause", "cancel"])
def test_whoever_is_paused_or_cancelled_frees_those_who_wait(path, how):
    async def main():
        bus = EventBus(path=path, max_backlog=2)
        slow = Slow(bus)
        async with bus:
            await bus.publish_many([("t", 0), ("t", 1)])
            task = asyncio.create_task(bus.publish("t", 2))
            await waiting(bus, 1)
            getattr(slow.subscription, how)()
            await task
            for n in range(3, 10):
                await bus.publish("t", n)
            assert backlog(bus) == 0
            if how == "pause":
                slow.subscription.resume()
                assert backlog(bus) == 10
                task = asyncio.create_task(bus.publish("t", 10))
                await waiting(bus, 1)
                slow.free()
                await task
                await bus.drain()
                assert slow.seen == list(range(11))
            else:
                assert bus.describe()["absent"] == ["slow"]
                await bus.drop_subscription("slow")

    run(main())


def test_a_retry_that_waits_keeps_nobody_waiting(path):
    """What waits for its next attempt is left behind; the cursor goes on."""

    async def main():
        bus = EventBus(path=path, max_backlog=2, clock=lambda: 0.0)
        seen = []

        async def handle(event):
            if number(event) == 0:
                raise ConnectionError
            seen.append(number(event))

        policy = RetryPolicy(max_attempts=5, initial_delay=3600)
        bus.subscribe("t", handle, name="retrying", retry=policy, retry_holds="nothing")
        async with bus:
            for n in range(10):
                await bus.publish("t", n)
            while len(seen) < 9:
                await asyncio.sleep(0)
            assert bus.metrics().subscriptions["retrying"].held == 1
            await bus.stop(timeout=0)
        assert seen == list(range(1, 10))

    run(main())


@pytest.mark.parametrize(("topic", "options"), [("*", {"concurrency": 2, "ordered": False}), ("first", {})])
def test_one_that_hangs_does_not_count_what_is_done(path, topic, options):
    """In a lane that handles several at once, and in one for rare events: it is left behind, and counts as one."""

    async def main():
        bus = EventBus(path=path, max_backlog=10)
        hangs, seen = asyncio.Event(), []

        async def handle(event):
            if event.type == "first":
                hangs.set()
                await asyncio.Event().wait()
            seen.append(number(event))

        bus.subscribe(topic, handle, name="hangs", **options)
        async with bus:
            await bus.publish("first")
            await hangs.wait()
            for n in range(100):
                await bus.publish("t", n)
            while topic == "*" and len(seen) < 100:
                await asyncio.sleep(0)
            assert 1 <= backlog(bus) <= 10
            await bus.stop(timeout=0)
        assert seen == ([*range(100)] if topic == "*" else [])

        again = []
        bus = EventBus(path=path)
        bus.subscribe(topic, lambda event: again.append(event.type), name="hangs", **options)
        async with bus:
            await bus.drain()
        assert again == ["first"]

    run(main())


def test_those_left_behind_count_until_they_are_done(path):
    """However many are left behind one after the other, not more than the limit are undone."""

    async def main():
        bus = EventBus(path=path, max_backlog=8)
        slow = Slow(bus, "slow", concurrency=100, ordered=False)
        async with bus:
            undone = []

            async def publish():
                for n in range(100):
                    await bus.publish("slow" if n % 4 == 0 else "other", n)
                    undone.append(bus.metrics().subscriptions["slow"].ledger.pending)

            task = asyncio.create_task(publish())
            while len(undone) <= 12:
                await asyncio.sleep(0)
            # Without a limit they would be 25 by the end.
            await waiting(bus, 1)
            assert not task.done()
            assert max(undone) <= 8
            slow.free()
            await task
            await bus.drain()
            assert backlog(bus) == 0
        assert sorted(slow.seen) == list(range(0, 100, 4))

    run(main())


# Lives of a bus ---------------------------------------------------------------------


def test_a_start_with_more_than_a_smaller_limit_works(path):
    async def main():
        bus = EventBus(path=path)
        slow = Slow(bus)
        async with bus:
            await bus.publish_many([("t", n) for n in range(20)])
            await bus.stop(timeout=0)
        assert slow.seen == []

        bus = EventBus(path=path, max_backlog=5)
        slow = Slow(bus)
        async with bus:
            assert backlog(bus) == 20
            task = asyncio.create_task(bus.publish("t", 20))
            await waiting(bus, 1)
            slow.go_on(15)
            while len(slow.seen) < 15:
                await asyncio.sleep(0)
            await turns()
            assert not task.done()
            slow.go_on()
            await task
            slow.free()
            await bus.drain()
        assert slow.seen == list(range(21))

    run(main())


def test_a_bus_that_is_not_started_has_nobody_to_wait_for(path):
    async def main():
        bus = EventBus(path=path, max_backlog=2)
        slow = Slow(bus)
        slow.free()
        await bus.publish_many([("t", 0), ("t", 1)])
        with pytest.raises(QueueFull, match=r"not started, and subscription slow .*max_backlog=2.*start\(\) it"):
            await bus.publish("t", 2)
        async with bus:
            await bus.publish("t", 3)
            await bus.drain()
            assert bus.audit().balanced
        assert slow.seen == [0, 1, 3]

    run(main())


def test_who_waits_at_a_stop_goes_on_after_the_next_start(path):
    """As one who waits for room in memory: nothing of the event is lost, and it comes after what was there."""

    async def main():
        bus = EventBus(path=path, max_backlog=1)
        slow = Slow(bus)
        await bus.start()
        await bus.publish("t", 0)
        task = asyncio.create_task(bus.publish("t", 1))
        gone = asyncio.create_task(bus.publish("t", "gone"))
        await waiting(bus, 2)
        report = await bus.stop(timeout=0)
        assert not report.drained
        assert not task.done()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        slow.free()
        async with bus:
            assert (await task).sequence == 2
            await bus.drain()
            assert bus.audit().balanced
        assert slow.seen == [0, 1]

    run(main())


def test_a_stop_waits_for_those_who_wait(path):
    async def main():
        bus = EventBus(path=path, max_backlog=1)
        slow = Slow(bus)
        await bus.start()
        await bus.publish("t", 0)
        tasks = [asyncio.create_task(bus.publish("t", n)) for n in (1, 2)]
        await waiting(bus, 2)
        stopping = asyncio.create_task(bus.stop(timeout=30))
        await turns()
        slow.free()
        assert (await stopping).drained
        assert [(await task).sequence for task in tasks] == [2, 3]
        assert slow.seen == [0, 1, 2]

    run(main())


# The option, and what is shown ------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "many"])
def test_a_wrong_limit_is_refused_by_its_name(path, wrong):
    with pytest.raises(InvalidOption, match=r"^max_backlog must be a whole number of at least 1") as refused:
        EventBus(path=path, max_backlog=wrong)
    assert refused.value.field == "max_backlog"


@pytest.mark.parametrize("given", [5, None])
def test_a_limit_needs_a_path(given):
    with pytest.raises(InvalidOption, match="max_backlog needs a path") as refused:
        EventBus(max_backlog=given)
    assert refused.value.field == "max_backlog"


def test_the_limit_is_shown_and_may_be_none(path):
    assert EventBus(path=path).describe()["max_backlog"] == 10_000_000
    assert EventBus().describe()["max_backlog"] is None

    async def main():
        bus = EventBus(path=path, max_backlog=None)
        slow = Slow(bus)
        async with bus:
            assert bus.describe()["max_backlog"] is None
            await bus.publish_many([("t", n) for n in range(100)])
            assert backlog(bus) == 100
            assert "backlog_filling" not in [reason.code for reason in bus.health().reasons]
            slow.free()

    run(main())


def test_health_tells_of_whom_publishers_wait_for(path):
    def told(bus):
        found = [reason for reason in bus.health().reasons if reason.code == "backlog_filling"]
        return [(reason.severity, reason.value, reason.threshold, reason.subscription) for reason in found]

    async def main():
        bus = EventBus(path=path, max_backlog=4, health=HealthThresholds(backlog_filling=0.75))
        slow = Slow(bus)
        fast = Slow(bus, name="fast")
        fast.free()
        async with bus:
            await bus.publish_many([("t", 0), ("t", 1)])
            assert told(bus) == []
            await bus.publish("t", 2)
            await fast.has_seen(3)
            assert told(bus) == [("degraded", 0.75, 0.75, "slow")]
            await bus.publish("t", 3)
            await fast.has_seen(4)
            task = asyncio.create_task(bus.publish("t", 4))
            await waiting(bus, 1)
            assert told(bus) == [("failing", 1.0, 0.75, "slow")]
            slow.free()
            await task
            await bus.drain()
            assert told(bus) == []
        assert told(bus) == []

    run(main())


def test_numbers_that_crashes_have_skipped_are_not_counted(tmp_path):
    """Each skips a million or so: ten of them would be more than any limit allows."""

    async def life(path, published):
        bus = EventBus(path=path, max_backlog=20)
        # With more in its window than it can start, it does not come to look at what is behind that.
        slow = Slow(bus, max_queue_size=1)
        await bus.start()
        for n in range(3):
            await bus.publish("t", published + n)
        assert 0 < backlog(bus) <= published + 3
        left = tmp_path / str(published) / path.name
        left.parent.mkdir()
        for suffix in ("", "-wal", ".inflight"):
            file = path.with_name(path.name + suffix)
            if file.exists():
                shutil.copy(file, left.with_name(left.name + suffix))
        assert slow.seen == []
        await bus.stop(timeout=0)
        return left

    path = tmp_path / "orders.bus"
    for published in range(0, 15, 3):
        path = run(life(path, published))
    assert path.exists()
