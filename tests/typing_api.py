"""Uses of the public API, right and wrong ones, for type checkers. Not run.

A wrong use is marked with what each checker has to say about it; both complain
where they have nothing to say, so a rejection that is lost is noticed.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Literal, assert_type

import ironbus
from ironbus import (
    BatchReceipt,
    CircuitOpenError,
    DeadLetter,
    DeadLetters,
    Delivery,
    Event,
    EventBus,
    EventPriority,
    Health,
    HealthReason,
    HealthThresholds,
    Idempotency,
    InvalidEvent,
    IronbusError,
    QueueFull,
    Receipt,
    RedriveReport,
    Reject,
    RetryLater,
    Settlement,
    Stream,
    Subscription,
    current_delivery,
)
from ironbus.bus import get_event_bus, publish_event, publish_event_sync
from ironbus.journal import Journal, JournalEvents, QueryResult, ReplayReport
from ironbus.ordering import (
    EventOrderingManager,
    EventSequence,
    OrderedEventProcessor,
    get_ordered_processor,
)
from ironbus.recovery import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitState,
    DeadLetterQueue,
    FailedEvent,
    ResilientEventProcessor,
    RetryManager,
    RetryPolicy,
)
from ironbus.report import DeadLetterMetrics, Latency, StopReport
from ironbus.testing import Call, Harness, Published, SyncHarness, harness, override_event_bus

bus = EventBus()

# Events ----------------------------------------------------------------------------

event = Event("order.paid", {"id": 7})
assert_type(event, Event[dict[str, int]])
assert_type(event.data, dict[str, int])
assert_type(event.type, str)
assert_type(event.timestamp, float)
assert_type(event.event_id, str)
assert_type(event.source, str)
assert_type(event.sequence, int | None)
assert_type(event.priority, EventPriority)
assert_type(event.key, str | None)
assert_type(event.headers, Mapping[str, str])
assert_type(event.idempotency_key, str | None)
assert_type(event.correlation_id, str)
assert_type(event.causation_id, str | None)
assert_type(event.delivery, Delivery | None)
assert_type(event.to_dict(), dict[str, Any])
assert_type(event.to_json(), str)
Event("a", None, None, None, "shop")
Event("a", None, timestamp=1.5, event_id="id")
event.data = {"id": 8}
event.timestamp = 2.0

Event("a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Event("a", 1, kind="b")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Event(1, "data")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
event.data = "text"  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
event.sequence = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
event.priority = EventPriority.LOW  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def bare(event: Event) -> None:
    """Without a parameter, the data is anything."""
    assert_type(event.data, Any)


@dataclass
class OrderPaid(Event):
    """As callers of the ``pm.events`` API subclass it."""

    amount: float = 0.0


class Audit(Event):
    """Or like this."""

    def __init__(self, user: str) -> None:
        super().__init__("audit", {"user": user})
        self.user = user


paid = OrderPaid("order.paid", {}, amount=7.5)
assert_type(paid.amount, float)
assert_type(dataclasses.asdict(paid), dict[str, Any])
assert_type(dataclasses.replace(event, type="other"), Event[dict[str, int]])
assert_type(Audit("ann").sequence, int | None)

OrderPaid("order.paid", {}, amount="much")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Handlers --------------------------------------------------------------------------


async def handle(event: Event[Any]) -> None:
    """The usual one."""
    assert_type(current_delivery(), Delivery | None)
    if event.delivery is not None:
        assert_type(event.delivery.attempt, int)
        assert_type(event.delivery.subscription, str)
        assert_type(event.delivery.deadline, float | None)


def handle_sync(event: Event[Any]) -> int:
    """What it returns is nobody's business."""
    return len(event.type)


async def handle_orders(event: Event[dict[str, int]], *, flag: bool = False) -> None:
    """More than is needed, with defaults."""
    assert_type(event.data["id"], int)


class Handlers:
    """Methods, and the object itself."""

    async def bill(self, event: Event[Any]) -> None:
        """Bound."""

    async def __call__(self, event: Event[Any]) -> None:
        """Called."""


async def no_argument() -> None:
    """Not a handler."""


async def two_arguments(event: Event[Any], other: int) -> None:
    """Not a handler either."""


async def of_number(number: int) -> None:
    """Takes something else than events."""


