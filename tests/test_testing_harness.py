"""The harness of ``ironbus.testing``: what it shows, what it raises, and that it leaves a bus as it found it."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
import weakref
from pathlib import Path

import pytest
from ironbus import (
    CircuitBreaker,
    CircuitBreakerConfig,
    DeadLetters,
    Event,
    EventBus,
    InvalidHandler,
    InvalidOption,
    NotStarted,
    Reject,
    RetryPolicy,
    Unsettled,
    WouldDeadlock,
    WrongLoop,
    _core,
    current_delivery,
)
from ironbus.testing import Call, Harness, PlannedFailure, SyncHarness, harness
from running import run

SECRET = "do-not-show-this"


@pytest.fixture(autouse=True)
def _quiet():
    """Handlers fail here on purpose."""
    logger = logging.getLogger("ironbus")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


class Shop:
    """A bus with an async and a sync handler, of which the first publishes what the second gets."""

    def __init__(self, **options):
        self.bus = EventBus(**options)
        self.billed, self.shipped = [], []
        self.bus.subscribe("order.*", self.bill, name="bill")
        self.bus.subscribe("bill.sent", self.ship, name="ship")

    async def bill(self, event):
        await asyncio.sleep(0)
        self.billed.append(event.data["id"])
        await self.bus.publish("bill.sent", event.data, key=f"k{event.data['id']}")

    def ship(self, event):
        self.shipped.append(event.data["id"])

    def is_as_made(self):
        """Nothing of a harness is left."""
        assert self.bus._table.observer is None
        assert self.bus.get_subscribers() == {"order.*": 1, "bill.sent": 1}
        assert not self.bus._report()["lanes"][2:], "a stream is left"
        native = _core.Harness(self.bus)
        for lane in self.bus._table.lanes().values():
            assert native.replace_handler(lane.handle, None) is None
        assert native.watch_failures(None) is None
        assert native.replace_random(None) is None
        assert not native.is_driven()
        return True


# What it shows --------------------------------------------------------------------------


def test_the_first_example():
    """The whole cascade of one event, on the user's own bus."""

    async def main():
        shop = Shop()
        async with harness(shop.bus) as t:
            assert isinstance(t, Harness)
            assert t.bus is shop.bus
            await shop.bus.publish("order.paid", {"id": 7})
            await t.settle()
            assert (shop.billed, shop.shipped) == ([7], [7])
            assert t.published.one("order.paid").data == {"id": 7}
            assert [event.type for event in t.published] == ["order.paid", "bill.sent"]
            assert [call.outcome for call in t.calls("bill")] == ["done"]
            t.assert_conserved()
        assert not shop.bus._running
        assert shop.is_as_made()

    run(main())


def test_without_a_loop():
    """A plain ``with`` for programs that have none; the handlers are async and sync all the same."""
    shop = Shop()
    with harness(shop.bus, clock="virtual") as t:
        assert isinstance(t, SyncHarness)
        shop.bus.sync.publish("order.paid", {"id": 7})
        t.settle()
        assert (shop.billed, shop.shipped) == ([7], [7])
        t.advance(10)
        t.assert_conserved()
        assert t.published.count() == 2

        async def inside():
            with pytest.raises(WrongLoop):
                t.settle()
            with pytest.raises(WrongLoop):
                t.advance(1)
            with pytest.raises(WrongLoop), harness(shop.bus):
                pass

        run(inside())
    assert not shop.bus._running
    assert shop.is_as_made()


def test_published_is_in_order_and_complete():
    """By sequence, with all priorities, delays and publishers; also what expires before anybody looks."""

    async def main():
        bus = EventBus()
        async with harness(bus, clock="virtual") as t:
            await bus.publish("a", {"n": 1}, priority=3)
            await bus.publish("b", {"n": 2}, priority=0, delay=100)
            await bus.publish_many([("a", {"n": 3}), ("c.d", {"n": 4}, {"expires_in": 1, "key": "k"})])
            await t.advance(1000)
            bus.publish_sync("a", {"n": 5})
            assert [event.data["n"] for event in t.published] == [1, 2, 3, 4, 5]
            assert [event.sequence for event in t.published] == [1, 2, 3, 4, 5]
            assert t.published.one("c.*").key == "k"
            assert t.published.one("a", where=lambda event: event.data["n"] > 3).data == {"n": 5}
            assert t.published.count("a") == 3 == len(t.published.all("a"))
            t.published.none("x")
            assert t.published.count(Event) == t.published.count() == len(t.published) == 5
            assert repr(t.published) == "<Published: 5 events>"

    run(main())


