"""Virtual time: what falls due comes in the order of its times, and nothing of it is left to chance."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest
from ironbus import (
    CircuitBreaker,
    CircuitBreakerConfig,
    EventBus,
    Idempotency,
    InvalidOption,
    RetryLater,
    RetryPolicy,
    _core,
)
from ironbus.testing import harness
from running import run


@pytest.fixture(autouse=True)
def _quiet():
    """Handlers fail here on purpose."""
    logger = logging.getLogger("ironbus")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def after(*delays, attempts=9):
    """A retry policy whose first pauses are these: one number doubles, and so on."""
    first = delays[0]
    base = delays[1] / first if len(delays) > 1 else 1
    return RetryPolicy(
        max_attempts=attempts, initial_delay=first, max_delay=1e6, exponential_base=max(base, 1), jitter=False
    )


class Diary:
    """Handlers that note the bus's time of each call."""

    def __init__(self):
        self.t = None
        self.lines = []

    def note(self, event):
        self.lines.append((self.t.elapsed, event.delivery.subscription, event.data))

    async def write(self, event):
        self.note(event)

    async def write_slowly(self, event):
        await asyncio.sleep(0)
        self.note(event)

    def write_in_a_thread(self, event):
        self.note(event)


KINDS = ["write", "write_slowly", "write_in_a_thread"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_advance_runs_everything_in_the_order_of_its_times(kind):
    """Retries, delayed events and what they cause, of several subscriptions, by time."""

    async def main():
        bus, diary = EventBus(), Diary()
        handler = getattr(diary, kind)
        bus.subscribe("one", handler, name="one", retry=after(1, 4))
        bus.subscribe("five", handler, name="five", retry=after(5))
        bus.subscribe("later", handler, name="later")
        async with harness(bus, clock="virtual") as t:
            diary.t = t
            t.fail("one", times=2)
            t.fail("five", times=1)
            await bus.publish("one", 1)
            await bus.publish("five", 5)
            await bus.publish("later", 3, delay=3)
            await bus.publish("later", 60, delay=60)
            await bus.publish("later", 61, delay=60.000000001)
            await t.advance(60)
            assert diary.lines == [
                (3.0, "later", 3),
                (5.0, "one", 1),
                (5.0, "five", 5),
                (60.0, "later", 60),
            ] or diary.lines == [(3.0, "later", 3), (5.0, "five", 5), (5.0, "one", 1), (60.0, "later", 60)]
            assert t.elapsed == 60
            await t.advance(0)
            assert len(diary.lines) == 4
            await t.advance(1e-9)
            assert diary.lines[-1] == (pytest.approx(60), "later", 61)
            t.assert_conserved()

    run(main())


def test_what_a_step_causes_is_over_before_the_next():
    """A handler at +1 that publishes for +1 more comes before what was due at +5."""

    async def main():
        bus, diary = EventBus(), Diary()

        async def chain(event):
            await asyncio.sleep(0)
            diary.note(event)
            if event.data < 4:
                await bus.publish("chain", event.data + 1, delay=1)
                await bus.publish("log", event.data)

        bus.subscribe("chain", chain, name="chain")
        bus.subscribe("log", diary.write_in_a_thread, name="log")
        bus.subscribe("five", diary.write, name="five")
        async with harness(bus, clock="virtual") as t:
            diary.t = t
            await bus.publish("five", 5, delay=2.5)
            await bus.publish("chain", 1, delay=1)
            await t.advance(100)
            assert diary.lines == [
                (1.0, "chain", 1),
                (1.0, "log", 1),
                (2.0, "chain", 2),
                (2.0, "log", 2),
                (2.5, "five", 5),
                (3.0, "chain", 3),
                (3.0, "log", 3),
                (4.0, "chain", 4),
            ]
            assert t.elapsed == 100

    run(main())


def test_ten_thousand_seconds_cost_what_happens_in_them():
    """Nobody sleeps: a day of retries every minute takes no real minute."""

    async def main():
        bus, diary = EventBus(), Diary()
        bus.subscribe("a", diary.write, name="a", retry=after(60, attempts=10_000))
        async with harness(bus, clock="virtual") as t:
            diary.t = t
            t.fail("a", times=1440)
            await bus.publish("a", 1)
            before = time.monotonic()
            await t.advance(86_400)
            assert time.monotonic() - before < 20
            assert diary.lines == [(86_400.0, "a", 1)]
            assert len(t.calls("a")) == 1441

    run(main())


def delays_of(seed):
    """The times of retries with jitter."""
    bus, diary = EventBus(), Diary()
    bus.subscribe("a", diary.write, name="a", retry=RetryPolicy(max_attempts=6, initial_delay=10))
    times = []
    with harness(bus, clock="virtual", seed=seed) as t:
        diary.t = t
        t.fail("a", times=5)
        bus.sync.publish("a", 1)
        t.settle()
        while len(t.calls("a")) < 6:
            before = len(t.calls("a"))
            t.advance(0.5)
            times.extend([t.elapsed] * (len(t.calls("a")) - before))
    return times


def test_jitter_is_drawn_by_the_seed():
    """The same seed, the same times; another, others."""
    assert delays_of(1) == delays_of(1)
    assert len({tuple(delays_of(seed)) for seed in range(4)}) > 1


def test_time_stands_still_between():
    """However long a test takes, nothing falls due by itself."""

    async def main():
        bus, diary = EventBus(), Diary()
        bus.subscribe("a", diary.write, name="a")
        async with harness(bus, clock="virtual") as t:
            diary.t = t
            await bus.publish("a", 1, delay=0.01)
            await asyncio.sleep(0.05)
            await t.settle()
            assert diary.lines == []
            assert t.elapsed == 0
            await t.advance(0.01)
            assert diary.lines == [(0.01, "a", 1)]

    run(main())


def test_the_control_without_a_virtual_clock():
    """There the same event comes by itself."""

    async def main():
        bus, diary = EventBus(), Diary()
        bus.subscribe("a", diary.write, name="a")
        async with harness(bus) as t:
            diary.t = t
            await bus.publish("a", 1, delay=0.01)
            await t.settle()
            assert len(diary.lines) == 1
            with pytest.raises(InvalidOption, match='clock="virtual"') as error:
                await t.advance(1)
            assert error.value.field == "clock"

    run(main())


@pytest.mark.parametrize("seconds", [-1, "1", None, float("nan"), float("inf")])
def test_wrong_times_are_refused(seconds):
    """Time does not go back."""

    async def main():
        async with harness(EventBus(), clock="virtual") as t:
            with pytest.raises(InvalidOption):
                await t.advance(seconds)
            assert t.elapsed == 0

    run(main())


@pytest.mark.parametrize("how", ["publish", "publish_sync", "publish_many", "sync.publish_many", "one of many"])
def test_every_way_to_publish_has_its_times(how):
    """A delay and an expiry that are all that is given count, too."""

    async def main():
        bus, diary = EventBus(), Diary()
        paused = bus.subscribe("b", diary.write, name="b")
        bus.subscribe("a", diary.write, name="a")

        async def publish(topic, data, **times):
            match how:
                case "publish":
                    await bus.publish(topic, data, **times)
                case "publish_sync":
                    bus.publish_sync(topic, data, **times)
                case "publish_many":
                    await bus.publish_many([(topic, data)], **times)
                case "sync.publish_many":
                    bus.sync.publish_many([(topic, data)], **times)
                case "one of many":
                    await bus.publish_many([(topic, data, times)])

        async with harness(bus, clock="virtual") as t:
            diary.t = t
            await publish("a", 1, delay=10)
            paused.pause()
            await publish("b", 2, expires_in=5)
            await t.advance(9)
            assert diary.lines == []
            paused.resume()
            await t.advance(9)
            assert diary.lines == [(10.0, "a", 1)]
            assert bus.audit().subscriptions["b"].expired == 1

    run(main())


# What the clock is for ------------------------------------------------------------------


def test_a_breaker_lets_its_probe_through_in_time():
    """Open, half open and closed, by the bus's clock; also as its own methods tell it."""

    async def main():
        bus, diary = EventBus(), Diary()
        config = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, timeout=30)
        shared = CircuitBreaker("shared", config)
        bus.subscribe("a", diary.write, name="a", breaker=shared, retry=after(1))
        async with harness(bus, clock="virtual") as t:
            diary.t = t
            t.fail("a", times=3)
            await bus.publish_many([("a", n) for n in (1, 2, 3)])
            await t.advance(1)
            assert shared.state == "open"
            assert len(t.calls("a")) == 2
            await t.advance(29.5)
            assert len(t.calls("a")) == 2, "it is open since +1"
            await t.advance(0.5)
            assert len(t.calls("a")) == 3
            assert shared.state == "open"
            opened = shared.get_state()["last_state_change"]
            await t.advance(30)
            assert shared.state == "closed"
            assert diary.lines == [(61.0, "a", n) for n in (1, 2, 3)]
            assert shared.get_state()["last_state_change"] - opened == pytest.approx(30, abs=0.01)
            shared.state = "open"
            with pytest.raises(Exception, match="call again in 30 s"):
                await shared.call(lambda: None)
            await t.advance(30)
            assert await shared.call(lambda: 7) == 7
            t.assert_conserved()

    run(main())


