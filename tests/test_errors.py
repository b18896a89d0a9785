"""What ironbus says when it refuses something: the right class, the field, the fix, and never a value."""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import pickle
import sys
import traceback

import pytest
from ironbus import EventPriority, Idempotency, errors
from ironbus.bus import Event, EventBus

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


class Odd:
    """Something that is nothing that the bus wants, and would tell a secret if it were printed."""

    def __repr__(self):
        return SECRET

    __str__ = __repr__


def check(caught, error, field, fix):
    """The whole of what an error owes to its reader."""
    assert type(caught.value) is error
    assert isinstance(caught.value, errors.IronbusError)
    assert caught.value.field == field
    text = str(caught.value)
    assert fix in text
    assert len(text) < 300
    assert text == text.strip()
    whole = "".join(traceback.format_exception(caught.value, chain=True)[-1:])
    for said in (text, repr(caught.value), whole):
        assert SECRET not in said
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.field) == (error, text, field)
    assert str(copy.copy(caught.value)) == text


# Publishing ----------------------------------------------------------------------

NO_TYPES = ["", "a\n" + SECRET, "a\x00", "\x1b[31m" + SECRET, "\u2028", "\ud800" + SECRET]
BAD_PUBLISHES = [
    *[((text, {}), {}, errors.InvalidType, "type", '"order.paid"') for text in NO_TYPES],
    *[
        ((Event(value, {}),), {}, errors.InvalidType, "type", "string")
        for value in ["", 7, None, Odd(), SECRET.encode()]
    ],
    *[((value, {}), {}, errors.InvalidType, "event", "string") for value in [7, None, Odd(), b"x", {"type": SECRET}]],
    *[
        (("a", {"card": SECRET}), {"priority": value}, errors.InvalidPriority, "priority", "EventPriority")
        for value in [-1, 4, 256, 2**70, True, 1.0, "HIGH", SECRET, Odd(), [1]]
    ],
    *[
        (("a", {"card": SECRET}), {name: value}, errors.InvalidKey, name, "str()")
        for name in ["key", "idempotency_key"]
        for value in ["", 7, Odd(), SECRET.encode(), "\ud800" + SECRET]
    ],
    *[
        (("a", {"card": SECRET}), {"headers": value}, errors.InvalidHeaders, field, "strings")
        for value, field in [
            (7, "headers"),
            (SECRET, "headers"),
            ([("a", SECRET)], "headers"),
            ({1: SECRET}, "headers"),
            ({"": SECRET}, "headers"),
            ({"h": Odd()}, 'headers["h"]'),
            ({"a": "b", "h": None}, 'headers["h"]'),
            ({"h": [SECRET]}, 'headers["h"]'),
        ]
    ],
]


@pytest.mark.parametrize(("arguments", "options", "error", "field", "fix"), BAD_PUBLISHES)
@pytest.mark.parametrize("how", ["publish", "publish_sync", "thread"])
def test_a_bad_event_is_refused(how, arguments, options, error, field, fix, caplog):
    """Nothing of it is left: no number, no log line, no value in any text."""

    @on_a_loop
    async def go():
        seen = []
        bus = EventBus()
        bus.subscribe("*", seen.append)
        with pytest.raises(errors.InvalidEvent) as caught:  # noqa: PT012 - one statement for each way
            if how == "publish":
                await bus.publish(*arguments, **options)
            elif how == "publish_sync":
                bus.publish_sync(*arguments, **options)
            else:
                await asyncio.to_thread(bus.sync.publish, *arguments, **options)
        check(caught, error, field, fix)
        ledger = bus.audit()
        assert (ledger.offered, ledger.rejected, ledger.accepted) == (1, 1, 0)
        assert ledger.balanced
        async with bus:
            assert (await bus.publish("a", {})).sequence == 1
        assert len(seen) == 1

    with caplog.at_level(logging.DEBUG, logger="ironbus"):
        go()
    assert caplog.text == ""


@pytest.mark.parametrize("value", [*EventPriority, 0, 3])
@on_a_loop
async def test_a_good_priority_is_a_member_or_its_number(value):
    """Callers of old stored numbers."""
    seen = []
    bus = EventBus()
    bus.subscribe("a", seen.append)
    async with bus:
        await bus.publish("a", {}, priority=value, headers={"h": "v"}, key="k")
    assert seen[0].priority == value
    assert (seen[0].key, seen[0].headers) == ("k", {"h": "v"})


@on_a_loop
async def test_headers_and_keys_are_private_and_read_only():
    """The publisher's dict may change afterwards; a handler's must not."""
    seen = []
    headers = {"h": "v"}
    bus = EventBus()
    bus.subscribe("a", seen.append)
    async with bus:
        await bus.publish("a", {}, headers=headers)
        headers["h"] = "changed"
    assert seen[0].headers == {"h": "v"}
    with pytest.raises(TypeError):
        seen[0].headers["h"] = "x"