def test_published_knows_subclasses_of_event():
    """Who subscribes to strings may still publish objects."""

    class Paid(Event):
        pass

    async def main():
        bus = EventBus()
        async with harness(bus) as t:
            await bus.publish(Paid("paid", {"n": 1}))
            await bus.publish(Event("paid", {"n": 2}))
            assert t.published.one(Paid).data == {"n": 1}
            assert t.published.count(Event) == 2
            with pytest.raises(AssertionError, match="exactly one event of Event, found 2"):
                t.published.one(Event)
            for wrong in (7, int, ""):
                with pytest.raises(InvalidOption):
                    t.published.all(wrong)

    run(main())


def test_what_published_says_when_it_fails():
    """What was there, by sequence, type and key; never what was in it."""

    async def main():
        bus = EventBus()
        async with harness(bus) as t:
            with pytest.raises(AssertionError) as empty:
                t.published.one("a")
            assert str(empty.value) == "expected exactly one event of 'a', found 0; nothing was published"
            await bus.publish("a", {"x": SECRET}, key="k-1", headers={"h": SECRET})
            await bus.publish("b", {"x": SECRET})
            with pytest.raises(AssertionError) as none:
                t.published.one("c", where=lambda event: True)
            assert str(none.value) == (
                "expected exactly one event of 'c' that meets the condition, found 0; what was published:\n"
                "  1  a  key='k-1'\n"
                "  2  b"
            )
            with pytest.raises(AssertionError, match="expected no event, found 2"):
                t.published.none()
            await bus.publish_many([("many", {"x": SECRET})] * 100)
            with pytest.raises(AssertionError) as many:
                t.published.one("many")
            assert "found 100" in str(many.value)
            assert str(many.value).endswith("and 62 more")
            for error in (none, many):
                assert SECRET not in str(error.value)

    run(main())


def test_what_had_waited_for_the_start_was_published_before():
    """It is handled and recorded as a call; what its handlers publish belongs to the block."""

    async def main():
        shop = Shop()
        await shop.bus.publish("order.paid", {"id": 1})
        async with harness(shop.bus) as t:
            await t.settle()
            assert [event.type for event in t.published] == ["bill.sent"]
            assert [call.sequence for call in t.calls("bill")] == [1]
            t.assert_conserved()

    run(main())


# Calls, fakes and planned failures ------------------------------------------------------


def test_calls_are_found_by_name_function_and_subscription():
    """A name may be the end of one; what is not there, or not one, is said with what there is."""

    async def main():
        shop = Shop()

        def other(event):
            pass

        subscription = shop.bus.subscribe("x", other)
        unnamed = subscription.name
        assert unnamed.endswith(".other")
        async with harness(shop.bus) as t:
            await shop.bus.publish("x", {})
            await t.settle()
            for which in ("other", unnamed, other, subscription):
                assert len(t.calls(which)) == 1
            assert t.calls(shop.ship) == []
            with pytest.raises(InvalidOption, match=r"there is no subscription 'bil'; there are .*bill, ship"):
                t.calls("bil")
            with pytest.raises(InvalidOption, match=r"there is no subscription builtins\.print"):
                t.calls(print)
            shop.bus.subscribe("y", other, name="more.other")
            with pytest.raises(InvalidOption, match="several subscriptions are meant by 'other'"):
                t.calls("other")
            assert t.calls("more.other") == []
        with pytest.raises(NotStarted):
            Harness(shop.bus, None, True, 0, 0.1).published  # noqa: B018

    run(main())


