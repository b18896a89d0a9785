"""What the bus answers: receipts, settlements, ledgers, reports, streams, and the forms for programs without a loop."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading

import ironbus
import pytest
from ironbus import EventPriority
from ironbus.bus import Event, EventBus
from ironbus.errors import (
    InvalidData,
    InvalidEvent,
    InvalidHeaders,
    InvalidKey,
    InvalidOption,
    InvalidPriority,
    InvalidType,
    NotStarted,
    QueueFull,
    Unsettled,
    WouldDeadlock,
    WrongLoop,
)

LIMIT = 20.0


def on_a_loop(test):
    """Run a test's coroutine on a loop of its own, within a limit."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        async def bounded():
            async with asyncio.timeout(LIMIT):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


class Gate:
    """An async handler that waits until it is told, and says when it was called."""

    def __init__(self):
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.seen = []

    async def __call__(self, event):
        self.entered.set()
        await self.open.wait()
        self.seen.append(event.data["n"])


class ThreadGate:
    """The same on a thread."""

    def __init__(self):
        self.entered = threading.Event()
        self.open = threading.Event()
        self.seen = []

    def __call__(self, event):
        self.entered.set()
        assert self.open.wait(LIMIT)
        self.seen.append(event.data["n"])


def balanced(bus):
    """The bus's ledger, after a check that it adds up."""
    ledger = bus.audit()
    assert ledger.balanced, ledger
    return ledger


# Receipts ------------------------------------------------------------------------


@on_a_loop
async def test_a_receipt_names_the_event():
    """Number, id and durability; the numbers rise by exactly one, through every way of publishing."""
    bus = EventBus()
    async with bus:
        receipts = [
            await bus.publish("a", {}),
            bus.publish_sync("b", {}),
            *(await bus.publish_many([("c", {}), ("d", {})])).receipts,
            await bus.publish(Event("e", {}, event_id="mine")),
        ]
    assert [receipt.sequence for receipt in receipts] == [1, 2, 3, 4, 5]
    assert [receipt.duplicate for receipt in receipts] == [False] * 5
    assert {receipt.durability for receipt in receipts} == {"memory"}
    assert receipts[-1].event_id == "mine"
    assert len({receipt.event_id for receipt in receipts}) == 5
    with pytest.raises(AttributeError):
        receipts[0].sequence = 7
    assert "sequence=1" in repr(receipts[0])


@on_a_loop
async def test_a_refused_event_takes_no_number():
    """Numbers without gaps are what consumers check for loss."""
    bus = EventBus()
    async with bus:
        assert (await bus.publish("a", {})).sequence == 1
        for bad in ("", 7, "line\nbreak"):
            with pytest.raises(InvalidType):
                await bus.publish(bad, {})
        with pytest.raises(InvalidPriority):
            await bus.publish("a", {}, priority=9)
        assert (await bus.publish("a", {})).sequence == 2
    ledger = balanced(bus)
    assert (ledger.offered, ledger.accepted, ledger.rejected) == (6, 2, 4)


@on_a_loop
async def test_settled_waits_for_every_subscription_and_tells_each_outcome():
    """The outcomes are by name; a failure does not raise until it is asked to."""
    gate = Gate()
    bus = EventBus()

    async def fails(event):
        raise LookupError("async")

    def fails_too(event):
        raise OSError("sync")

    bus.subscribe("a", gate, name="gate")
    bus.subscribe("a", fails, name="fails")
    bus.subscribe("*", fails_too, name="fails too")
    bus.subscribe("a", fails, name="unwanted", where=lambda event: event.data["n"] < 0)
    bus.subscribe("b", fails, name="elsewhere")
    async with bus:
        receipt = await bus.publish("a", {"n": 1})
        waiting = asyncio.ensure_future(receipt.settled())
        await gate.entered.wait()
        assert not waiting.done()
        gate.open.set()
        settlement = await waiting
        assert await receipt.settled() == settlement, "it may be asked again"
    assert settlement.receipt is receipt
    assert settlement.outcomes == {"gate": "done", "fails": "dead", "fails too": "dead", "unwanted": "filtered"}
    assert not settlement.ok
    assert sorted(type(error).__name__ for error in settlement.failures) == ["LookupError", "OSError"]
    with pytest.raises(ExceptionGroup, match="2 handlers failed") as caught:
        settlement.raise_for_failures()
    assert set(caught.value.exceptions) == set(settlement.failures)
    assert all(error.__traceback__ is not None for error in settlement.failures)
    balanced(bus)


@on_a_loop
async def test_nothing_to_settle_is_settled():
    """An event that nobody wants is over at once, and raise_for_failures has nothing to raise."""
    bus = EventBus()
    async with bus:
        settlement = await (await bus.publish("a", {})).settled()
    assert (settlement.outcomes, settlement.failures, settlement.ok) == ({}, (), True)
    settlement.raise_for_failures()