@on_a_loop
async def test_unknown_keywords_are_type_errors_at_the_call():
    """Like any Python function, before anything is awaited, and without the value."""
    bus = EventBus()
    for call, name in [
        (lambda: bus.publish("a", {}, colour=SECRET), "colour"),
        (lambda: bus.publish("a", {}, timestamp=SECRET), "timestamp"),
        (lambda: bus.publish_sync("a", {}, colour=SECRET), "colour"),
        (lambda: bus.publish_many([], colour=SECRET), "colour"),
        (lambda: bus.sync.publish("a", {}, colour=SECRET), "colour"),
        (lambda: EventBus(colour=SECRET), "colour"),
        (lambda: bus.stream("a", colour=SECRET), "colour"),
        (lambda: bus.publish("a", {}, event="b"), "event"),
        (lambda: bus.publish("a", {}, data=SECRET), "data"),
    ]:
        with pytest.raises(TypeError, match=name) as caught:
            call()
        assert SECRET not in str(caught.value)
    for call in [lambda: bus.publish(), lambda: bus.publish("a", {}, SECRET), lambda: bus.publish_sync()]:
        with pytest.raises(TypeError) as caught:
            call()
        assert SECRET not in str(caught.value)
    assert bus.audit().offered == 0


@on_a_loop
async def test_data_whose_truth_cannot_be_asked():
    """Falsy data becomes {}, so the question is asked; what the payload raises is the caller's, and counted."""

    class Vague:
        def __bool__(self):
            raise ZeroDivisionError

    bus = EventBus()
    with pytest.raises(ZeroDivisionError):
        await bus.publish("a", Vague())
    assert bus.audit().balanced
    assert bus.audit().rejected == 1


@pytest.mark.parametrize("how", ["publish", "publish_sync"])
@on_a_loop
async def test_queue_full_names_queue_limit_and_fix(how):
    """Operators read it first."""
    entered, go_on = asyncio.Event(), asyncio.Event()
    bus = EventBus(max_queue_size=1, overflow="reject")

    async def handler(event):
        entered.set()
        await go_on.wait()

    bus.subscribe("a", handler, name="billing")
    async with bus:
        await bus.publish("a", {})
        await entered.wait()
        await bus.publish("a", {})
        with pytest.raises(errors.QueueFull) as caught:  # noqa: PT012 - one statement for each way
            if how == "publish":
                await bus.publish("a", {"card": SECRET})
            else:
                bus.publish_sync("a", {"card": SECRET})
        check(caught, errors.QueueFull, "", "max_queue_size")
        assert "billing" in str(caught.value)
        assert not isinstance(caught.value, errors.InvalidEvent), "the event is not at fault"
        go_on.set()


@on_a_loop
async def test_queue_full_before_the_start_says_start():
    """Another cause, another fix."""
    bus = EventBus(max_queue_size=1)
    await bus.publish("a", {})
    with pytest.raises(errors.QueueFull) as caught:
        bus.publish_sync("a", {"card": SECRET})
    check(caught, errors.QueueFull, "", "start()")


# Subscribing ---------------------------------------------------------------------


async def handler(event):
    pass


@pytest.mark.parametrize("topic", ["", 7, None, Odd(), b"a", "a\n" + SECRET, "a*\x00", ["a"], "\ud800*"])
@pytest.mark.parametrize("how", ["subscribe", "on", "stream", "expect"])
def test_a_bad_topic(how, topic):
    """The text shows both forms, and not the value."""
    bus = EventBus()
    with pytest.raises(errors.InvalidSubscription) as caught:
        bus.subscribe(topic, handler) if how == "subscribe" else getattr(bus, how)(topic)
    check(caught, errors.InvalidPattern, "event_type", '"order.*"')
    assert bus.get_subscribers() == {}


def test_no_topic_at_all():
    """`@bus.on` without parentheses, or without a topic, is a frequent slip."""
    bus = EventBus()
    with pytest.raises(errors.InvalidSubscription) as caught:
        bus.on()
    check(caught, errors.InvalidPattern, "event_type", '"order.*"')
    with pytest.raises(errors.InvalidSubscription):
        bus.on(handler)
    with pytest.raises(errors.InvalidSubscription):
        bus.stream()