def test_a_call_tells_how_it_went():
    """Each attempt is a call, with what the handler was given and what it raised; its text has no payload."""

    async def main():
        bus = EventBus()
        gate = asyncio.Event()

        async def handler(event):
            if current_delivery().attempt < 2:
                raise ValueError(SECRET)
            await gate.wait()

        bus.subscribe("a", handler, name="h", retry=RetryPolicy(initial_delay=1, jitter=False))
        async with harness(bus, clock="virtual", patience=0.01) as t:
            await bus.publish("a", {"x": SECRET})
            await t.advance(1)
            first, second = t.calls("h")
            assert isinstance(first, Call)
            assert (first.attempt, first.outcome, type(first.error)) == (1, "failed", ValueError)
            assert (second.attempt, second.outcome, second.error) == (2, "running", None)
            assert first.event.data == {"x": SECRET}
            assert SECRET not in repr(t.calls("h"))
            gate.set()
            await t.settle()
            assert second.outcome == "done"

    run(main())


@pytest.mark.parametrize("kind", ["bill", "ship"])
def test_a_fake_takes_the_handlers_place(kind):
    """Sync and async ones, for sync and async handlers, until they are taken back."""

    async def main():
        shop = Shop()
        topic = {"bill": "order.paid", "ship": "bill.sent"}[kind]
        faked = []

        async def fake(event):
            await asyncio.sleep(0)
            faked.append((event.data["id"], current_delivery().subscription))

        async with harness(shop.bus) as t:
            t.replace(kind, fake)
            await shop.bus.publish(topic, {"id": 1})
            await t.settle()
            t.replace(kind, lambda event: faked.append((event.data["id"], "sync")))
            await shop.bus.publish(topic, {"id": 2})
            await t.settle()
            assert faked == [(1, kind), (2, "sync")]
            assert (shop.billed, shop.shipped) == ([], [])
            t.replace(kind, None)
            await shop.bus.publish(topic, {"id": 3})
            await t.settle()
            assert getattr(shop, f"{kind[:4]}{'ed' if kind == 'bill' else 'ped'}") == [3]
            assert len(t.calls(kind)) == 3
            with pytest.raises(InvalidHandler):
                t.replace(kind, "fake")
        assert shop.is_as_made()

    run(main())


def test_planned_failures_come_before_the_handler():
    """So many, or every so manieth, or by chance and a seed; then the handler itself again."""

    async def main():
        shop = Shop()

        async def fails(count, **plan):
            t.fail("ship", **plan)
            before = len(t.calls("ship"))
            for number in range(count):
                await shop.bus.publish("bill.sent", {"id": number})
            await t.settle()
            return [call.planned for call in t.calls("ship")[before:]]

        async with harness(shop.bus) as t:
            assert await fails(3) == [True, False, False]
            assert await fails(4, times=2) == [True, True, False, False]
            assert await fails(4, every=2) == [False, True, False, True]
            assert await fails(2, times=0) == [False, False]
            drawn = await fails(40, p=0.5, seed=3)
            assert 5 < sum(drawn) < 35
            assert await fails(40, p=0.5, seed=3) == drawn
            assert await fails(40, p=0.5, seed=4) != drawn
            assert await fails(3, p=1, seed=0) == [True] * 3
            planned = [call for call in t.calls("ship") if call.planned]
            assert {type(call.error) for call in planned} == {PlannedFailure}
            assert len(shop.shipped) == len(t.calls("ship")) - len(planned)
            ledger = shop.bus.audit().subscriptions["ship"]
            assert (ledger.dead, ledger.done) == (len(planned), len(shop.shipped))
            t.assert_conserved()

    run(main())


