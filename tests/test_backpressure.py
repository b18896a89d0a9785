"""Full queues: the four policies, waiting publishers, and handlers that publish in circles."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from ironbus import EventBus, EventPriority
from ironbus.errors import QueueFull, WouldDeadlock


def run(main, limit=60):
    """Runs a test's coroutine with a deadline, so that a hang is a failure with a place."""

    async def limited():
        async with asyncio.timeout(limit):
            return await main

    return asyncio.run(limited())


async def turns(count=5):
    """Gives the loop some turns, for what is ready to happen."""
    for _ in range(count):
        await asyncio.sleep(0)


class Held:
    """A subscription that is in the middle of its first event until `release`."""

    def __init__(self, bus, topic="t", **options):
        self.bus, self.topic = bus, topic
        self.seen, self.begun, self.go_on = [], asyncio.Event(), asyncio.Event()

        async def handler(event):
            if event.data.get("first"):
                self.begun.set()
                await self.go_on.wait()
            else:
                self.seen.append(event.data["n"])

        self.subscription = bus.subscribe(topic, handler, name=f"held {topic}", **options)

    async def begin(self):
        await self.bus.publish(self.topic.replace("*", "x"), {"first": True})
        await self.begun.wait()
        return self

    def release(self):
        self.go_on.set()

    @property
    def ledger(self):
        return self.bus.audit().subscriptions[self.subscription.name]


@contextlib.asynccontextmanager
async def held(bus, topic="t", **options):
    one = Held(bus, topic, **options)
    async with bus:
        yield await one.begin()
        one.release()
        await bus.drain(timeout=30)
        assert bus.audit().balanced


def test_block_waiters_are_served_in_order():
    """Publishers that wait for room are let in first come, first served."""

    async def main():
        bus = EventBus(max_queue_size=2)
        async with held(bus) as one:
            tasks = [asyncio.create_task(bus.publish("t", {"n": n})) for n in range(20)]
            await turns()
            assert [task.done() for task in tasks] == [True] * 2 + [False] * 18
            assert bus.audit().waiting == 18
            one.release()
            receipts = await asyncio.gather(*tasks)
            assert [receipt.sequence for receipt in receipts] == list(range(2, 22))
        assert one.seen == list(range(20))

    run(main())


def test_block_newcomers_do_not_overtake():
    """While somebody waits, a newcomer waits behind him, whatever it publishes from: task or thread."""

    async def main():
        bus = EventBus(max_queue_size=1)
        async with held(bus) as one:
            await bus.publish("t", {"n": 0})
            first = asyncio.create_task(bus.publish("t", {"n": 1}))
            await turns()
            thread = asyncio.create_task(asyncio.to_thread(bus.publish_sync, "t", {"n": 2}))
            while bus.audit().waiting < 2:
                await asyncio.sleep(0)
            last = asyncio.create_task(bus.publish("t", {"n": 3}))
            await turns()
            one.release()
            await asyncio.gather(first, thread, last)
        assert one.seen == [0, 1, 2, 3]

    run(main())


def test_room_in_all_lanes_or_none():
    """An event for two subscriptions enters neither while one of them is full."""

    async def main():
        bus = EventBus()
        full, roomy = Held(bus, "a.*", max_queue_size=1), Held(bus, "*.b", max_queue_size=50)
        async with bus:
            await full.begin()
            await roomy.begin()
            await bus.publish("a.x", {"n": 0})
            task = asyncio.create_task(bus.publish("a.b", {"n": 1}))
            await turns()
            assert not task.done()
            assert roomy.ledger.routed == 1
            roomy.release()
            await turns()
            assert not task.done()
            full.release()
            receipt = await task
            settlement = await receipt.settled()
            assert settlement.outcomes == {"held a.*": "done", "held *.b": "done"}
            assert (full.seen, roomy.seen) == ([0, 1], [1])
            assert bus.audit().balanced

    run(main())


def test_cancel_while_waiting_retracts():
    """A publish that is cancelled while it waits leaves nothing but a count, and no number is burnt."""

    async def main():
        bus = EventBus(max_queue_size=1)
        async with held(bus) as one:
            await bus.publish("t", {"n": 0})
            doomed = asyncio.create_task(bus.publish("t", {"n": 1}))
            await turns()
            follower = asyncio.create_task(bus.publish("t", {"n": 2}))
            await turns()
            doomed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await doomed
            audit = bus.audit()
            assert (audit.waiting, audit.cancelled) == (1, 1)
            assert audit.balanced
            one.release()
            assert (await follower).sequence == 3
        assert one.seen == [0, 2]

    run(main())


