"""A caller of the ``pm.events`` API changes one import, and every sentence of its contract still holds."""

from __future__ import annotations

import asyncio
import datetime
import enum
import fnmatch
import functools
import inspect
import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import ironbus
import ironbus.bus as bus_module
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ironbus import _core
from ironbus.bus import Event, EventBus, get_event_bus, publish_event, publish_event_sync

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


@pytest.fixture(autouse=True)
def _no_event_log_from_outside(monkeypatch):
    monkeypatch.delenv("IRONBUS_LOG_DIR", raising=False)


@pytest.fixture
def process_bus(monkeypatch):
    """The process's bus, a new one for this test."""
    monkeypatch.setattr(bus_module, "_bus", None)
    monkeypatch.setattr(bus_module, "_bus_process", None)
    return get_event_bus


class Recorder:
    """Handlers that remember what they were called with, and where."""

    def __init__(self):
        self.events = []
        self.threads = set()

    async def on_loop(self, event):
        self.events.append(event)
        self.threads.add(threading.get_ident())

    def on_thread(self, event):
        self.events.append(event)
        self.threads.add(threading.get_ident())

    @property
    def data(self):
        return [event.data for event in self.events]


# Names and parameters ------------------------------------------------------------


def test_names_and_defaults_are_those_of_the_old_module():
    """Positional calls and defaults of old callers must not shift."""

    def parameters(function, kinds=(inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)):
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values() if p.kind in kinds]

    none = inspect.Parameter.empty
    assert parameters(EventBus) == [("log_dir", None)]
    assert parameters(EventBus.subscribe) == [("self", none), ("event_type", none), ("handler", none)]
    assert parameters(EventBus.unsubscribe) == [("self", none), ("event_type", none), ("handler", none)]
    assert parameters(EventBus.publish) == [("self", none), ("event", none), ("data", None)]
    assert parameters(EventBus.publish_sync) == [("self", none), ("event", none), ("data", None)]
    assert parameters(EventBus.start) == [("self", none)]
    assert parameters(EventBus.stop)[0] == ("self", none)
    assert parameters(publish_event) == [("event_type", none), ("data", none)]
    assert parameters(publish_event_sync) == [("event_type", none), ("data", none)]
    assert parameters(get_event_bus) == []
    for method in (EventBus.publish, EventBus.start, EventBus.stop, publish_event):
        assert inspect.iscoroutinefunction(method)
    for method in (EventBus.publish_sync, EventBus.subscribe, publish_event_sync):
        assert not inspect.iscoroutinefunction(method)


def test_the_package_exports_the_same_classes():
    """`from ironbus import EventBus, Event` and the old path are one thing."""
    assert ironbus.EventBus is EventBus
    assert ironbus.Event is Event


@on_a_loop
async def test_arguments_may_be_named():
    """Old callers pass event_type=, handler=, event= and data= by name."""
    seen = Recorder()
    bus = EventBus(log_dir=None)
    bus.subscribe(event_type="a", handler=seen.on_loop)
    async with bus:
        await bus.publish(event="a", data={"n": 1})
        bus.publish_sync(event="a", data={"n": 2})
        await bus.drain()
        bus.unsubscribe(event_type="a", handler=seen.on_loop)
    assert seen.data == [{"n": 1}, {"n": 2}]


# Subscribe -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["on_loop", "on_thread"])
def test_a_handler_is_called_with_the_event(kind):
    """Sync and async handlers alike get one Event with all its fields."""

    @on_a_loop
    async def go():
        before = time.time()
        seen = Recorder()
        bus = EventBus()
        bus.subscribe("order.paid", getattr(seen, kind))
        async with bus:
            receipt = await bus.publish("order.paid", {"id": 7})
            await receipt.settled()
        (event,) = seen.events
        assert type(event) is Event
        assert (event.type, event.data, event.source) == ("order.paid", {"id": 7}, "pm_system")
        assert before <= event.timestamp <= time.time()
        assert event.event_id == receipt.event_id
        assert isinstance(event.event_id, str)

    go()


@pytest.mark.parametrize("kind", ["on_loop", "on_thread"])
def test_the_same_handler_twice_is_called_twice(kind):
    """The old bus kept a list, and so counted twice."""

    @on_a_loop
    async def go():
        seen = Recorder()
        bus = EventBus()
        for topic in ("a", "a", "*"):
            bus.subscribe(topic, getattr(seen, kind))
        assert bus.get_subscribers() == {"a": 2, "*": 1}
        async with bus:
            for number in range(3):
                await bus.publish("a", {"n": number})
            await bus.drain()
        assert [data["n"] for data in seen.data] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert bus.audit().balanced

    go()


@on_a_loop
async def test_plain_subscriptions_of_an_async_handler_share_one_lane():
    """It never overlaps itself, and sees all its types in publish order."""
    inside = 0
    seen = []

    class Billing:
        async def handle(self, event):
            nonlocal inside
            inside += 1
            assert inside == 1
            for _ in range(event.data["n"] % 3):
                await asyncio.sleep(0)
            inside -= 1
            seen.append(event.data["n"])

    billing = Billing()
    bus = EventBus()
    for topic in ("a", "b", "c.*"):
        bus.subscribe(topic, billing.handle)  # a bound method is equal each time, not the same
    async with bus:
        for number in range(300):
            await bus.publish(("a", "b", "c.x")[number % 3], {"n": number})
        await bus.drain()
    assert seen == list(range(300))
    assert len(bus.audit().subscriptions) == 1


