"""A file that may not grow any more under deliveries with transactions.

The effect of a delivery, the event that it publishes and its settlement are one: after a restart each is
there once, whatever of it was refused, unknown or read-only before.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ironbus import Event, EventBus
from ironbus._core import verify_journal
from torture import control, done, times

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the size of files")

EVENTS = 60
FILL = "x" * 1500

# The first life of the bus. With "apart", an effect is a commit of its own in another file: the control.
CHILD = """
import asyncio, json, logging, resource, sqlite3, sys
from ironbus import EventBus, StorageError

path, limit, how, events, fill = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]
other = sqlite3.connect(path + ".other", isolation_level=None)

async def main():
    loop, go, over, told = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event(), []

    def hear(record):
        told.append(record.getMessage())
        loop.call_soon_threadsafe(over.set)
        return False

    async def handle(event):
        await go.wait()
        n = event.data["n"]
        with event.delivery.transaction() as tx:
            if how == "apart":
                other.execute("INSERT INTO effect VALUES (?, ?)", (n, ""))
            else:
                tx.execute("INSERT INTO effect VALUES (?, ?)", (n, fill))
            tx.publish("child", {"n": n, "fill": fill}, idempotency_key=f"child of {n}")
        if n == events - 1:
            over.set()

    logging.getLogger("ironbus").addFilter(hear)
    bus = EventBus(path=path)
    bus.subscribe("e", handle, name="h", since="start")
    await bus.start()
    if limit:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    go.set()
    await over.wait()
    if not told:
        await bus.drain()
    ledger, balanced, then = bus.metrics().subscriptions["h"].ledger, bus.audit().balanced, "accepted"
    said = list(told)  # those of the end are others
    try:
        await bus.publish("other", {"fill": fill * 100})
    except StorageError as error:
        then = type(error).__name__
    try:
        await bus.stop(timeout=5)
    except StorageError:
        pass  # what it could not write at its end is not settled
    print(json.dumps(
        {"done": ledger.done, "dead": ledger.dead, "balanced": balanced, "said": said, "then": then}))

asyncio.run(main())
"""


def first_life(path: Path, limit: int, how: str) -> dict[str, Any]:
    async def publish() -> None:
        async with EventBus(path=path) as bus:
            await bus.publish_many([("e", {"n": n}) for n in range(EVENTS)])

    asyncio.run(publish())
    for file in (path, path.with_name(path.name + ".other")):
        database = sqlite3.connect(file)
        database.execute("CREATE TABLE effect (n INTEGER, fill TEXT)")
        database.close()
    arguments = [sys.executable, "-c", CHILD, os.fspath(path), str(limit), how, str(EVENTS), FILL]
    child = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
    assert child.returncode == 0, child.stderr
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def numbers(path: Path, sql: str) -> Counter[int]:
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return Counter(n for (n,) in database.execute(sql))
    finally:
        database.close()


def effects(path: Path) -> Counter[int]:
    return numbers(path, "SELECT n FROM effect")


def children(path: Path) -> Counter[int]:
    return numbers(path, "SELECT json_extract(data, '$.n') FROM events WHERE type = 'child'")


def second_life(path: Path, how: str) -> None:
    """The same with room; what was not settled is delivered again."""
    other = sqlite3.connect(path.with_name(path.name + ".other"), isolation_level=None)

    async def handle(event: Event[Any]) -> None:
        n = event.data["n"]
        with event.delivery.transaction() as tx:  # type: ignore[union-attr]
            if how == "apart":
                other.execute("INSERT INTO effect VALUES (?, ?)", (n, ""))
            else:
                tx.execute("INSERT INTO effect VALUES (?, ?)", (n, FILL))
            tx.publish("child", {"n": n, "fill": FILL}, idempotency_key=f"child of {n}")

    async def main() -> None:
        bus = EventBus(path=path)
        bus.subscribe("e", handle, name="h", since="start")
        async with bus:
            await bus.drain(timeout=60)
            assert bus.audit().balanced
            assert await bus.dead_letters.count() == 0

    asyncio.run(main())
    other.close()


ONCE = Counter(range(EVENTS))


@pytest.mark.parametrize("limit", times([110_000, 250_000], range(60_000, 500_000, 23_456)))
def test_a_delivery_has_its_effect_once_though_the_file_cannot_grow(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "x.bus"
    told = first_life(path, limit, "one")
    assert told["balanced"]
    assert told["dead"] == 0, "it is not the fault of a delivery"
    assert told["said"], "at some time there was no room"
    assert all("what its handler left was not written" in text for text in told["said"])
    # What the bus said is so, and nothing is half there.
    there = effects(path)
    assert EVENTS > told["done"] > 0
    assert set(there) >= set(range(told["done"]))
    assert there == children(path)
    unknown = any("unknown" in text for text in told["said"])
    assert told["then"] == ("JournalReadOnly" if unknown else "StorageError")
    second_life(path, "one")
    assert effects(path) == children(path) == ONCE
    assert verify_journal(path)["clean"]
    done("transactions over a file that could not grow", EVENTS)


def test_with_room_nothing_is_refused(tmp_path: Path) -> None:
    """The negative control: it was the limit."""
    path = tmp_path / "x.bus"
    told = first_life(path, 0, "one")
    assert (told["done"], told["said"], told["then"]) == (EVENTS, [], "accepted")
    assert effects(path) == children(path) == ONCE
    control()


def test_an_effect_apart_from_its_settlement_is_there_twice(tmp_path: Path) -> None:
    """The negative control: it was the transaction."""
    path = tmp_path / "x.bus"
    told = first_life(path, 110_000, "apart")
    assert told["said"]
    second_life(path, "apart")
    assert children(path) == ONCE
    assert effects(path.with_name("x.bus.other")) > ONCE
    control()