def test_cancel_after_admission_retracts_nothing():
    """A publisher that is let in and cancelled in the same turn has published."""

    async def main():
        bus = EventBus(max_queue_size=1)
        async with held(bus) as one:
            await bus.publish("t", {"n": 0})
            late = asyncio.create_task(bus.publish("t", {"n": 1}))
            await turns()
            one.release()
            while bus.audit().waiting:
                await asyncio.sleep(0)
            late.cancel()
            await asyncio.wait([late])
        assert one.seen == [0, 1]
        assert bus.audit().cancelled == 0

    run(main())


@pytest.mark.parametrize("end", ["cancel", "timeout", "close", "throw"])
def test_a_waiting_key_is_free_again(end):
    """Giving up a publish that waits frees its idempotency key: the next one with it is accepted."""

    async def main():
        bus = EventBus(max_queue_size=1)
        async with held(bus) as one:
            await bus.publish("t", {"n": 0})
            publish = bus.publish("t", {"n": 1}, idempotency_key="k")
            if end == "cancel":
                task = asyncio.create_task(publish)
                await turns()
                task.cancel()
                await asyncio.wait([task])
            elif end == "timeout":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(publish, 0.01)
            else:
                publish.send(None)
                if end == "close":
                    publish.close()
                else:
                    with pytest.raises(KeyError):
                        publish.throw(KeyError("x"))
            assert bus.audit().cancelled == 1
            again = asyncio.create_task(bus.publish("t", {"n": 2}, idempotency_key="k"))
            await turns()
            one.release()
            assert not (await again).duplicate
        assert one.seen == [0, 2]

    run(main())


def test_a_joined_duplicate_takes_over():
    """Of two publishes with one key the second waits for the first's fate, and takes over when that gives up."""

    async def main():
        bus = EventBus(max_queue_size=1)
        async with held(bus) as one:
            await bus.publish("t", {"n": 0})
            first = asyncio.create_task(bus.publish("t", {"n": 1}, idempotency_key="k"))
            await turns()
            second = asyncio.create_task(bus.publish("t", {"n": 2}, idempotency_key="k"))
            third = asyncio.create_task(bus.publish("t", {"n": 3}, idempotency_key="k"))
            await turns()
            assert bus.audit().waiting == 3
            assert bus.audit().balanced
            first.cancel()
            await turns()
            one.release()
            receipts = [await second, await third]
            assert [receipt.duplicate for receipt in receipts] == [False, True]
        assert one.seen == [0, 2]

    run(main())


def test_reject_accepts_nowhere():
    """QueueFull of one subscription: no other one sees the event, the key is free, and it is counted."""

    async def main():
        bus = EventBus()
        other = []
        bus.subscribe("t", lambda event: other.append(event.data.get("n")))
        async with held(bus, overflow="reject", max_queue_size=2) as one:
            for n in range(2):
                await bus.publish("t", {"n": n})
            for _ in range(3):
                with pytest.raises(QueueFull) as caught:
                    await bus.publish("t", {"n": "secret"}, idempotency_key="k")
                assert "secret" not in str(caught.value)
            assert bus.audit().rejected == 3
            one.release()
            await bus.drain(timeout=30)
            assert not (await bus.publish("t", {"n": 2}, idempotency_key="k")).duplicate
        assert one.seen == [0, 1, 2]
        assert other == [None, 0, 1, 2]

    run(main())


def test_drop_oldest_is_counted_and_told():
    """The oldest queued event of that level goes; its receipt says so, and so does the ledger."""

    async def main():
        bus = EventBus()
        async with held(bus, overflow="drop_oldest", max_queue_size=3) as one:
            receipts = [await bus.publish("t", {"n": n}) for n in range(5)]
            dropped = [(await receipt.settled()).outcomes for receipt in receipts[:2]]
            assert dropped == [{"held t": "dropped"}] * 2
            assert one.ledger.dropped == 2
            one.release()
            assert [(await receipt.settled()).outcomes["held t"] for receipt in receipts[2:]] == ["done"] * 3
        assert one.seen == [2, 3, 4]

    run(main())


