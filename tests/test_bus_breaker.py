"""Circuit breakers before subscriptions: an open one pauses, and nothing is lost, used up or overtaken."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest
from ironbus import CircuitBreaker, CircuitBreakerConfig, EventBus, EventPriority, RetryPolicy, current_delivery
from recovering import Clock, advance, letters, still

ENDLESS = RetryPolicy(max_attempts=10**6, initial_delay=0.1, max_delay=1)


def run(main, limit=60):
    async def limited():
        async with asyncio.timeout(limit):
            return await main

    with asyncio.Runner() as runner:
        return runner.run(limited())


class Dependency:
    """What handlers call: up, or down until a time."""

    def __init__(self, clock, down_until=0.0):
        self.clock, self.down_until = clock, down_until
        self.calls, self.done, self.breaker = [], [], None

    def call(self, event):
        self.calls.append((self.clock.now, event.sequence, self.breaker and str(self.breaker.state)))
        if self.clock.now < self.down_until:
            raise ConnectionError("down")
        self.done.append(event.sequence)

    async def async_handler(self, event):
        self.call(event)

    async def suspending_handler(self, event):
        await asyncio.sleep(0)
        self.call(event)

    def sync_handler(self, event):
        self.call(event)


KINDS = ["async_handler", "suspending_handler", "sync_handler"]


@pytest.mark.parametrize("policy", [ENDLESS, RetryPolicy(max_attempts=9, initial_delay=0.1)])
def test_a_dependency_down_for_ten_minutes(policy, caplog):
    """100,000 events arrive meanwhile: no dead letter, nothing called but probes while the breaker is
    open, all delivered in order afterwards, and publishers wait, so that memory is bounded."""
    caplog.set_level(logging.CRITICAL, "ironbus")
    events, bound, timeout = 100_000, 1000, 30

    async def main():
        clock = Clock()
        dependency = Dependency(clock, clock.now + 600)
        bus = EventBus(clock=clock)
        subscription = bus.subscribe(
            "t",
            dependency.async_handler,
            name="s",
            retry=policy,
            breaker=CircuitBreakerConfig(timeout=timeout),
            max_queue_size=bound,
        )
        dependency.breaker = subscription.breaker
        deepest = 0

        async def publisher():
            for _ in range(100):
                await bus.publish_many([("t", None)] * (events // 1000))

        async with bus:
            publishers = [asyncio.create_task(publisher()) for _ in range(10)]
            for _ in range(60):
                await advance(bus, clock, 10)
                depth = bus.metrics().subscriptions["s"].depth
                deepest = max(deepest, sum(depth.values()))
                assert not any(task.done() for task in publishers)
            down = list(dependency.calls)
            await advance(bus, clock, 2 * timeout)
            await asyncio.gather(*publishers)
            await bus.drain(timeout=60)
            ledger = bus.audit()
            assert ledger.balanced
            assert (ledger.subscriptions["s"].done, ledger.subscriptions["s"].dead) == (events, 0)
            assert letters(bus) == []
        # It opens at the fifth failure, some time after the first; then there is one probe for each timeout.
        assert 5 + 600 // timeout - 2 <= len(down) <= 5 + 600 // timeout
        assert {state for _, _, state in down[5:]} == {"half_open"}
        assert {sequence for _, sequence, _ in down} == {1}
        assert dependency.done == list(range(1, events + 1))
        assert deepest <= bound + 1

    run(main(), 110)


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_breaker_uses_up_no_attempt(kind):
    """The attempts are those that were made while it was closed, whatever the probes find."""

    async def main():
        clock, attempts = Clock(), []
        dependency = Dependency(clock, clock.now + 95)
        bus = EventBus(clock=clock)
        call = dependency.call

        def noting(event):
            attempts.append(current_delivery().attempt)
            call(event)

        dependency.call = noting
        policy = RetryPolicy(max_attempts=3, initial_delay=1, jitter=False)
        config = CircuitBreakerConfig(failure_threshold=2, timeout=10, success_threshold=1)
        bus.subscribe("t", getattr(dependency, kind), name="s", retry=policy, breaker=config)
        async with bus:
            for _ in range(3):
                await bus.publish("t")
            await advance(bus, clock, 50)
            statistics = bus.metrics().subscriptions["s"]
            assert (statistics.state, statistics.breaker) == ("open", "open")
            await advance(bus, clock, 100)
            assert dependency.done == [1, 2, 3]
            assert attempts == [1, 2] + [3] * (len(attempts) - 4) + [1, 1]
            assert len(attempts) > 10
            assert bus.metrics().subscriptions["s"].breaker == "closed"
            assert letters(bus) == []

    run(main())


def test_lanes_and_plain_calls_share_a_breaker():
    """One notices for all: subscriptions of two buses, and calls that go through no bus."""

    async def main():
        clock = Clock()
        shared = CircuitBreaker("shop", CircuitBreakerConfig(failure_threshold=1, timeout=10), clock=clock)
        dependency = Dependency(clock, clock.now + 5)
        dependency.breaker = shared
        one, two = EventBus(clock=clock), EventBus(clock=clock)
        first = one.subscribe("t", dependency.async_handler, name="first", breaker=shared, retry=ENDLESS)
        one.subscribe("t", dependency.sync_handler, name="second", breaker=shared, retry=ENDLESS)
        two.subscribe("t", dependency.suspending_handler, name="third", breaker=shared, retry=ENDLESS)
        assert first.breaker is shared
        async with one, two:
            with pytest.raises(ConnectionError):
                await shared.call(dependency.call, type("E", (), {"sequence": 0}))
            for bus in (one, two):
                for _ in range(3):
                    await bus.publish("t")
            await still(one)
            await still(two)
            assert len(dependency.calls) == 1
            clock.now += 11
            one._tick()
            await still(one)
            await still(two)
            # Bus two's own timer has not been looked at: the probes of bus one closed the breaker for it.
            assert shared.state == "closed"
            assert sorted(dependency.done) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
            for bus in (one, two):
                assert bus.audit().balanced
                assert bus.audit().pending == 0

    run(main())


def test_a_plain_call_lets_the_lanes_go_on():
    """The probe may be somebody else's."""

    async def main():
        clock = Clock()
        shared = CircuitBreaker(
            "b", CircuitBreakerConfig(failure_threshold=1, success_threshold=1, timeout=1000), clock=clock
        )
        dependency = Dependency(clock)
        bus = EventBus(clock=clock)
        bus.subscribe("t", dependency.async_handler, breaker=shared)
        async with bus:
            shared.state = "open"
            await bus.publish("t")
            await still(bus)
            assert dependency.calls == []
            clock.now += 1001
            await shared.call(lambda: None)
            await still(bus)
            assert dependency.done == [1]

    run(main())


