"""What README says of a journal's tables and views, and that who reads them holds nobody up."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ironbus import Event, EventBus, EventPriority, RetryPolicy
from ironbus._core import verify_journal
from ironbus.journal import Journal
from running import run

README = Path(__file__).resolve().parent.parent / "README.md"
ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)
NAME = re.compile(r"`(\w+)`")
BATCH = 4 << 20  # bytes of payload
BATCHES = 5  # more than the 16 MiB of log after which it is brought into the file
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")

# Begins a transaction at the start and ends it when it is told so; says each time how many events it sees.
READER = """
import sqlite3, sys

reader = sqlite3.connect(sys.argv[1], uri=True, isolation_level=None)
def look():
    print(*reader.execute("SELECT count(*) FROM events").fetchone(), flush=True)

reader.execute("BEGIN")
look()
for word in sys.stdin:
    if word == "end\\n":
        reader.execute("COMMIT")
    look()
reader.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.bus"


def section() -> str:
    return README.read_text(encoding="utf-8").split("\n### The file\n")[1].split("\n### ")[0]


def views() -> dict[str, list[str]]:
    """The views that README describes, and their columns."""
    # A cell is like "`a`, `b`: of both; `c`: of one".
    return {
        view: [name for part in cell.split("; ") for name in NAME.findall(part.split(":")[0])]
        for view, cell in ROW.findall(section())
    }


def objects(path: Path, kind: str) -> set[str]:
    asked = "SELECT name FROM sqlite_schema WHERE type = ? AND name NOT LIKE 'sqlite_%'"
    return {name for (name,) in Journal(path).query_sync(asked, [kind])}


def one(path: Path, view: str, condition: str) -> dict[str, Any]:
    """The only such row of a view, each column of it asked for by its name in README."""
    answer = Journal(path).query_sync(f"SELECT {', '.join(views()[view])} FROM {view} WHERE {condition}")
    [row] = answer.rows
    return dict(zip(answer.columns, row, strict=True))


