"""Retries inside the bus: attempts, order, what waits meanwhile, and what a handler may say."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading

import pytest
from ironbus import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    EventBus,
    EventPriority,
    InvalidOption,
    QueueFull,
    Reject,
    RetryLater,
    RetryPolicy,
    current_delivery,
)
from ironbus.testing import harness
from recovering import Clock, advance, letters, still

PLAIN = RetryPolicy(max_attempts=3, initial_delay=10, exponential_base=1, jitter=False)


def run(main, limit=60):
    async def limited():
        async with asyncio.timeout(limit):
            return await main

    with asyncio.Runner() as runner:
        return runner.run(limited())


class Failing:
    """A handler that notes each call, and fails those that it was told to, so many times."""

    def __init__(self, fails=None, error=ConnectionError):
        self.fails = dict(fails or {})
        self.error = error
        self.calls = []
        self.done = []

    def call(self, event):
        name = event.data["name"]
        self.calls.append((name, current_delivery().attempt))
        if self.fails.get(name, 0) > 0:
            self.fails[name] -= 1
            raise self.error() if isinstance(self.error, type) else self.error
        self.done.append(name)

    async def async_handler(self, event):
        self.call(event)

    async def suspending_handler(self, event):
        await asyncio.sleep(0)
        self.call(event)

    def sync_handler(self, event):
        self.call(event)

    def returns_awaitable(self, event):
        return self.suspending_handler(event)


KINDS = ["async_handler", "suspending_handler", "sync_handler", "returns_awaitable"]


async def publish(bus, names, **options):
    for name in names:
        await bus.publish("t", {"name": name}, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_three_attempts_one_effect_order_intact(kind):
    """A handler that fails twice and then succeeds holds what comes after it, and nothing happens twice."""

    async def main():
        failing = Failing({"a": 2})
        bus = EventBus()
        bus.subscribe("t", getattr(failing, kind), name="s", retry=PLAIN)
        async with harness(bus, clock="virtual") as t:
            await publish(bus, "abc")
            await t.settle()
            assert failing.calls == [("a", 1)]
            statistics = bus.metrics().subscriptions["s"]
            assert (statistics.state, statistics.held, statistics.retries) == ("waiting", 1, 1)
            assert statistics.ledger.pending == 3
            await t.advance(9.999_999_999)
            assert failing.calls == [("a", 1)]
            await t.advance(0.000_000_001)
            assert failing.calls == [("a", 1), ("a", 2)]
            await t.advance(20)
            assert failing.calls == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1)]
            assert failing.done == ["a", "b", "c"]
            ledger = bus.audit()
            assert ledger.balanced
            assert (ledger.subscriptions["s"].done, ledger.subscriptions["s"].dead) == (3, 0)
            assert letters(bus) == []

    run(main())


def test_with_the_real_clock():
    """The bus's own timer brings the retry, also where nobody moves a clock."""

    async def main():
        failing = Failing({"a": 2})
        bus = EventBus()
        bus.subscribe("t", failing.async_handler, retry=RetryPolicy(initial_delay=0.02, jitter=False))
        async with bus:
            receipt = await bus.publish("t", {"name": "a"})
            assert (await receipt.settled()).ok
            assert failing.calls == [("a", 1), ("a", 2), ("a", 3)]

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_bus_without_a_loop_of_the_programs_own(kind):
    """``with bus:`` has a loop of its own, whose timer brings the retry."""
    failing = Failing({"a": 2})
    bus = EventBus()
    bus.subscribe("t", getattr(failing, kind), retry=RetryPolicy(initial_delay=0.01))
    with bus:
        assert bus.publish_sync("t", {"name": "a"}).wait(30).ok
    assert failing.calls == [("a", 1), ("a", 2), ("a", 3)]


def test_with_key_the_other_keys_go_on():
    """Later events of the failing key wait, also with the default concurrency; all others do not."""

    async def main():
        failing = Failing({"a1": 1})
        bus = EventBus()
        bus.subscribe("t", failing.async_handler, retry=PLAIN, retry_holds="key")
        async with harness(bus, clock="virtual") as t:
            for name in ("a1", "b1", "a2", "b2", "c1", "a3"):
                await publish(bus, [name], key=name[0])
            await t.settle()
            assert failing.done == ["b1", "b2", "c1"]
            await t.advance(10)
            assert failing.done == ["b1", "b2", "c1", "a1", "a2", "a3"]

    run(main())