def test_somebody_opens_and_closes_it():
    """``subscription.breaker`` is there for a person with a switch."""

    async def main():
        bus = EventBus()
        done = []
        subscription = bus.subscribe("t", lambda event: done.append(event.sequence), breaker=CircuitBreakerConfig())
        assert subscription.breaker.name == subscription.name
        async with bus:
            subscription.breaker.state = "open"
            for _ in range(3):
                await bus.publish("t")
            await still(bus)
            assert subscription.statistics().state == "open"
            subscription.breaker.state = "closed"
            await bus.drain(timeout=30)
            assert done == [1, 2, 3]

    run(main())


def test_a_poison_event_behind_a_breaker():
    """It ends by its attempts while the breaker is closed, and the breaker closes with what comes after."""

    async def main():
        clock = Clock()
        bus = EventBus(clock=clock)
        done = []

        async def handler(event):
            if event.data == "poison":
                raise ValueError
            done.append(event.data)

        policy = RetryPolicy(max_attempts=3, initial_delay=1, jitter=False)
        bus.subscribe("t", handler, name="s", retry=policy, breaker=CircuitBreakerConfig(failure_threshold=5))
        async with bus:
            for data in ("a", "poison", "b"):
                await bus.publish("t", data)
            await advance(bus, clock, 100)
            assert done == ["a", "b"]
            assert [letter["data"] for letter in letters(bus)] == ["poison"]
            assert bus.metrics().subscriptions["s"].breaker == "closed"

    run(main())


def test_stop_and_start_behind_an_open_breaker():
    """What is paused stays queued, in order, and goes on after a later start."""

    async def main():
        clock = Clock()
        dependency = Dependency(clock, clock.now + 15)
        bus = EventBus(clock=clock)
        config = CircuitBreakerConfig(failure_threshold=1, timeout=10)
        bus.subscribe("t", dependency.async_handler, name="s", breaker=config, retry=ENDLESS)
        await bus.start()
        for _ in range(3):
            await bus.publish("t")
        await advance(bus, clock, 1)
        report = await bus.stop(timeout=0)
        assert report.left == 3
        clock.now += 100
        await bus.start()
        await still(bus)
        assert dependency.done == [1, 2, 3]
        assert (await bus.stop()).drained

    run(main())


