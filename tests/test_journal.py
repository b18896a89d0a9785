"""``ironbus.journal``: events, replay, SQL and copies, beside whoever owns the file."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import stat
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ironbus import (
    Event,
    EventBus,
    EventPriority,
    InvalidHandler,
    InvalidOption,
    InvalidPattern,
    JournalInUse,
    StorageError,
    WrongLoop,
)
from ironbus._core import forget_subscription, journal_status, verify_journal
from ironbus.journal import PAGE, Journal, ReplayReport
from journals import COUNT, NOW, fill, stop, tamper, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.bus"


@pytest.fixture
def live(path: Path) -> Iterator[EventBus]:
    bus = write(path)
    yield bus
    stop(bus)


async def numbers(events: Any) -> list[int]:
    return [event.sequence async for event in events]


# Events ----------------------------------------------------------------------------


def test_events_come_in_order_whole_and_without_a_delivery(path: Path, live: EventBus) -> None:
    """All priorities by their numbers, as they were accepted."""
    events = list(Journal(path).events())
    assert [event.sequence for event in events] == list(range(1, COUNT + 1))
    third = events[2]
    assert (third.type, third.data, third.key, third.priority) == (
        "order.paid",
        {"n": 3, "password": "hunter2"},
        "k0",
        EventPriority.NORMAL,
    )
    assert (third.timestamp, dict(third.headers), third.source) == (NOW + 3, {"h": "hunter2"}, "pm_system")
    assert third.delivery is None
    assert events[3].priority is EventPriority.HIGH
    assert len({event.event_id for event in events}) == COUNT
    assert [event.event_id for event in Journal(path).events()] == [event.event_id for event in events]
    assert asyncio.run(numbers(Journal(path).events())) == list(range(1, COUNT + 1))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"since": 150}, range(150, 201)),
        ({"since": 0, "until": 4}, [1, 2, 3]),
        ({"since": "start", "until": 0}, []),
        ({"types": "order.sent", "until": 20}, [5, 10, 15]),
        ({"types": ["nothing", "*.sent"], "until": 20}, [5, 10, 15]),
        ({"key": "k1", "until": 9}, [1, 4, 7]),
        ({"key": "k1", "types": "order.sent", "since": 90}, [100, 115, 130, 145, 160, 175, 190]),
        ({"types": "order.paid", "limit": 2, "since": 5}, [6, 7]),
        ({"limit": PAGE + 1}, range(1, PAGE + 2)),
        ({"limit": 0}, []),
        ({"since": 201}, []),
        ({"key": "none"}, []),
    ],
)
def test_filters(path: Path, live: EventBus, wanted: dict[str, Any], expected: Any) -> None:
    """All that is given must fit."""
    assert [event.sequence for event in Journal(path).events(**wanted)] == list(expected)


def test_times_are_those_of_the_acceptance(path: Path, live: EventBus) -> None:
    """Those after a time and those before it are all of them."""
    journal = Journal(path)
    [(moment,)] = journal.query_sync("SELECT accepted FROM event WHERE sequence = 100").rows
    for given in (moment, datetime.fromtimestamp(moment, UTC)):  # whole microseconds: another moment
        seconds = given.timestamp() if isinstance(given, datetime) else given
        [(before,)] = journal.query_sync("SELECT count(*) FROM event WHERE accepted < ?", [seconds]).rows
        assert [event.sequence for event in journal.events(until=given)] == list(range(1, before + 1))
        assert [event.sequence for event in journal.events(since=given)] == list(range(before + 1, COUNT + 1))
    assert list(journal.events(since=moment + 1e6)) == list(journal.events(until=0.0)) == []


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"since": True}, "since"),
        ({"since": -1}, "since"),
        ({"since": float("nan")}, "since"),
        ({"since": datetime(2026, 1, 1)}, "since"),
        ({"until": "start"}, "until"),
        ({"key": 7}, "key"),
        ({"limit": -1}, "limit"),
        ({"limit": 1.5}, "limit"),
    ],
)
def test_filters_that_make_no_sense_are_refused_at_the_call(path: Path, wanted: dict[str, Any], field: str) -> None:
    """Before the file is looked at."""
    with pytest.raises(InvalidOption) as caught:
        Journal(path).events(**wanted)
    assert caught.value.field == field


def test_types_that_are_none_are_refused(path: Path) -> None:
    """An empty type would fit nothing, for ever."""
    with pytest.raises(InvalidPattern):
        Journal(path).events(types=[""])


def test_an_iteration_ends_with_what_was_there_when_it_began(path: Path, live: EventBus) -> None:
    """A bus that publishes faster than somebody reads must not keep that one for ever; the next one has it."""
    events = Journal(path).events(since=150)
    seen = []
    for event in events:
        seen.append(event.sequence)
        fill(live, 1, first=COUNT + len(seen))
    assert seen == list(range(150, 201))
    assert events.through == 200
    for event in events:
        if event.sequence == 170:
            break
    assert events.through == 170
    assert [event.sequence for event in Journal(path).events(since=198, limit=1)] == [198]
    limited = Journal(path).events(types="order.sent", limit=3)
    assert [event.sequence for event in limited] == [5, 10, 15]
    assert limited.through == 15
    rest = Journal(path).events(types="order.sent", until=20)
    assert len(list(rest)) == 3
    assert rest.through == 19
    nothing = Journal(path).events(since=1_000)
    assert list(nothing) == []
    assert nothing.through == 999
    assert len(list(events)) == 102


def test_a_blocking_iteration_is_refused_on_a_loop(path: Path, live: EventBus) -> None:
    """It would keep everything on the loop waiting for the disk."""

    async def main() -> None:
        journal = Journal(path)
        with pytest.raises(WrongLoop, match="async for"):
            list(journal.events())
        with pytest.raises(WrongLoop, match=r"await replay\(\)"):
            journal.replay_sync(print)
        with pytest.raises(WrongLoop, match=r"await query\(\)"):
            journal.query_sync("SELECT 1")
        with pytest.raises(WrongLoop, match=r"await backup\(\)"):
            journal.backup_sync("copy.bus")

    asyncio.run(main())


def test_an_iteration_can_be_left_early(path: Path, live: EventBus) -> None:
    """The file is let go of, and no thread stays busy with it."""

    async def main() -> None:
        journal = Journal(path)
        for _ in range(50):
            async for event in journal.events():
                if event.sequence == 3:
                    break
        assert len(await numbers(journal.events())) == COUNT

    before = descriptors()
    asyncio.run(main())
    gc.collect()
    # SQLite keeps the descriptor of one that was closed while another is at work.
    assert descriptors() <= before + 3
    assert "ironbus-journal-reader" not in [thread.name for thread in threading.enumerate()]


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def test_memory_is_bounded_by_the_page(path: Path) -> None:
    """A year of events is read with the memory of a page; the control keeps them all."""
    with EventBus(path=path, durability="os") as bus:
        bus.sync.publish_many([("t", "x" * 10_000)] * 1_000)

    def peak(work: Any) -> int:
        tracemalloc.start()
        work()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    journal = Journal(path)

    def walk() -> None:
        for _ in journal.events():
            pass

    assert peak(walk) < 3 * PAGE * 10_000
    assert peak(lambda: list(journal.events())) > 1_000 * 10_000


def test_damage_is_left_out_counted_and_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a flipped bit nor a lost row is passed off as an event, and the rest comes."""
    stop(write(path))
    tamper(path, "UPDATE event SET data = '{\"n\": 0}' WHERE sequence = 6")
    tamper(path, "DELETE FROM event WHERE sequence = 10")
    events = Journal(path).events()
    with caplog.at_level(logging.ERROR, "ironbus"):
        seen = [event.sequence for event in events]
    assert seen == [n for n in range(1, COUNT + 1) if n not in (6, 10)]
    assert events.damaged == 2
    assert "event 6 is damaged" in caplog.text
    assert "events of priority NORMAL after 9 up to 10 are missing" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_file_that_is_none_is_told(path: Path, tmp_path: Path) -> None:
    """Clearly, and nothing is made."""
    with pytest.raises(StorageError, match="there is no such file"):
        list(Journal(path).events())
    path.write_text("text " * 200)
    with pytest.raises(StorageError, match="is not a SQLite database"):
        asyncio.run(numbers(Journal(path).events()))
    with pytest.raises(StorageError, match="is not a SQLite database"):
        journal_status(path)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InvalidOption, match="path"):
        Journal(7)  # type: ignore[arg-type]