def test_with_key_by_order_by():
    """The same where the key is worked out by ``order_by``."""

    async def main():
        failing = Failing({"a1": 1})
        bus = EventBus()
        bus.subscribe(
            "t", failing.sync_handler, retry=PLAIN, retry_holds="key", order_by=lambda event: event.data["name"][0]
        )
        async with harness(bus, clock="virtual") as t:
            await publish(bus, ("a1", "b1", "a2", "b2"))
            await t.settle()
            assert failing.done == ["b1", "b2"]
            await t.advance(10)
            assert failing.done == ["b1", "b2", "a1", "a2"]

    run(main())


def test_with_nothing_the_lane_goes_on():
    """The failed event comes again when it is due, and holds up nobody."""

    async def main():
        failing = Failing({"a": 2, "b": 1})
        bus = EventBus()
        bus.subscribe("t", failing.async_handler, name="s", retry=PLAIN, retry_holds="nothing")
        async with harness(bus, clock="virtual") as t:
            await publish(bus, "abcd")
            await t.settle()
            assert failing.done == ["c", "d"]
            assert bus.metrics().subscriptions["s"].held == 2
            await t.advance(10)
            assert failing.done == ["c", "d", "b"]
            await t.advance(10)
            assert failing.done == ["c", "d", "b", "a"]

    run(main())


@pytest.mark.parametrize("holds", ["level", "key", "nothing"])
def test_a_failing_low_never_delays_critical(holds):
    """Whatever a retry holds: higher levels go on, also those of the same key."""

    async def main():
        failing = Failing({"low": 2})
        bus = EventBus()
        bus.subscribe("t", failing.async_handler, retry=PLAIN, retry_holds=holds)
        async with harness(bus, clock="virtual") as t:
            await publish(bus, ["low"], priority=EventPriority.LOW, key="k")
            await t.settle()
            for name in ("c1", "c2"):
                await publish(bus, [name], priority=EventPriority.CRITICAL, key="k")
                await t.settle()
            assert failing.done == ["c1", "c2"]
            await t.advance(20)
            assert failing.done == ["c1", "c2", "low"]

    run(main())


def test_attempts_exhausted_is_one_dead_letter_and_the_next_goes_on():
    """A poison event: exactly one dead letter, with what a person needs to understand it."""

    async def main():
        clock, failing = Clock(), Failing({"a": 99}, ValueError("of a"))
        bus = EventBus(clock=clock)
        bus.subscribe("t", failing.async_handler, name="poisoned", retry=PLAIN)
        async with bus:
            receipt = await bus.publish("t", {"name": "a"}, key="k", headers={"h": "1"}, priority=EventPriority.HIGH)
            await publish(bus, "b")
            await advance(bus, clock, 100)
            assert failing.calls == [("b", 1) if n == 1 else ("a", 1 + (n > 1) + (n > 2)) for n in range(4)]
            settlement = await receipt.settled()
            assert settlement.outcomes == {"poisoned": "dead"}
            assert [type(failure) for failure in settlement.failures] == [ValueError]
            [letter] = letters(bus)
            assert bus.audit().subscriptions["poisoned"].dead == 1
        assert letter["subscription"] == "poisoned"
        assert letter["handler"].endswith("Failing.async_handler")
        assert (letter["exception_type"], letter["message"]) == ("ValueError", "of a")
        assert "test_bus_retry.py" in letter["traceback"]
        assert letter["attempts"] == 3
        assert letter["last_failure"] - letter["first_failure"] == pytest.approx(20, abs=0.01)
        assert (letter["type"], letter["data"]) == ("t", {"name": "a"})
        assert (letter["key"], letter["headers"], letter["priority"]) == ("k", {"h": "1"}, "HIGH")
        assert letter["event_id"] == receipt.event_id
        assert letter["sequence"] == receipt.sequence
        assert len(letter["fingerprint"]) == 16

    run(main())