@pytest.mark.parametrize("exc", [ConnectionError, ConnectionError("down"), Reject, asyncio.CancelledError])
def test_a_planned_failure_may_be_any_exception(exc):
    """A class or an instance; and it is what the bus sees, so that policies apply."""

    async def main():
        shop = Shop()
        async with harness(shop.bus) as t:
            t.fail("bill", exc=exc)
            receipt = await shop.bus.publish("order.paid", {"id": 1})
            await t.settle()
            (error,) = (await receipt.settled()).failures
            assert error is t.calls("bill")[0].error
            assert error is exc or type(error) is exc

    run(main())


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        ({"times": 1, "every": 2}, "times"),
        ({"times": -1}, "times"),
        ({"every": 0}, "every"),
        ({"p": 1.5, "seed": 1}, "p"),
        ({"p": 0.5}, "seed"),
        ({"times": 1, "seed": 1}, "seed"),
        ({"p": 0.5, "seed": "x"}, "seed"),
        ({"exc": "no"}, "exc"),
        ({"exc": int}, "exc"),
        ({"exc": UnicodeDecodeError}, "exc"),
    ],
)
def test_wrong_plans_are_refused(plan, field):
    """At the call, naming the field."""
    shop = Shop()
    with harness(shop.bus) as t:
        with pytest.raises(InvalidOption) as error:
            t.fail("bill", **plan)
        assert error.value.field == field
        shop.bus.sync.publish("order.paid", {"id": 1})
        t.settle()
        assert shop.billed == [1], "the plan of before stands, which is none"


# Settling -------------------------------------------------------------------------------


def test_unexpected_failures_are_raised_once_with_what_the_handlers_raised():
    """In one group, whichever executor ran them, also from a filter; planned ones are left out."""

    async def main():
        shop = Shop()
        error = KeyError(SECRET)

        def ship(event):
            raise error

        async def bill(event):
            await asyncio.sleep(0)
            raise ZeroDivisionError

        def where(event):
            raise LookupError

        shop.bus.subscribe("filtered", lambda event: None, name="filtered", where=where)
        async with harness(shop.bus) as t:
            t.replace("ship", ship)
            t.replace("bill", bill)
            await shop.bus.publish("bill.sent", {"id": SECRET})
            await shop.bus.publish("order.paid", {"id": SECRET})
            await shop.bus.publish("filtered", {"id": SECRET})
            with pytest.raises(ExceptionGroup) as group:
                await t.settle()
            assert {type(each) for each in group.value.exceptions} == {KeyError, ZeroDivisionError, LookupError}
            assert error in group.value.exceptions
            assert group.value.message.startswith("3 deliveries failed: ")
            assert "ship on event 1 of type 'bill.sent' (attempt 1)" in group.value.message
            assert SECRET not in group.value.message
            await t.settle()
            t.fail("ship")
            await shop.bus.publish("bill.sent", {"id": 2})
            await t.settle()
            await shop.bus.publish("bill.sent", {"id": 3})
            with pytest.raises(ExceptionGroup, match="1 delivery failed: ship on event 5"):
                await t.settle()
            t.fail("ship", exc=KeyError(1))
            t.assert_conserved()

    run(main())


def test_a_base_exception_makes_a_base_exception_group():
    """A handler that raises ``CancelledError`` has failed as well."""

    async def main():
        shop = Shop()

        async def bill(event):
            raise asyncio.CancelledError

        async with harness(shop.bus) as t:
            t.replace("bill", bill)
            await shop.bus.publish("order.paid", {"id": 1})
            with pytest.raises(BaseExceptionGroup) as group:
                await t.settle()
            assert [type(each) for each in group.value.exceptions] == [asyncio.CancelledError]

    run(main())


def test_settle_waits_for_retries_of_the_real_clock_but_not_for_a_pause():
    """What comes by itself is waited for; what somebody must do is not."""

    async def main():
        shop = Shop()
        calls = []

        def flaky(event):
            calls.append(event.sequence)
            if len(calls) < 3:
                raise ConnectionError

        shop.bus.subscribe(
            "flaky", flaky, name="flaky", retry=RetryPolicy(max_attempts=3, initial_delay=0.02, jitter=False)
        )
        paused = shop.bus.subscribe("paused", lambda event: None, name="paused")
        paused.pause()
        async with harness(shop.bus) as t:
            await shop.bus.publish("flaky", {})
            await shop.bus.publish("paused", {})
            await shop.bus.publish("later", {}, delay=0.01)
            await t.settle()
            assert len(calls) == 3
            with pytest.raises(AssertionError, match="no outcome for some subscription:\n  2  paused\n"):
                t.assert_conserved()

    run(main())


