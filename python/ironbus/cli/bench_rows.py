"""The benchmarks, once: ``ironbus bench`` and ``benches/`` both run these rows.

A row measures against a peer, or against the bus itself under a lighter load,
in the same run: the two take turns, and the median of the rounds' ratios
counts, so that a busy machine disturbs both alike. Those of events in a file come last.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from ironbus import CircuitBreakerConfig, Event, EventBus, Idempotency, RetryPolicy
from ironbus._subscriptions import SubscribeOptions
from ironbus.cli import bench_durable as durable
from ironbus.cli import bench_peers as peers
from ironbus.cli.bench_kit import (
    BATCH,
    NotHere,
    Payload,
    Rounds,
    Row,
    Sample,
    Scale,
    Target,
    against,
    batches,
    compared,
    expect,
    payloads,
    percentile,
    side_by_side,
)
from ironbus.cli.loop_probe import LoopProbe
from ironbus.ordering import EventOrderingManager, IdempotencyManager

MANY = 1_000_000  # live keys, or queued events, that must not be felt
PACE = 20_000  # events a second in the row of latencies
LONGER = 5  # times as many events, where a reading comes each millisecond: else there are too few of them for a p99


class Counter:
    """Counts deliveries, and tells when all of a round have come."""

    def __init__(self) -> None:
        self.seen = self.wanted = 0
        self.complete = asyncio.Event()

    def expect(self, more: int) -> None:
        """Before a round of ``more`` deliveries."""
        self.wanted = self.seen + more
        self.complete.clear()

    async def __call__(self, _: Event) -> None:
        self.seen += 1
        if self.seen == self.wanted:
            self.complete.set()


async def publish_each(bus: EventBus, work: Sequence[Payload]) -> None:
    """One ``await`` an event."""
    for payload in work:
        await bus.publish("order", payload)


async def publish_batches(bus: EventBus, work: Sequence[Payload]) -> None:
    """One ``await`` a thousand events."""
    for batch in batches(len(work)):
        await bus.publish_many(batch)


def through_bus(
    work: Sequence[Payload],
    publish: Callable[[EventBus, Sequence[Payload]], Awaitable[None]] = publish_each,
    idempotency: Literal["key", "content"] = "key",
) -> float:
    """Publishes all and waits until all are settled, with an async handler."""

    async def run() -> float:
        bus, seen = EventBus(idempotency=idempotency), 0

        async def handler(_: Event) -> None:
            nonlocal seen
            seen += 1

        bus.subscribe("order", handler)
        batches(len(work))
        async with bus:
            start = time.perf_counter()
            await publish(bus, work)
            await bus.drain()
            seconds = time.perf_counter() - start
        expect(seen, len(work))
        return seconds

    return asyncio.run(run())


def sync_handlers(scale: Scale) -> Sample:
    """Sync handlers on the bus's threads; how late the loop wakes up meanwhile."""

    def ours(work: Sequence[Payload]) -> tuple[float, list[float]]:
        async def run() -> tuple[float, list[float]]:
            bus, seen = EventBus(), 0

            def handler(_: Event) -> None:
                nonlocal seen
                seen += 1

            bus.subscribe("order", handler)
            async with bus, LoopProbe() as probe:
                probe.lags.clear()
                start = time.perf_counter()
                for _ in range(LONGER):
                    await publish_each(bus, work)
                await bus.drain()
                seconds, lags = time.perf_counter() - start, list(probe.lags)
            expect(seen, LONGER * len(work))
            return seconds / LONGER, lags

        return asyncio.run(run())

    rounds = side_by_side(ours, peers.blinker_send, scale)
    sample = compared([(seconds, theirs) for (seconds, _), theirs in rounds], scale)
    late = percentile([lag for (_, lags), _ in rounds for lag in lags], 99)
    return Sample((*sample.values, late), sample.rate, sample.peer_rate)


def digest(work: Sequence[Payload]) -> float:
    """The duplicate check alone."""
    manager = IdempotencyManager()
    start = time.perf_counter()
    duplicates = sum(manager.is_duplicate("order", payload) for payload in work)
    seconds = time.perf_counter() - start
    expect(duplicates, 0)
    return seconds