@pytest.mark.parametrize(
    "bad",
    [7, None, SECRET, lambda: None, lambda one, two: None, lambda *, event: None, {"a": SECRET}, Odd(), [handler]],
)
def test_a_bad_handler(bad):
    """Found at subscribe, not at the first event."""
    bus = EventBus()
    with pytest.raises(errors.InvalidSubscription) as caught:
        bus.subscribe("a", bad)
    check(caught, errors.InvalidHandler, "handler", "one ")
    assert bus.get_subscribers() == {}
    assert bus.audit().subscriptions == {}


@pytest.mark.parametrize(
    "good", [handler, print, [].append, lambda *args: None, lambda event, more=1: None, functools.partial(max, 1)]
)
def test_a_good_handler(good):
    """Whatever can be called with one event."""
    bus = EventBus()
    assert bus.subscribe("a", good).active


async def is_async(event):
    return True


BAD_OPTIONS = [
    ({"colour": SECRET}, "colour", "there are"),
    ({"retries": 3}, "retries", "there are"),
    *[({"name": value}, "name", "string") for value in ["", 7, Odd(), "a\n" + SECRET]],
    *[({"where": value}, "where", "event") for value in [7, SECRET]],
    ({"where": is_async}, "where", "plain function"),
    ({"order_by": "key", "concurrency": 2}, "order_by", "event"),
    ({"order_by": is_async, "concurrency": 2}, "order_by", "plain function"),
    ({"order_by": len, "concurrency": 2, "ordered": False}, "order_by", "leave one"),
    *[({"timeout": value}, "timeout", "seconds") for value in [0, -1, "1", True, float("inf"), float("nan"), Odd()]],
    *[({"concurrency": value}, "concurrency", "at least 1") for value in [0, -1, 1.5, "2", True, Odd()]],
    *[({"max_queue_size": value}, "max_queue_size", "at least 1") for value in [0, -1, 1.5, "2", False, Odd()]],
    *[({"overflow": value}, "overflow", "'drop_oldest'") for value in ["", SECRET, 7, True, Odd(), ["block"]]],
    *[({"context": value}, "context", "'publisher'") for value in ["", SECRET, 7, Odd()]],
    *[({"ordered": value}, "ordered", "True or False") for value in [0, 1, "no", Odd()]],
]


@pytest.mark.parametrize(("options", "field", "fix"), BAD_OPTIONS)
@pytest.mark.parametrize("how", ["subscribe", "on"])
def test_a_bad_option_of_a_subscription(how, options, field, fix):
    """Nothing is changed by it, and the text names what there is."""
    bus = EventBus()
    with pytest.raises(errors.InvalidSubscription) as caught:
        bus.subscribe("a", handler, **options) if how == "subscribe" else bus.on("a", **options)
    check(caught, errors.InvalidOption, field, fix)
    assert bus.get_subscribers() == {}
    assert bus.audit().subscriptions == {}


@pytest.mark.parametrize("size", [2**31, 2**63, 2**64, 2**100])
def test_huge_counts_are_no_panic(size):
    """A number that the engine cannot hold is an error or a limit, never a crash."""
    for make in (
        lambda: EventBus(max_queue_size=size),
        lambda: EventBus(workers=size),
        lambda: EventBus().subscribe("a", handler, concurrency=size, ordered=False),
        lambda: EventBus().subscribe("a", handler, max_queue_size=size),
        lambda: Idempotency(max_keys=size),
        lambda: EventBus(idempotency=Idempotency(max_keys=size)),
        lambda: EventBus().stream("a", max_queue_size=size),
    ):
        try:
            make()
        except errors.InvalidOption as error:
            assert error.field  # noqa: PT017


@on_a_loop
async def test_sys_maxsize_means_no_limit():
    """What people write who want none."""
    seen = []
    most = sys.maxsize
    bus = EventBus(max_queue_size=most, workers=most, idempotency=Idempotency(max_keys=most))
    bus.subscribe("a", seen.append, concurrency=most, ordered=False, max_queue_size=most)
    bus.subscribe("a", handler, concurrency=most)
    async with bus, bus.stream("a", max_queue_size=most) as stream:
        for number in range(5):
            await bus.publish("a", {"n": number}, key="k", idempotency_key=str(number))
        await bus.drain()
        assert (await anext(stream)).data == {"n": 0}
    assert len(seen) == 5
    assert bus.audit().balanced


@pytest.mark.parametrize("timeout", [1e9, 1e12, 1e300])
@on_a_loop
async def test_any_positive_timeout_of_a_handler_works(timeout):
    """Up to beyond the clock's range."""
    bus = EventBus()
    bus.subscribe("a", handler, timeout=timeout)
    bus.subscribe("a", lambda event: None, timeout=timeout)
    async with bus:
        assert len((await (await bus.publish("a", {})).settled()).outcomes) == 2