@on_a_loop
async def test_plain_subscriptions_of_a_sync_handler_share_one_lane():
    """The same on threads, where overlapping would be easy."""
    overlap = threading.Lock()
    seen = []

    def handle(event):
        assert overlap.acquire(blocking=False)
        seen.append(event.data["n"])
        overlap.release()

    bus = EventBus()
    for topic in ("a", "b", "c.*"):
        bus.subscribe(topic, handle)
    async with bus:
        for number in range(600):
            await bus.publish(("a", "b", "c.x")[number % 3], {"n": number})
        await bus.drain()
    assert seen == list(range(600))
    assert bus.audit().subscriptions.popitem()[1].done == 600


@on_a_loop
async def test_equal_handlers_without_a_hash_share_one_lane():
    """A dataclass with a __call__ is equal to its copy and has no hash."""

    @dataclass
    class Handler:
        name: str
        seen: list = field(default_factory=list, compare=False)

        async def __call__(self, event):
            self.seen.append(event.data["n"])

    handler = Handler("x")
    bus = EventBus()
    bus.subscribe("a", handler)
    bus.subscribe("b", handler)
    async with bus:
        for number in range(10):
            await bus.publish("ab"[number % 2], {"n": number})
        await bus.drain()
    assert handler.seen == list(range(10))
    bus.unsubscribe("a", handler)
    bus.unsubscribe("b", handler)
    assert bus.get_subscribers() == {}


def test_handlers_that_are_not_functions():
    """Partials, lambdas, callable objects and builtins are handlers, sync or async."""

    @on_a_loop
    async def go():
        seen, loop_thread, threads = [], threading.get_ident(), {}

        async def plain(tag, event):
            seen.append(tag)
            threads[tag] = threading.get_ident()

        class Async:
            async def __call__(self, event):
                await plain("object", event)

        bus = EventBus()
        bus.subscribe("a", functools.partial(plain, "partial"))
        bus.subscribe("a", Async())
        bus.subscribe("a", lambda event: plain("lambda", event))  # sync, but returns an awaitable
        bus.subscribe("a", seen.append)
        async with bus:
            await (await bus.publish("a", {"n": 1})).settled()
        assert sorted(tag for tag in seen if isinstance(tag, str)) == ["lambda", "object", "partial"]
        assert [event.data for event in seen if isinstance(event, Event)] == [{"n": 1}]
        assert threads == dict.fromkeys(["lambda", "object", "partial"], loop_thread)

    go()


# Types and patterns --------------------------------------------------------------


class Kind(str, enum.Enum):  # noqa: UP042 - what callers of the time wrote
    PAID = "order.paid"


@pytest.mark.parametrize(
    "event_type",
    [
        "a",
        "order placed",
        "order:placed",
        "ns::order/placed?x=[1]",
        "büro.öffnet",
        "日本語",
        "?",
        "[a]",
        ".",
        "..a.",
        "#",
    ],
)
@on_a_loop
async def test_any_printable_string_is_a_type(event_type):
    """Old programs have types with spaces, colons and other alphabets; without `*` nothing is a pattern."""
    seen, others = Recorder(), Recorder()
    bus = EventBus()
    bus.subscribe(event_type, seen.on_loop)
    bus.subscribe("other", others.on_loop)
    async with bus:
        await bus.publish(event_type, {"n": 1})
        await bus.publish("x", {"n": 2})
        await bus.drain()
    assert [(event.type, event.data) for event in seen.events] == [(event_type, {"n": 1})]
    assert others.events == []


@on_a_loop
async def test_a_str_enum_is_its_value():
    """Members of a str-Enum are used as types and as topics, mixed with their values."""
    seen = Recorder()
    bus = EventBus()
    bus.subscribe(Kind.PAID, seen.on_loop)
    bus.subscribe("order.paid", seen.on_loop)
    assert bus.get_subscribers() == {"order.paid": 2}
    async with bus:
        await bus.publish(Kind.PAID, {"n": 1})
        await bus.publish("order.paid", {"n": 2})
        await bus.publish(Event(Kind.PAID, {"n": 3}))
        await bus.drain()
    assert [data["n"] for data in seen.data] == [1, 1, 2, 2, 3, 3]
    assert all(event.type == "order.paid" for event in seen.events)
    bus.unsubscribe(Kind.PAID, seen.on_loop)
    assert bus.get_subscribers() == {"order.paid": 1}


@on_a_loop
async def test_patterns_are_fnmatch_over_the_whole_type():
    """`a.*` matches `a.b.c`; `?` and sets work beside a star, and mean themselves without one."""
    types = ["a", "a.", "a.b", "a.b.c", "A.b", "ab", "b.a", "a?b", "axb", "a[x]b"]
    patterns = ["*", "a.*", "*.b", "a?*", "[ab]*", "[!a]*", "*[xb]*", "a?b", "a[x]b", "**", "*.*.*"]
    seen = {pattern: [] for pattern in patterns}

    def recorder(pattern):
        async def handler(event):
            seen[pattern].append(event.type)

        return handler

    bus = EventBus()
    for pattern in patterns:
        bus.subscribe(pattern, recorder(pattern))
    async with bus:
        for event_type in types:
            await bus.publish(event_type, {})
        await bus.drain()
    for pattern in patterns:
        if "*" in pattern:
            assert seen[pattern] == [text for text in types if fnmatch.fnmatchcase(text, pattern)], pattern
        else:
            assert seen[pattern] == [pattern]