def test_keys_live_as_long_as_their_ttl():
    """To the nanosecond."""

    async def main():
        bus = EventBus(idempotency=Idempotency(ttl=600))
        async with harness(bus, clock="virtual") as t:
            assert not (await bus.publish("a", {}, idempotency_key="k")).duplicate
            await t.advance(599.999999)
            assert (await bus.publish("a", {}, idempotency_key="k")).duplicate
            await t.advance(0.000001)
            assert not (await bus.publish("a", {}, idempotency_key="k")).duplicate

    run(main())


def test_expiry_and_ages():
    """An event that waits too long expires; until then its age is the bus's time."""

    async def main():
        bus, diary = EventBus(), Diary()
        subscription = bus.subscribe("a", diary.write, name="a")
        async with harness(bus, clock="virtual") as t:
            diary.t = t
            subscription.pause()
            await bus.publish("a", 1, expires_in=10)
            await bus.publish("a", 2)
            await t.advance(9)
            assert subscription.statistics().oldest_age == 9
            await t.advance(2)
            subscription.resume()
            await t.settle()
            assert diary.lines == [(11.0, "a", 2)]
            assert subscription.statistics().ledger.expired == 1
            t.assert_conserved()

    run(main())


def test_a_handler_may_say_when():
    """``RetryLater`` on the virtual clock; a time of zero comes at once and does not hang the harness."""

    async def main():
        bus = EventBus()
        times = []

        async def handler(event):
            times.append(t.elapsed)
            if len(times) < 4:
                raise RetryLater(0 if len(times) == 1 else 20)

        bus.subscribe("a", handler, name="a")
        async with harness(bus, clock="virtual") as t:
            await bus.publish("a", {})
            await t.settle()
            assert times == [0, 0]
            await t.advance(1000)
            assert times == [0, 0, 20, 40]

    run(main())


