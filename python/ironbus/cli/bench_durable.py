"""The rows of events in a file: what a flush to the disk costs, beside the brokers that people run for it."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ironbus import Event, EventBus
from ironbus.cli import bench_brokers as brokers
from ironbus.cli.bench_kit import Payload, Row, Sample, Scale, Target, against, batches, expect, payloads

PUBLISHERS = 100
KEYS = 7_554  # as in a real log of incidents
HANDED_OUT = 64  # bytes that the floor appends at a time
LONG = 10  # times the events of a round, where it is a long backlog that must not be felt
ROUNDS = 3  # at most, of those


def many(work: Sequence[Payload], absent: bool = False) -> float:
    """Publishes a thousand at a time, handles and settles: until the bus is closed, so that all is in the file.

    With ``absent``, the file also keeps the events for a subscription that was there once.
    """

    async def run(folder: str) -> float:
        path = Path(folder) / "bench.bus"
        if absent:
            before = EventBus(path=path)
            before.subscribe("order", _never, name="ship")
            async with before:
                pass
        bus, seen = EventBus(path=path), 0

        async def handler(_: Event) -> None:
            nonlocal seen
            seen += 1

        bus.subscribe("order", handler, name="bill")
        await bus.start()
        start = time.perf_counter()
        for batch in batches(len(work)):
            await bus.publish_many(batch)
        await bus.drain()
        await bus.stop()
        seconds = time.perf_counter() - start
        expect(seen, len(work))
        return seconds

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(folder))


def receipts(work: Sequence[Payload]) -> float:
    """A hundred tasks, each of which waits for its receipt before it publishes again."""

    async def run(folder: str) -> float:
        async with EventBus(path=Path(folder) / "bench.bus") as bus:
            start = time.perf_counter()
            await publishers(bus, work, len(work))
            return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(folder))


async def publishers(bus: EventBus, work: Sequence[Payload], count: int) -> None:
    """A hundred tasks that share ``count`` events; payloads and keys come round, the keys like those of a real log."""

    async def publisher(part: range) -> None:
        for number in part:
            await bus.publish("order", work[number % len(work)], key=f"k{number % KEYS}")

    await asyncio.gather(*(publisher(range(i, count, PUBLISHERS)) for i in range(PUBLISHERS)))


def append_and_flush(work: Sequence[Payload]) -> float:
    """The floor: a short append and ``fdatasync``, one at a time. Scaled up from a part, because it is slow."""
    part = max(1, len(work) // 50)
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "floor").open("wb", buffering=0) as file:
        start = time.perf_counter()
        for _ in range(part):
            file.write(b"x" * HANDED_OUT)
            os.fdatasync(file.fileno())
        return (time.perf_counter() - start) / part * len(work)


def parked_key(scale: Scale) -> Sample:
    """One of the keys waits from the first event to the last: seconds and bytes, beside a run in which none does.

    With ten times the events of a round, and in few rounds.
    """
    count = LONG * scale.events
    work = payloads(scale.events)

    async def run(folder: str, park: bool) -> tuple[float, int]:
        path, seen, opened = Path(folder) / "bench.bus", 0, asyncio.Event()
        bus = EventBus(path=path)

        async def handler(event: Event) -> None:
            nonlocal seen
            if park and event.key == "k0":
                await opened.wait()
            seen += 1
            if seen == settled:
                complete.set()

        complete = asyncio.Event()
        waiting = len(range(0, count, KEYS)) if park else 0
        settled = count - waiting
        bus.subscribe("order", handler, name="bill", concurrency=16)
        await bus.start()
        start = time.perf_counter()
        await publishers(bus, work, count)
        await complete.wait()
        seconds = time.perf_counter() - start
        opened.set()
        await bus.drain()
        await bus.stop()
        expect(seen, count)
        return seconds, path.stat().st_size

    def once(park: bool) -> tuple[float, int]:
        gc.collect()
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(run(folder, park))

    pairs = [(once(False), once(True)) for _ in range(min(scale.rounds, ROUNDS))]
    return Sample(
        (
            statistics.median(with_it[0] / without[0] for without, with_it in pairs),
            statistics.median(with_it[1] / without[1] for without, with_it in pairs),
        ),
        rate=count / statistics.median(with_it[0] for _, with_it in pairs),
        peer_rate=count / statistics.median(without[0] for without, _ in pairs),
    )


def never_back(scale: Scale) -> Sample:
    """The same work while the file keeps all of it for a subscription that is not there."""
    sample = against(partial(many, absent=True), many, scale)
    return Sample((1 / sample.values[0],), sample.rate, sample.peer_rate)


def opening(scale: Scale) -> Sample:
    """From the constructor to the first delivery, with ten times the events of a round waiting in the file."""
    count = LONG * scale.events

    async def fill(path: Path) -> None:
        bus = EventBus(path=path)
        bus.subscribe("order", _never, name="bill").pause()
        await bus.start()
        for begin in range(0, count, 1_000):
            await bus.publish_many([("order", {"order_id": n}) for n in range(begin, min(begin + 1_000, count))])
        await bus.stop(timeout=0.0)

    async def first(path: Path) -> float:
        start = time.perf_counter()
        bus, delivered = EventBus(path=path), asyncio.Event()

        async def handler(_: Event) -> None:
            delivered.set()

        bus.subscribe("order", handler, name="bill")
        await bus.start()
        await delivered.wait()
        seconds = time.perf_counter() - start
        await bus.stop(timeout=0.0)
        return seconds

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.bus"
        asyncio.run(fill(path))
        times = [asyncio.run(first(path)) for _ in range(scale.rounds)]
    return Sample((statistics.median(times),))


async def _never(_: Event) -> None:
    raise AssertionError("nothing is delivered here")


def _row(name: str, targets: tuple[Target, ...], measure: Callable[[Scale], Sample], peer: str) -> Row:
    return Row(f"durable: {name}", targets, measure, peer, durability="fsync")


ROWS: Sequence[Row] = (
    _row(
        "publish_many, handle, settle",
        (Target("speed", "x", 5.0, 10.0),),
        lambda scale: against(many, brokers.redis_streams, scale),
        "Redis Streams, appendfsync always",
    ),
    _row(
        "the same beside NATS",
        (Target("speed", "x", 1.0, 5.0),),
        lambda scale: against(many, brokers.nats_jetstream, scale),
        "NATS JetStream, its defaults",
    ),
    _row(
        "100 publishers, a receipt each",
        # 40,000 and 80,000 a second where a flush takes 150 microseconds.
        (Target("speed", "x", 40_000 * 150e-6, 80_000 * 150e-6),),
        lambda scale: against(receipts, append_and_flush, scale),
        "append + fdatasync, one at a time",
    ),
    _row(
        "one key parked for 10 x the events",
        (Target("time", "x", 1.1, 1.02, at_most=True), Target("size of the journal", "x", 1.1, 1.02, at_most=True)),
        parked_key,
        "none parked",
    ),
    _row(
        "a subscription that never comes back",
        (Target("cost", "x", 1.1, 1.02, at_most=True),),
        never_back,
        "without it",
    ),
    _row(
        "opening with 10 x the events pending",
        (Target("to the first delivery", "s", 2.0, 0.5, at_most=True),),
        opening,
        "",
    ),
)


__all__ = ["ROWS"]