PIECES = st.sampled_from([*list("ab.*?[]!-^\\c/&~|Z0"), "[!", "[a-c]", "[]", "[c-a]", "[*]", "ö", "😀", "**"])
TEXTS = st.lists(PIECES, max_size=9).map("".join)


@given(TEXTS, TEXTS, TEXTS)
@example("[", "]]", "]")
@example("[!", "]]", "a")
@example("a[!", "", "a[!b")
@example("[a-", "]", "-")
@example("[--a]", "", "-")
@example("[c-a]", "", "b")
@example("[!c-a]", "", "b")
@example("[a-c-e]", "", "-d")
@example("[]-a]", "", "]")
@example("[\\]", "", "\\")
@example("[a&&b||c~~d]", "", "&")
@example("[^a]", "", "^")
@example("a", "\n", "a\n")
def test_topic_matches_agrees_with_fnmatch(before, after, text):
    """The native matcher and the standard library agree on everything that contains a star."""
    pattern = f"{before}*{after}"
    assert _core.topic_matches(pattern, text) == fnmatch.fnmatchcase(text, pattern)
    # Random texts seldom match; one that is made from the pattern does so more often.
    for likely in (pattern.replace("*", text), pattern.replace("*", "").replace("?", "x"), before + text + after):
        assert _core.topic_matches(pattern, likely) == fnmatch.fnmatchcase(likely, pattern)


@given(TEXTS.filter(lambda text: "*" not in text), TEXTS)
def test_a_topic_without_a_star_is_compared(topic, text):
    """`?` and sets are ordinary characters in an exact type."""
    assert _core.topic_matches(topic, topic)
    assert _core.topic_matches(topic, text) == (topic == text)


# Unsubscribe ---------------------------------------------------------------------


@on_a_loop
async def test_unsubscribe_removes_one():
    """Of two equal subscriptions one remains."""
    seen = Recorder()
    bus = EventBus()
    for topic in ("a", "a", "b*"):
        bus.subscribe(topic, seen.on_loop)
    async with bus:
        bus.unsubscribe("a", seen.on_loop)
        assert bus.get_subscribers() == {"a": 1, "b*": 1}
        await bus.publish("a", {"n": 1})
        await bus.publish("b1", {"n": 2})
        await bus.drain()
        bus.unsubscribe("b*", seen.on_loop)
        bus.unsubscribe("a", seen.on_loop)
        assert bus.get_subscribers() == {}
        await bus.publish("a", {"n": 3})
        await bus.publish("b1", {"n": 4})
        await bus.drain()
    assert [data["n"] for data in seen.data] == [1, 2]


@on_a_loop
async def test_unsubscribe_of_an_unknown_pair_is_only_logged(caplog):
    """Old callers unsubscribe twice, or what they never subscribed."""
    seen = Recorder()
    bus = EventBus()
    bus.subscribe("a", seen.on_loop)
    with caplog.at_level(logging.WARNING, logger="ironbus"):
        assert bus.unsubscribe("b", seen.on_loop) is None
        assert bus.unsubscribe("a", seen.on_thread) is None
        assert bus.unsubscribe("a", 7) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert bus.get_subscribers() == {"a": 1}


@on_a_loop
async def test_unsubscribe_in_a_handler_and_of_another_one():
    """A handler may take itself and others back while the event is being handled."""
    seen = []
    bus = EventBus()

    async def once(event):
        seen.append(("once", event.data["n"]))
        bus.unsubscribe("a", once)

    async def always(event):
        seen.append(("always", event.data["n"]))

    bus.subscribe("a", once)
    bus.subscribe("a", always)
    async with bus:
        for number in range(3):
            await (await bus.publish("a", {"n": number})).settled()
    assert seen == [("once", 0), ("always", 0), ("always", 1), ("always", 2)]


def test_get_subscribers_counts_types_and_patterns(tmp_path):
    """A dict of numbers, a copy, without what the bus itself listens to."""
    bus = EventBus(str(tmp_path / "log"))
    assert bus.get_subscribers() == {}
    bus.subscribe("a", print)
    bus.subscribe("a", lambda event: None)
    bus.subscribe("a.*", print)
    counts = bus.get_subscribers()
    assert counts == {"a": 2, "a.*": 1}
    counts.clear()
    assert bus.get_subscribers() == {"a": 2, "a.*": 1}


# Publish -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["publish", "publish_sync"])
def test_what_is_published_before_the_start_waits(how):
    """It also reaches handlers that are subscribed between the publish and the start."""

    @on_a_loop
    async def go():
        early, late, too_late = Recorder(), Recorder(), Recorder()
        bus = EventBus()
        bus.subscribe("a", early.on_loop)
        for number in range(5):
            if how == "publish":
                await bus.publish("a", {"n": number})
            else:
                bus.publish_sync("a", {"n": number})
        bus.subscribe("*", late.on_thread)
        assert early.events == []
        assert bus.audit().accepted == 5
        await bus.start()
        bus.subscribe("a", too_late.on_loop)
        await bus.publish("a", {"n": 5})
        await bus.drain()
        await bus.stop()
        assert [data["n"] for data in early.data] == [0, 1, 2, 3, 4, 5]
        assert [data["n"] for data in late.data] == [0, 1, 2, 3, 4, 5]
        assert [data["n"] for data in too_late.data] == [5]

    go()