def test_drop_new_is_counted_and_told():
    """The newcomer goes; what is queued stays."""

    async def main():
        bus = EventBus()
        async with held(bus, overflow="drop_new", max_queue_size=3) as one:
            receipts = [await bus.publish("t", {"n": n}) for n in range(5)]
            dropped = [(await receipt.settled()).outcomes for receipt in receipts[3:]]
            assert dropped == [{"held t": "dropped"}] * 2
            assert one.ledger.dropped == 2
        assert one.seen == [0, 1, 2]

    run(main())


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_new"])
def test_drops_stay_in_their_level(policy):
    """A flood of LOW drops LOW only, never a level above it and never an event that has begun."""

    async def main():
        bus = EventBus()
        async with held(bus, overflow=policy, max_queue_size=2) as one:
            critical = [await bus.publish("t", {"n": f"c{n}"}, priority=EventPriority.CRITICAL) for n in range(2)]
            normal = [await bus.publish("t", {"n": f"n{n}"}) for n in range(2)]
            for n in range(20):
                await bus.publish("t", {"n": n}, priority=EventPriority.LOW)
            assert one.ledger.dropped == 18
            one.release()
            for receipt in critical + normal:
                assert (await receipt.settled()).outcomes == {"held t": "done"}
        assert one.seen == ["c0", "c1", "n0", "n1", *([18, 19] if policy == "drop_oldest" else [0, 1])]

    run(main())


def test_drop_oldest_with_keys():
    """In a lane ordered by key, the oldest goes too where all that is queued is of the key at work."""

    async def main():
        bus = EventBus()
        begun, go_on, seen = asyncio.Event(), asyncio.Event(), []

        async def handler(event):
            begun.set()
            await go_on.wait()
            seen.append(event.data["n"])

        bus.subscribe("t", handler, concurrency=4, overflow="drop_oldest", max_queue_size=2)
        async with bus:
            await bus.publish("t", {"n": "first"}, key="k")
            await begun.wait()
            for n in range(5):
                await bus.publish("t", {"n": n}, key="k")
                await turns()
            go_on.set()
            await bus.drain(timeout=30)
            assert bus.audit().balanced
        assert seen == ["first", 3, 4]

    run(main())


def test_a_slow_subscriber_delays_no_other():
    """While its queue has room, a subscriber that hangs is nobody else's problem."""

    async def main():
        bus = EventBus()
        fast = []
        bus.subscribe("t", lambda event: fast.append(event.data.get("n")))
        async with held(bus, max_queue_size=1000) as one:
            for n in range(500):
                await bus.publish("t", {"n": n})
            while len(fast) < 501:
                await asyncio.sleep(0)
            assert one.seen == []
        assert one.seen == list(range(500))

    run(main())


def test_publish_sync_in_a_loop_never_blocks():
    """Where a loop runs, a full queue is QueueFull at once, in a task and in an async handler."""

    async def main():
        bus = EventBus(max_queue_size=1)
        raised = []

        async def publishes(event):
            try:
                bus.publish_sync("t", {"n": 9})
            except QueueFull as error:
                raised.append(error)

        bus.subscribe("go", publishes)
        async with held(bus) as one:
            bus.publish_sync("t", {"n": 0})
            with pytest.raises(QueueFull):
                bus.publish_sync("t", {"n": 1})
            await (await bus.publish("go", {})).settled()
            assert len(raised) == 1
            assert bus.audit().waiting == 0
        assert one.seen == [0]

    run(main())


def test_publish_sync_in_a_loop_never_waits_for_a_key():
    """The fate of an equal key that waits for room is not waited for where a loop runs."""

    async def main():
        bus = EventBus(max_queue_size=1)
        async with held(bus) as one:
            await bus.publish("t", {"n": 0})
            first = asyncio.create_task(bus.publish("t", {"n": 1}, idempotency_key="k"))
            await turns()
            with pytest.raises(QueueFull):
                bus.publish_sync("t", {"n": 2}, idempotency_key="k")
            one.release()
            await first
        assert one.seen == [0, 1]

    run(main())


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_cycles_of_handlers_go_on(kind, size):
    """Handlers that publish to each other in a circle, with full queues, come to an end."""

    async def main():
        bus = EventBus(max_queue_size=2, workers=2)
        handled = 0

        def follow(event):
            nonlocal handled
            handled += 1
            depth, at = event.data["depth"], int(event.type[1:])
            return [(f"c{(at + 1) % size}", {"depth": depth - 1})] * (2 if depth else 0)

        async def handler(event):
            for type_, data in follow(event):
                await bus.publish(type_, data)

        def sync_handler(event):
            for type_, data in follow(event):
                bus.publish_sync(type_, data)

        for at in range(size):
            body = handler if kind == "async" else sync_handler
            bus.subscribe(f"c{at}", body, name=f"lane {at}")
        async with bus:
            await asyncio.gather(*(bus.publish(f"c{n % size}", {"depth": 5}) for n in range(8)))
            await bus.drain(timeout=40)
            assert bus.audit().balanced
            assert bus.audit().waiting == 0
        assert handled == 8 * (2**6 - 1)

    run(main())


