"""Long backlogs of a bus with a path: a key parked for all of them, LOW events behind a stream of CRITICAL ones, a
subscription that never comes back. What a settlement costs, what is in memory and what is in the file do not grow
with them. By counts, not by times: a few thousand events in the gate, a million in ``make torture``.
"""

from __future__ import annotations

import asyncio
import gc
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from ironbus import EventBus, EventPriority, Idempotency
from running import run
from torture import control, done, times

COUNT = times(6_000, 1_000_000)
LIMIT = times(120, 7_200)  # seconds
WINDOW = times(500, 10_000)
BATCH = 500
PAYLOAD = {"customer": "c17", "amount": 19.99, "items": ["a", "b", "c"], "note": "x" * 100}
MEMORY = 24_000_000 + 4_000 * WINDOW  # bytes: for what is in a window, and in the buffers of the journal
LOW, CRITICAL = EventPriority.LOW, EventPriority.CRITICAL
IO = Path("/proc/self/io")

pytestmark = pytest.mark.skipif(
    not IO.exists(), reason="the bytes that a process reads and writes are counted by Linux"
)


class Clock:
    """Seconds that a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@dataclass
class Use:
    """What the process has used until now, in bytes."""

    read: int
    written: int
    memory: int

    @classmethod
    def now(cls) -> Use:
        counts = dict(line.split(": ") for line in IO.read_text().splitlines())
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(int(counts["rchar"]), int(counts["wchar"]), pages * os.sysconf("SC_PAGE_SIZE"))

    def __sub__(self, before: Use) -> Use:
        return Use(self.read - before.read, self.written - before.written, self.memory - before.memory)


def size(path: Path) -> int:
    """Of the journal and of the log beside it."""
    log = path.with_name(path.name + "-wal")
    return path.stat().st_size + (log.stat().st_size if log.exists() else 0)


async def publish(bus: EventBus, count: int, priority: EventPriority = EventPriority.NORMAL) -> None:
    for first in range(0, count, BATCH):
        await bus.publish_many([("order", PAYLOAD)] * min(BATCH, count - first), priority=priority)


async def count_of(bus: EventBus, table: str) -> int:
    await bus._disk.run(bus._keep_journal)  # with it goes what is settled
    ((count,),) = (await bus.query(f"SELECT count(*) FROM {table}")).rows
    return count


# One key parked ----------------------------------------------------------------------------------------------------

CHUNK = times(5, 500)  # one of so many events is of the parked key


@dataclass
class Parked:
    """A run with one key whose first handler hangs; or with none."""

    written: int  # while the others were settled
    size: int
    stragglers: int
    position: int
    waiting: int


async def with_key(path: Path, key: str) -> Parked:
    opened, complete, clock, handled = asyncio.Event(), asyncio.Event(), Clock(), dict.fromkeys(("parked", "other"), 0)

    async def handle(event):
        if event.key == "parked":
            await opened.wait()
        handled["parked" if event.key == "parked" else "other"] += 1
        if handled["other"] >= COUNT - waiting:
            complete.set()

    waiting = COUNT // CHUNK if key == "parked" else 0
    bus = EventBus(path=path, clock=clock, durability="os")
    bus.subscribe("order", handle, name="bill", concurrency=4)
    async with bus:
        before = Use.now()
        for number in range(COUNT // CHUNK):
            await bus.publish("order", PAYLOAD, key=key)
            await bus.publish_many([("order", PAYLOAD)] * (CHUNK - 1), key=f"k{number}")
        await complete.wait()
        written = (Use.now() - before).written
        # What is held back for ten seconds is left behind with the next settlement.
        for _ in range(2):
            await bus._disk.run(bus._keep_journal)
            clock.now += 11
            complete.clear()
            await bus.publish("order", PAYLOAD, key="last")
            await complete.wait()
        stragglers = await count_of(bus, "straggler")
        ((position,),) = (await bus.query("SELECT position FROM backlog WHERE subscription = 'bill'")).rows
        opened.set()
        await bus.drain()
    assert handled == {"parked": waiting, "other": COUNT - waiting + 2}
    return Parked(written, path.stat().st_size, stragglers, position, waiting)


def test_a_parked_key_costs_its_own_events_alone(tmp_path):
    none = run(with_key(tmp_path / "none.bus", "free"), LIMIT)
    parked = run(with_key(tmp_path / "parked.bus", "parked"), LIMIT)
    assert none.stragglers == 0
    assert parked.waiting - 1 <= parked.stragglers <= parked.waiting + 1, "a row for each that waits, and no other"
    assert min(none.position, parked.position) >= COUNT, "the cursor goes on"
    print(f"one key parked: {none}, {parked}")
    # With few events in a commit, as in the gate, the settled runs, 1,024 at most, are the larger part of it.
    assert parked.written <= times(2.5, 1.1) * none.written
    assert parked.size <= 1.1 * none.size
    done("events settled with one key parked", COUNT)


# LOW behind CRITICAL -----------------------------------------------------------------------------------------------

TURNS = 16 * 3 + 1  # starts within which an aged head moves
AGED = 10  # starts in which a head comes of age
STREAM = 2_048  # CRITICAL events
AHEAD = 32  # so many of them wait at each start, until the last have come


@dataclass
class Flood:
    """A backlog of LOW events, and a stream of CRITICAL ones before it."""

    starts: list[EventPriority]  # while the stream lasted
    gap: int  # starts from one of LOW to the next
    filled: list[Use]  # by each half of the backlog
    sizes: list[int]  # of the file, after each half
    streamed: Use
    drained: Use
    deepest: int  # what waited in memory on one level
    size: int

    @property
    def read_again(self) -> float:
        """How often each byte of the file was read until all was done."""
        return (self.streamed.read + self.drained.read) / self.size


async def with_backlog(
    path: Path, count: int, step: float = 1 / AGED, window: int = WINDOW, restless: bool = False
) -> Flood:
    """With ``restless``, something is written with each event, after which whoever reads the file begins anew."""
    clock, starts, deepest = Clock(), list[EventPriority](), 0
    published = handled = 0  # of CRITICAL
    come, wanted = asyncio.Event(), asyncio.Event()

    async def handle(event):
        nonlocal handled, deepest
        starts.append(event.priority)
        handled += event.priority == CRITICAL
        clock.now += step
        if len(starts) % 256 == 0:
            deepest = max(deepest, *bus._report()["lanes"][0]["depth"])
        if restless:
            await bus.publish("nobody")
        if published < STREAM and published - handled <= AHEAD:
            # At each start one of CRITICAL could go first.
            come.clear()
            wanted.set()
            await come.wait()

    bus = EventBus(path=path, clock=clock, durability="os", max_queue_size=window)
    bill = bus.subscribe("order", handle, name="bill")
    async with bus:
        bill.pause()
        filled, sizes = [], []
        for _ in range(2):
            before = Use.now()
            await publish(bus, count // 2, LOW)
            filled.append(Use.now() - before)
            sizes.append(size(path))
        await publish(bus, AHEAD, CRITICAL)
        published = AHEAD
        before = Use.now()
        bill.resume()
        while published < STREAM:
            await wanted.wait()
            wanted.clear()
            await publish(bus, 4 * AHEAD, CRITICAL)
            published += 4 * AHEAD
            come.set()
        streamed, stream, before = Use.now() - before, starts.copy(), Use.now()
        await bus.drain()
        drained = Use.now() - before
    assert (starts.count(LOW), starts.count(CRITICAL)) == (count, published)
    low = [-1, *(at for at, level in enumerate(stream) if level == LOW), len(stream)]
    gap = max(after - before for before, after in pairwise(low))
    return Flood(stream, gap, filled, sizes, streamed, drained, deepest, size(path))


def test_a_backlog_of_low_events_behind_a_stream_of_critical_ones(tmp_path):
    less = run(with_backlog(tmp_path / "less.bus", COUNT // 4), LIMIT)
    flood = run(with_backlog(tmp_path / "more.bus", COUNT), LIMIT)
    for it in (less, flood):
        print(f"LOW behind CRITICAL: {len(it.starts)=} {it.gap=} {it.deepest=} {it.filled=} {it.sizes=} {it.size=}")
        print(f"{it.streamed=} {it.drained=} {it.read_again=}")
    share = flood.starts.count(LOW) / len(flood.starts)
    assert share <= 1 / 16 + 1 / len(flood.starts), "at most one start of sixteen"
    assert flood.gap <= AGED + TURNS
    assert flood.deepest <= WINDOW
    # What a half of the backlog, and an event of the stream, cost, however many wait.
    assert max(use.memory for use in (*flood.filled, flood.streamed, flood.drained)) <= MEMORY
    first, second = flood.filled
    assert second.written <= 1.1 * first.written
    assert flood.sizes[1] <= 2.1 * flood.sizes[0]
    assert flood.streamed.written / len(flood.starts) <= 1.5 * less.streamed.written / len(less.starts)
    assert flood.read_again <= 3
    done("LOW events behind a stream of CRITICAL ones", COUNT)


def test_without_ageing_low_events_wait_for_the_end_of_the_stream(tmp_path):
    """The control: no time passes, so that no head comes of age."""
    flood = run(with_backlog(tmp_path / "low.bus", 1_000, step=0), LIMIT)
    assert flood.gap > AGED + TURNS
    assert flood.starts.count(LOW) == 0
    control()


def test_a_window_of_one_reads_the_file_again_and_again(tmp_path):
    """The control: the bytes that are read tell."""
    flood = run(with_backlog(tmp_path / "low.bus", 600, window=1, restless=True), LIMIT)
    assert flood.read_again > 3
    control()


# A subscription that never comes back --------------------------------------------------------------------------------

DAY = 86_400.0


@dataclass
class Absence:
    """What those who are there did meanwhile."""

    use: Use
    grown: int  # the file
    handled: int
    reasons: set[str]  # why health was not ok
    kept: list[int]  # events, before and after it was let go of
    pages: list[int]  # of the file, with each more that is handled after that


async def without(path: Path, names: tuple[str, ...], absent_ttl: float | None = DAY) -> Absence:
    """Those of the names come once; then "here" is alone with the events."""
    clock, handled = Clock(), 0

    async def handle(event):
        nonlocal handled
        handled += 1

    def fresh() -> EventBus:
        return EventBus(
            path=path, clock=clock, durability="os", retention=60, absent_ttl=absent_ttl, idempotency=Idempotency(ttl=1)
        )

    bus = fresh()
    for name in ("here", *names):
        bus.subscribe("*", handle, name=name)
    async with bus:
        pass
    bus = fresh()
    bus.subscribe("*", handle, name="here")

    async def keep() -> None:
        await bus._disk.run(bus._keep_journal)

    async with bus:
        await publish(bus, BATCH)
        await bus.drain()
        before, began, handled = Use.now(), size(path), 0
        await publish(bus, COUNT)
        await bus.drain()
        use, grown, in_time = Use.now() - before, size(path) - began, handled
        clock.now += 120
        await keep()
        codes = {reason.code for reason in bus.health().reasons}
        async with asyncio.timeout(30):
            # The thread of the journal brings what is known of it.
            while names and not codes:
                bus._journal_watch._next = 0.0
                await asyncio.sleep(0.001)
                codes = {reason.code for reason in bus.health().reasons}
        kept = [await count_of(bus, "event")]
        clock.now += DAY
        await keep()
        clock.now += 61
        await keep()
        kept.append(await count_of(bus, "event"))
        pages = []
        for _ in range(4):
            await publish(bus, COUNT // 4)
            await bus.drain()
            clock.now += 61
            await keep()
            ((count,),) = (await bus.query("SELECT page_count FROM pragma_page_count")).rows
            pages.append(count)
    return Absence(use, grown, in_time, codes, kept, pages)


def test_a_subscription_that_never_comes_back_is_not_felt(tmp_path):
    alone = run(without(tmp_path / "alone.bus", ()), LIMIT)
    missed = run(without(tmp_path / "missed.bus", ("gone",)), LIMIT)
    print(f"never comes back: {alone=} {missed=} {missed.grown / COUNT=}")
    assert missed.handled == alone.handled == COUNT, "nothing waits"
    # How many commits of settlements there are depends on the machine: one more for each batch, of few pages.
    assert missed.use.written <= 1.1 * alone.use.written + 3 * 4_120 * COUNT / BATCH
    assert missed.use.read <= 1.1 * alone.use.read + 100_000
    assert missed.use.memory <= MEMORY
    assert missed.grown <= 1.1 * alone.grown + 1_000_000, "the events, which are in the file once for all"
    assert (alone.reasons, missed.reasons) == (set(), {"subscription_absent"})
    assert missed.kept == [COUNT + BATCH, 0], "as long as it may come back"
    assert len(set(missed.pages)) == 1, "pages that became free are used again"
    done("events behind a subscription that never comes back", COUNT)


def test_one_that_is_never_let_go_of_keeps_all(tmp_path):
    """The control: then the file grows."""
    missed = run(without(tmp_path / "missed.bus", ("gone",), absent_ttl=None), LIMIT)
    assert missed.kept == [COUNT + BATCH, COUNT + BATCH]
    assert len(set(missed.pages)) == len(missed.pages)
    control()