def test_drain_waits_for_a_paused_subscription():
    """A breaker that is open has work behind it."""

    async def main():
        dependency = Dependency(Clock(), 2000)
        bus = EventBus()
        config = CircuitBreakerConfig(failure_threshold=1, timeout=0.05)
        policy = RetryPolicy(initial_delay=0, jitter=False)
        bus.subscribe("t", dependency.async_handler, breaker=config, retry=policy)
        async with bus:
            await bus.publish("t")
            draining = asyncio.create_task(bus.drain(timeout=30))
            while len(dependency.calls) < 3:
                await asyncio.sleep(0.001)
            assert not draining.done()
            dependency.down_until = 0
            await draining
            assert dependency.done == [1]

    run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_half_open_lets_the_configured_number_through(kind):
    """Also where many handlers may run at once."""

    async def main():
        clock = Clock()
        dependency = Dependency(clock, clock.now + 100)
        bus = EventBus(clock=clock)
        config = CircuitBreakerConfig(
            failure_threshold=1, timeout=10, half_open_max_calls=3, success_threshold=3, failure_rate=None
        )
        bus.subscribe(
            "t",
            getattr(dependency, kind),
            name="s",
            retry=ENDLESS,
            breaker=config,
            concurrency=50,
            ordered=False,
        )
        async with bus:
            for _ in range(100):
                await bus.publish("t")
            await still(bus)
            opened = len(dependency.calls)
            for _ in range(8):
                clock.now += 10.001
                before = len(dependency.calls)
                bus._tick()
                await still(bus)
                # A probe that fails opens it, and those that ran beside it say nothing more.
                assert 1 <= len(dependency.calls) - before <= 3
            assert opened <= 50
            clock.now += 100
            await advance(bus, clock, 20)
            assert sorted(dependency.done) == list(range(1, 101))

    run(main())


@pytest.mark.parametrize("most", [1, 7])
def test_of_a_hundred_at_once_exactly_so_many_probe(most):
    """While none of them has ended, no other starts; a result of before the change lets none through."""

    async def main():
        clock, running, gate = Clock(), [], asyncio.Event()
        down = True

        async def handler(event):
            if down:
                raise ConnectionError
            running.append(event.sequence)
            await gate.wait()

        bus = EventBus(clock=clock)
        config = CircuitBreakerConfig(
            failure_threshold=1, timeout=10, half_open_max_calls=most, success_threshold=most, failure_rate=None
        )
        options = {"retry": ENDLESS, "breaker": config, "concurrency": 100, "ordered": False}
        subscription = bus.subscribe("t", handler, name="s", **options)
        async with bus:
            await bus.publish_many([("t", {"n": n}) for n in range(100)])
            await still(bus)
            assert subscription.breaker.state == "open"
            down = False
            clock.now += 10.001
            bus._tick()
            for _ in range(200):
                await asyncio.sleep(0)
            assert subscription.breaker.state == "half_open"
            assert len(running) == most
            gate.set()
            await advance(bus, clock, 20)
            assert subscription.breaker.state == "closed"
            assert sorted(running) == list(range(1, 101))
            assert bus.audit().balanced

    run(main())


def test_more_urgent_events_are_probes_first():
    """An event that comes while the breaker is open goes before those of lower levels."""

    async def main():
        clock = Clock()
        dependency = Dependency(clock, clock.now + 0.25)
        bus = EventBus(clock=clock)
        config = CircuitBreakerConfig(failure_threshold=1, timeout=0.5)
        bus.subscribe("t", dependency.async_handler, breaker=config, retry=ENDLESS)
        async with bus:
            await bus.publish("t", priority=EventPriority.LOW)
            await bus.publish("t", priority=EventPriority.NORMAL)
            await bus.publish("t", priority=EventPriority.CRITICAL)
            await advance(bus, clock, 20)
            # Within a second, or one of the lower heads would have its turn of sixteen.
            assert dependency.done == [3, 2, 1]

    run(main())


def test_a_shared_breaker_keeps_no_dropped_bus_alive():
    """A breaker of the whole program outlives many buses, also those that it had paused."""
    shared = CircuitBreaker("b")

    class Handler:
        async def __call__(self, event):
            raise AssertionError

    async def main():
        bus, handler = EventBus(), Handler()
        bus.subscribe("t", handler, breaker=shared)
        async with bus:
            shared.state = "open"
            await bus.publish("t")
            await still(bus)
            assert next(iter(bus.metrics().subscriptions.values())).state == "open"
            await bus.stop(timeout=0)
        return weakref.ref(bus), weakref.ref(handler)

    references = run(main())
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    shared.state = "closed"


def test_a_config_that_is_wrong_names_its_field():
    """At subscribe, also where a field was changed after it was made."""
    config = CircuitBreakerConfig()
    config.timeout = -1
    with pytest.raises(ValueError, match="timeout"):
        EventBus().subscribe("t", lambda event: None, breaker=config)