def test_failures_of_one_cause_have_one_fingerprint():
    """It is of the subscription, the exception's type and the place, never of values."""

    async def main():
        bus = EventBus()

        def same(event):
            raise ValueError(event.data)

        def other(event):
            raise ValueError(event.data)

        bus.subscribe("same", same, name="same")
        bus.subscribe("other", other, name="other")
        async with bus:
            for data in ("secret one", "secret two"):
                await bus.publish("same", data)
                await bus.publish("other", data)
            await bus.drain()
        prints = [(letter["subscription"], letter["fingerprint"]) for letter in letters(bus)]
        assert len(prints) == 4
        assert len(set(prints)) == 2

    run(main())


def test_what_is_retried_is_the_policys_affair():
    """retry_on and give_up_on decide; by default every Exception is tried again."""

    async def attempts(error, **options):
        failing = Failing({"a": 99}, error)
        bus = EventBus()
        policy = RetryPolicy(max_attempts=3, initial_delay=1, jitter=False, **options)
        bus.subscribe("t", failing.async_handler, retry=policy)
        async with harness(bus, clock="virtual") as t:
            await publish(bus, "a")
            await t.advance(100)
            assert len(letters(bus)) == 1
        return len(failing.calls)

    async def main():
        assert await attempts(KeyError) == 3
        assert await attempts(KeyError, give_up_on=LookupError) == 1
        assert await attempts(ValueError, give_up_on=LookupError) == 3
        assert await attempts(KeyError, retry_on=ConnectionError) == 1
        assert await attempts(ConnectionResetError, retry_on=ConnectionError) == 3
        assert await attempts(ConnectionResetError, retry_on=OSError, give_up_on=ConnectionError) == 1

    run(main())


def test_reject_is_dead_at_once():
    """The handler says that the event is no use to it, and need not be asked again."""

    async def main():
        clock, failing = Clock(), Failing({"a": 99}, Reject("no such order"))
        bus = EventBus(clock=clock)
        breaker = CircuitBreaker("b", CircuitBreakerConfig(failure_threshold=1), clock=clock)
        bus.subscribe("t", failing.async_handler, retry=PLAIN, breaker=breaker)
        async with bus:
            await publish(bus, "ab")
            await still(bus)
            assert failing.calls == [("a", 1), ("b", 1)]
            [letter] = letters(bus)
            assert (letter["exception_type"], letter["message"]) == ("ironbus.errors.Reject", "no such order")
            assert breaker.state == "closed"

    run(main())


@pytest.mark.parametrize("policy", [None, PLAIN])
def test_retry_later_uses_up_no_attempt(policy):
    """The event comes again after that time, as often as the handler says so, also without a policy."""

    async def main():
        clock, failing = Clock(), Failing({"a": 5}, RetryLater(30))
        bus = EventBus(clock=clock)
        breaker = CircuitBreaker("b", CircuitBreakerConfig(failure_threshold=1), clock=clock)
        bus.subscribe("t", failing.async_handler, retry=policy, breaker=breaker)
        async with bus:
            await publish(bus, "ab")
            await advance(bus, clock, 29)
            assert failing.calls == [("a", 1)]
            await advance(bus, clock, 125)
            assert failing.calls == [("a", 1)] * 6 + [("b", 1)]
            assert failing.done == ["a", "b"]
            assert breaker.state == "closed"
            assert letters(bus) == []

    run(main())


def test_an_open_breaker_of_the_handlers_own_uses_up_no_attempt():
    """A CircuitOpenError out of a handler means: when that breaker lets calls through again."""

    async def main():
        clock, calls = Clock(), []
        own = CircuitBreaker("own", CircuitBreakerConfig(timeout=30), clock=clock)
        own.state = "open"
        bus = EventBus(clock=clock)

        async def handler(event):
            calls.append(current_delivery().attempt)
            await own.call(lambda: None)

        bus.subscribe("t", handler, retry=PLAIN)
        async with bus:
            await bus.publish("t")
            await advance(bus, clock, 29)
            assert calls == [1]
            await advance(bus, clock, 2)
            assert calls == [1, 1]
            own.state = "open"
            with pytest.raises(CircuitOpenError):
                await own.call(lambda: None)
            assert bus.audit().pending == 0

    run(main())


