"""``ironbus feed``: a log of JSON Lines through a bus, with an account of every line."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ironbus import Event, EventBus, Idempotency
from ironbus.cli.lines import BadLine, Fields, Item, Unreadable, numbered_lines, parse
from ironbus.errors import InvalidEvent
from ironbus.report import Latency, Ledger

NAME = "feed"
BATCH = 1_000  # events in one publish_many
QUEUE = 4_096  # events that wait for the handler; beyond it reading waits
KEY_TTL = 366 * 86_400.0  # seconds; longer than any feed runs, so a copy is found however late it comes


@dataclass(frozen=True, slots=True)
class FeedReport:
    """What became of the lines: ``read == bad + duplicates + delivered + lost + dead``."""

    read: int  # lines that are not empty
    bad: int
    duplicates: int
    delivered: int
    lost: int
    dead: int
    seconds: float
    wait: Latency
    work: Latency
    ledger: Ledger
    forgotten: int  # keys that --dedupe had no room to remember
    incomplete: str  # why the rest of the input could not be read, or ""

    @property
    def rate(self) -> float:
        """Lines per second."""
        return self.read / self.seconds if self.seconds else 0.0

    @property
    def failed(self) -> bool:
        """Whether anything that was read, or should have been, did not reach its end."""
        return bool(self.lost or self.dead or self.incomplete)


async def count(event: Event) -> None:
    """The default handler: the ledger counts, so there is nothing left to do."""


async def feed(
    raw: io.RawIOBase,
    fields: Fields,
    *,
    handler: Callable[[Event], Any] = count,
    dedupe: bool = False,
    concurrency: int = 1,
    ordered: bool = True,
    complain: Callable[[int, str], None],
    progress: Callable[[int], None],
) -> FeedReport:
    """Publishes every line of ``raw`` and waits until all are settled.

    ``complain`` gets the number and fault of each bad line, ``progress`` the
    number of lines read so far. At most :data:`QUEUE` events and a few chunks of
    the file are in memory at once.
    """
    bus = EventBus(idempotency=Idempotency(mode="content", ttl=KEY_TTL) if dedupe else "key")
    bus.subscribe("*", handler, name=NAME, concurrency=concurrency, ordered=ordered, max_queue_size=QUEUE)
    read, bad, incomplete = 0, 0, ""

    def refuse(number: int, reason: str) -> None:
        nonlocal bad
        bad += 1
        complain(number, reason)

    async with bus:
        start = time.perf_counter()
        try:
            async for lines in numbered_lines(raw):
                for batch in _batches(lines):
                    read += len(batch)
                    await _publish(bus, _events(batch, fields, refuse), refuse)
                    progress(read)
        except Unreadable as error:
            incomplete = str(error)
        await bus.drain()
        seconds = time.perf_counter() - start
        metrics = bus.metrics()

    lane, statistics = metrics.ledger.subscriptions[NAME], metrics.subscriptions[NAME]
    return FeedReport(
        read=read,
        bad=bad,
        duplicates=metrics.ledger.duplicate,
        delivered=lane.done,
        lost=lane.routed - lane.done - lane.dead,
        dead=lane.dead,
        seconds=seconds,
        wait=statistics.wait,
        work=statistics.work,
        ledger=metrics.ledger,
        forgotten=metrics.idempotency_evicted,
        incomplete=incomplete,
    )


def _batches(lines: Sequence[tuple[int, bytes | None]]) -> Iterator[Sequence[tuple[int, bytes | None]]]:
    for start in range(0, len(lines), BATCH):
        yield lines[start : start + BATCH]


def _events(
    lines: Sequence[tuple[int, bytes | None]], fields: Fields, refuse: Callable[[int, str], None]
) -> list[tuple[int, Item]]:
    events: list[tuple[int, Item]] = []
    for number, line in lines:
        try:
            if line is None:
                raise BadLine("too long")
            events.append((number, parse(line, fields)))
        except BadLine as fault:
            refuse(number, str(fault))
    return events


async def _publish(bus: EventBus, events: list[tuple[int, Item]], refuse: Callable[[int, str], None]) -> None:
    """All at once; where the bus refuses one, one by one, to find out which."""
    try:
        await bus.publish_many([event for _, event in events])
    except InvalidEvent:
        for number, (kind, data, options) in events:
            try:
                await bus.publish(kind, data, **options)
            except InvalidEvent as fault:
                refuse(number, str(fault))


__all__ = ["FeedReport", "count", "feed"]