@contextmanager
def reader(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that reads the file, without a right to write in it."""
    command = [sys.executable, "-c", READER, f"{path.absolute().as_uri()}?mode=ro"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def seen(reader: subprocess.Popen[str], word: str = "") -> int:
    """How many events it sees; the first time, or when it has done what it is told."""
    assert reader.stdin is not None
    assert reader.stdout is not None
    if word:
        reader.stdin.write(f"{word}\n")
        reader.stdin.flush()
    return int(await asyncio.to_thread(reader.stdout.readline))


def log(path: Path) -> int:
    """Bytes of the log beside the file; none once it is put away."""
    beside = path.with_name(path.name + "-wal")
    return beside.stat().st_size if beside.exists() else 0


async def publish(bus: EventBus, batches: int) -> list[str]:
    """How durable each batch was when it was accepted."""
    found = []
    for _ in range(batches):
        batch = await bus.publish_many([("a", "x" * (BATCH // 16)) for _ in range(16)])
        found += [receipt.durability for receipt in batch.receipts]
    return found


def test_readme_names_all_there_is(path: Path) -> None:
    """Each view with all its columns in their order, and each table."""
    with EventBus(path=path):
        assert set(views()) == objects(path, "view")
        for view, columns in views().items():
            assert Journal(path).query_sync(f"SELECT * FROM {view}").columns == tuple(columns)
        tables = objects(path, "table")
        letters = {name for name in tables if name.startswith("dead_letter")}
        [text] = re.findall(r"All tables are internal \(([^)]+)\)", section())
        assert letters
        assert set(NAME.findall(text)) == tables - letters | {"dead_letter"}


def test_handlers_cannot_touch_what_readme_calls_internal(path: Path) -> None:
    """Nor the views; a table of their own they can."""

    def drop(event: Event[Any]) -> None:
        with event.delivery.transaction() as tx:  # type: ignore[union-attr]
            tx.execute(event.data)

    def all_of() -> set[tuple[str, str]]:
        return {(kind, name) for kind in ("table", "view") for name in objects(path, kind)}

    bus = EventBus(path=path, durability="os")
    bus.subscribe("sql", drop, name="drop")
    with bus:
        own, mine = all_of(), ("table", "mine")
        bus.sync.publish("sql", "CREATE TABLE mine (x)")
        bus.sync.drain()
        assert all_of() == own | {mine}
        for kind, name in [*own, mine]:
            bus.sync.publish("sql", f"DROP {kind} {name}")
        bus.sync.drain()
        assert all_of() == own
        assert bus.sync.dead_letters.count() == len(own) > 10


def test_the_views_say_what_readme_says(path: Path) -> None:
    """Of a dead letter, a delivery that comes back, and what nobody has come to."""

    def bill(event: Event[Any]) -> None:
        raise ValueError("no funds")

    async def main() -> None:
        bus = EventBus(path=path)
        bus.subscribe("a", bill, name="bill")
        async with bus:
            await bus.publish("a", {"n": 1}, key="anna", priority=EventPriority.HIGH, idempotency_key="once")
            await bus.drain()
        failed = asyncio.Event()

        async def ship(event: Event[Any]) -> None:
            failed.set()
            raise KeyError

        bus = EventBus(path=path)
        bus.subscribe("a", ship, name="ship", since="start", retry=RetryPolicy(initial_delay=60, jitter=False))
        async with bus:
            await bus.drop_subscription("bill")
            await failed.wait()
            await bus.publish("b", 2)
            await bus.stop(timeout=0)

    run(main())
    found = {view: one(path, view, "sequence = 1" if view == "events" else "true") for view in views()}
    times = {
        (view, name): row.pop(name)
        for view, row in found.items()
        for name in ("accepted", "first_failure", "last_failure", "seen", "due")
        if name in row
    }
    assert len(times) == 7
    assert all(TIME.fullmatch(time) for time in times.values())
    assert times["events", "accepted"] <= times["dead_letters", "last_failure"] < times["stragglers", "due"]
    letter, cause = found["dead_letters"], found["failures"]
    assert letter.pop("fingerprint") == cause.pop("fingerprint")
    assert letter.pop("id")
    who = {"subscription": "bill", "exception_type": "ValueError"}
    data = '{"n": 1}'
    event = {"sequence": 1, "priority": "HIGH", "type": "a", "key": "anna"}
    assert letter == who | {"type": "a", "attempts": 1, "message": "no funds", "data": data}
    assert cause == who | {"dead_letters": 1}
    assert found["events"] == event | {"idempotency_key": "once", "data": data}
    assert found["stragglers"] == event | {"subscription": "ship", "state": "retry", "attempt": 1}
    assert found["backlog"].pop("position") in {0, 1, 2}  # levels without events follow later
    assert found["backlog"] == {"subscription": "ship", "waiting": 0, "stragglers": 1}


def test_a_reader_in_another_process_holds_nobody_up(path: Path) -> None:
    """However long its transaction lasts, it sees what it saw first, and the log is begun anew after it."""
    handled: list[int | None] = []

    async def main() -> None:
        bus = EventBus(path=path)
        bus.subscribe("a", lambda event: handled.append(event.sequence), name="bill")
        async with bus:
            durable = await publish(bus, 1)
            with reader(path) as other:
                before = await seen(other)
                durable += await publish(bus, BATCHES)
                await bus.drain()
                assert handled == list(range(1, len(durable) + 1))
                assert await seen(other, "look") == before == 16
                # Nothing could be brought into the file that the reader does not see.
                held = log(path)
                assert held > BATCHES * BATCH > path.stat().st_size
                assert await seen(other, "end") == len(durable)
                durable += await publish(bus, 2 * BATCHES)
                await bus.drain()
                # With the log going on where it was, that would be three times as much.
                assert log(path) < 2.5 * held
                assert other.poll() is None
            assert set(durable) == {"fsync"}
            assert bus.audit().balanced
        assert handled == list(range(1, len(durable) + 1))

    run(main())
    assert log(path) == 0
    assert verify_journal(path)["clean"]


def test_a_bus_stops_under_a_reader(path: Path) -> None:
    """The log that the reader is in stays, and the next bus goes on with it."""

    async def main() -> None:
        async with EventBus(path=path) as bus:
            await bus.publish("a", 1)
        with reader(path) as other:
            assert await seen(other) == 1
            async with EventBus(path=path) as bus:
                await bus.publish("a", 2)
            assert await seen(other, "look") == 1
            async with EventBus(path=path) as bus:
                assert [event.data async for event in bus.events()] == [1, 2]
                await bus.publish("a", 3)
            assert await seen(other, "end") == 3
        async with EventBus(path=path):
            pass

    run(main())
    assert log(path) == 0
    assert verify_journal(path)["clean"]