@on_a_loop
async def test_an_event_from_before_the_start_is_settled_after_it():
    """Its subscriptions are known only then, and the receipt must find them."""
    bus = EventBus()
    receipt = await bus.publish("a", {"n": 1})
    waiting = asyncio.ensure_future(receipt.settled())
    await asyncio.sleep(0)
    assert not waiting.done()
    bus.subscribe("a", lambda event: None, name="late")
    async with bus:
        assert (await waiting).outcomes == {"late": "done"}


@on_a_loop
async def test_settled_with_cascade_waits_for_what_handlers_published():
    """Through every generation, both kinds of handlers, and publishes that were handed to a task."""
    gate = Gate()
    bus = EventBus()

    async def first(event):
        await bus.publish("second", event.data)
        await bus.publish_many([("second", event.data), ("nobody", {})])

    def second(event):
        bus.publish_sync("third", event.data)

    bus.subscribe("first", first)
    bus.subscribe("second", second)
    bus.subscribe("third", gate)
    async with bus:
        receipt = await bus.publish("first", {"n": 1})
        assert len((await receipt.settled()).outcomes) == 1
        whole = asyncio.ensure_future(receipt.settled(cascade=True))
        await gate.entered.wait()
        await receipt.settled()
        assert not whole.done()
        gate.open.set()
        assert (await whole).ok
        assert gate.seen == [1, 1]
    balanced(bus)


@on_a_loop
async def test_many_may_wait_for_one_receipt_and_give_up():
    """Waiters come from several tasks, and one that is cancelled takes nothing from the others."""
    gate = Gate()
    bus = EventBus()
    bus.subscribe("a", gate)
    async with bus:
        receipt = await bus.publish("a", {"n": 1})
        waiting = [asyncio.ensure_future(receipt.settled()) for _ in range(5)]
        threads = [asyncio.ensure_future(asyncio.to_thread(receipt.wait, LIMIT)) for _ in range(3)]
        await gate.entered.wait()
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        gate.open.set()
        assert all(settlement.ok for settlement in await asyncio.gather(*waiting[1:], *threads))


@on_a_loop
async def test_wait_is_for_threads():
    """On a loop's thread it would block the loop for ever, and says so; a deadline that passes harms nothing."""
    gate = Gate()
    bus = EventBus()
    bus.subscribe("a", gate, name="gate")
    async with bus:
        receipt = await bus.publish("a", {"n": 1})
        with pytest.raises(WouldDeadlock, match="settled"):
            receipt.wait()
        with pytest.raises(Unsettled) as caught:
            await asyncio.to_thread(receipt.wait, 0.01)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(InvalidOption, match="timeout"):
            await asyncio.to_thread(receipt.wait, -1)
        gate.open.set()
        settlement = await asyncio.to_thread(receipt.wait, LIMIT)
        assert settlement.outcomes == {"gate": "done"}
        assert receipt.wait().outcomes == {"gate": "done"}, "what is over needs no wait"


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 1e300])
def test_wait_with_odd_timeouts(timeout):
    """No number makes it panic."""
    bus = EventBus()
    bus.subscribe("a", lambda event: None)
    with bus:
        receipt = bus.sync.publish("a", {})
        if timeout != timeout:
            with pytest.raises(InvalidOption):
                receipt.wait(timeout)
        else:
            assert receipt.wait(timeout).ok
        bus.sync.publish("a", {})
        if timeout == timeout:
            bus.sync.drain(timeout=timeout)
            expected = bus.sync.expect("b", timeout=timeout)
            threading.Timer(0.01, bus.sync.publish, ("b", {})).start()
            assert expected.wait().type == "b"


@on_a_loop
async def test_a_sync_handler_that_takes_too_long_has_failed():
    """It cannot be stopped, so its timeout is recorded when it returns, and nothing overlaps it."""
    now = [0.0]

    def slow(event):
        now[0] += event.data["n"]

    bus = EventBus(clock=lambda: now[0])
    bus.subscribe("a", slow, name="slow", timeout=2.0)
    async with bus:
        outcomes = [(await (await bus.publish("a", {"n": number})).settled()).outcomes["slow"] for number in (1, 2, 3)]
        failures = (await (await bus.publish("a", {"n": 4})).settled()).failures
    assert outcomes == ["done", "done", "dead"]
    assert [type(error) for error in failures] == [TimeoutError]
    balanced(bus)


@on_a_loop
async def test_a_handler_that_waits_for_its_own_event_is_told():
    """It could never end."""
    errors = []
    receipts = {}
    bus = EventBus()

    async def handler(event):
        try:
            await receipts["a"].settled()
        except WouldDeadlock as error:
            errors.append(error)

    def on_thread(event):
        try:
            receipts["b"].wait(LIMIT)
        except WouldDeadlock as error:
            errors.append(error)

    bus.subscribe("a", handler)
    bus.subscribe("b", on_thread)
    for topic in "ab":
        receipts[topic] = await bus.publish(topic, {})
    async with bus:
        for receipt in receipts.values():
            assert (await receipt.settled()).ok
    assert len(errors) == 2


