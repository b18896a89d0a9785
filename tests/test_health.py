"""Health: each reason is provoked, named as documented, and clears by itself."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import re
import subprocess
import sys
import threading
import typing
from pathlib import Path

import pytest
from ironbus import (
    CircuitBreaker,
    CircuitBreakerConfig,
    DeadLetters,
    EventBus,
    EventPriority,
    Health,
    HealthReason,
    HealthThresholds,
    Idempotency,
    InvalidOption,
    Reject,
    RetryPolicy,
    StorageError,
)
from ironbus.health import ReasonCode
from ironbus.testing import harness
from running import run

OK = Health("ok", ())


@pytest.fixture(autouse=True)
def _quiet():
    """Handlers fail here on purpose."""
    logger = logging.getLogger("ironbus")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


async def _async(event):
    pass


async def _suspends(event):
    await asyncio.sleep(0)


def _sync(event):
    pass


HANDLERS = [_async, _suspends, _sync]


def reason(code, severity="degraded", value=1, threshold=1, subscription=None, level=None, breaker=None):
    """As the bus gives it."""
    return HealthReason(code, severity, value, threshold, subscription, level, breaker)


def health_with(*reasons):
    """Of the worst of them."""
    return Health("failing" if any(each.severity == "failing" for each in reasons) else "degraded", reasons)


# Settings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("window", 0.5),
        ("window", 86_401),
        ("window", None),
        ("window", True),
        ("window", float("nan")),
        ("lane_filling", 0),
        ("lane_filling", 1.01),
        ("lane_filling", "80%"),
        ("dead_letters_filling", -1),
        ("oldest_event", 0),
        ("oldest_event", float("inf")),
        ("handler_stuck", "1 s"),
        ("handler_stuck", -1),
        ("events_dropped", 0),
        ("events_dropped", 1.5),
        ("dead_letters_growing", True),
        ("keys_evicted", -1),
        ("journal_size", "10 GiB"),
        ("subscription_absent", 0),
    ],
)
def test_a_wrong_threshold_is_refused_by_its_name(field, wrong):
    with pytest.raises(InvalidOption, match=f"^{field} must be") as refused:
        HealthThresholds(**{field: wrong})
    assert refused.value.field == field


def test_only_thresholds_are_taken_for_thresholds():
    with pytest.raises(InvalidOption, match="HealthThresholds") as refused:
        EventBus(health={"window": 60})  # type: ignore[arg-type]
    assert refused.value.field == "health"


def test_thresholds_are_named_after_their_reasons_and_shown():
    names = [field.name for field in dataclasses.fields(HealthThresholds)]
    assert set(names) - {"window"} <= set(typing.get_args(ReasonCode))
    assert EventBus(health=HealthThresholds(oldest_event=5)).describe()["health"]["oldest_event"] == 5


def test_the_readme_explains_every_reason():
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ((?:degraded|failing)[^|]*) \|", readme, re.MULTILINE))
    assert set(rows) == set(typing.get_args(ReasonCode))
    for name, default in ((field.name, field.default) for field in dataclasses.fields(HealthThresholds)):
        shown = "10 GiB" if name == "journal_size" else f"{default:g}"
        assert name == "window" or f"`{name}`: {shown}" in readme


def test_what_is_reported_is_plain_frozen_and_comparable():
    one = reason("keys_evicted")
    assert hash(health_with(one)) == hash(health_with(reason("keys_evicted")))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.value = 2  # type: ignore[misc]
    assert dataclasses.asdict(one)["code"] == "keys_evicted"


def test_a_bus_that_is_new_idle_or_stopped_is_well():
    async def main():
        bus = EventBus()
        bus.subscribe("a", _async)
        assert bus.health() == OK
        async with bus:
            await bus.publish("a")
            await bus.drain()
            assert bus.health() == OK
        assert bus.health() == OK

    run(main())


# Breakers -----------------------------------------------------------------------------


@pytest.mark.parametrize("handler", HANDLERS)
def test_an_open_breaker(handler):
    async def main():
        bus = EventBus()
        breaker = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, timeout=30)
        bus.subscribe("a", handler, name="s", breaker=breaker, retry=RetryPolicy(initial_delay=1, jitter=False))
        async with harness(bus, clock="virtual") as t:
            t.fail("s", times=2)
            await bus.publish("a")
            assert bus.health() == OK
            await t.advance(1)
            assert bus.health() == health_with(
                reason("breaker_open", value=0, threshold=0, subscription="s", breaker="s")
            )
            assert bus.metrics().subscriptions["s"].breaker == "open"
            await t.advance(10)
            assert bus.health().reasons[0].value == 10
            await t.advance(20)
            await t.settle()
            assert bus.health() == OK
            assert bus.metrics().retries == 2

    run(main())


def test_a_shared_breaker_concerns_all_that_share_it():
    async def main():
        bus, breaker = EventBus(), CircuitBreaker("db", CircuitBreakerConfig(failure_threshold=1, timeout=30))
        for name in ("one", "two"):
            bus.subscribe(name, _async, name=name, breaker=breaker)
        async with harness(bus, clock="virtual") as t:
            t.fail("one", times=1)
            await bus.publish("one")
            await t.settle()
            given = [(each.code, each.subscription, each.breaker) for each in bus.health().reasons]
            assert given == [("breaker_open", "one", "db"), ("breaker_open", "two", "db")]

    run(main())


# Lanes --------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("overflow", ["block", "reject"])
def test_a_lane_that_fills_on_one_level(handler, overflow):
    async def main():
        bus = EventBus()
        subscription = bus.subscribe("a", handler, name="s", max_queue_size=10, overflow=overflow)
        async with harness(bus, clock="virtual") as t:
            subscription.pause()
            await bus.publish_many([("a", n) for n in range(7)], priority=EventPriority.HIGH)
            await bus.publish_many([("a", n) for n in range(7)], priority=EventPriority.LOW)
            assert bus.health() == OK
            await bus.publish("a", priority=EventPriority.HIGH)
            assert bus.health() == health_with(reason("lane_filling", "degraded", 0.8, 0.8, "s", "HIGH"))
            await bus.publish_many([("a", n) for n in range(2)], priority=EventPriority.HIGH)
            assert bus.health() == health_with(reason("lane_filling", "failing", 1.0, 0.8, "s", "HIGH"))
            subscription.resume()
            await t.settle()
            assert bus.health() == OK

    run(main())


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_new"])
def test_a_lane_that_drops(overflow):
    """It keeps nobody waiting, so it is not failing; that it dropped is said for the length of a window."""

    async def main():
        bus = EventBus()
        subscription = bus.subscribe("a", _async, name="s", max_queue_size=2, overflow=overflow)
        async with harness(bus, clock="virtual") as t:
            subscription.pause()
            await bus.publish_many([("a", n) for n in range(5)])
            full = reason("lane_filling", "degraded", 1.0, 0.8, "s", "NORMAL")
            dropped = reason("events_dropped", value=3, subscription="s")
            assert bus.health() == health_with(full, dropped)
            subscription.resume()
            await t.settle()
            await t.advance(59)
            assert bus.health() == health_with(dropped)
            await t.advance(1)
            assert bus.health() == OK

    run(main())


def test_events_that_are_kept_for_the_start():
    async def main():
        bus = EventBus(max_queue_size=10)
        bus.subscribe("a", _async)
        await bus.publish_many([("a", n) for n in range(7)])
        assert bus.health() == OK
        await bus.publish("a")
        assert bus.health() == health_with(reason("kept_filling", "degraded", 0.8, 0.8))
        await bus.publish_many([("a", n) for n in range(2)])
        assert bus.health() == health_with(reason("kept_filling", "failing", 1.0, 0.8))
        async with bus:
            await bus.drain()
            assert bus.health() == OK

    run(main())


@pytest.mark.parametrize("handler", HANDLERS)
def test_an_event_that_waits_too_long(handler):
    async def main():
        bus = EventBus()
        subscription = bus.subscribe("a", handler, name="s")
        async with harness(bus, clock="virtual") as t:
            subscription.pause()
            await bus.publish("a")
            await bus.publish("a", delay=1000)
            await t.advance(59)
            assert bus.health() == OK
            await t.advance(1)
            assert bus.health() == health_with(reason("oldest_event", "degraded", 60, 60, "s"))
            subscription.resume()
            await t.settle()
            assert bus.health() == OK, "what is delayed on purpose does not wait too long"

    run(main())


def test_what_a_stopped_bus_has_left_waits_too():
    async def main():
        now = [0.0]
        bus = EventBus(clock=lambda: now[0])
        bus.subscribe("a", _async, name="s").pause()
        async with bus:
            await bus.publish("a")
            await bus.stop(timeout=0)
        now[0] += 60
        assert bus.health() == health_with(reason("oldest_event", "degraded", 60, 60, "s"))

    run(main())


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_parked_lane(handler):
    async def main():
        bus = EventBus(dead_letters=DeadLetters(max_entries=1))
        bus.subscribe("a", handler, name="s")
        async with harness(bus, clock="virtual") as t:
            t.fail("s", times=2)
            await bus.publish_many([("a", n) for n in range(3)])
            await t.settle()
            assert bus.health() == health_with(
                reason("lane_parked", "failing", 2, 1, "s"), reason("dead_letters_filling", "failing", 1.0, 0.8)
            )
            await bus.dead_letters.purge()
            await t.settle()
            assert [each.code for each in bus.health().reasons] == ["dead_letters_filling"], "that of the second"
            await bus.dead_letters.purge()
            assert bus.health() == OK
            t.assert_conserved()

    run(main())


# Dead letters -------------------------------------------------------------------------


@pytest.mark.parametrize("handler", HANDLERS)
def test_dead_letters_that_grow(handler):
    async def main():
        bus = EventBus(health=HealthThresholds(dead_letters_growing=3))
        bus.subscribe("a", handler, name="s")
        async with harness(bus, clock="virtual") as t:
            t.fail("s", every=1)
            await bus.publish_many([("a", n) for n in range(2)])
            await t.settle()
            assert bus.health() == OK
            await bus.publish("a")
            await t.settle()
            assert bus.health() == health_with(reason("dead_letters_growing", value=3, threshold=3))
            assert bus.metrics().dead_letters.growth == bus.metrics().dead_letters.entries == 3
            await t.advance(61)
            assert bus.health() == OK
            assert bus.metrics().dead_letters.entries == 3

    run(main())


def test_dead_letters_near_their_bound_and_dropped():
    async def main():
        bus = EventBus(dead_letters=DeadLetters(max_entries=5, when_full="drop_oldest", max_age=3600))
        bus.subscribe("a", _async, name="s")
        async with harness(bus, clock="virtual") as t:
            t.fail("s", every=1)
            await bus.publish_many([("a", n) for n in range(3)])
            await t.settle()
            assert bus.health() == OK
            await bus.publish("a")
            await t.settle()
            assert bus.health() == health_with(reason("dead_letters_filling", "degraded", 0.8, 0.8))
            await bus.publish_many([("a", n) for n in range(3)])
            await t.settle()
            full = reason("dead_letters_filling", "degraded", 1.0, 0.8)
            assert bus.health() == health_with(full, reason("dead_letters_dropped", value=2))
            await t.advance(61)
            assert bus.health() == health_with(full)
            await t.advance(3600)
            assert bus.health() == OK, "they are too old now, and nobody had to look at them"
            assert bus.metrics().dead_letters.expired == 5

    run(main())


async def _comes(bus, wanted):
    """The thread of a file's dead letters brings it, in real time."""
    async with asyncio.timeout(30):
        while bus.health() != wanted:
            bus._letter_watch._next = 0.0
            await asyncio.sleep(0.001)