def test_settle_says_what_is_left_after_its_timeout():
    """By subscription, with its state; the events go on."""

    async def main():
        shop = Shop()
        gate = asyncio.Event()

        async def hang(event):
            await gate.wait()

        shop.bus.subscribe("later", lambda event: None, name="later")
        async with harness(shop.bus) as t:
            t.replace("bill", hang)
            await shop.bus.publish("later", {"x": SECRET}, delay=1000)
            for number in range(3):
                await shop.bus.publish("order.paid", {"id": number, "x": SECRET})
            with pytest.raises(Unsettled) as error:
                await t.settle(timeout=0.02)
            assert error.value.field == "timeout"
            assert "not settled within 0.02 s" in str(error.value)
            assert "bill is running with 1 running, 2 queued" in str(error.value)
            assert "later is waiting with 0 running, 1 queued, 1 of them for their time" in str(error.value)
            assert SECRET not in str(error.value)
            gate.set()
            with pytest.raises(Unsettled):
                await t.settle(timeout=0.05)
            assert len(t.calls("bill")) == 3

    run(main())


def test_a_handler_cannot_wait_for_itself():
    """It is told so at once, as with ``drain``."""

    async def main():
        bus = EventBus()
        errors = []

        async def handler(event):
            for call in (t.settle(), t.advance(1)):
                try:
                    await call
                except WouldDeadlock as error:
                    errors.append(str(error))

        bus.subscribe("a", handler)
        async with harness(bus, clock="virtual") as t:
            await bus.publish("a", {})
            await t.settle()
            assert [text.split(" ")[0] for text in errors] == ["settle()", "advance()"]

    run(main())


def test_a_stopped_bus_cannot_settle():
    """If there is something to do; else it has settled."""

    async def main():
        shop = Shop()
        async with harness(shop.bus, clock="virtual") as t:
            await shop.bus.stop()
            await t.settle()
            await shop.bus.start()
            paused = next(iter(shop.bus._table.lanes()["bill"].subscriptions))
            paused.pause()
            await shop.bus.publish("order.paid", {"id": 1})
            await shop.bus.stop(timeout=0)
            paused.resume()
            with pytest.raises(NotStarted):
                await t.settle()
            await shop.bus.start()
            await t.settle()
            assert shop.billed == [1]

    run(main())


# Conservation ---------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [False, True])
def test_a_lost_event_is_not_conserved(fault):
    """The negative control: the same test with a fault that loses one event fails, and shows the ledger."""

    async def main():
        shop = Shop()
        async with harness(shop.bus) as t:
            lane = shop.bus._table.lanes()["ship"]
            lane.handle.pause(True)
            await shop.bus.publish("order.paid", {"id": 1, "x": SECRET})
            await shop.bus.publish("order.paid", {"id": 2, "x": SECRET})
            await t.settle()
            if fault:
                assert t._native.lose(lane.handle)
            lane.handle.pause(False)
            await t.settle()
            if not fault:
                return t.assert_conserved()
            with pytest.raises(AssertionError) as error:
                t.assert_conserved()
            assert str(error.value) == (
                "the ledger does not balance and 1 published event has no outcome for some subscription:\n"
                "  3  bill.sent  key='k1'\n"
                "the ledger:\n"
                "  publishers: 4 offered = 4 accepted\n"
                "  bill: 2 routed = 2 done\n"
                "  ship: 2 routed = 1 done  <- 1 missing"
            )

    run(main())


def test_what_waits_has_no_outcome_yet():
    """The failure says where it waits."""

    async def main():
        shop = Shop()
        shop.bus.subscribe(
            "r", lambda event: 1 / 0, name="r", retry=RetryPolicy(max_attempts=2, initial_delay=5, jitter=False)
        )
        async with harness(shop.bus, clock="virtual") as t:
            await shop.bus.publish("r", {}, key="k")
            await t.settle()
            with pytest.raises(AssertionError, match=r"r: 1 routed = 1 pending  \(waiting\)"):
                t.assert_conserved()
            await t.advance(5)
            t.assert_conserved()
            with pytest.raises(ExceptionGroup, match=r"\(attempt 2\)"):
                await t.settle()

    run(main())


# Leaving --------------------------------------------------------------------------------