@on_a_loop
async def test_a_receipt_outlives_its_bus():
    """Receipts are kept in lists long after."""
    bus = EventBus()
    bus.subscribe("a", lambda event: None, name="x")
    async with bus:
        receipt = await bus.publish("a", {})
        await receipt.settled()
    del bus
    gc.collect()
    assert (await receipt.settled()).outcomes == {"x": "done"}
    assert receipt.sequence == 1


# publish_many --------------------------------------------------------------------


@on_a_loop
async def test_publish_many_takes_all_forms_in_order():
    """Events, pairs, and triples with options; the arguments are defaults of all."""
    seen = []

    class Mine(Event):
        pass

    async def handler(event):
        seen.append((type(event), event.type, event.data, event.priority, event.key, dict(event.headers or {})))

    bus = EventBus()
    batch = await bus.publish_many(
        (item for item in [
            ("a", {"n": 1}),
            Mine("b", {"n": 2}),
            ("c", None, {"priority": EventPriority.LOW, "key": "own"}),
            ("d", {"n": 4}, {"headers": {"h": "own"}, "key": None}),
            ("e", {"n": 5}, {}),
        ]),
        priority=EventPriority.HIGH,
        key="shared",
        headers={"h": "shared"},
    )  # fmt: skip
    bus.subscribe("*", handler)
    async with bus:
        await bus.drain()
    assert (batch.accepted, batch.duplicates, len(batch), batch.durability) == (5, 0, 5, "memory")
    assert [receipt.sequence for receipt in batch.receipts] == [1, 2, 3, 4, 5]
    shared = {"h": "shared"}
    assert seen == [
        (Event, "a", {"n": 1}, 1, "shared", shared),
        (Mine, "b", {"n": 2}, 1, "shared", shared),
        (Event, "d", {"n": 4}, 1, None, {"h": "own"}),
        (Event, "e", {"n": 5}, 1, "shared", shared),
        (Event, "c", {}, 3, "own", shared),
    ]
    balanced(bus)


BAD_ITEMS = [
    (("", {}), InvalidType, "type"),
    ((7, {}), InvalidType, "event"),
    (("a", {}, {"priority": 4}), InvalidPriority, "priority"),
    (("a", {}, {"key": 7}), InvalidKey, "key"),
    (("a", {}, {"idempotency_key": ""}), InvalidKey, "idempotency_key"),
    (("a", {}, {"headers": {"x": 1}}), InvalidHeaders, 'headers["x"]'),
    (("a", {}, {"colour": 1}), InvalidOption, "options"),
    (("a", {}, {7: 1}), InvalidOption, "options"),
    (("a", {}, 7), InvalidOption, "options"),
    ((Event("a", {}), None, None), (InvalidOption, InvalidEvent), None),
    (7, InvalidEvent, ""),
    ("ab", InvalidEvent, ""),
    (("a",), InvalidEvent, ""),
    (["a", {}], InvalidEvent, ""),
    (Event("", {}), InvalidType, "type"),
    (Event(7, {}), InvalidType, "type"),
]


# Numbered: an Event has a time and an id, and the name of a test is to be the same in every process.
@pytest.mark.parametrize(("item", "error", "field"), BAD_ITEMS, ids=map(str, range(len(BAD_ITEMS))))
@pytest.mark.parametrize("place", [0, 3, 5])
@on_a_loop
async def test_publish_many_accepts_all_or_none(item, error, field, place):
    """One bad event anywhere, and nothing of the batch exists; the error says which one."""
    seen = []
    bus = EventBus()
    bus.subscribe("*", seen.append)
    events = [("a", {"n": number}) for number in range(5)]
    events.insert(place, item)
    async with bus:
        with pytest.raises(error) as caught:
            await bus.publish_many(events)
        if field is not None:
            assert caught.value.field == (f"events[{place}].{field}" if field else f"events[{place}]")
        assert f"events[{place}]" in str(caught.value)
        assert (await bus.publish("a", {})).sequence == 1
        await bus.drain()
        with pytest.raises(error):
            await asyncio.to_thread(bus.sync.publish_many, events)
    assert len(seen) == 1
    assert balanced(bus).accepted == 1


@on_a_loop
async def test_publish_many_counts_a_refused_batch_so_that_the_ledger_balances():
    """Also when the iterable itself fails, or is none."""
    bus = EventBus()

    def breaks():
        yield ("a", {})
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="gone"):
        await bus.publish_many(breaks())
    with pytest.raises(TypeError):
        await bus.publish_many(7)
    with pytest.raises(TypeError):
        await bus.publish_many([], idempotency_key="x")
    with pytest.raises(TypeError):
        bus.publish_many()
    batch = await bus.publish_many([])
    assert (batch.accepted, len(batch), batch.receipts) == (0, 0, [])
    assert balanced(bus).accepted == 0