# Replay ----------------------------------------------------------------------------


def test_a_replay_calls_sync_and_async_handlers_in_order(path: Path, live: EventBus) -> None:
    """One after the other; subscriptions and dead letters stay as they are."""
    before = journal_status(path)["subscriptions"]
    seen: list[int | None] = []
    overlapping = 0

    async def later(event: Event[Any]) -> None:
        nonlocal overlapping
        overlapping += 1
        assert overlapping == 1
        await asyncio.sleep(0)
        overlapping -= 1
        seen.append(event.sequence)

    def now(event: Event[Any]) -> None:
        seen.append(event.sequence)

    async def main() -> None:
        for handler in (later, now):
            seen.clear()
            report = await Journal(path).replay(handler, types="order.sent", until=100)
            assert report == ReplayReport(replayed=19, failed=0, last=95, damaged=0)
            assert seen == list(range(5, 100, 5))

    asyncio.run(main())
    seen.clear()
    assert Journal(path).replay_sync(now, limit=3).replayed == 3
    assert seen == [1, 2, 3]
    assert journal_status(path)["subscriptions"] == before


@pytest.mark.parametrize("kind", ["async", "sync", "blocking"])
def test_a_failure_ends_the_replay_or_is_counted(
    path: Path, live: EventBus, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """What the handler raised comes out as it is, and the note says where to go on."""
    error = ValueError("hunter2")

    def now(event: Event[Any]) -> None:
        if event.sequence == 7:
            raise error

    async def later(event: Event[Any]) -> None:
        now(event)

    def replay(**options: Any) -> ReplayReport:
        if kind == "blocking":
            return Journal(path).replay_sync(now, **options)
        return asyncio.run(Journal(path).replay(later if kind == "async" else now, **options))

    with pytest.raises(ValueError, match="hunter2") as caught:
        replay()
    assert caught.value is error
    assert error.__notes__ == ["the replay stopped at event 7; go on with since=7"]
    assert replay(on_error="skip") == ReplayReport(replayed=COUNT - 1, failed=1, last=COUNT, damaged=0)
    assert "failed on event 7 of type 'order.paid'" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_replay_that_is_cancelled_stops(path: Path, live: EventBus) -> None:
    """The handler that runs goes on to its end, and no further one begins."""
    seen: list[int | None] = []
    inside, go_on = threading.Event(), threading.Event()

    def slow(event: Event[Any]) -> None:
        seen.append(event.sequence)
        inside.set()
        go_on.wait(10)

    async def main() -> None:
        work = asyncio.ensure_future(Journal(path).replay(slow))
        await asyncio.to_thread(inside.wait, 10)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        go_on.set()

    asyncio.run(main())
    assert seen == [1]


def test_handlers_that_cannot_be_called_are_refused(path: Path, live: EventBus) -> None:
    """Before the first event."""

    async def later(event: Event[Any]) -> None: ...

    journal = Journal(path)
    for wrong in (7, lambda: None, lambda a, b: None):
        with pytest.raises(InvalidHandler):
            asyncio.run(journal.replay(wrong))  # type: ignore[arg-type]
    with pytest.raises(InvalidHandler, match="something to await"):
        journal.replay_sync(lambda event: later(event))
    with pytest.raises(InvalidOption, match="await replay"):
        journal.replay_sync(later)
    with pytest.raises(InvalidOption, match="on_error"):
        journal.replay_sync(print, on_error="stop")  # type: ignore[arg-type]


# SQL and copies --------------------------------------------------------------------


def test_questions_in_sql(path: Path, live: EventBus) -> None:
    """The views are for people; values go in as parameters, and nothing can be changed."""
    journal = Journal(path)
    answer = journal.query_sync("SELECT subscription, waiting FROM backlog")
    assert answer.columns == ("subscription", "waiting")
    assert list(answer) == [("bill", COUNT - 26), ("ship", 40)]
    values = (None, 7, 1.5, "text", b"bytes", True)
    assert journal.query_sync("SELECT ?, ?, ?, ?, ?, ?", values).rows == [(None, 7, 1.5, "text", b"bytes", 1)]
    cut = asyncio.run(journal.query("SELECT sequence FROM event", limit=3))
    assert (len(cut), cut.cut) == (3, True)
    for sql in ("DELETE FROM event", "DROP TABLE event", "CREATE TABLE t (x)", "PRAGMA user_version = 7", "nonsense"):
        with pytest.raises(StorageError, match="SQLite error"):
            journal.query_sync(sql)
    with pytest.raises(InvalidOption) as caught:
        journal.query_sync("SELECT ?", [object()])
    assert caught.value.field == "parameters[0]"
    with pytest.raises(InvalidOption):
        journal.query_sync("SELECT ?", "text")
    with pytest.raises(InvalidOption):
        journal.query_sync(7)  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        journal.query_sync("SELECT ?", [])
    assert len(list(journal.events())) == COUNT


def test_a_copy_is_private_whole_and_of_one_moment(path: Path, live: EventBus, tmp_path: Path) -> None:
    """While the bus goes on."""
    copy = tmp_path / "copy.bus"
    asyncio.run(Journal(path).backup(copy))
    fill(live, 5, first=COUNT + 1)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert verify_journal(copy)["clean"]
    assert len(list(Journal(copy).events())) == COUNT
    with pytest.raises(StorageError, match="is there already"):
        Journal(path).backup_sync(copy)
    with pytest.raises(StorageError, match="folder does not exist"):
        Journal(path).backup_sync(tmp_path / "nowhere" / "copy.bus")
    with pytest.raises(InvalidOption):
        Journal(path).backup_sync(7)  # type: ignore[arg-type]


def test_a_subscription_is_forgotten_where_nobody_has_the_journal(path: Path, live: EventBus) -> None:
    """Its backlog goes with it; the others stay."""
    with pytest.raises(JournalInUse, match=f"process {os.getpid()}"):
        forget_subscription(path, "ship")
    stop(live)
    assert forget_subscription(path, "ship")
    assert not forget_subscription(path, "ship")
    assert [each["name"] for each in journal_status(path)["subscriptions"]] == ["bill"]
    assert verify_journal(path)["clean"]
    with pytest.raises(StorageError, match="no such file"):
        forget_subscription(path.with_name("missing"), "ship")
