"""``ironbus feed``: a log of JSON Lines through a bus, with an account of every line."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ironbus import Event, EventBus, Idempotency
from ironbus.cli.lines import BadLine, Fields, Item, Unreadable, numbered_lines, parse
from ironbus.cli.position import OtherInput, Position, mark, position
from ironbus.errors import InvalidEvent
from ironbus.report import Latency, Ledger

NAME = "feed"
BATCH = 1_000  # events in one publish_many
QUEUE = 4_096  # events that wait for the handler; beyond it reading waits
KEY_TTL = 366 * 86_400.0  # seconds; longer than any feed runs, so a copy is found however late it comes


@dataclass(frozen=True, slots=True)
class Into:
    """A journal that is fed, and how its events name the input; without a name nothing is continued."""

    path: Path
    name: str | None


@dataclass(frozen=True, slots=True)
class FeedReport:
    """What became of the lines: ``read == bad + duplicates + delivered + lost + dead``.

    With a journal the deliveries are those of this run: what an earlier one had left is among them, and
    without a handler there are none.
    """

    read: int  # lines that are not empty
    skipped: int  # of an input that was fed in part before
    bad: int
    duplicates: int
    delivered: int
    lost: int
    dead: int
    seconds: float
    wait: Latency | None  # of the deliveries, if there was a handler
    work: Latency | None
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
    handler: Callable[[Event], Any] | None = None,
    into: Into | None = None,
    dedupe: bool = False,
    concurrency: int = 1,
    ordered: bool = True,
    complain: Callable[[int, str], None],
    progress: Callable[[int], None],
) -> FeedReport:
    """Publishes every line of ``raw`` and waits until all are settled.

    ``complain`` gets the number and fault of each bad line, ``progress`` the
    number of lines read so far. At most :data:`QUEUE` events and a few chunks of
    the file are in memory at once. ``into`` a journal: goes on behind the last line
    of this input that is in it; raises :class:`OtherInput` where the input has changed.
    """
    bus = EventBus(
        path=None if into is None else into.path,
        idempotency=Idempotency(mode="content", ttl=KEY_TTL) if dedupe else "key",
    )
    if handler is not None or into is None:
        chosen = handler or count
        bus.subscribe("*", chosen, name=NAME, concurrency=concurrency, ordered=ordered, max_queue_size=QUEUE)
    before = await position(into.path, into.name) if into is not None and into.name is not None else None
    read, skipped, bad, number, incomplete = 0, 0, 0, 0, ""

    def refuse(number: int, reason: str) -> None:
        nonlocal bad
        bad += 1
        complain(number, reason)

    async with bus:
        start = time.perf_counter()
        try:
            async for lines in numbered_lines(raw):
                for batch in _batches(lines):
                    number = batch[-1][0]
                    new = _behind(before, batch, fields)
                    skipped += len(batch) - len(new)
                    read += len(new)
                    events = _events(new, fields, refuse)
                    if into is not None and into.name is not None:
                        events = [(number, mark(item, into.name, number)) for number, item in events]
                    await _publish(bus, events, refuse)
                    progress(read)
        except Unreadable as error:
            incomplete = str(error)
        if before is not None and number < before.line and not incomplete:
            raise OtherInput(f"the input ends before line {before.line}, which was fed from it before")
        await bus.drain()
        seconds = time.perf_counter() - start
        metrics = bus.metrics()

    lanes = metrics.ledger.subscriptions.values()  # one, or none
    routed, done, dead = (sum(getattr(lane, what) for lane in lanes) for what in ("routed", "done", "dead"))
    statistics = metrics.subscriptions.get(NAME)
    return FeedReport(
        read=read,
        skipped=skipped,
        bad=bad,
        duplicates=metrics.ledger.duplicate,
        delivered=done,
        lost=routed - done - dead,
        dead=dead,
        seconds=seconds,
        wait=statistics.wait if statistics else None,
        work=statistics.work if statistics else None,
        ledger=metrics.ledger,
        forgotten=metrics.idempotency_evicted,
        incomplete=incomplete,
    )


def _behind(
    before: Position | None, lines: Sequence[tuple[int, bytes | None]], fields: Fields
) -> Sequence[tuple[int, bytes | None]]:
    """The lines that come after the position; that of the position itself is looked at."""
    if before is None:
        return lines
    for number, line in lines:
        if number == before.line:
            try:
                before.check(parse(line or b"", fields))
            except BadLine:
                before.check(None)
    return [(number, line) for number, line in lines if number > before.line]


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


__all__ = ["FeedReport", "Into", "OtherInput", "count", "feed"]