def test_queue_full_of_the_bus_is_no_failed_attempt():
    """A handler that finds no room for what it publishes is called again a little later."""

    async def main():
        clock, attempts = Clock(), []
        bus = EventBus(clock=clock)
        narrow = bus.subscribe("out", lambda event: None, name="narrow", max_queue_size=1, overflow="reject")
        narrow.pause()

        async def handler(event):
            attempts.append(current_delivery().attempt)
            await bus.publish("out")

        bus.subscribe("t", handler, name="publishes")
        async with bus:
            await bus.publish("out")
            await bus.publish("t")
            await advance(bus, clock, 10)
            assert len(attempts) > 5
            assert set(attempts) == {1}
            # Fewer and fewer: up to a second from one to the next.
            assert len(attempts) < 30
            narrow.resume()
            await advance(bus, clock, 2)
            ledger = bus.audit()
            assert ledger.balanced
            assert (ledger.pending, ledger.subscriptions["publishes"].done) == (0, 1)
            assert letters(bus) == []

    run(main())


def test_queue_full_of_somebody_else_is_a_failure():
    """The bus's own backpressure is one thing, a QueueFull that the handler makes is another."""

    async def main():
        bus = EventBus()

        def handler(event):
            raise QueueFull("some other queue")

        bus.subscribe("t", handler)
        async with bus:
            settlement = await (await bus.publish("t")).settled()
            assert list(settlement.outcomes.values()) == ["dead"]

    run(main())


@pytest.mark.parametrize("policy", [None, PLAIN])
@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_for_ever_is_dead_in_the_end(kind, policy):
    """No hot loop: each is a failed attempt, which the breaker ignores."""

    async def main():
        clock, failing = Clock(), Failing({"a": 10**9}, asyncio.CancelledError)
        bus = EventBus(clock=clock)
        breaker = CircuitBreaker("b", CircuitBreakerConfig(failure_threshold=1), clock=clock)
        bus.subscribe("t", getattr(failing, kind), name="s", retry=policy, breaker=breaker)
        async with bus:
            await publish(bus, "ab")
            await advance(bus, clock, 100)
            assert failing.calls == [("a", n) for n in range(1, 4 if policy else 2)] + [("b", 1)]
            assert breaker.state == "closed"
            [letter] = letters(bus)
            assert letter["exception_type"] == "asyncio.exceptions.CancelledError"
            assert bus.audit().subscriptions["s"].dead == 1

    run(main())


def test_a_timeout_is_a_failed_attempt():
    """The time of each run is its own: an attempt that is late is tried again like any other."""

    async def main():
        clock, attempts = Clock(), []
        bus = EventBus(clock=clock)

        async def handler(event):
            attempts.append(current_delivery().attempt)
            if len(attempts) < 3:
                await asyncio.Event().wait()

        bus.subscribe("t", handler, name="s", retry=PLAIN, timeout=5)
        async with bus:
            receipt = await bus.publish("t")
            for _ in range(2):
                while bus.metrics().subscriptions["s"].running == 0:
                    await asyncio.sleep(0)
                assert bus._next_due() == pytest.approx(clock.now + 5)
                clock.now += 5
                bus._tick()
                await still(bus)
                clock.now += 10
                bus._tick()
            await still(bus)
            assert attempts == [1, 2, 3]
            assert (await receipt.settled()).ok

    run(main())


def test_an_error_in_where_or_order_by_is_tried_again():
    """What a callback raises is the handler's failure."""

    async def main():
        clock, asked, done = Clock(), [], []
        bus = EventBus(clock=clock)

        def fails_twice(event):
            asked.append(event.sequence)
            if asked.count(event.sequence) < 3:
                raise LookupError
            return True

        bus.subscribe("w", lambda event: done.append(event.type), where=fails_twice, retry=PLAIN)
        bus.subscribe("o", lambda event: done.append(event.type), order_by=fails_twice, concurrency=2, retry=PLAIN)
        async with bus:
            await bus.publish("w")
            await bus.publish("o")
            await advance(bus, clock, 19)
            assert done == []
            await advance(bus, clock, 2)
            assert sorted(done) == ["o", "w"]
            assert asked.count(1) == asked.count(2) == 3
            assert bus.audit().balanced

    run(main())