def ordering(make: Callable[[], Any], work: Sequence[Payload]) -> float:
    """Number, queue, fetch and mark, a thousand events at a time."""
    manager, done = make(), 0
    ids = [f"event-{i}" for i in range(len(work))]
    start = time.perf_counter()
    for begin in range(0, len(work), BATCH):
        for event_id, payload in zip(ids[begin : begin + BATCH], work[begin : begin + BATCH], strict=True):
            manager.queue_event(payload, manager.assign_sequence(event_id))
        while batch := manager.get_next_events(10):
            for sequence, _ in batch:
                manager.mark_processed(sequence.event_id)
                done += 1
    seconds = time.perf_counter() - start
    expect(done, len(work))
    return seconds


def _as_it_is(work: Sequence[Payload]) -> Sequence[Payload]:
    return work


def in_turn(topics: Sequence[str], work: Sequence[Payload]) -> Sequence[tuple[str, Payload]]:
    """Events of all topics in turn, as pairs of type and data."""
    return list(zip(cycle(topics), work, strict=False))


async def publish_pairs(bus: EventBus, work: Sequence[tuple[str, Payload]]) -> None:
    """As :func:`publish_each`, each with a topic of its own."""
    for topic, payload in work:
        await bus.publish(topic, payload)


@dataclass(slots=True)
class Load:
    """A bus, the round that is measured on it, and what it carries besides."""

    bus: EventBus
    publish: Callable[[EventBus, Sequence[Any]], Awaitable[None]] = publish_each
    arrange: Callable[[Sequence[Payload]], Sequence[Any]] = _as_it_is  # what is published; not measured
    topics: tuple[str, ...] = ("order",)
    lanes: int = 1  # for each topic
    prepare: Callable[[EventBus], Awaitable[None]] | None = None
    options: SubscribeOptions = field(default_factory=SubscribeOptions)
    counter: Counter = field(default_factory=Counter)

    async def start(self) -> None:
        """Everything that is not measured."""
        for topic in self.topics:
            for lane in range(self.lanes):
                options: SubscribeOptions = {**self.options, "name": f"{topic}-{lane}"}
                self.bus.subscribe(topic, self.counter, **options)
        await self.bus.start()
        if self.prepare is not None:
            await self.prepare(self.bus)

    async def round(self, work: Sequence[Payload]) -> float:
        """Seconds until all deliveries have begun their handlers."""
        self.counter.expect(len(work) * self.lanes)
        arranged = self.arrange(work)
        gc.collect()
        start = time.perf_counter()
        await self.publish(self.bus, arranged)
        await self.counter.complete.wait()
        return time.perf_counter() - start