def test_a_cycle_through_a_waiting_publisher():
    """A handler that would queue behind a publisher that waits for that very handler goes on instead."""

    async def main():
        bus = EventBus()
        begun, go_on, seen = asyncio.Event(), asyncio.Event(), []

        async def one(event):
            seen.append("one")

        async def two(event):
            seen.append("two")
            if event.data.get("first"):
                begun.set()
                await go_on.wait()
                await bus.publish("a", {})

        bus.subscribe("a*", one, name="one", max_queue_size=1)
        bus.subscribe("*b", two, name="two", max_queue_size=1)
        async with bus:
            await bus.publish("b", {"first": True})
            await begun.wait()
            await bus.publish("b", {})
            outsider = asyncio.create_task(bus.publish("ab", {}))
            await turns()
            assert not outsider.done()
            go_on.set()
            async with asyncio.timeout(5):
                await outsider
                await bus.drain()

    run(main(), 20)


def test_a_cycle_through_publishers_that_use_up_the_room():
    """There is room for a handler's event, but not after those who wait in front of it: it goes on at once."""

    async def main():
        bus = EventBus()
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def one(event):
            if event.data.get("first"):
                begun.set()
                await go_on.wait()
                await bus.publish("a", {})

        bus.subscribe("a*", one, name="one", max_queue_size=2)
        two = Held(bus, "*b", max_queue_size=1)
        async with bus:
            await bus.publish("a", {"first": True})
            await begun.wait()
            await two.begin()
            await bus.publish("b", {"n": 0})
            outsiders = [asyncio.create_task(bus.publish("ab", {"n": n})) for n in range(1, 6)]
            await turns()
            assert bus.audit().waiting == 5
            go_on.set()
            await turns()
            two.release()
            async with asyncio.timeout(5):
                await asyncio.gather(*outsiders)
                await bus.drain()
        assert two.seen == [0, 1, 2, 3, 4, 5]

    run(main(), 20)


def test_beyond_the_hard_limit_it_is_an_error():
    """A circle that never ends does not eat the memory: WouldDeadlock names it, and nothing is lost."""

    async def main():
        bus = EventBus(max_queue_size=1)
        raised = []

        async def handler(event):
            if event.data:
                return
            try:
                for number in range(100_000):
                    await bus.publish("t", {"n": number})
            except WouldDeadlock as error:
                raised.append((str(error), number))

        bus.subscribe("t", handler, name="circle")
        async with bus:
            await bus.publish("t", {})
            await bus.drain(timeout=30)
            assert bus.audit().balanced
        [(text, number)] = raised
        assert "circle" in text
        assert number < 5000

    run(main())


def test_two_lanes_that_wait_for_each_other():
    """The second of two handlers that fill each other's queue goes over the bound; the first gets its turn."""

    async def main():
        bus = EventBus(max_queue_size=1)
        meeting, done = asyncio.Barrier(2), []

        def make(me, other):
            async def handler(event):
                if event.data.get("go"):
                    await meeting.wait()
                    for _ in range(10):
                        await bus.publish(other, {})
                    done.append(me)

            bus.subscribe(me, handler, name=me)

        make("a", "b")
        make("b", "a")
        async with bus:
            await bus.publish("a", {"go": True})
            await bus.publish("b", {"go": True})
            await bus.drain(timeout=30)
            assert bus.audit().balanced
        assert sorted(done) == ["a", "b"]

    run(main())


def test_sync_handlers_that_wait_do_not_use_up_the_pool():
    """All workers wait for room that only another worker can make: stand-ins come."""

    async def main():
        bus = EventBus(max_queue_size=1, workers=2)
        begun, drained = threading.Barrier(2), []

        def publishes(event):
            begun.wait(30)
            for _ in range(5):
                bus.publish_sync("sink", {})

        bus.subscribe("t", publishes, concurrency=2, ordered=False)
        bus.subscribe("sink", lambda event: drained.append(event.sequence))
        async with bus:
            await bus.publish("t", {})
            await bus.publish("t", {})
            await bus.drain(timeout=30)
        assert len(drained) == 10
        assert drained == sorted(drained)

    run(main())