def test_publish_on_a_loop_that_is_gone_before_the_start():
    """`asyncio.run(bus.publish(..))` in a setup script, the start much later."""
    seen = Recorder()
    bus = EventBus()
    asyncio.run(_publish(bus, "a", {"n": 1}))
    bus.subscribe("a", seen.on_loop)

    @on_a_loop
    async def go():
        async with bus:
            await bus.drain()

    go()
    assert seen.data == [{"n": 1}]


async def _publish(bus, event_type, data):
    return await bus.publish(event_type, data)


@on_a_loop
async def test_publish_may_be_handed_to_create_task():
    """The most frequent way to call it from a callback; gather and wait_for as well."""
    seen = Recorder()
    bus = EventBus()
    bus.subscribe("a", seen.on_loop)
    async with bus:
        task = asyncio.create_task(bus.publish("a", {"n": 0}), name="mine")
        assert task.get_name() == "mine"
        assert seen.events == []
        assert (await task).sequence == 1
        receipts = await asyncio.gather(*(bus.publish("a", {"n": number}) for number in range(1, 10)))
        assert [receipt.sequence for receipt in receipts] == list(range(2, 11))
        await asyncio.wait_for(bus.publish("a", {"n": 10}), 5)
        await bus.drain()
    assert [data["n"] for data in seen.data] == list(range(11))


@on_a_loop
async def test_publish_that_nobody_awaits_warns_and_publishes_nothing():
    """A forgotten await is a bug of the caller that Python makes visible, as for any coroutine."""
    bus = EventBus()
    with pytest.warns(RuntimeWarning, match="publish.*never awaited"):
        bus.publish("a", {})
    assert bus.audit().offered == 0


@pytest.mark.parametrize("data", [None, {}, [], "", 0, False, 0.0, ()])
@on_a_loop
async def test_falsy_data_becomes_an_empty_dict(data):
    """Handlers of old say event.data.get(..) without looking."""
    seen = Recorder()
    bus = EventBus()
    bus.subscribe("*", seen.on_loop)
    async with bus:
        await bus.publish("a", data)
        bus.publish_sync("a", data)
        await bus.publish("a")
        await bus.drain()
    assert seen.data == [{}, {}, {}]
    assert len({id(value) for value in seen.data}) == 3, "one dict for all would be shared state"


@on_a_loop
async def test_other_data_is_passed_on_as_it_is():
    """Any object is a payload; it travels by reference."""
    seen = Recorder()
    bus = EventBus()
    bus.subscribe("a", seen.on_loop)
    values = [{"n": 1}, [1], "text", 7, object(), {1, 2}, b"bytes"]
    async with bus:
        for value in values:
            await bus.publish("a", value)
        await bus.drain()
    assert all(got is value for got, value in zip(seen.data, values, strict=True))


def test_publish_sync_without_a_loop_before_the_start():
    """A script publishes first and runs its loop later."""
    seen = Recorder()
    bus = EventBus()
    bus.subscribe("a", seen.on_loop)
    assert bus.publish_sync("a", {"n": 1}).sequence == 1

    @on_a_loop
    async def go():
        async with bus:
            await bus.drain()

    go()
    assert seen.data == [{"n": 1}]


@on_a_loop
async def test_publish_sync_inside_a_running_loop_returns_at_once():
    """Signal handlers and sync callbacks publish from inside the loop."""
    seen = Recorder()
    bus = EventBus()
    bus.subscribe("a", seen.on_loop)
    async with bus:
        receipt = bus.publish_sync("a", {"n": 1})
        assert seen.events == []
        await receipt.settled()
        assert seen.data == [{"n": 1}]
        asyncio.get_running_loop().call_soon(bus.publish_sync, "a", {"n": 2})
        await asyncio.sleep(0)
        await bus.drain()
    assert [data["n"] for data in seen.data] == [1, 2]


@on_a_loop
async def test_publish_sync_from_many_threads():
    """Every thread's events arrive, each thread's in its order, and the handlers stay where they belong."""
    seen, sync_seen = Recorder(), Recorder()
    bus = EventBus()
    bus.subscribe("a", seen.on_loop)
    bus.subscribe("a", sync_seen.on_thread)
    threads, each = 8, 200

    def publisher(me):
        for number in range(each):
            bus.publish_sync("a", {"me": me, "n": number})

    async with bus:
        await asyncio.gather(*(asyncio.to_thread(publisher, me) for me in range(threads)))
        await bus.drain()
    for recorder in (seen, sync_seen):
        assert len(recorder.events) == threads * each
        assert [event.sequence for event in recorder.events] == list(range(1, threads * each + 1))
        for me in range(threads):
            assert [data["n"] for data in recorder.data if data["me"] == me] == list(range(each))
    assert seen.threads == {threading.get_ident()}
    assert threading.get_ident() not in sync_seen.threads