def test_a_started_bus_stays_started():
    """The harness stops what it has started, and nothing else; events that wait stay, too."""

    async def main():
        shop = Shop()
        async with shop.bus:
            subscription = shop.bus._table.lanes()["bill"].subscriptions[0]
            subscription.pause()
            await shop.bus.publish("order.paid", {"id": 1})
            async with harness(shop.bus, clock="virtual") as t:
                t.fail("bill", every=1)
                await shop.bus.publish("order.paid", {"id": 2})
            assert shop.bus._running
            assert shop.is_as_made()
            subscription.resume()
            await shop.bus.drain()
            assert shop.billed == [1, 2]

    run(main())


@pytest.mark.parametrize("clock", [None, "virtual"])
def test_an_error_in_the_block_restores_everything(clock):
    """It goes on to the caller, and the bus is as it was."""

    async def main():
        shop = Shop(idempotency="content")

        async def block():
            async with harness(shop.bus, clock=clock) as t:
                t.fail("bill", every=1)
                t.replace("ship", lambda event: None)
                shop.bus.subscribe("*", lambda event: None, name="mine")
                await shop.bus.publish("order.paid", {"id": 1})
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await block()
        assert not shop.bus._running
        assert shop.is_as_made()
        async with shop.bus:
            assert not (await shop.bus.publish("order.paid", {"id": 1})).duplicate
        assert shop.billed == [1]

    run(main())


def test_a_cancelled_block_restores_everything():
    """Also when the cancellation comes while a handler keeps the stop waiting."""

    async def main():
        shop = Shop()
        entered = asyncio.Event()

        async def stubborn(event):
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                await asyncio.sleep(0.05)
                raise

        async def block():
            async with harness(shop.bus) as t:
                t.replace("bill", stubborn)
                await shop.bus.publish("order.paid", {"id": 1})
                while not t.calls("bill"):
                    await asyncio.sleep(0)
                entered.set()
                await asyncio.sleep(1000)

        task = asyncio.create_task(block())
        await entered.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not shop.bus._running
        assert shop.is_as_made()

    run(main())


def test_a_start_that_fails_restores_everything():
    """As if the block had not been reached."""

    class Broken(EventBus):
        async def start(self):
            raise ZeroDivisionError

    shop = Shop()
    bus = Broken()
    bus.subscribe("a", shop.ship)

    async def main():
        with pytest.raises(ZeroDivisionError):
            async with harness(bus, clock="virtual"):
                raise AssertionError
        assert bus._table.observer is None
        assert bus._report()["lanes"][1:] == []

    run(main())


def test_nested_harnesses():
    """The inner one sees what happens in it, the outer one everything; each takes back its own."""

    async def main():
        shop = Shop()
        async with harness(shop.bus, clock="virtual") as outer:
            outer.fail("bill", times=1)
            async with harness(shop.bus, clock="virtual") as inner:
                inner.replace("ship", lambda event: None)
                shop.bus.subscribe("x", lambda event: 1 / 0, name="x")
                await shop.bus.publish("order.paid", {"id": 1})
                await shop.bus.publish("order.paid", {"id": 2})
                await shop.bus.publish("x", {})
                await inner.advance(10)
                with pytest.raises(ExceptionGroup):
                    await inner.settle()
                assert inner.published.count() == 4
                assert [call.outcome for call in inner.calls("bill")] == ["failed", "done"]
                assert len(inner.calls("ship")) == 1
            assert shop.bus._running
            assert shop.bus.get_subscribers() == {"order.*": 1, "bill.sent": 1}
            assert outer.elapsed == 10
            await shop.bus.publish("order.paid", {"id": 3})
            with pytest.raises(ExceptionGroup, match="1 delivery failed: x on event 3"):
                await outer.settle()
            assert outer.published.count() == 6
            assert (shop.billed, shop.shipped) == ([2, 3], [3])
            assert len(outer.calls("x")) == 1
            await outer.advance(5)
            assert outer.elapsed == 15
            outer.assert_conserved()
        assert shop.is_as_made()

    run(main())