def test_what_other_processes_do_to_the_file_is_seen(tmp_path):
    async def main():
        path = tmp_path / "x.dead"
        bus = EventBus(dead_letters=DeadLetters(path=path, max_entries=4, when_full="drop_oldest"))
        bus.subscribe("a", _sync, name="s", where=_refuse)
        async with bus:
            await bus.publish_many([("a", n) for n in range(6)])
            await bus.drain()
            assert [each.code for each in bus.health().reasons] == ["dead_letters_filling", "dead_letters_dropped"]
        # What was dropped before this bus came is no news.
        bus = EventBus(dead_letters=DeadLetters(path=path, max_entries=4, when_full="drop_oldest"))
        assert bus.health() == OK, "nobody has looked into the file yet"
        async with bus:
            assert [each.code for each in bus.health().reasons] == ["dead_letters_filling"]
            assert bus.metrics().dead_letters.dropped == 2
            assert await EventBus(dead_letters=DeadLetters(path=path)).dead_letters.purge() == 4
            await _comes(bus, OK)

    run(main())


def _refuse(event):
    raise Reject("not this one")


def test_dead_letters_that_are_damaged(tmp_path):
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2])"

    async def main():
        path = tmp_path / "x.dead"
        bus = EventBus(dead_letters=DeadLetters(path=path), health=HealthThresholds(window=1))
        bus.subscribe("a", _refuse, name="s")
        async with bus:
            await bus.publish("a")
            await bus.drain()
        # In another process: two copies of SQLite in one would drop each other's locks.
        program = [sys.executable, "-c", code, str(path), "UPDATE dead_letter SET handler = 'another'"]
        subprocess.run(program, check=True, timeout=60)
        async with bus:
            assert bus.health() == OK
            assert [letter async for letter in bus.dead_letters] == []
            await _comes(bus, health_with(reason("dead_letters_damaged")))
            await _comes(bus, OK)
            assert bus.metrics().dead_letters.damaged == 1

    run(main())