def test_a_cancelled_subscription_lets_waiters_in():
    """Those who wait for room in a subscription that ends wait no more; its own events are dropped."""

    async def main():
        bus = EventBus(max_queue_size=1)
        other = []
        bus.subscribe("t", lambda event: other.append(event.data.get("n")))
        async with bus:
            one = await Held(bus).begin()
            first = await bus.publish("t", {"n": 0})
            tasks = [asyncio.create_task(bus.publish("t", {"n": n})) for n in (1, 2, 3)]
            await turns()
            one.subscription.cancel()
            async with asyncio.timeout(10):
                receipts = await asyncio.gather(*tasks)
            assert (await first.settled()).outcomes["held t"] == "dropped"
            for receipt in receipts:
                assert "held t" not in (await receipt.settled()).outcomes
            one.release()
            await bus.drain(timeout=30)
            assert bus.audit().balanced
        assert other == [None, 0, 1, 2, 3]

    run(main())


def test_the_last_subscription_that_ends_lets_waiters_in():
    """The same where nobody at all is left for the event."""

    async def main():
        bus = EventBus(max_queue_size=1)
        async with bus:
            one = await Held(bus).begin()
            await bus.publish("t", {"n": 0})
            task = asyncio.create_task(bus.publish("t", {"n": 1}))
            thread = asyncio.create_task(asyncio.to_thread(bus.publish_sync, "t", {"n": 2}))
            while bus.audit().waiting < 2:
                await asyncio.sleep(0)
            one.subscription.cancel()
            async with asyncio.timeout(10):
                receipts = [await task, await thread]
            assert [(await receipt.settled()).outcomes for receipt in receipts] == [{}, {}]
            one.release()
            assert bus.audit().balanced

    run(main())


def test_waiters_reach_a_subscription_that_came_meanwhile():
    """Who waits is not accepted yet: a subscription that is added before that sees the event."""

    async def main():
        bus = EventBus(max_queue_size=1)
        late = []
        async with held(bus) as one:
            await bus.publish("t", {"n": 0})
            task = asyncio.create_task(bus.publish("t", {"n": 1}))
            await turns()
            bus.subscribe("t", lambda event: late.append(event.data["n"]))
            one.release()
            await task
        assert late == [1]

    run(main())


def test_many_waiters_survive_changes_of_subscriptions():
    """Waiting publishers keep their order through subscriptions that come and go."""

    async def main():
        bus = EventBus(max_queue_size=1)
        async with held(bus) as one:
            await bus.publish("t", {"n": 0})
            tasks = []
            for n in range(1, 30):
                tasks.append(asyncio.create_task(bus.publish("t", {"n": n})))
                await turns(2)
                passing = bus.subscribe("t", lambda event: None, name=f"passing {n}")
                if n % 2:
                    passing.cancel()
            one.release()
            receipts = await asyncio.gather(*tasks)
            assert [receipt.sequence for receipt in receipts] == list(range(3, 32))
        assert one.seen == list(range(30))

    run(main())


def test_publish_many_waits_for_room():
    """A batch larger than the queue is let in bit by bit, in order."""

    async def main():
        bus = EventBus(max_queue_size=3)
        seen = []

        async def handler(event):
            await asyncio.sleep(0)
            seen.append(event.data["n"])

        bus.subscribe("t", handler)
        async with bus:
            receipt = await bus.publish_many([("t", {"n": n}) for n in range(100)])
            assert receipt.accepted == 100
            await bus.drain(timeout=30)
            assert bus.audit().balanced
        assert seen == list(range(100))

    run(main())


def test_publish_many_that_is_refused_tells_how_far_it_came():
    """QueueFull in the middle of a batch: the error's receipt holds what was accepted."""

    async def main():
        bus = EventBus()
        async with held(bus, overflow="reject", max_queue_size=3) as one:
            with pytest.raises(QueueFull) as caught:
                await bus.publish_many([("t", {"n": n}) for n in range(10)])
            assert caught.value.receipt.accepted == 3
            assert bus.audit().balanced
        assert one.seen == [0, 1, 2]

    run(main())


def test_cancelling_a_batch_that_waits_keeps_what_was_accepted():
    """The rest of a cancelled batch is retracted, what is in stays in, and the ledger balances."""

    async def main():
        bus = EventBus(max_queue_size=3)
        async with held(bus) as one:
            task = asyncio.create_task(bus.publish_many([("t", {"n": n}) for n in range(10)]))
            await turns()
            task.cancel()
            await asyncio.wait([task])
            assert bus.audit().waiting == 0
            assert bus.audit().balanced
        assert one.seen == [0, 1, 2]

    run(main())