def burden(light: Callable[[], Load], heavy: Callable[[], Load], scale: Scale) -> Sample:
    """What a delivery costs on the heavy bus, as a multiple of what it costs on the light one."""

    async def run() -> Sample:
        buses = light(), heavy()
        rounds: Rounds[tuple[float, float]] = Rounds(scale.rounds)
        try:
            for load in buses:
                await load.start()
            while rounds.go_on():
                rounds.add((await cost(buses[0]), await cost(buses[1])))
        finally:
            for load in buses:
                await load.bus.stop(timeout=0.0)
        pairs = rounds.best()
        less, more = (statistics.median(costs) for costs in zip(*pairs, strict=True))
        return Sample((statistics.median(more / less for less, more in pairs),), 1 / more, 1 / less)

    async def cost(load: Load) -> float:
        work = payloads(scale.events)[: scale.events // load.lanes]
        return await load.round(work) / (len(work) * load.lanes)

    return asyncio.run(run())


def one_lane() -> Load:
    """The light load."""
    return Load(EventBus())


def guarded_lane() -> Load:
    """A lane with all that looks after failures, of which there are none."""
    guards: SubscribeOptions = {"retry": RetryPolicy(), "breaker": CircuitBreakerConfig(), "timeout": 30.0}
    return Load(EventBus(), options=guards)


def among_subscriptions() -> Load:
    """Ten thousand lanes that listen to something else."""

    async def prepare(bus: EventBus) -> None:
        for i in range(10_000):
            bus.subscribe(f"other.{i}", _never, name=f"other-{i}")

    return Load(EventBus(), prepare=prepare)


def with_keys(live: int) -> Load:
    """Each event has its own idempotency key; ``live`` others are remembered."""
    issued = 0

    async def publish(bus: EventBus, work: Sequence[Payload]) -> None:
        nonlocal issued
        for number, payload in enumerate(work, issued):
            await bus.publish("order", payload, idempotency_key=f"order-{number}")
        issued += len(work)

    async def prepare(bus: EventBus) -> None:
        for i in range(live):
            await bus.publish("nobody", idempotency_key=f"key-{i}")

    return Load(EventBus(idempotency=Idempotency(max_keys=4 * MANY)), publish=publish, prepare=prepare)


def with_queued(count: int) -> Load:
    """``count`` events wait in a paused lane."""

    async def prepare(bus: EventBus) -> None:
        bus.subscribe("parked", _never, name="parked", max_queue_size=count).pause()
        for batch in range(0, count, BATCH):
            await bus.publish_many([("parked", PARKED)] * min(BATCH, count - batch))

    return Load(EventBus(), prepare=prepare)


PARKED: Payload = {"order_id": 1}


async def _never(_: Event) -> None:
    raise AssertionError("nothing is delivered here")


def ten_lanes() -> Load:
    """Each event goes to ten lanes."""
    return Load(EventBus(), lanes=10)


def many_lanes(count: int) -> Load:
    """The events go to so many lanes in turn; whatever the number, the publisher's loop is the same."""
    topics = tuple(f"order.{i}" for i in range(count))
    return Load(EventBus(), topics=topics, publish=publish_pairs, arrange=partial(in_turn, topics))


def publisher_threads(scale: Scale) -> Sample:
    """Eight threads that publish at once, against one."""

    def publishing(threads: int, work: Sequence[Payload]) -> float:
        bus, seen = EventBus(), 0

        def handler(_: Event) -> None:
            nonlocal seen
            seen += 1

        def publish(part: Sequence[Payload]) -> None:
            for payload in part:
                bus.publish_sync("order", payload)

        bus.subscribe("order", handler)
        # A stretch for each, not every eighth: the payloads lie in memory as they lie for one thread.
        parts = [work[len(work) * i // threads : len(work) * (i + 1) // threads] for i in range(threads)]
        workers = [threading.Thread(target=publish, args=(part,)) for part in parts]
        with bus:
            start = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            bus.sync.drain()
            seconds = time.perf_counter() - start
        expect(seen, len(work))
        return seconds

    return against(partial(publishing, 8), partial(publishing, 1), scale)


def latency(scale: Scale) -> Sample:
    """From the call of ``publish`` to the handler's first line, at a steady pace on one loop."""
    count = min(scale.events, 2 * PACE)

    async def run() -> Sample:
        waits: list[float] = []

        async def handler(event: Event) -> None:
            waits.append(time.perf_counter() - event.data)

        bus = EventBus()
        bus.subscribe("tick", handler)
        async with bus:
            start = time.perf_counter()
            for i in range(count):
                while time.perf_counter() < start + i / PACE:  # noqa: ASYNC110 - no timer is that fine
                    await asyncio.sleep(0)
                await bus.publish("tick", time.perf_counter())
            seconds = time.perf_counter() - start
            await bus.drain()
        expect(len(waits), count)
        return Sample((percentile(waits, 50), percentile(waits, 99)), rate=count / seconds)

    rounds: Rounds[Sample] = Rounds(1)
    while rounds.go_on():
        rounds.add(asyncio.run(run()))
    return rounds.best()[0]


STATM = Path("/proc/self/statm")


def memory(fill: Callable[[EventBus, range], Awaitable[None]], count: int) -> Sample:
    """The memory that ``count`` more things take. Only where nothing else has allocated before, as in the process
    that each row has of its own."""
    if not STATM.exists():
        raise NotHere("needs /proc/self/statm")
    import resource

    def resident() -> int:
        gc.collect()
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def run() -> Sample:
        bus = EventBus(max_queue_size=count + BATCH, idempotency=Idempotency(max_keys=count + BATCH))
        bus.subscribe("order", _never).pause()
        await bus.start()
        await fill(bus, range(BATCH))
        before, start = resident(), time.perf_counter()
        await fill(bus, range(BATCH, BATCH + count))
        seconds = time.perf_counter() - start
        grown = resident() - before
        await bus.stop(timeout=0.0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Sample((grown / count,), rate=count / seconds, peak=peak)

    return asyncio.run(run())


async def queue_events(bus: EventBus, numbers: range) -> None:
    """So many wait in a paused lane."""
    for _ in numbers:
        await bus.publish("order", PARKED)


async def remember_keys(bus: EventBus, numbers: range) -> None:
    """A key for each number."""
    for number in numbers:
        await bus.publish("nobody", idempotency_key=f"key-{number}")


def _times(must: float, aim: float) -> tuple[Target, ...]:
    return (Target("speed", "x", must, aim),)


def _cost(must: float, aim: float) -> tuple[Target, ...]:
    return (Target("cost", "x", must, aim, at_most=True),)


def _size(must: float, aim: float) -> tuple[Target, ...]:
    return (Target("size", "B", must, aim, at_most=True),)


ROWS: Sequence[Row] = (
    Row(
        "publish",
        _times(1.5, 2.5),
        lambda scale: against(through_bus, peers.asyncio_queue, scale),
        "asyncio.Queue + worker",
    ),
    Row(
        "publish, content idempotency",
        _times(1.0, 1.4),
        lambda scale: against(partial(through_bus, idempotency="content"), peers.pyee_emit, scale),
        "pyee emit",
    ),
    Row(
        "publish_many",
        _times(2.5, 4.0),
        lambda scale: against(partial(through_bus, publish=publish_batches), peers.asyncio_queue, scale),
        "asyncio.Queue + worker",
    ),
    Row(
        "sync handlers",
        (*_times(1.0, 2.0), Target("loop wake-up p99", "s", 1e-3, 1e-3, at_most=True)),
        sync_handlers,
        "blinker send",
    ),
    Row(
        "IdempotencyManager",
        _times(8.0, 12.0),
        lambda scale: against(digest, peers.digest_in_python, scale),
        "json + hashlib + dict",
    ),
    Row(
        "EventOrderingManager",
        _times(8.0, 15.0),
        lambda scale: against(
            partial(ordering, EventOrderingManager), partial(ordering, peers.OrderingInPython), scale
        ),
        "deques and a lock",
    ),
    Row("memory per queued event", _size(250, 128), lambda scale: memory(queue_events, 5 * scale.events)),
    Row("memory per idempotency key", _size(64, 36), lambda scale: memory(remember_keys, 10 * scale.events)),
    Row(
        "10,000 other subscriptions",
        _cost(1.3, 1.1),
        lambda scale: burden(one_lane, among_subscriptions, scale),
        "one subscription",
    ),
    Row(
        "1 M live keys",
        _cost(1.3, 1.1),
        lambda scale: burden(partial(with_keys, 0), partial(with_keys, MANY), scale),
        "no older keys",
    ),
    Row(
        "1 M queued",
        _cost(1.3, 1.1),
        lambda scale: burden(one_lane, partial(with_queued, MANY), scale),
        "none queued",
    ),
    Row("10 lanes per event", _cost(1.2, 0.8), lambda scale: burden(one_lane, ten_lanes, scale), "one lane"),
    Row(
        "1,000 active lanes",
        _cost(1.2, 0.8),
        lambda scale: burden(partial(many_lanes, 1), partial(many_lanes, 1_000), scale),
        "one lane",
    ),
    Row(
        "retry, breaker and timeout",
        _cost(1.3, 1.1),
        lambda scale: burden(one_lane, guarded_lane, scale),
        "none of them",
    ),
    Row("8 publisher threads", _times(0.9, 1.0), publisher_threads, "one thread"),
    Row(
        "latency at 20,000 ev/s",
        (Target("p50", "s", 50e-6, 10e-6, at_most=True), Target("p99", "s", 1e-3, 200e-6, at_most=True)),
        latency,
    ),
    *durable.ROWS,
)


__all__ = ["ROWS"]