# Handlers that wait ---------------------------------------------------------------------


def test_a_handler_that_hangs_runs_out_of_its_time():
    """Each attempt, at the end of its timeout; then it is dead."""

    async def main():
        bus = EventBus()
        begun = []

        async def hang(event):
            begun.append(t.elapsed)
            await asyncio.Event().wait()

        bus.subscribe("a", hang, name="a", timeout=5, retry=after(10, attempts=3))
        async with harness(bus, clock="virtual", patience=0.02) as t:
            await bus.publish("a", {})
            await t.advance(4.999)
            assert [call.outcome for call in t.calls("a")] == ["running"]
            await t.advance(100)
            assert begun == [0, 15, 30]
            assert {type(call.error) for call in t.calls("a")} == {asyncio.CancelledError}
            with pytest.raises(ExceptionGroup) as group:
                await t.settle()
            assert [type(error) for error in group.value.exceptions] == [TimeoutError]

    run(main())


def test_a_handler_with_real_work_to_do_is_waited_for():
    """Shorter than the patience: no time passes over it, so its timeout does not either."""

    async def main():
        bus = EventBus()

        async def work(event):
            await asyncio.to_thread(threading.Event().wait, 0.02)
            await asyncio.sleep(0.02)

        bus.subscribe("a", work, name="a", timeout=1)
        async with harness(bus, clock="virtual", patience=5) as t:
            for _ in range(3):
                await bus.publish("a", {}, delay=1)
            await t.advance(1000)
            assert [call.outcome for call in t.calls("a")] == ["done"] * 3
            await t.settle()

    run(main())