@on_a_loop
async def test_publish_from_a_loop_in_another_thread():
    """A second loop publishes and awaits the receipt there."""
    seen = Recorder()
    bus = EventBus()
    bus.subscribe("a", seen.on_loop)

    async def elsewhere():
        receipt = await bus.publish("a", {"n": 1})
        settlement = await receipt.settled()
        return settlement.ok, threading.get_ident()

    async with bus:
        ok, thread = await asyncio.to_thread(asyncio.run, elsewhere())
    assert ok
    assert seen.threads == {threading.get_ident()} != {thread}


@on_a_loop
async def test_handlers_publish():
    """Both kinds of handlers publish on, in both ways."""
    seen = Recorder()
    bus = EventBus()

    async def first(event):
        await bus.publish("b", event.data)
        bus.publish_sync("c", event.data)

    def second(event):
        bus.publish_sync("d", event.data)

    bus.subscribe("a", first)
    bus.subscribe("[bc]*", second)
    bus.subscribe("d", seen.on_loop)
    async with bus:
        await bus.publish("a", {"n": 1})
        await bus.drain()
    assert seen.data == [{"n": 1}, {"n": 1}]


# Event objects -------------------------------------------------------------------


class Shipped(Event):
    def __init__(self, parcel):
        super().__init__("shipped", {"parcel": parcel})
        self.parcel = parcel


@dataclass
class Returned(Event):
    reason: str = "none"
    tags: list = field(default_factory=list)


@pytest.mark.parametrize("kind", ["on_loop", "on_thread"])
@pytest.mark.parametrize("how", ["publish", "publish_sync", "before the start"])
def test_events_reach_handlers_with_class_and_fields(kind, how):
    """Subclasses, plain and @dataclass, keep their class, their own fields and the five."""

    @on_a_loop
    async def go():
        seen = Recorder()
        bus = EventBus()
        bus.subscribe("*", getattr(seen, kind))
        plain = Event("plain", {"n": 1}, 12.5, "id-1", "tests")
        plain.note = "an attribute of the caller's"
        events = [plain, Shipped("p-1"), Returned("returned", {"n": 2}, reason="late", tags=["x"])]
        if how != "before the start":
            await bus.start()
        for event in events:
            if how == "publish":
                await bus.publish(event)
            else:
                bus.publish_sync(event)
        await bus.start()
        await bus.drain()
        await bus.stop()
        assert [type(event) for event in seen.events] == [Event, Shipped, Returned]
        assert seen.events == events
        assert [event.to_dict() for event in seen.events] == [event.to_dict() for event in events]
        assert seen.events[0].note == plain.note
        assert seen.events[0].event_id == "id-1"
        assert seen.events[1].parcel == "p-1"
        assert (seen.events[2].reason, seen.events[2].tags) == ("late", ["x"])

    go()


@on_a_loop
async def test_the_publisher_may_change_his_event_afterwards():
    """Fields are mutable; what was accepted stays what it was, and handlers do not see each other's changes."""
    seen, event = [], Event("a", {"n": 1})
    bus = EventBus()

    async def handler(received):
        seen.append((received.type, received.source))
        received.type = "changed by a handler"
        received.source = "changed by a handler"

    async def other(received):
        await handler(received)

    bus.subscribe("a", handler)
    bus.subscribe("a", other)
    async with bus:
        receipt = await bus.publish(event)
        event.type, event.source = "changed", "changed"
        await receipt.settled()
    assert seen == [("a", "pm_system")] * 2
    assert (event.type, event.source) == ("changed", "changed")


@on_a_loop
async def test_one_event_object_may_be_published_again():
    """Loops that publish the same object must not be surprised."""
    seen = Recorder()
    bus = EventBus()
    bus.subscribe("*", seen.on_loop)
    event = Event("a", {"n": 1})
    async with bus:
        for number in range(3):
            event.data = {"n": number}
            await bus.publish(event)
        await bus.drain()
    assert [data["n"] for data in seen.data] == [0, 1, 2]


# Start and stop ------------------------------------------------------------------


@on_a_loop
async def test_start_and_stop_may_be_repeated():
    """Neither doubles anything, and stop before any start does nothing."""
    seen = Recorder()
    bus = EventBus()
    bus.subscribe("a", seen.on_loop)
    await bus.stop()
    await bus.start()
    await bus.start()
    await (await bus.publish("a", {"n": 1})).settled()
    await bus.stop()
    await bus.stop()
    await bus.publish("a", {"n": 2})
    assert len(seen.events) == 1
    await bus.start()
    await bus.drain()
    await asyncio.gather(bus.stop(), bus.stop(), bus.stop())
    assert [data["n"] for data in seen.data] == [1, 2]


def test_a_bus_may_be_started_on_another_loop():
    """Test suites make a loop per test and keep the bus."""
    seen, sync_seen = Recorder(), Recorder()
    bus = EventBus()
    bus.subscribe("a", seen.on_loop)
    bus.subscribe("a", sync_seen.on_thread)

    @on_a_loop
    async def go(number):
        await bus.start()
        await bus.publish("a", {"n": number})
        await bus.stop()

    for number in range(5):
        bus.publish_sync("a", {"n": number + 0.5})
        go(number)
    expected = [0.5, 0, 1.5, 1, 2.5, 2, 3.5, 3, 4.5, 4]
    assert [data["n"] for data in seen.data] == expected
    assert [data["n"] for data in sync_seen.data] == expected
    assert bus.audit().balanced