@pytest.mark.parametrize("size", [1, 255, 256, 257, 5000])
@on_a_loop
async def test_publish_many_of_any_size_keeps_order(size):
    """Around the length of one run through the gate, and beyond one turn of the loop."""
    seen = []
    bus = EventBus()

    async def handler(event):
        seen.append(event.sequence)

    bus.subscribe("*", handler)
    async with bus:
        batch = await bus.publish_many([("ab"[number % 7 == 0], {"n": number}) for number in range(size)])
        assert [receipt.sequence for receipt in batch.receipts] == list(range(1, size + 1))
        assert all([(await receipt.settled()).ok for receipt in batch.receipts])
    assert seen == list(range(1, size + 1))
    balanced(bus)


@on_a_loop
async def test_publish_many_waits_for_room():
    """A batch beyond the bound is backpressure, not an error; other publishers stay in line behind it."""
    gate = Gate()
    bus = EventBus(max_queue_size=4)
    bus.subscribe("a", gate)
    async with bus:
        task = asyncio.create_task(bus.publish_many([("a", {"n": number}) for number in range(20)]))
        await gate.entered.wait()
        assert not task.done()
        ledger = balanced(bus)
        assert ledger.accepted < 20
        gate.open.set()
        batch = await task
        await bus.drain()
    assert batch.accepted == 20
    assert gate.seen == list(range(20))
    balanced(bus)


@on_a_loop
async def test_publish_many_that_is_cancelled_in_the_middle():
    """What was accepted stays, the rest leaves no trace."""
    gate = Gate()
    bus = EventBus(max_queue_size=4)
    bus.subscribe("a", gate)
    async with bus:
        task = asyncio.create_task(bus.publish_many([("a", {"n": number}) for number in range(20)]))
        await gate.entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        accepted = balanced(bus).accepted
        assert balanced(bus).waiting == 0
        gate.open.set()
        await bus.drain()
    assert gate.seen == list(range(accepted))
    balanced(bus)


@on_a_loop
async def test_publish_many_that_is_refused_in_the_middle_tells_what_was_accepted():
    """With overflow="reject" the bus may refuse later ones; the error carries the receipts so far."""
    gate = Gate()
    bus = EventBus(max_queue_size=4, overflow="reject")
    bus.subscribe("a", gate)
    async with bus:
        await bus.publish("a", {"n": -1})
        await gate.entered.wait()
        with pytest.raises(QueueFull) as caught:
            await bus.publish_many([("a", {"n": number}) for number in range(20)])
        assert caught.value.receipt.accepted == 4
        gate.open.set()
        await bus.drain()
        assert gate.seen == [-1, 0, 1, 2, 3]
        assert [receipt.sequence for receipt in caught.value.receipt.receipts] == [2, 3, 4, 5]
    balanced(bus)


# The ledger ----------------------------------------------------------------------