def test_one_that_hangs_holds_up_nobody_else():
    """On the loop and in a thread; when they are let go, they end."""

    async def main():
        bus, diary = EventBus(workers=2), Diary()
        gate, thread_gate = asyncio.Event(), threading.Event()

        async def hang(event):
            await gate.wait()

        def hang_in_a_thread(event):
            thread_gate.wait()

        bus.subscribe("hang", hang, name="hang")
        bus.subscribe("hang", hang_in_a_thread, name="hang_in_a_thread")
        bus.subscribe("a", diary.write_in_a_thread, name="a", retry=after(1))
        async with harness(bus, clock="virtual", patience=0.02) as t:
            diary.t = t
            t.fail("a", times=3)
            await bus.publish("hang", {})
            await bus.publish("a", 1)
            await t.advance(10)
            assert diary.lines == [(3.0, "a", 1)]
            assert [call.outcome for call in t.calls("hang") + t.calls("hang_in_a_thread")] == ["running"] * 2
            gate.set()
            thread_gate.set()
            await t.settle()
            t.assert_conserved()

    run(main())


def test_one_that_waits_for_the_bus_goes_on_in_time():
    """It waits for an event whose retry comes; what it does then comes before what is due later."""

    async def main():
        bus, diary = EventBus(), Diary()

        async def asks(event):
            receipt = await bus.publish("answer", {})
            await receipt.settled()
            diary.note(event)
            await bus.publish("said", 1)

        bus.subscribe("ask", asks, name="asks")
        bus.subscribe("answer", diary.write, name="answers", retry=after(5))
        bus.subscribe("said", diary.write_slowly, name="hears")
        bus.subscribe("later", diary.write, name="later")
        async with harness(bus, clock="virtual", patience=0.05) as t:
            diary.t = t
            t.fail("answers", times=1)
            await bus.publish("later", 0, delay=6)
            await bus.publish("ask", {})
            await t.advance(60)
            assert [(at, name) for at, name, _ in diary.lines] == [
                (5.0, "answers"),
                (5.0, "asks"),
                (5.0, "hears"),
                (6.0, "later"),
            ]

    run(main())


def test_asyncio_sleep_is_not_driven():
    """The bus's time alone: a handler's own sleep takes its real time."""

    async def main():
        bus = EventBus()
        slept = []

        async def sleeper(event):
            before = time.monotonic()
            await asyncio.sleep(0.05)
            slept.append(time.monotonic() - before)

        bus.subscribe("a", sleeper, name="a")
        async with harness(bus, clock="virtual") as t:
            await bus.publish("a", {})
            await t.advance(60)
            await t.settle()
            assert slept[0] >= 0.04

    run(main())


# Coming and going -----------------------------------------------------------------------