def test_a_file_that_cannot_be_read(tmp_path):
    class Broken:
        def open(self):
            raise StorageError("the file is on fire", "path")

    async def main():
        bus = EventBus(dead_letters=DeadLetters(path=tmp_path / "x.dead"))
        async with bus:
            box, bus._dead_letters._box = bus._dead_letters._box, Broken()
            await _comes(bus, health_with(reason("dead_letters_unreadable", "failing")))
            bus._dead_letters._box = box
            await _comes(bus, OK)

    run(main())


# The ledger ---------------------------------------------------------------------------


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("loses", [True, False])
def test_a_ledger_that_does_not_balance(handler, loses):
    """By the fault hook; without it the same goes on unnoticed. What is lost stays in the ledger for ever."""

    async def main():
        bus = EventBus()
        subscription = bus.subscribe("a", handler, name="s")
        async with harness(bus, clock="virtual") as t:
            subscription.pause()
            await bus.publish_many([("a", n) for n in range(3)])
            assert bus.health() == OK
            if loses:
                assert t._native.lose(subscription._lane.handle)
                assert t._native.lose(subscription._lane.handle)
            unbalanced = health_with(reason("ledger_unbalanced", "failing", 2, 1, "s")) if loses else OK
            assert bus.health() == unbalanced
            subscription.resume()
            await t.settle()
            await t.advance(59)
            assert bus.health() == unbalanced
            await t.advance(1)
            assert bus.health() == OK
            assert bus.audit().balanced is not loses

    run(main())