@on_a_loop
async def test_the_ledger_balances_in_every_situation():
    """Each event is in exactly one place at every moment."""
    gate, thread_gate = Gate(), ThreadGate()
    bus = EventBus(max_queue_size=3)
    balanced(bus)
    for number in range(3):
        await bus.publish("kept", {"n": number})
        balanced(bus)
    with pytest.raises(QueueFull):
        bus.publish_sync("kept", {"n": 3})
    assert balanced(bus).rejected == 1

    async def fails(event):
        raise ValueError

    slow = bus.subscribe("*", gate, name="slow")
    bus.subscribe("*", fails, name="fails", where=lambda event: event.data["n"] % 2)
    bus.subscribe("*", thread_gate, name="drops", overflow="drop_oldest", max_queue_size=1)
    bus.subscribe("*", lambda event: event.data["n"], name="orders", concurrency=3, order_by=lambda event: 1 / 0)
    await bus.start()
    balanced(bus)
    await gate.entered.wait()
    await asyncio.to_thread(thread_gate.entered.wait, LIMIT)
    ledger = balanced(bus)
    assert ledger.subscriptions["slow"].pending == 3
    waiting = [asyncio.create_task(bus.publish("a", {"n": number})) for number in range(3, 9)]
    await asyncio.sleep(0)
    ledger = balanced(bus)
    assert ledger.waiting > 0
    waiting[-1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[-1]
    ledger = balanced(bus)
    assert ledger.cancelled == 1
    slow.pause()
    gate.open.set()
    thread_gate.open.set()
    await asyncio.sleep(0)
    balanced(bus)
    slow.resume()
    await asyncio.gather(*waiting[:-1])
    await bus.drain()
    ledger = balanced(bus)
    assert ledger.waiting == ledger.pending == 0
    lanes = ledger.subscriptions
    assert {lane.routed for lane in lanes.values()} == {8}
    assert (lanes["slow"].done, lanes["fails"].dead, lanes["fails"].filtered) == (8, 4, 4)
    assert lanes["orders"].dead == 8
    assert lanes["drops"].done + lanes["drops"].dropped == 8
    assert lanes["drops"].dropped > 0
    await bus.stop()
    balanced(bus)


@on_a_loop
async def test_describe_says_what_the_bus_was_told(tmp_path):
    """Plain values, for people and tools."""
    bus = EventBus(str(tmp_path), max_queue_size=7, overflow="reject", workers=3, context="publisher")

    @bus.on("a", "b.*", name="one", concurrency=4, ordered=False)
    async def handler(event):
        pass

    text = bus.describe()
    assert text["running"] is False
    assert (text["max_queue_size"], text["overflow"], text["workers"], text["context"]) == (7, "reject", 3, "publisher")
    assert text["idempotency"] == {"mode": "key", "ttl": 3600, "max_keys": 1_000_000}
    assert text["log_file"] == bus.get_log_file()
    assert text["subscriptions"] == [{"name": "one", "topics": ["a", "b.*"], "concurrency": 4, "async": True}]
    async with bus:
        assert bus.describe()["running"] is True
        assert "running" in repr(bus)
    assert bus.describe()["running"] is False


@on_a_loop
async def test_metrics_count_what_happened():
    """Depth by level, what runs, ages and latencies."""
    now = [100.0]
    gate = Gate()
    bus = EventBus(clock=lambda: now[0])
    subscription = bus.subscribe("*", gate, name="slow")
    assert bus.metrics().uptime == 0.0
    async with bus:
        await bus.publish("a", {"n": 0})
        await gate.entered.wait()
        for number, priority in enumerate(EventPriority):
            await bus.publish("a", {"n": number}, priority=priority)
        await bus.publish("a", {"n": 9}, priority=EventPriority.LOW)
        now[0] += 2.0
        metrics = bus.metrics()
        slow = metrics.subscriptions["slow"]
        assert metrics.uptime == pytest.approx(2.0)
        assert metrics.publish_rate == pytest.approx(3.0)
        assert metrics.ledger == balanced(bus)
        assert slow == subscription.statistics()
        assert slow.depth == {"CRITICAL": 1, "HIGH": 1, "NORMAL": 1, "LOW": 2}
        assert (slow.state, slow.running, slow.oldest_age) == ("running", 1, pytest.approx(2.0))
        gate.open.set()
        await bus.drain()
        slow = bus.metrics().subscriptions["slow"]
        assert (slow.state, slow.running, slow.oldest_age, slow.ledger.done) == ("idle", 0, 0.0, 6)
        assert slow.work.count == slow.wait.count == 6
        assert slow.work.max == pytest.approx(2.0, rel=0.02)
        assert slow.rate == pytest.approx(3.0)
    assert sorted(gate.seen) == [0, 0, 1, 2, 3, 9]


# drain and stop ------------------------------------------------------------------


@on_a_loop
async def test_drain_waits_for_cascades():
    """What a handler publishes belongs to it."""
    seen = []
    bus = EventBus()

    async def count_down(event):
        await asyncio.sleep(0)
        seen.append(event.data["n"])
        if event.data["n"]:
            await bus.publish("a", {"n": event.data["n"] - 1})

    bus.subscribe("a", count_down)
    async with bus:
        await bus.drain()
        await bus.publish("a", {"n": 30})
        await bus.drain()
        assert seen == list(range(30, -1, -1))
        await bus.drain(timeout=0)


@on_a_loop
async def test_drain_says_when_it_cannot_end():
    """Not started, inside a handler, or out of time: an error each, and nothing is harmed."""
    gate = Gate()
    errors = []
    bus = EventBus()
    await bus.drain()
    await bus.publish("a", {"n": 1})
    with pytest.raises(NotStarted, match="start"):
        await bus.drain()

    async def inside(event):
        with pytest.raises(WouldDeadlock):
            await bus.drain()
        errors.append("async")

    def inside_thread(event):
        with pytest.raises(WouldDeadlock):
            bus.sync.drain()
        with pytest.raises(WouldDeadlock):
            bus.sync.stop()
        errors.append("sync")

    bus.subscribe("a", inside)
    bus.subscribe("a", inside_thread)
    bus.subscribe("a", gate)
    async with bus:
        with pytest.raises(Unsettled):
            await bus.drain(timeout=0.01)
        gate.open.set()
        await bus.drain()
    assert sorted(errors) == ["async", "sync"]
    assert all(lane.done == 1 for lane in balanced(bus).subscriptions.values())


@pytest.mark.parametrize("kind", [Gate, ThreadGate])
def test_leftovers_are_delivered_in_order_after_the_next_start(kind):
    """The report says what is left; the next start, on another loop, begins with the interrupted one."""
    gates = []
    bus = EventBus()

    async def on_loop(event):
        await gates[-1](event)

    bus.subscribe("a", on_loop if kind is Gate else lambda event: gates[-1](event), name="x")
    total = 20

    @on_a_loop
    async def first():
        gates.append(kind())
        await bus.start()
        for number in range(total):
            await bus.publish("a", {"n": number})
        await (gates[0].entered.wait() if kind is Gate else asyncio.to_thread(gates[0].entered.wait, LIMIT))
        report = await bus.stop(timeout=0)
        assert (report.drained, report.left) == (False, total)
        assert report.interrupted == (1 if kind is Gate else 0)
        assert balanced(bus).pending == total
        assert bus.metrics().subscriptions["x"].depth["NORMAL"] == (total if kind is Gate else total - 1)
        if kind is ThreadGate:
            gates[0].open.set()

    @on_a_loop
    async def second():
        gates.append(kind())
        gates[1].open.set()
        await bus.publish("a", {"n": total})
        await bus.start()
        report = await bus.stop()
        assert (report.drained, report.left, report.interrupted) == (True, 0, 0)

    first()
    second()
    assert gates[0].seen + gates[1].seen == list(range(total + 1))
    assert balanced(bus).subscriptions["x"].done == total + 1


@on_a_loop
async def test_an_interrupted_attempt_is_refunded():
    """A stop is not the event's fault: it is the first attempt again."""
    attempts, entered = [], asyncio.Event()
    bus = EventBus()

    async def handler(event):
        attempts.append(ironbus.current_delivery().attempt)
        entered.set()
        if len(attempts) == 1:
            await asyncio.get_running_loop().create_future()

    bus.subscribe("a", handler)
    await bus.start()
    receipt = await bus.publish("a", {})
    await entered.wait()
    assert (await bus.stop(timeout=0)).interrupted == 1
    async with bus:
        assert (await receipt.settled()).ok
    assert attempts == [1, 1]


@on_a_loop
async def test_a_stop_that_is_cancelled_has_stopped_the_bus():
    """Half a stop would be neither."""
    gate = Gate()
    bus = EventBus()
    bus.subscribe("a", gate)
    await bus.start()
    await bus.publish("a", {"n": 1})
    await gate.entered.wait()
    task = asyncio.create_task(bus.stop())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bus.describe()["running"] is False
    gate.open.set()
    async with bus:
        await bus.drain()
    assert gate.seen == [1]
    balanced(bus)


# Subscriptions -------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True])
@on_a_loop
async def test_who_waits_for_room_goes_by_the_subscriptions_of_the_moment_when_it_gets_in(many):
    """A receipt names those that got the event: neither one that left before nor one that came after."""
    gate, late = Gate(), []
    bus = EventBus(max_queue_size=1)
    bus.subscribe("a", gate, name="slow")
    leaver = bus.subscribe("a", lambda event: None, name="left")
    async with bus:
        await bus.publish("a", {"n": 0})
        await gate.entered.wait()
        await bus.publish("a", {"n": 1})
        if many:
            task = asyncio.create_task(bus.publish_many([("a", {"n": 2})]))
        else:
            task = asyncio.create_task(bus.publish("a", {"n": 2}))
        while balanced(bus).waiting == 0:  # a machine that stands still takes a batch its turn
            await asyncio.sleep(0)
        leaver.cancel()
        bus.subscribe("a", late.append, name="came in time")
        gate.open.set()
        while balanced(bus).waiting:
            await asyncio.sleep(0)
        bus.subscribe("a", late.append, name="came too late")
        receipt = (await task).receipts[0] if many else await task
        assert (await receipt.settled()).outcomes == {"slow": "done", "came in time": "done"}
    assert [event.data["n"] for event in late] == [2]
    balanced(bus)


@on_a_loop
async def test_who_waits_for_room_waits_over_a_restart():
    """A stop in between loses neither the place in line nor the publisher."""
    gate = Gate()
    bus = EventBus(max_queue_size=1)
    bus.subscribe("a", gate, name="slow")
    await bus.start()
    await bus.publish("a", {"n": 0})
    await gate.entered.wait()
    await bus.publish("a", {"n": 1})
    tasks = [asyncio.create_task(bus.publish("a", {"n": number})) for number in (2, 3)]
    while balanced(bus).waiting < 2:
        await asyncio.sleep(0)
    await bus.stop(timeout=0)
    balanced(bus)
    gate.open.set()
    async with bus:
        receipts = [await task for task in tasks]
        for receipt in receipts:
            assert (await receipt.settled()).outcomes == {"slow": "done"}
    assert gate.seen == [0, 1, 2, 3]
    balanced(bus)


@pytest.mark.parametrize("kind", ["async", "sync"])
@on_a_loop
async def test_pause_and_resume(kind):
    """Paused, events are queued; resumed, they come in order; other subscriptions go on."""
    seen, others = [], []
    bus = EventBus()

    async def on_loop(event):
        seen.append(event.data["n"])

    handler = on_loop if kind == "async" else lambda event: seen.append(event.data["n"])
    subscription = bus.subscribe("a", handler, name="x")
    bus.subscribe("a", others.append)
    async with bus:
        subscription.pause()
        subscription.pause()
        for number in range(10):
            await bus.publish("a", {"n": number})
        while len(others) < 10:
            await asyncio.sleep(0)
        assert seen == []
        assert (subscription.statistics().state, subscription.statistics().ledger.pending) == ("paused", 10)
        with pytest.raises(Unsettled):
            await bus.drain(timeout=0.01)
        subscription.resume()
        subscription.resume()
        await bus.drain()
        assert seen == list(range(10))
    balanced(bus)


@on_a_loop
async def test_cancel_drops_what_is_queued_and_counts_it():
    """The handler that runs goes on; receipts of the rest say "dropped" and do not hang."""
    gate = Gate()
    bus = EventBus()
    subscription = bus.subscribe("a", gate, name="x")
    async with bus:
        receipts = [await bus.publish("a", {"n": number}) for number in range(5)]
        await gate.entered.wait()
        subscription.cancel()
        subscription.cancel()
        assert not subscription.active
        assert bus.get_subscribers() == {}
        assert "cancelled" in repr(subscription)
        outcomes = [(await receipt.settled()).outcomes for receipt in receipts[1:]]
        assert outcomes == [{"x": "dropped"}] * 4
        await bus.publish("a", {"n": 9})
        gate.open.set()
        assert (await receipts[0].settled()).outcomes == {"x": "done"}
        await bus.drain()
        balanced(bus)
        with pytest.raises(InvalidOption, match="cancelled"):
            subscription.statistics()
        assert gate.seen == [0]
        again = bus.subscribe("a", gate, name="x")
        assert again.name == "x", "the name is free again"
        subscription.cancel()
        await (await bus.publish("a", {"n": 10})).settled()
    assert gate.seen == [0, 10]
    balanced(bus)


@on_a_loop
async def test_cancel_makes_room_for_those_who_wait():
    """A publisher that waits for a queue that is gone must not wait for ever."""
    gate = Gate()
    bus = EventBus(max_queue_size=1)
    subscription = bus.subscribe("a", gate)
    async with bus:
        await bus.publish("a", {"n": 0})
        await gate.entered.wait()
        await bus.publish("a", {"n": 1})
        task = asyncio.create_task(bus.publish("a", {"n": 2}))
        while balanced(bus).waiting == 0:
            await asyncio.sleep(0)
        assert not task.done()
        subscription.cancel()
        assert (await (await task).settled()).outcomes == {}, "it went to nobody"
        gate.open.set()
    balanced(bus)


@on_a_loop
async def test_plain_subscriptions_end_one_by_one():
    """They share a queue; cancelling one takes back its topic only."""
    seen = []
    bus = EventBus()

    async def handler(event):
        seen.append(event.type)

    first, second = bus.subscribe("a", handler), bus.subscribe("b", handler)
    assert first.name == second.name
    async with bus:
        first.cancel()
        assert not first.active
        assert second.active
        await bus.publish("a", {})
        await bus.publish("b", {})
        await bus.drain()
    assert seen == ["b"]


# Streams -------------------------------------------------------------------------


@on_a_loop
async def test_a_stream_has_the_events_from_its_call_on():
    """In order, by topics, until it is left."""
    bus = EventBus()
    async with bus:
        await bus.publish("a", {"n": 0})
        async with bus.stream("a", "b.*") as stream:
            await bus.publish_many([("a", {"n": 1}), ("c", {"n": 2}), ("b.x", {"n": 3})])
            got = [await anext(stream), await anext(stream)]
            asyncio.get_running_loop().call_soon(bus.publish_sync, "a", {"n": 4})
            got.append(await anext(stream))
            assert stream.lagged == 0
            await bus.drain()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert [event.data["n"] for event in got] == [1, 3, 4]
    assert bus.get_subscribers() == {}
    balanced(bus)


@on_a_loop
async def test_a_stream_that_lags_drops_its_oldest_and_holds_up_nobody():
    """The number of lost ones is told."""
    bus = EventBus(max_queue_size=10)
    async with bus:
        stream = bus.stream("*", max_queue_size=3)
        for number in range(50):
            bus.publish_sync("a", {"n": number})
        assert stream.lagged == 47
        got = [(await anext(stream)).data["n"] for _ in range(3)]
        assert got == [47, 48, 49]
        await stream.aclose()
        await stream.aclose()
    balanced(bus)


@on_a_loop
async def test_closing_a_stream_ends_its_iteration():
    """Whoever waits in it comes to the end."""
    bus = EventBus()
    async with bus:
        stream = bus.stream("*")

        async def read():
            return [event.data["n"] async for event in stream]

        task = asyncio.create_task(read())
        await bus.publish("a", {"n": 1})
        await bus.publish("a", {"n": 2})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await stream.aclose()
        assert await task == [1, 2]


@on_a_loop
async def test_a_stream_that_is_forgotten_costs_nothing():
    """Collected, it listens no more."""
    bus = EventBus()
    async with bus:
        stream = bus.stream("a")
        receipt = await bus.publish("a", {"n": 1})
        assert (await receipt.settled()).outcomes == {}
        del stream
        gc.collect()
        await bus.publish("a", {"n": 2})
        await bus.drain()
    assert balanced(bus).pending == 0


@on_a_loop
async def test_a_cancelled_reader_loses_no_event():
    """wait_for(anext(stream)) with a timeout is the usual way to poll."""
    bus = EventBus()
    async with bus, bus.stream("a") as stream:
        for number in range(20):
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            if number % 2:
                task.cancel()
            bus.publish_sync("a", {"n": number})
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await anext(stream)).data == {"n": number}