def test_stop_keeps_what_waits_with_its_attempts():
    """What waits for a retry stays queued for the next start, in order, and goes on where it was."""

    async def main():
        clock, failing = Clock(), Failing({"a": 2})
        bus = EventBus(clock=clock)
        bus.subscribe("t", failing.async_handler, name="s", retry=PLAIN)
        await bus.start()
        await publish(bus, "ab")
        await still(bus)
        report = await bus.stop(timeout=0)
        assert (report.drained, report.left, report.interrupted) == (False, 2, 0)
        assert bus._next_due() == pytest.approx(1010)
        clock.now += 5
        await bus.start()
        await still(bus)
        assert failing.calls == [("a", 1)]
        await bus.stop(timeout=0)
        clock.now += 100
        await bus.start()
        await still(bus)
        assert failing.calls == [("a", 1), ("a", 2)]
        await advance(bus, clock, 10)
        await bus.stop()
        assert failing.calls == [("a", 1), ("a", 2), ("a", 3), ("b", 1)]
        assert bus.audit().balanced

    run(main())


def test_a_start_on_another_loop_takes_the_timer_along():
    """The loop of the first start is gone when the retry is due."""
    failing = Failing({"a": 1})
    bus = EventBus()
    # Of real time, as it is about the loop's timer; the first start is to be over by then.
    bus.subscribe("t", failing.async_handler, name="s", retry=RetryPolicy(initial_delay=1, jitter=False))

    async def first():
        await bus.start()
        await bus.publish("t", {"name": "a"})
        await still(bus)
        await bus.stop(timeout=0)

    async def second():
        async with bus:
            await bus.drain(timeout=30)

    run(first())
    assert failing.calls == [("a", 1)]
    run(second())
    assert failing.calls == [("a", 1), ("a", 2)]


def test_drain_waits_for_retries():
    """Nothing is over before the last attempt is."""

    async def main():
        failing = Failing({"a": 2, "b": 9})
        bus = EventBus()
        policy = RetryPolicy(initial_delay=0.01, jitter=False)
        bus.subscribe("t", failing.async_handler, name="s", retry=policy)
        bus.subscribe("t", failing.sync_handler, name="n", retry=policy, retry_holds="nothing")
        async with bus:
            await publish(bus, "abc")
            await bus.drain(timeout=30)
            assert bus.audit().pending == 0
            assert bus.audit().balanced

    run(main())


def test_a_cancelled_subscription_drops_what_it_held():
    """Counted, and settled: nobody waits for a retry of a subscription that is gone."""

    async def main():
        clock, failing = Clock(), Failing({"a": 9})
        bus = EventBus(clock=clock)
        subscription = bus.subscribe("t", failing.async_handler, name="s", retry=PLAIN)
        async with bus:
            receipt = await bus.publish("t", {"name": "a"})
            await still(bus)
            subscription.cancel()
            assert (await receipt.settled()).outcomes == {"s": "dropped"}
            await advance(bus, clock, 100)
            assert failing.calls == [("a", 1)]

    run(main())


def test_what_is_held_counts_against_the_queue():
    """Memory is bounded while a handler fails: publishers wait."""

    async def main():
        clock, failing = Clock(), Failing(dict.fromkeys("abcdefgh", 2))
        bus = EventBus(clock=clock)
        bus.subscribe("t", failing.async_handler, name="s", retry=PLAIN, retry_holds="nothing", max_queue_size=4)
        async with bus:
            publisher = asyncio.create_task(publish(bus, "abcdefgh"))
            await advance(bus, clock, 1)
            assert not publisher.done()
            # What ran when it was full comes back beyond it: one for each handler at work.
            assert sum(bus.metrics().subscriptions["s"].depth.values()) == 5
            await advance(bus, clock, 200)
            await publisher
            await advance(bus, clock, 200)
            assert sorted(failing.done) == list("abcdefgh")

    run(main())


def test_jitter_is_within_its_bounds_and_reproducible_by_seed():
    """Full jitter: anything from nothing to the policy's delay, and the same again from the same seed."""

    async def times(seed):
        clock, seen = Clock(), []
        bus = EventBus(clock=clock, random=seed)

        def handler(event):
            seen.append(clock.now - 1000)
            raise ConnectionError

        bus.subscribe("t", handler, retry=RetryPolicy(max_attempts=6, initial_delay=10, max_delay=40))
        async with bus:
            await bus.publish("t")
            await advance(bus, clock, 1000)
        return seen

    async def main():
        first, again, other = await times(7), await times(7), await times(8)
        assert first == again
        assert first != other
        for seen in (first, other):
            pauses = [after - before for before, after in itertools.pairwise(seen)]
            assert len(pauses) == 5
            for pause, limit in zip(pauses, (10, 20, 40, 40, 40), strict=True):
                assert 0 <= pause <= limit + 0.001

    run(main())