def test_a_loss_is_told_to_the_first_who_asks_however_late():
    async def main():
        bus = EventBus()
        subscription = bus.subscribe("a", _async, name="s")
        async with harness(bus, clock="virtual") as t:
            subscription.pause()
            await bus.publish("a")
            assert t._native.lose(subscription._lane.handle)
            await t.advance(100_000)
            assert bus.health() == health_with(reason("ledger_unbalanced", "failing", 1, 1, "s"))
            await t.advance(100_000)
            assert bus.health() == OK

    run(main())


def test_a_busy_ledger_balances_for_whoever_asks():
    """From threads, while others publish and settle: a report of different moments would show a difference."""
    bus = EventBus(workers=2, health=HealthThresholds(lane_filling=None, handler_stuck=None))
    bus.subscribe("a", _sync, name="sync", concurrency=2, ordered=False)
    bus.subscribe("a", _suspends, name="suspends", concurrency=3, ordered=False)
    bus.subscribe("a", _async, name="async")
    seen = []
    over = threading.Event()

    def ask():
        while not over.is_set():
            seen.append(bus.health())

    askers = [threading.Thread(target=ask) for _ in range(2)]
    with bus:
        for asker in askers:
            asker.start()
        for n in range(3000):
            bus.publish_sync("a", n)
        bus.sync.drain(timeout=60)
        over.set()
        for asker in askers:
            asker.join()
    assert len(seen) > 2
    assert set(seen) == {OK}


# Handlers -----------------------------------------------------------------------------