@on_a_loop
async def test_expect_waits_for_one_event():
    """Registered at the call, so nothing slips through between it and the await."""
    bus = EventBus()
    async with bus:
        await bus.publish("a", {"n": 0})
        expected = bus.expect("a", where=lambda event: event.data["n"] > 1, timeout=LIMIT)
        with pytest.raises(Unsettled):
            _ = expected.event
        for number in range(1, 4):
            await bus.publish("a", {"n": number})
        assert (await expected).data == {"n": 2}
        assert (await expected).data == {"n": 2}
        async with bus.expect("b*") as inside:
            await bus.publish("bb", {"n": 4})
        assert inside.event.data == {"n": 4}
        with pytest.raises(Unsettled) as caught:
            await bus.expect("a", timeout=0)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(ZeroDivisionError):
            async with bus.expect("never"):
                raise ZeroDivisionError
        await bus.drain()
    balanced(bus)


# Without a loop ------------------------------------------------------------------


def test_a_program_without_a_loop():
    """`with bus` runs async handlers on a loop of its own, and sync ones on threads."""
    seen, threads = [], set()
    bus = EventBus()

    @bus.on("a")
    async def on_loop(event):
        await asyncio.sleep(0)
        seen.append(event.data["n"])
        threads.add(threading.get_ident())

    @bus.on("a")
    def on_thread(event):
        threads.add(threading.get_ident())

    before = set(threading.enumerate())
    for start in (0, 10):
        with bus as same:
            assert same is bus
            for number in range(start, start + 10):
                receipt = bus.sync.publish("a", {"n": number})
            assert receipt.wait(LIMIT).ok
            bus.sync.drain(timeout=LIMIT)
    assert seen == list(range(20))
    assert threading.get_ident() not in threads
    assert set(threading.enumerate()) <= before
    balanced(bus)