def test_a_loop_that_was_closed_without_a_stop_counts_as_not_started():
    """`asyncio.run(main())` that forgets stop() must not lose the bus, for either kind of handler."""
    seen, sync_seen = Recorder(), Recorder()
    bus = EventBus()
    bus.subscribe("a", seen.on_loop)
    bus.subscribe("a", sync_seen.on_thread)

    @on_a_loop
    async def go(number):
        await bus.start()
        await (await bus.publish("a", {"n": number})).settled()

    interval = sys.getswitchinterval()
    for number in range(3):
        go(number)

    @on_a_loop
    async def end():
        await bus.start()
        await bus.stop()

    end()
    assert [data["n"] for data in seen.data] == [0, 1, 2]
    assert [data["n"] for data in sync_seen.data] == [0, 1, 2]
    assert sys.getswitchinterval() == pytest.approx(interval), "the setting of the process must be given back"


def test_stop_leaves_no_thread_and_no_task():
    """A program that stopped its bus can end."""
    before = set(threading.enumerate())

    @on_a_loop
    async def go():
        bus = EventBus()
        bus.subscribe("a", Recorder().on_loop)
        bus.subscribe("a", Recorder().on_thread)
        async with bus:
            for _ in range(20):
                await bus.publish("a", {})
        assert asyncio.all_tasks() == {asyncio.current_task()}

    go()
    assert set(threading.enumerate()) <= before


@on_a_loop
async def test_a_handler_may_stop_the_bus():
    """Shutdown events do; the handler goes on after it and counts as done."""
    seen = []
    bus = EventBus()

    async def shutdown(event):
        await bus.stop()
        await asyncio.sleep(0)
        seen.append("stopped")

    bus.subscribe("shutdown", shutdown)
    await bus.start()
    receipt = await bus.publish("shutdown", {})
    assert (await receipt.settled()).ok
    assert seen == ["stopped"]
    await bus.start()
    assert (await (await bus.publish("other", {})).settled()).ok
    await bus.stop()
    assert bus.audit().balanced


@on_a_loop
async def test_a_handler_that_stops_the_bus_lets_others_finish():
    """What was queued for others before is still handled."""
    seen = Recorder()
    bus = EventBus()

    async def shutdown(event):
        await bus.stop()

    bus.subscribe("shutdown", shutdown)
    bus.subscribe("*", seen.on_thread)
    await bus.start()
    for number in range(50):
        await bus.publish("work", {"n": number})
    await (await bus.publish("shutdown", {})).settled()
    assert [event.data.get("n") for event in seen.events] == [*range(50), None]
    assert len(seen.events) == 51
    await bus.stop()


@on_a_loop
async def test_two_handlers_may_stop_the_bus():
    """Both hear of the shutdown; neither waits for the other."""
    bus = EventBus()
    both = asyncio.Barrier(2)

    def stopper():
        async def handler(event):
            await both.wait()
            await bus.stop(timeout=3 * LIMIT)

        return handler

    names = [bus.subscribe("shutdown", stopper()).name for _ in range(2)]
    await bus.start()
    receipt = await bus.publish("shutdown", {})
    assert (await receipt.settled()).outcomes == dict.fromkeys(names, "done")
    await bus.stop()
    assert not bus.describe()["running"]
    assert bus.audit().balanced


@on_a_loop
async def test_whoever_stops_second_finds_the_bus_stopped():
    """`await bus.stop(); await bus.start()` must start it, although another task was stopping it."""
    seen = Recorder()
    entered, go_on = asyncio.Event(), asyncio.Event()
    bus = EventBus()

    async def handler(event):
        entered.set()
        await go_on.wait()

    async def again():
        await bus.stop()
        await bus.start()

    bus.subscribe("a", handler)
    bus.subscribe("b", seen.on_loop)
    await bus.start()
    await bus.publish("a", {})
    await entered.wait()
    first = asyncio.create_task(bus.stop())
    second = asyncio.create_task(again())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(first, second)
    assert bus.describe()["running"]
    await (await bus.publish("b", {})).settled()
    await bus.stop()
    assert len(seen.events) == 1


@on_a_loop
async def test_a_bus_may_be_stopped_from_another_loop():
    """A signal thread with a loop of its own ends the program."""
    seen = Recorder()
    bus = EventBus()
    bus.subscribe("a", seen.on_loop)
    await bus.start()
    for number in range(20):
        await bus.publish("a", {"n": number})
    report = await asyncio.to_thread(asyncio.run, bus.stop())
    assert (report.drained, report.left) == (True, 0)
    assert len(seen.events) == 20
    assert not bus.describe()["running"]


@on_a_loop
async def test_publishes_during_a_stop_are_never_lost():
    """They are handled, or wait for the next start."""
    seen = []
    bus = EventBus()

    async def handler(event):
        await asyncio.sleep(0)
        seen.append(event.data["n"])

    bus.subscribe("a", handler)
    await bus.start()
    numbers = iter(range(10_000))
    done = threading.Event()

    def publish():
        while not done.is_set():
            bus.publish_sync("a", {"n": next(numbers)})

    publisher = asyncio.ensure_future(asyncio.to_thread(publish))
    for _ in range(5):
        await bus.stop(timeout=0.001)
        assert bus.audit().balanced
        await bus.start()
    done.set()
    await publisher
    await bus.drain()
    await bus.stop()
    assert seen == list(range(next(numbers)))
    assert bus.audit().balanced