class Gate:
    """Handlers of all kinds that hang until they are let go, and say when they do."""

    def __init__(self):
        self.open, self.inside = threading.Event(), threading.Semaphore(0)

    def in_a_thread(self, event):
        self.inside.release()
        assert self.open.wait(60)

    async def waits(self, event):
        self.inside.release()
        while not self.open.is_set():
            await asyncio.sleep(0.001)

    def returns_an_awaitable(self, event):
        return self.waits(event)

    async def blocks_the_loop(self, event):
        self.in_a_thread(event)

    async def blocks_the_loop_later(self, event):
        await asyncio.sleep(0)
        self.in_a_thread(event)

    async def is_inside(self):
        await asyncio.to_thread(self.inside.acquire, timeout=60)


@pytest.mark.parametrize("kind", ["in_a_thread", "waits", "returns_an_awaitable"])
def test_a_handler_that_hangs(kind):
    async def main():
        bus, gate = EventBus(), Gate()
        bus.subscribe("a", getattr(gate, kind), name="s")
        bus.subscribe("a", _async, name="other")
        async with harness(bus, clock="virtual") as t:
            await bus.publish("a")
            await gate.is_inside()
            await t.advance(59)
            assert bus.health() == OK
            assert bus.metrics().subscriptions["s"].longest_run == 59
            await t.advance(1)
            assert bus.health() == health_with(reason("handler_stuck", "degraded", 60, 60, "s"))
            assert bus.metrics().subscriptions["s"].stuck
            assert not bus.metrics().subscriptions["other"].stuck
            assert bus.describe()["stuck"] == ["s"]
            gate.open.set()
            await t.settle()
            assert bus.health() == OK
            assert bus.metrics().subscriptions["s"].longest_run == 0.0
            assert bus.describe()["stuck"] == []

    run(main())


@pytest.mark.parametrize("kind", ["blocks_the_loop", "blocks_the_loop_later"])
def test_a_handler_that_blocks_the_loop_is_seen_from_another_thread(kind):
    now, gate = [0.0], Gate()
    bus = EventBus(clock=lambda: now[0])
    bus.subscribe("a", getattr(gate, kind), name="s")
    with bus:
        receipt = bus.publish_sync("a")
        assert gate.inside.acquire(timeout=60)
        now[0] = 60.0
        assert bus.health() == health_with(reason("handler_stuck", "degraded", 60, 60, "s"))
        gate.open.set()
        receipt.wait(60)
        assert bus.health() == OK


def test_the_longest_of_several_runs_counts():
    async def main():
        bus, gate = EventBus(), Gate()
        bus.subscribe("a", gate.waits, name="s", concurrency=3, ordered=False)
        async with harness(bus, clock="virtual") as t:
            for _ in range(3):
                await bus.publish("a")
                await gate.is_inside()
                await t.advance(30)
            assert bus.health() == health_with(reason("handler_stuck", "degraded", 90, 60, "s"))
            gate.open.set()
            await t.settle()

    run(main())


def test_a_sync_handler_past_its_timeout():
    """It cannot be stopped; it is said while it runs, and its failure when it returns."""

    async def main():
        bus, gate = EventBus(), Gate()
        bus.subscribe("a", gate.in_a_thread, name="s", timeout=5)
        async with harness(bus, clock="virtual") as t:
            receipt = await bus.publish("a")
            await gate.is_inside()
            await t.advance(4.9)
            assert bus.health() == OK
            await t.advance(0.2)
            assert bus.health() == health_with(reason("handler_stuck", "degraded", pytest.approx(5.1), 5, "s"))
            gate.open.set()
            assert isinstance((await receipt.settled()).failures[0], TimeoutError)
            assert bus.health() == OK
            with pytest.raises(BaseExceptionGroup):
                await t.settle()

    run(main())


def test_an_async_handler_is_stopped_at_its_timeout_and_not_stuck():
    async def main():
        bus, gate = EventBus(), Gate()
        bus.subscribe("a", gate.waits, name="s", timeout=5)
        async with harness(bus, clock="virtual") as t:
            receipt = await bus.publish("a")
            await gate.is_inside()
            await t.advance(5)
            assert isinstance((await receipt.settled()).failures[0], TimeoutError)
            assert bus.health() == OK
            with pytest.raises(BaseExceptionGroup):
                await t.settle()

    run(main())