def test_random_that_fails_spreads_nothing_and_loses_nothing(monkeypatch):
    """The retry comes all the same, at the end of its range, and the failure is reported."""
    reported = []
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))

    def broken():
        raise ArithmeticError

    async def main():
        clock, failing = Clock(), Failing({"a": 1})
        bus = EventBus(clock=clock, random=broken)
        bus.subscribe("t", failing.async_handler, retry=RetryPolicy(initial_delay=10))
        async with bus:
            await publish(bus, "a")
            await advance(bus, clock, 9)
            assert failing.calls == [("a", 1)]
            await advance(bus, clock, 2)
            assert failing.done == ["a"]

    run(main())
    assert reported == [ArithmeticError]


def test_the_log_says_what_comes_next(caplog):
    """A warning for each attempt that is followed by another, one error for the last; never the message."""

    async def main():
        clock, failing = Clock(), Failing({"a": 3}, ValueError("the secret of a"))
        bus = EventBus(clock=clock)
        bus.subscribe("t", failing.async_handler, name="s", retry=PLAIN)
        async with bus:
            await publish(bus, "a")
            await advance(bus, clock, 30)

    with caplog.at_level(logging.DEBUG, "ironbus"):
        run(main())
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "ironbus"]
    assert [level for level, _ in lines] == ["WARNING", "WARNING", "ERROR"]
    assert "(attempt 1, the next one in 10 s): ValueError at " in lines[0][1]
    assert "(attempt 3): ValueError at " in lines[2][1]
    assert "secret" not in caplog.text


def test_many_waiting_retries_own_no_task_and_no_thread(caplog):
    """A lane that waits costs a place in a heap, and one timer of the loop does for all of them."""
    caplog.set_level(logging.CRITICAL, "ironbus")

    async def main():
        clock, done = Clock(), []
        bus = EventBus(clock=clock)

        def make(n):
            async def handler(event):
                if current_delivery().attempt == 1:
                    raise ConnectionError
                done.append(n)

            return handler

        for n in range(500):
            bus.subscribe("t", make(n), name=f"s{n}", retry=PLAIN)
        async with bus:
            await bus.publish("t")
            await still(bus)
            tasks = [task.get_name() for task in asyncio.all_tasks()]
            assert len([name for name in tasks if "slot" in name]) <= 4
            assert not [thread.name for thread in threading.enumerate() if "ironbus-worker" in thread.name]
            timers = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]
            assert len(timers) <= 4  # the bus's own, and those of the deadlines of this test
            await advance(bus, clock, 11)
            assert sorted(done) == list(range(500))

    run(main())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"retry": 3}, "retry"),
        ({"retry": {"max_attempts": 3}}, "retry"),
        ({"retry_holds": "all"}, "retry_holds"),
        ({"retry_holds": "key", "ordered": False}, "retry_holds"),
        ({"breaker": 5}, "breaker"),
        ({"breaker": "b"}, "breaker"),
        ({"dead_letter": "yes"}, "dead_letter"),
        ({"dead_letter": 1}, "dead_letter"),
        ({"breaker": CircuitBreaker("other clock", clock=lambda: 0.0)}, "breaker"),
    ],
)
def test_wrong_options_name_the_field(options, field):
    """At subscribe, with the fix in the text, and nothing is changed."""
    bus = EventBus()
    with pytest.raises(InvalidOption) as caught:
        bus.subscribe("t", lambda event: None, name="s", **options)
    assert caught.value.field == field
    assert field in str(caught.value)
    assert bus.get_subscribers() == {}


@pytest.mark.parametrize("random", [True, 1.5, "seed"])
def test_a_wrong_random_names_the_field(random):
    """Also at the bus."""
    with pytest.raises(InvalidOption) as caught:
        EventBus(random=random)
    assert caught.value.field == "random"