def test_a_name_that_is_taken():
    """The first one keeps it."""
    bus = EventBus()
    first = bus.subscribe("a", handler, name="billing")
    with pytest.raises(errors.InvalidSubscription) as caught:
        bus.subscribe("b", print, name="billing")
    check(caught, errors.InvalidOption, "name", "cancel()")
    assert first.active
    assert bus.get_subscribers() == {"a": 1}


BAD_SETTINGS = [
    *[({"max_queue_size": value}, "max_queue_size", "at least 1") for value in [0, -1, 1.0, "1", True, None, Odd()]],
    *[({"workers": value}, "workers", "at least 1") for value in [0, -1, 1.0, "1", True, Odd()]],
    *[({"overflow": value}, "overflow", "'block'") for value in ["spill", SECRET, 7, Odd(), ["block"]]],
    *[({"context": value}, "context", "'fresh'") for value in ["copy", SECRET, None, 7, Odd()]],
    *[({"idempotency": value}, "idempotency", "'content'") for value in ["both", SECRET, None, 7, Odd()]],
    *[({"clock": value}, "clock", "callable") for value in [7, SECRET, Odd()]],
]


@pytest.mark.parametrize(("settings", "field", "fix"), BAD_SETTINGS)
def test_a_bad_setting_of_a_bus(settings, field, fix):
    """Found when the bus is made."""
    with pytest.raises(errors.IronbusError) as caught:
        EventBus(**settings)
    check(caught, errors.InvalidOption, field, fix)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"mode": "both"}, "mode"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": -1}, "ttl"),
        ({"ttl": float("nan")}, "ttl"),
        ({"ttl": float("inf")}, "ttl"),
        ({"ttl": SECRET}, "ttl"),
        ({"max_keys": 0}, "max_keys"),
        ({"max_keys": SECRET}, "max_keys"),
        ({"max_keys": None}, "max_keys"),
        ({"mode": None}, "mode"),
    ],
)
def test_a_bad_setting_of_idempotency(settings, field):
    """The same, one level down."""
    with pytest.raises(errors.IronbusError) as caught:
        Idempotency(**settings)
    check(caught, errors.InvalidOption, field, field)


# Elsewhere -----------------------------------------------------------------------


def test_errors_are_caught_by_the_classes_that_people_use():
    """ValueError, TypeError, TimeoutError and RuntimeError do what they say, and all is one tree."""
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.IronbusError)
    for error in (errors.InvalidType, errors.InvalidKey, errors.InvalidHeaders, errors.InvalidHandler):
        assert issubclass(error, TypeError)
        assert issubclass(error, ValueError)
    assert issubclass(errors.Unsettled, TimeoutError)
    assert issubclass(errors.NotStarted, RuntimeError)
    assert issubclass(errors.WouldDeadlock, RuntimeError)


def test_a_subclass_that_forgets_init_is_told():
    """`super().__init__()` is forgotten once by everybody."""

    class Mine(EventBus):
        def __init__(self):
            pass

    with pytest.raises(RuntimeError, match=r"super\(\).__init__\(\)"):
        Mine().publish_sync("a", {})
    with pytest.raises(RuntimeError, match=r"super\(\).__init__\(\)"):
        Mine().publish("a", {})


@pytest.mark.parametrize("kind", ["handler", "where", "order_by", "sync", "timeout"])
def test_no_log_line_quotes_a_payload(kind, caplog):
    """Whatever of the user's code fails, on whichever thread."""

    def fails(event):
        raise ValueError(event.data["card"])

    async def fails_async(event):
        raise ValueError(event.data["card"])

    async def hangs(event):
        await asyncio.get_running_loop().create_future()

    options = {
        "handler": (fails_async, {}),
        "where": (handler, {"where": fails}),
        "order_by": (handler, {"order_by": fails, "concurrency": 2}),
        "sync": (fails, {}),
        "timeout": (hangs, {"timeout": 0.001}),
    }

    @on_a_loop
    async def go():
        bus = EventBus()
        called, extra = options[kind]
        subscription = bus.subscribe("a", called, **extra)
        async with bus:
            settlement = await (await bus.publish("a", {"card": SECRET})).settled()
        assert settlement.outcomes == {subscription.name: "dead"}
        (error,) = settlement.failures
        assert type(error) is (TimeoutError if kind == "timeout" else ValueError)

    with caplog.at_level(logging.DEBUG):
        go()
    (record,) = [record for record in caplog.records if record.name == "ironbus"]
    assert record.levelno == logging.ERROR
    assert record.subscription.endswith(options[kind][0].__qualname__)
    assert (record.sequence, record.event_type, record.attempt) == (1, "a", 1)
    assert SECRET not in caplog.text
    assert SECRET not in repr(record.__dict__)