def test_all_threads_held_by_handlers_that_hang():
    """Then no other sync handler can begin, and that is worse."""

    async def main():
        bus, gate = EventBus(workers=2), Gate()
        for name in ("one", "two"):
            bus.subscribe(name, gate.in_a_thread, name=name)
        async with harness(bus, clock="virtual") as t:
            await bus.publish("one")
            await gate.is_inside()
            await t.advance(60)
            assert bus.health().status == "degraded"
            await bus.publish("two")
            await gate.is_inside()
            await t.advance(60)
            assert bus.health() == health_with(
                reason("handler_stuck", "failing", 120, 60, "one"), reason("handler_stuck", "failing", 60, 60, "two")
            )
            gate.open.set()
            await t.settle()
            assert bus.health() == OK

    run(main())


def test_a_handler_that_a_stop_could_not_end_is_still_stuck():
    async def main():
        now, gate = [0.0], Gate()
        bus = EventBus(clock=lambda: now[0])
        bus.subscribe("a", gate.in_a_thread, name="s")
        await bus.start()
        receipt = await bus.publish("a")
        await gate.is_inside()
        await bus.stop(timeout=0)
        now[0] = 60.0
        assert bus.health() == health_with(reason("handler_stuck", "degraded", 60, 60, "s"))
        gate.open.set()
        await receipt.settled()
        async with asyncio.timeout(60):
            while bus.health() != OK:
                await asyncio.sleep(0.001)

    run(main())


def test_a_handler_may_ask():
    async def main():
        bus, seen = EventBus(), []
        for kind in ("sync", "async"):
            bus.subscribe(kind, (lambda event: seen.append(bus.health())), name=kind)
        async with bus:
            await bus.publish("sync")
            await bus.publish("async")
            await bus.drain()
        assert seen == [OK, OK]

    run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_child_the_handlers_of_the_parent_do_not_run():
    now, gate = [0.0], Gate()
    bus = EventBus(clock=lambda: now[0])
    bus.subscribe("a", gate.in_a_thread, name="s")
    with bus:
        receipt = bus.publish_sync("a")
        assert gate.inside.acquire(timeout=60)
        now[0] = 60.0
        child = os.fork()
        if child == 0:
            os._exit(0 if bus.health() == OK and bus.metrics().subscriptions["s"].longest_run == 0 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert bus.health().status == "degraded"
        gate.open.set()
        receipt.wait(60)


# Keys ---------------------------------------------------------------------------------


def test_keys_that_went_before_their_time():
    async def main():
        bus = EventBus(idempotency=Idempotency(max_keys=64))
        async with harness(bus, clock="virtual") as t:
            await bus.publish("a", idempotency_key="k")
            assert bus.health() == OK
            await bus.publish_many([("a", n, {"idempotency_key": str(n)}) for n in range(1000)])
            evicted = bus.metrics().idempotency_evicted
            assert evicted > 0
            assert bus.health() == health_with(reason("keys_evicted", value=evicted))
            await t.advance(60)
            assert bus.health() == OK

    run(main())


# Switched off -------------------------------------------------------------------------


def test_a_threshold_of_none_is_no_reason():
    async def main():
        switched_off = HealthThresholds(
            lane_filling=None,
            oldest_event=None,
            handler_stuck=None,
            events_dropped=None,
            dead_letters_growing=None,
            dead_letters_filling=None,
            keys_evicted=None,
        )
        for thresholds, status in ((None, "failing"), (switched_off, "ok")):
            bus, gate = EventBus(max_queue_size=2, health=thresholds, dead_letters=DeadLetters(max_entries=10)), Gate()
            bus.subscribe("a", _async, name="s", overflow="drop_new").pause()
            bus.subscribe("a", _async, name="fails", where=_refuse, max_queue_size=100)
            bus.subscribe("hang", gate.in_a_thread, name="hangs", timeout=1)
            async with harness(bus, clock="virtual") as t:
                await bus.publish_many([("a", n) for n in range(10)])
                await bus.publish("hang")
                await gate.is_inside()
                await t.advance(100)
                assert bus.health().status == status, bus.health()
                gate.open.set()

    run(main())