def test_what_is_left_is_not_the_next_blocks():
    """Retries, delayed events and queues end with the block that started the bus, dropped and counted."""

    async def main():
        shop = Shop()
        shop.bus.subscribe("r", shop.ship, name="r", retry=RetryPolicy(initial_delay=5, jitter=False))
        async with harness(shop.bus, clock="virtual") as t:
            t.fail("r", times=1)
            await shop.bus.publish("r", {"id": 1})
            await t.settle()
            await shop.bus.publish("bill.sent", {"id": 2}, delay=3)
            await shop.bus.publish("order.paid", {"id": 3})
        ledger = shop.bus.audit()
        assert ledger.balanced
        assert ledger.pending == 0
        assert [lane.dropped for lane in ledger.subscriptions.values()] == [1, 1, 1]
        async with harness(shop.bus, clock="virtual") as t:
            await t.advance(1000)
            assert len(t.published) == 0
        assert (shop.billed, shop.shipped) == ([], [])

    run(main())


def test_keys_of_the_block_are_forgotten():
    """And those of before are not."""

    async def main():
        shop = Shop(idempotency="content")
        async with shop.bus:
            await shop.bus.publish("order.paid", {"id": 1})
            await shop.bus.publish("order.paid", {}, idempotency_key="a")
            for _ in range(2):
                async with harness(shop.bus):
                    assert (await shop.bus.publish("order.paid", {"id": 1})).duplicate
                    assert not (await shop.bus.publish("order.paid", {"id": 2})).duplicate
                    assert (await shop.bus.publish("order.paid", {"id": 2})).duplicate
                    assert (await shop.bus.publish("other", {}, idempotency_key="a")).duplicate
                    assert not (await shop.bus.publish("other", {}, idempotency_key="b")).duplicate

    run(main())


def test_breakers_are_as_they_were():
    """One of the subscription's own and a shared one, with what they had counted."""

    async def main():
        bus = EventBus()
        shared = CircuitBreaker("shared", CircuitBreakerConfig(failure_threshold=3, timeout=60))
        changes = []
        shared.add_listener(lambda old, new: changes.append((str(old), str(new))))
        config = CircuitBreakerConfig(failure_threshold=2, timeout=60)
        own = bus.subscribe("a", lambda event: None, name="a", breaker=config).breaker
        bus.subscribe("b", lambda event: None, name="b", breaker=shared)
        with pytest.raises(KeyError), shared:
            raise KeyError
        async with harness(bus, clock="virtual") as t:
            t.fail("a", every=1)
            t.fail("b", every=1)
            for _ in range(5):
                await bus.publish_many([("a", {}), ("b", {})])
            await t.settle()
            assert (own.state, shared.state) == ("open", "open")
            assert [len(t.calls(name)) for name in "ab"] == [2, 2]
        assert (own.state, shared.state) == ("closed", "closed")
        assert (own.failure_count, shared.failure_count) == (0, 1)
        assert changes == [("closed", "open"), ("open", "closed")]

    run(main())


def test_the_event_log_is_kept_off_the_disk(tmp_path):
    """With ``durable=False``; without, the control, it is written."""

    async def main():
        bus = EventBus(tmp_path)
        for durable in (False, True):
            async with harness(bus, durable=durable) as t:
                await bus.publish("a", {"durable": durable})
                await t.settle()
        async with bus:
            await bus.publish("a", {"durable": None})
            await bus.drain()
        lines = Path(bus.get_log_file()).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["data"]["durable"] for line in lines] == [True, None]

    run(main())


def test_dead_letters_of_the_block_go_with_it():
    """In memory; those of before stay, unless they are delivered again in the block."""

    async def main():
        shop = Shop()
        async with shop.bus:
            lane = shop.bus._table.lanes()["ship"]
            native = _core.Harness(shop.bus)
            native.replace_handler(lane.handle, lambda event: 1 / 0)
            await shop.bus.publish_many([("bill.sent", {"id": 1}), ("bill.sent", {"id": 2})])
            await shop.bus.drain()
            native.replace_handler(lane.handle, None)
            first, second = [letter.id for letter in shop.bus.dead_letters]
            async with harness(shop.bus, clock="virtual") as t:
                t.fail("ship")
                await shop.bus.publish("bill.sent", {"id": 3})
                await t.settle()
                assert len(shop.bus.dead_letters) == 3
                assert (await shop.bus.dead_letters.redrive(first)).succeeded == 1
                t.assert_conserved()
            assert [letter.id for letter in shop.bus.dead_letters] == [second]
            assert shop.shipped == [1]
        assert shop.is_as_made()

    run(main())