def test_sync_waits_for_room():
    """On its own thread; the handler makes room meanwhile."""
    seen = []
    bus = EventBus(max_queue_size=2)

    @bus.on("a")
    async def handler(event):
        await asyncio.sleep(0)
        seen.append(event.data["n"])

    with bus:
        for number in range(100):
            bus.sync.publish("a", {"n": number})
        batch = bus.sync.publish_many([("a", {"n": number}) for number in range(100, 200)])
    assert batch.accepted == 100
    assert seen == list(range(200))
    balanced(bus)


def test_sync_reports_and_repeats():
    """start and stop may be repeated; stop says what is left."""
    bus = EventBus()
    gate = ThreadGate()
    bus.subscribe("a", gate)
    assert bus.sync.stop().drained
    bus.sync.start()
    bus.sync.start()
    receipt = bus.sync.publish("a", {"n": 1})
    assert gate.entered.wait(LIMIT)
    with pytest.raises(Unsettled):
        bus.sync.drain(timeout=0.01)
    report = bus.sync.stop(timeout=0)
    assert (report.drained, report.left) == (False, 1)
    gate.open.set()
    assert receipt.wait(LIMIT).ok
    assert bus.sync.stop().drained
    balanced(bus)


@on_a_loop
async def test_sync_says_no_inside_a_loop():
    """It would block the loop, so every form of it raises and names the other one."""
    bus = EventBus()
    with pytest.raises(WrongLoop, match="await bus"):
        bus.sync.start()
    with pytest.raises(WrongLoop, match="await bus"), bus:
        pass
    with pytest.raises(WrongLoop):
        bus.sync.stop()
    with pytest.raises(WrongLoop):
        bus.sync.drain()
    assert bus.describe()["running"] is False