# Handlers ------------------------------------------------------------------------


@on_a_loop
async def test_all_async_handlers_of_one_event_run_concurrently():
    """Each waits for all the others."""
    count, arrived, all_here = 20, 0, asyncio.Event()
    bus = EventBus()

    def waiter():
        async def handler(event):
            nonlocal arrived
            arrived += 1
            if arrived == count:
                all_here.set()
            await all_here.wait()

        return handler

    for _ in range(count):
        bus.subscribe("a", waiter())
    async with bus:
        assert (await (await bus.publish("a", {})).settled()).ok


@pytest.mark.parametrize("warm", [0, 1, 2])
@on_a_loop
async def test_all_sync_handlers_of_one_event_run_concurrently(warm):
    """Each waits for all the others, whether or not threads are there and idle already."""
    count = 3
    barrier = threading.Barrier(count)
    bus = EventBus(workers=count)

    def waiter():
        def handler(event):
            if event.type == "all":
                barrier.wait(5)

        return handler

    handlers = [waiter() for _ in range(count)]
    for number, handler in enumerate(handlers):
        bus.subscribe("all", handler)
        bus.subscribe(f"only {number}", handler)
    async with bus:
        for number in range(warm):
            await (await bus.publish(f"only {number}", {})).settled()
        for _ in range(5):
            assert (await (await bus.publish("all", {})).settled()).outcomes == dict.fromkeys(
                bus.audit().subscriptions, "done"
            )


@on_a_loop
async def test_a_failing_handler_is_logged_and_disturbs_nobody(caplog):
    """The log names handler, type and place, and never the exception's words, which may quote the payload."""
    seen, sync_seen = Recorder(), Recorder()
    bus = EventBus()

    async def broken(event):
        raise ValueError(f"cannot handle {event.data}")

    def broken_too(event):
        raise KeyError(event.data["card"])

    for handler in (broken, seen.on_loop, broken_too, sync_seen.on_thread):
        bus.subscribe("a", handler)
    with caplog.at_level(logging.DEBUG):
        async with bus:
            for _ in range(3):
                await bus.publish("a", {"card": SECRET})
            await bus.drain()
    assert len(seen.events) == len(sync_seen.events) == 3
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 6
    texts = [record.getMessage() for record in errors]
    assert sum("ValueError" in text and "broken" in text and "test_bus_v1.py:" in text for text in texts) == 3
    assert sum("KeyError" in text and "broken_too" in text for text in texts) == 3
    assert all("'a'" in text for text in texts)
    assert SECRET not in caplog.text
    assert all(SECRET not in repr(record.__dict__) for record in caplog.records)


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, StopIteration, BaseExceptionGroup])
@on_a_loop
async def test_strange_exceptions_are_failures_too(error):
    """One event's end must never be the end of the bus."""
    raised = BaseExceptionGroup("both", [ValueError(), OSError()]) if error is BaseExceptionGroup else error()
    seen = Recorder()
    bus = EventBus()

    def on_thread(event):
        raise raised

    class OnLoop:
        def __call__(self, event):
            raise raised

    async def cancels(event):
        if error is asyncio.CancelledError:
            raise raised
        raise OSError

    for handler in (on_thread, OnLoop(), cancels, seen.on_loop):
        bus.subscribe("a", handler)
    async with bus:
        for _ in range(3):
            settlement = await (await bus.publish("a", {})).settled()
            assert sorted(settlement.outcomes.values()) == ["dead", "dead", "dead", "done"]
    assert len(seen.events) == 3
    assert bus.audit().balanced


@on_a_loop
async def test_sync_handlers_never_run_on_the_thread_of_the_loop():
    """Not when published from the loop, nor from their own thread, nor kept from before the start."""
    seen = Recorder()
    bus = EventBus()

    def again(event):
        seen.on_thread(event)
        if event.data["n"] < 5:
            bus.publish_sync("a", {"n": event.data["n"] + 1})

    bus.subscribe("a", again)
    bus.publish_sync("a", {"n": 0})
    async with bus:
        await bus.publish("a", {"n": 0})
        bus.publish_sync("a", {"n": 0})
        await bus.drain()
    assert len(seen.events) == 18
    assert threading.get_ident() not in seen.threads


@on_a_loop
async def test_a_slow_sync_handler_does_not_block_the_loop():
    """The loop goes on while a thread waits for it."""
    gate = threading.Event()
    bus = EventBus()
    bus.subscribe("a", lambda event: gate.wait(LIMIT) or pytest.fail("the loop was blocked"))
    async with bus:
        receipt = await bus.publish("a", {})
        for _ in range(100):
            await asyncio.sleep(0)
        gate.set()
        assert (await receipt.settled()).ok


# The bus of the process ----------------------------------------------------------


def test_there_is_one_bus_per_process(process_bus):
    """From all threads, also when they ask at the same moment."""
    barrier = threading.Barrier(8)
    found = []

    def ask():
        barrier.wait(LIMIT)
        found.append(get_event_bus())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(map(id, found)) == {id(process_bus())}
    assert type(found[0]) is EventBus