@pytest.mark.parametrize("started", [False, True])
def test_dead_letters_are_kept_off_the_disk(tmp_path, started):
    """With ``durable=False``: a file that is there is neither read nor written; without, the control, it is."""
    path = tmp_path / "shop.dead"

    async def block(bus, durable, before):
        async with harness(bus, clock="virtual", durable=durable) as t:
            assert await bus.dead_letters.count() == before
            t.fail("ship", times=2)
            await bus.publish_many([("bill.sent", {"id": 1}), ("bill.sent", {"id": 2})])
            await t.settle()
            assert await bus.dead_letters.count() == before + 2
            if not durable:
                assert (await bus.dead_letters.redrive()).succeeded == 2
                assert await bus.dead_letters.count() == 0
                t.fail("ship")
                await bus.publish("bill.sent", {"id": 3})
                await t.settle()

    async def main():
        shop = Shop(dead_letters=DeadLetters(path=path))
        if started:
            await shop.bus.start()
        await block(shop.bus, False, 0)
        assert path.exists() == started
        assert await shop.bus.dead_letters.count() == 0
        await block(shop.bus, True, 0)
        assert await shop.bus.dead_letters.count() == 2
        await block(shop.bus, False, 0)
        assert await shop.bus.dead_letters.count() == 2
        await shop.bus.stop()
        other = EventBus(dead_letters=DeadLetters(path=path))
        assert await other.dead_letters.count() == 2
        await other.stop()

    run(main())


def test_a_bus_on_another_loop():
    """The harness waits on the test's loop for a bus that runs on that of a thread."""
    shop = Shop()
    with shop.bus:

        async def main():
            async with harness(shop.bus, clock="virtual") as t:
                await shop.bus.publish("order.paid", {"id": 1})
                await shop.bus.publish("order.paid", {"id": 2}, delay=30)
                await t.settle()
                assert (shop.billed, shop.shipped) == ([1], [1])
                await t.advance(30)
                assert (shop.billed, shop.shipped) == ([1, 2], [1, 2])
                t.assert_conserved()

        run(main())
        assert shop.bus._running
        assert shop.is_as_made()


def test_publishes_of_threads_are_seen():
    """The order is that of the sequence numbers, whoever publishes."""
    bus = EventBus()
    seen = []
    bus.subscribe("a", lambda event: seen.append(event.data), name="h")
    with harness(bus) as t:
        threads = [
            threading.Thread(target=lambda: [bus.publish_sync("a", {"n": n}) for n in range(50)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        t.settle()
        assert [event.sequence for event in t.published] == list(range(1, 201))
        assert [call.sequence for call in t.calls("h")] == list(range(1, 201))
        assert [event.data for event in t.published] == seen
        t.assert_conserved()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"clock": "real"}, "clock"),
        ({"durable": None}, "durable"),
        ({"seed": "x"}, "seed"),
        ({"seed": True}, "seed"),
        ({"patience": 0}, "patience"),
    ],
)
def test_wrong_options_are_refused(options, field):
    """When the harness is made."""
    with pytest.raises(InvalidOption) as error:
        harness(EventBus(), **options)
    assert error.value.field == field


def test_only_a_bus_can_be_harnessed():
    """And the error says so."""
    with pytest.raises(InvalidOption, match="bus must be an EventBus"):
        harness("bus")


def test_a_bus_is_collected_after_its_harness():
    """Nothing of the harness holds it, though its handlers refer to it."""
    gone = _used_and_forgotten()
    gc.collect()
    assert gone() is None


def _used_and_forgotten():
    bus = EventBus()
    bus.subscribe("a", lambda event: bus)
    with harness(bus, clock="virtual") as t:
        bus.sync.publish("a", {})
        t.settle()
        t.fail("<lambda>")
    return weakref.ref(bus)