def test_sync_stream_and_expect():
    """The same two, for threads."""
    bus = EventBus()
    with bus:
        with bus.sync.stream("a", max_queue_size=2) as stream:
            for number in range(5):
                bus.sync.publish("a", {"n": number})
            assert stream.lagged == 3
            assert [next(stream).data["n"], next(stream).data["n"]] == [3, 4]
            reader = threading.Thread(target=lambda: got.extend(event.data["n"] for event in stream))
            got = []
            reader.start()
            bus.sync.publish("a", {"n": 5})
            while not got:
                bus.sync.expect("never").__exit__(ValueError, ValueError(), None)
            stream.close()
            reader.join(LIMIT)
            assert not reader.is_alive()
            assert got == [5]
        with bus.sync.expect("b", where=lambda event: event.data["n"]) as expected:
            bus.sync.publish("b", {"n": 0})
            bus.sync.publish("b", {"n": 1})
        assert expected.event.data == {"n": 1}
        assert expected.wait().data == {"n": 1}
        with pytest.raises(Unsettled):
            bus.sync.expect("a", timeout=0.01).wait()
    balanced(bus)


def test_the_error_classes_of_a_batch_are_one_tree():
    """`except InvalidEvent` catches whatever is wrong with an event."""
    for error in (InvalidType, InvalidPriority, InvalidKey, InvalidHeaders, InvalidData):
        assert issubclass(error, InvalidEvent)
        assert issubclass(error, ValueError)