@on_a_loop
async def test_publish_event_publishes_to_it(process_bus):
    """The two shortcuts, and the loop-less form."""
    seen = Recorder()
    bus = process_bus()
    bus.subscribe("*", seen.on_loop)
    async with bus:
        assert (await publish_event("a", {"n": 1})).sequence == 1
        assert publish_event_sync("b", {"n": 2}).sequence == 2
        assert (await asyncio.to_thread(publish_event_sync, "c", None)).sequence == 3
        await bus.drain()
    assert [(event.type, event.data) for event in seen.events] == [("a", {"n": 1}), ("b", {"n": 2}), ("c", {})]


# The event log -------------------------------------------------------------------


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_the_log_file_exists_from_construction(tmp_path, as_type):
    """A monitor that opens the file at program start must find it; and only its owner may read payloads."""
    bus = EventBus(as_type(tmp_path / "deep" / "events"))
    path = bus.get_log_file()
    day = datetime.datetime.now().astimezone().strftime("%Y%m%d")
    assert path == str(tmp_path / "deep" / "events" / f"events_{day}.log")
    assert os.path.getsize(path) == 0
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@on_a_loop
async def test_the_log_has_one_object_per_event(tmp_path):
    """JSON Lines in publish order, subscribers or not; what JSON cannot hold goes through str."""
    bus = EventBus(str(tmp_path))
    seen = Recorder()
    bus.subscribe("b", seen.on_loop)
    odd = {"when": datetime.date(2020, 1, 2), "text": "zwei\nZeilen ü", "set": {1}}
    event = Event("c", {"n": 3}, 12.5, "id-3")
    bus.publish_sync("a", {"n": 1})
    async with bus:
        await bus.publish("b", odd)
        await bus.publish(event)
        receipt = await bus.publish("a", None)
    got = lines(bus.get_log_file())
    assert [line["type"] for line in got] == ["a", "b", "c", "a"]
    assert [line["data"] for line in got] == [
        {"n": 1},
        {"when": "2020-01-02", "text": odd["text"], "set": "{1}"},
        {"n": 3},
        {},
    ]
    assert all({"timestamp", "event_id", "type", "data"} <= set(line) for line in got)
    assert (got[2]["timestamp"], got[2]["event_id"]) == (12.5, "id-3")
    assert got[3]["event_id"] == receipt.event_id
    assert got[1]["event_id"] == seen.events[0].event_id
    assert got[1]["timestamp"] == seen.events[0].timestamp
    assert stat.S_IMODE(os.stat(bus.get_log_file()).st_mode) == 0o600


@on_a_loop
async def test_the_log_goes_on_after_a_restart(tmp_path):
    """Stop closes the file; neither a start nor a second bus begins it anew."""
    bus = EventBus(str(tmp_path))
    for number in range(3):
        async with bus:
            await bus.publish("a", {"n": number})
    other = EventBus(str(tmp_path))
    async with other:
        await other.publish("a", {"n": 3})
    assert [line["data"]["n"] for line in lines(bus.get_log_file())] == [0, 1, 2, 3]


@on_a_loop
async def test_an_event_that_has_no_line_stops_neither_log_nor_handlers(tmp_path):
    """A payload whose str() fails costs its own line only."""

    class Unprintable:
        def __str__(self):
            raise RuntimeError(SECRET)

    seen = Recorder()
    bus = EventBus(str(tmp_path))
    bus.subscribe("a", seen.on_loop)
    async with bus:
        for number, value in enumerate([1, Unprintable(), {"self": None}, {("a", "tuple"): 1}, 2]):
            if value == {"self": None}:
                value["self"] = value
            await bus.publish("a", {"n": number, "value": value})
    assert len(seen.events) == 5
    got = lines(bus.get_log_file())
    assert next(line["data"]["n"] for line in got) == 0
    assert [line["data"]["n"] for line in got][-1] == 4


def test_the_environment_names_the_log(tmp_path, monkeypatch):
    """Operators switch it on without touching the program; an argument goes first."""
    monkeypatch.setenv("IRONBUS_LOG_DIR", str(tmp_path / "env"))
    assert os.path.dirname(EventBus().get_log_file()) == str(tmp_path / "env")
    assert os.path.dirname(EventBus(str(tmp_path / "arg")).get_log_file()) == str(tmp_path / "arg")
    monkeypatch.setenv("IRONBUS_LOG_DIR", "")
    assert EventBus().get_log_file() is None


@on_a_loop
async def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    """The old bus littered the working directory."""
    monkeypatch.chdir(tmp_path)
    bus = EventBus()
    assert bus.get_log_file() is None
    async with bus:
        await bus.publish("a", {"n": 1})
    assert bus.get_log_file() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["orders.bus", "orders.db", "orders.sqlite"])
def test_a_log_dir_that_names_a_database_is_an_error(tmp_path, name):
    """Nobody wants a folder of that name."""
    with pytest.raises(ironbus.errors.InvalidOption, match="log_dir") as caught:
        EventBus(str(tmp_path / name))
    assert caught.value.field == "log_dir"
    assert list(tmp_path.iterdir()) == []


FIRST_EVENT = """
import asyncio, time
from ironbus import EventBus

async def main():
    async with EventBus() as bus:
        stream = bus.stream("t")
        await bus.publish("t", {})
        print(abs((await anext(stream)).timestamp - time.time()) < 5)

asyncio.run(main())
"""


def test_the_first_event_of_a_process_has_the_right_time():
    """The distance of the clocks is measured before it is used, not a second later."""
    ended = subprocess.run([sys.executable, "-c", FIRST_EVENT], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("True\n", 0)