def test_a_stopped_bus_catches_up_when_it_starts():
    """Time passes for it all the same."""

    async def main():
        bus, diary = EventBus(), Diary()
        bus.subscribe("a", diary.write, name="a", retry=after(10))
        async with harness(bus, clock="virtual") as t:
            diary.t = t
            t.fail("a", times=1)
            await bus.publish("a", 1)
            await t.settle()
            await bus.stop(timeout=0)
            await bus.publish("a", 2, expires_in=50)
            await t.advance(100)
            assert diary.lines == []
            assert t.elapsed == 100
            await bus.start()
            await t.settle()
            assert diary.lines == [(100.0, "a", 1)]
            assert bus.audit().subscriptions["a"].expired == 1
            t.assert_conserved()

    run(main())


@pytest.mark.parametrize("clock", [None, lambda: 50.0])
def test_the_clock_never_goes_back(clock):
    """After the block it runs on from where it was, at the pace of its source."""

    async def main():
        bus = EventBus(clock=clock, idempotency=Idempotency(ttl=100))
        native = _core.Harness(bus)
        async with bus:
            before = native.now()
            await bus.publish("a", {}, idempotency_key="before")
            async with harness(bus, clock="virtual") as t:
                await t.advance(99)
                assert (await bus.publish("a", {}, idempotency_key="before")).duplicate
            after = native.now()
            assert 99e9 <= after - before < 99e9 + (60e9 if clock is None else 1)
            async with harness(bus, clock="virtual") as t:
                await t.advance(1)
                assert not (await bus.publish("a", {}, idempotency_key="before")).duplicate
            if clock is None:
                await asyncio.sleep(0.001)
                assert native.now() > after
            assert native.is_driven() == (clock is not None)

    run(main())


def test_without_an_advance_the_clock_is_the_machines_again():
    """Nothing of the harness is left in it."""

    async def main():
        bus, other = EventBus(), EventBus()
        async with harness(bus, clock="virtual") as t:
            await asyncio.sleep(0.001)
            assert t.elapsed == 0
        first, second = _core.Harness(bus).now(), _core.Harness(other).now()
        assert first <= second < first + 1e9

    run(main())


def test_a_running_bus_gets_its_timers_back():
    """What had been due in real time before the block, and what the block has left, come by themselves after it."""

    async def main():
        bus, diary = EventBus(), Diary()

        class Now:
            elapsed = 0.0

        async def hang(event):
            diary.note(event)
            await asyncio.Event().wait()

        diary.t = Now
        bus.subscribe("a", diary.write, name="a")
        bus.subscribe("h", hang, name="h", timeout=1000.02)
        async with bus:
            await bus.publish("a", 1, delay=0.02)
            await bus.publish("h", 3)
            while not diary.lines:
                await asyncio.sleep(0)
            async with harness(bus, clock="virtual", patience=0.001) as t:
                await bus.publish("a", 2, delay=1000.01)
                await asyncio.sleep(0.05)
                assert [line[2] for line in diary.lines] == [3]
                await t.advance(1000)
                assert [line[2] for line in diary.lines] == [3, 1]
            await bus.drain(timeout=10)
            assert [line[2] for line in diary.lines] == [3, 1, 2]
            assert bus.audit().subscriptions["h"].dead == 1

    run(main())


def test_a_clock_of_ones_own():
    """It stands still for the block, whatever it says; ``settle`` does not wait for what it does not bring."""
    now = [100.0]
    bus, diary = EventBus(clock=lambda: now[0]), Diary()
    bus.subscribe("a", diary.write, name="a")
    with harness(bus) as t:
        diary.t = t
        bus.sync.publish("a", 1, delay=10)
        t.settle()
        assert diary.lines == []
    with harness(bus, clock="virtual") as t:
        diary.t = t
        bus.sync.publish("a", 2, delay=10)
        now[0] = 1000.0
        t.settle()
        assert diary.lines == []
        t.advance(10)
        assert diary.lines == [(10.0, "a", 2)]
    assert _core.Harness(bus).now() == 1000_000_000_000