assert_type(bus.subscribe("order.*", handle), Subscription)
bus.subscribe("order.*", handle_sync)
bus.subscribe("order.*", handle_orders)
bus.subscribe("order.*", Handlers().bill)
bus.subscribe("order.*", Handlers())
bus.subscribe("order.*", partial(handle_orders, flag=True))
bus.subscribe("order.*", lambda event: print(event.data))
bus.subscribe(
    "order.*",
    handle,
    name="bill",
    where=lambda event: event.priority is EventPriority.HIGH,
    timeout=1.5,
    concurrency=4,
    order_by=lambda event: event.key,
    overflow="drop_oldest",
    max_queue_size=100,
    context="publisher",
)
bus.subscribe("order.*", handle, concurrency=4, ordered=False)
bus.subscribe(
    "order.*",
    handle,
    retry=RetryPolicy(max_attempts=5, retry_on=ConnectionError),
    retry_holds="key",
    breaker=CircuitBreakerConfig(failure_threshold=3),
    timeout=5,
    dead_letter="expired",
)
bus.subscribe("order.*", handle, breaker=CircuitBreaker("db"), dead_letter=False)
bus.unsubscribe("order.*", handle)

bus.subscribe("a", no_argument)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.subscribe("a", two_arguments)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.subscribe("a", of_number)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.subscribe("a", handle(event))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.subscribe("a", "handle")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.subscribe(7, handle)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.subscribe("a", handle, colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
bus.subscribe("a", handle, timeout="1 s")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.subscribe("a", handle, overflow="explode")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.subscribe("a", handle, retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.subscribe("a", handle, retry_holds="lane")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.subscribe("a", handle, breaker="db")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.subscribe("a", handle, dead_letter="never")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.subscribe("a", handle, where=no_argument)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@bus.on("order.paid", "order.shipped", name="ship", timeout=2, retry=RetryPolicy(), breaker=CircuitBreakerConfig())
async def ship(event: Event[Any]) -> int:
    """Stays what it is."""
    return 1


async def ship_by_hand() -> None:
    """The decorator returned it unchanged."""
    assert_type(await ship(event), int)


bus.on("a", colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
bus.on(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.on("a")(no_argument)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
bus.on("a")(of_number)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]

# Publishing ------------------------------------------------------------------------


async def publish() -> None:
    """In programs with a loop."""
    async with bus as same:
        assert_type(same, EventBus)
        receipt = await bus.publish("order.paid", {"id": 7}, idempotency_key="pay-7")
        assert_type(receipt, Receipt)
        assert_type(receipt.event_id, str)
        assert_type(receipt.sequence, int | None)
        assert_type(receipt.duplicate, bool)
        print(receipt.durability)
        settlement = await receipt.settled(cascade=True)
        assert_type(settlement, Settlement)
        assert_type(settlement.outcomes, Mapping[str, str])
        assert_type(settlement.failures, tuple[BaseException, ...])
        assert_type(settlement.ok, bool)
        settlement.raise_for_failures()

        await bus.publish(event)
        await bus.publish(paid, priority=EventPriority.HIGH)
        await bus.publish("a", priority=0, key="k", headers={"h": "v"})
        await bus.publish("a", delay=0.5, expires_in=60)
        await bus.publish_many([("a", 1, {"delay": 1.0})], delay=0.5, expires_in=60)
        task = asyncio.create_task(bus.publish("a"))
        assert_type(await task, Receipt)
        await asyncio.gather(bus.publish("a"), bus.publish("b"))

        batch = await bus.publish_many([event, paid, ("a", 1), ("b", {}, {"key": "k"})], priority=EventPriority.LOW)
        assert_type(batch, BatchReceipt)
        assert_type(batch.accepted, int)
        assert_type(batch.duplicates, int)
        assert_type(batch.receipts, list[Receipt])
        assert_type(len(batch), int)
        await bus.publish_many(("a", number) for number in range(3))

        await bus.publish()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        await bus.publish(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await bus.publish("a", {}, "high")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
        await bus.publish("a", delay="1 s")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await bus.publish("a", colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        await bus.publish("a", key=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await bus.publish("a", headers={"h": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
        await bus.publish_many([("a",)])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
        await bus.publish_many([], idempotency_key="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        # Forgotten awaits:
        bus.publish("a")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
        receipt.settled()  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
        receipt.sequence = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def streams() -> None:
    """Pulling instead of handling."""
    async with bus.stream("order.*", "audit", max_queue_size=100) as stream:
        assert_type(stream, Stream)
        async for each in stream:
            assert_type(each, Event[Any])
            assert_type(stream.lagged, int)
    assert_type(await bus.expect("audit", where=lambda each: bool(each.data), timeout=1), Event[Any])
    async with bus.expect("audit") as expected:
        await bus.publish(Audit("ann"))
    assert_type(expected.event, Event[Any])


async def lifecycle() -> None:
    """Start, stop and looks."""
    await bus.start()
    await bus.drain(timeout=5)
    assert_type(await bus.stop(2.5), StopReport)
    assert_type(bus.get_subscribers(), dict[str, int])
    assert_type(bus.get_log_file(), str | None)
    assert_type(bus.audit().balanced, bool)
    bus.describe()["limits"]


async def dead_letters() -> None:
    """Deliveries that failed for good."""
    async for letter in bus.dead_letters:
        assert_type(letter, DeadLetter)
        assert_type(letter.event, Event[Any])
        assert_type(letter.attempts, int)
        assert_type(letter.to_dict(), dict[str, Any])
    for letter in bus.dead_letters:
        assert_type(letter, DeadLetter)
    some = bus.dead_letters.filter(type="order.*", subscription="bill", since=0.0)
    async for letter in some:
        assert_type(letter.fingerprint, str)
    assert_type(await some.get("id"), DeadLetter | None)
    assert_type(await some.count(), int)
    report = await some.redrive("id", limit=5, into="other", timeout=1)
    assert_type(report, RedriveReport)
    assert_type(report.skipped, Mapping[str, int])
    assert_type(report.stopped, tuple[str, ...])
    assert_type(await some.purge(), int)
    assert_type(await some.export("letters.jsonl"), int)
    some.purge()  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    await some.redrive(limit="all")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bus.dead_letters.filter(colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def dead_letters_sync() -> None:
    """The same for threads without a loop."""
    for letter in bus.sync.dead_letters:
        assert_type(letter, DeadLetter)
    assert_type(len(bus.sync.dead_letters), int)
    some = bus.sync.dead_letters.filter(subscription="bill")
    assert_type(some.get("id"), DeadLetter | None)
    assert_type(some.count(), int)
    assert_type(some.redrive(limit=1), RedriveReport)
    assert_type(some.purge("id"), int)
    assert_type(some.export("letters.jsonl"), int)


def reports() -> None:
    """How the bus is."""
    health = bus.health()
    assert_type(health, Health)
    assert_type(health.status, Literal["ok", "degraded", "failing"])
    assert_type(health.reasons, tuple[HealthReason, ...])
    for reason in health.reasons:
        assert_type(reason.severity, Literal["degraded", "failing"])
        assert_type(reason.value, float)
        assert_type(reason.threshold, float)
        assert_type(reason.subscription, str | None)
        assert_type(reason.level, str | None)
        assert_type(reason.breaker, str | None)
        if reason.code == "breaker_open":
            print(reason.breaker)
        if reason.code == "breaker_opened":  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
            pass
    health.status = "ok"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]

    metrics = bus.metrics()
    assert_type(metrics.publish_rate, float)
    assert_type(metrics.processing_rate, float)
    assert_type(metrics.rates_over, float)
    assert_type(metrics.retries, int)
    assert_type(metrics.dead_letters, DeadLetterMetrics)
    assert_type(metrics.dead_letters.growth, int)
    statistics = metrics.subscriptions["bill"]
    assert_type(statistics.breaker, str | None)
    assert_type(statistics.rate, float)
    assert_type(statistics.work, Latency)
    assert_type(statistics.work.p99, float)
    assert_type(statistics.longest_run, float)
    assert_type(statistics.stuck, bool)


def sync() -> None:
    """In programs without a loop."""
    with bus:
        assert_type(bus.publish_sync("a", 1), Receipt)
        assert_type(bus.publish_sync("a").wait(1.0), Settlement)
        assert_type(bus.sync.publish_many([("a", 1)]), BatchReceipt)
        bus.sync.drain(timeout=1)
        with bus.sync.stream("a") as stream:
            for each in stream:
                assert_type(each, Event[Any])
    bus.publish_sync("a", colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def options() -> None:
    """Of the bus."""
    EventBus("logs")
    EventBus(log_dir=None, max_queue_size=10, overflow="reject", context="publisher", workers=2, clock=lambda: 0.0)
    EventBus(idempotency="content")
    EventBus(dead_letters=DeadLetters("orders.dead", max_entries=10, when_full="drop_oldest"), random=7)
    EventBus(health=HealthThresholds(window=30, lane_filling=0.5, oldest_event=None, handler_stuck=5))
    EventBus(health={"window": 30})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    HealthThresholds(lane_filling="80%")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    HealthThresholds(60)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    DeadLetters(when_full="explode")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EventBus(path="orders.bus", durability="os", overflow="spill")
    EventBus(path="orders.bus", max_backlog=None)
    EventBus(path="orders.bus", max_backlog="10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EventBus(path=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EventBus(durability="memory")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EventBus(idempotency=Idempotency("content", ttl=60, max_keys=10))
    EventBus(colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    EventBus(overflow="explode")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EventBus(None, 10)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    EventBus(idempotency="often")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Idempotency("often")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class OrderBus(EventBus):
    """Buses are subclassed."""

    def __init__(self, shop: str) -> None:
        super().__init__(max_queue_size=10)
        self.shop = shop

    async def paid(self, order: int) -> Receipt:
        """In the words of the shop."""
        return await self.publish("order.paid", {"id": order})


assert_type(OrderBus("toys").shop, str)


def errors() -> None:
    """One tree."""
    try:
        bus.publish_sync("a")
    except (InvalidEvent, QueueFull) as error:
        assert_type(error.field, str)
        raise IronbusError("text", "field") from error
    except ironbus.Unsettled:
        pass


# Process-wide ------------------------------------------------------------------------


async def shared() -> None:
    """As in the ``pm.events`` API."""
    assert_type(get_event_bus(), EventBus)
    assert_type(await publish_event("a", {}), Receipt)
    assert_type(publish_event_sync("a", {}), Receipt)


# Ordering ----------------------------------------------------------------------------


async def handle_dict(event: dict[str, Any]) -> None:
    """As in the ``pm.events`` API."""


def handle_mapping(event: Mapping[str, object]) -> None:
    """Sync, and a wider type."""


async def ordering() -> None:
    """Managers and the processor."""
    manager = EventOrderingManager(max_queue_size=10)
    sequence = manager.assign_sequence("id", EventPriority.HIGH)
    assert_type(sequence, EventSequence)
    assert_type(sequence.sequence_number, int)
    assert_type(sequence.priority, EventPriority)
    manager.queue_event({"any": "thing"}, sequence)
    assert_type(manager.get_next_events(5), list[tuple[EventSequence, Any]])
    manager.mark_processed("id")
    EventSequence("id", 1, 0.0)
    manager.queue_event(sequence)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    processor = OrderedEventProcessor(60, max_batch_size=5, process_interval=0.5)
    assert_type(get_ordered_processor(), OrderedEventProcessor)
    processor.register_handler("a", handle_dict)
    processor.register_handler("a", handle_mapping, EventPriority.LOW)
    await processor.start_processing()
    assert_type(await processor.process_event("a", {}, "id", EventPriority.HIGH), bool)
    assert_type(await processor.stop_processing(), StopReport)
    processor.register_handler("a", handle)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    processor.register_handler("a", no_argument)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await processor.process_event("a", {})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    OrderedEventProcessor(batch=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# Recovery --------------------------------------------------------------------------

policy = RetryPolicy(5, 0.5, 30, 2.0, False, retry_on=ConnectionError, give_up_on=(KeyError, ValueError))
config = CircuitBreakerConfig(5, 2, 60.0, 10, failure_rate=None, half_open_max_calls=3)
breaker = CircuitBreaker("db", config, clock=lambda: 0.0)
assert_type(policy.max_attempts, int)
assert_type(config.failure_rate, float | None)
assert_type(breaker.name, str)
assert_type(breaker.state, CircuitState)
assert_type(breaker.failure_count, int)
assert_type(breaker.get_state(), dict[str, Any])
breaker.config = CircuitBreakerConfig()
breaker.state = CircuitState.CLOSED


def told(old: CircuitState, new: CircuitState) -> None:
    """A listener."""


breaker.add_listener(told)
assert_type(breaker.remove_listener(told), bool)
breaker.add_listener(no_argument)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
RetryPolicy(retry_on="ValueError")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
RetryPolicy(3, 1.0, 60.0, 2.0, True, ValueError)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def query(text: str, *, limit: int = 1) -> list[str]:
    """Something that fails now and then."""
    raise RetryLater(5)


def query_sync(text: str) -> int:
    """The same without a loop."""
    raise Reject("no such table")


@breaker
async def guarded(number: int) -> str:
    """As it was, and through the breaker."""
    return str(number)


async def recover() -> None:
    """Calls with retries, breakers and dead letters."""
    assert_type(await breaker.call(query, "a", limit=2), list[str])
    assert_type(await breaker.call(query_sync, "a"), int)
    assert_type(breaker.call_sync(query_sync, "a"), int)
    assert_type(await guarded(1), str)
    async with breaker as entered:
        assert_type(entered, CircuitBreaker)
    with breaker:
        pass
    await breaker.call(query, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]

    manager = RetryManager(policy, sleep=asyncio.sleep, random=7)
    assert_type(manager.policy, RetryPolicy)
    assert_type(await manager.execute_with_retry(query, "a", limit=2), list[str])
    assert_type(await manager.execute_with_retry(query_sync, "a", on_retry=on_retry), int)
    assert_type(manager.execute_with_retry_sync(query_sync, "a"), int)
    await manager.execute_with_retry(query, on_retry=told)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]

    queue = DeadLetterQueue("dlq", durability="fsync", when_full="drop_oldest")
    assert_type(await queue.add_failed_event("a", {"id": 7}, ValueError(), "e-7"), FailedEvent)
    assert_type(await queue.get_failed_events(max_age_hours=1), list[FailedEvent])
    assert_type(await queue.remove_event("e-7"), bool)
    assert_type(queue.get_failed_events_sync(), list[FailedEvent])
    DeadLetterQueue(durability="disk")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    processor = ResilientEventProcessor("orders", policy, config, dlq=queue)
    assert_type(await processor.process_event(query, "a", {"id": 7}, "e-7"), bool)
    assert_type(await processor.reprocess_dlq(query, max_events=5), dict[str, int])
    assert_type(processor.get_metrics(), dict[str, Any])
    assert_type(processor.dlq, DeadLetterQueue | None)

    try:
        await guarded(1)
    except CircuitOpenError as error:
        assert_type(error.name, str)
        assert_type(error.retry_after, float | None)


async def on_retry(attempt: int, error: Exception, delay: float) -> None:
    """Told before each pause."""


# Kept events ---------------------------------------------------------------------


async def kept(at: datetime) -> None:
    """What a bus with a path keeps."""
    events = bus.events(since=at, until=7, types=["order.*"], key="anna", limit=3)
    assert_type(events, JournalEvents)
    assert_type([event async for event in events], list[Event[Any]])
    assert_type(list(bus.events(since="start", types="order.*")), list[Event[Any]])
    assert_type(events.through, int | None)
    assert_type(await bus.replay(fake, since=1.5, on_error="skip"), ReplayReport)
    assert_type(await bus.query("SELECT ?", [1], limit=5), QueryResult)
    assert_type(bus.sync.replay(lambda event: None), ReplayReport)
    assert_type(bus.sync.query("SELECT 1").rows, list[tuple[Any, ...]])
    await bus.backup("copy.bus")
    assert_type(Journal("orders.bus").events(), JournalEvents)
    bus.events(key=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await bus.replay(fake, on_error="stop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Testing ---------------------------------------------------------------------------


async def fake(event: Event[Any]) -> None:
    """In a handler's place."""


async def tested() -> None:
    """A bus under a test's control, on a loop."""
    async with harness(bus, clock="virtual", durable=False, seed=7) as t:
        assert_type(t, Harness)
        assert_type(t.bus, EventBus)
        assert_type(t.published, Published)
        assert_type(t.published.one("order.*", where=lambda event: event.key == "a"), Event[Any])
        assert_type(t.published.all(Event), list[Event[Any]])
        assert_type(t.published.count(), int)
        assert_type(t.calls("bill"), list[Call])
        assert_type(t.calls(fake)[0].error, BaseException | None)
        t.replace("ship", fake)
        t.fail("bill", times=2, exc=ConnectionError)
        t.fail("bill", p=0.5, seed=1, exc=ConnectionError("down"))
        await t.settle(timeout=5)
        await t.advance(60)
        assert_type(t.elapsed, float)
        t.assert_conserved()
        t.fail("bill", exc="down")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    harness(bus, clock="real")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def tested_sync() -> None:
    """The same without one."""
    with harness(bus) as t:
        assert_type(t, SyncHarness)
        t.settle(timeout=None)
        t.advance(1)
    with override_event_bus(bus) as overridden:
        assert_type(overridden, EventBus)
