"""Effects of a process that is killed at random again and again.

A handler writes each effect into a database of its own, under the event's idempotency key; or leaves it in a
transaction of its delivery, without a key. Each key has its own publisher, which goes on after a kill with the
first event that was not acknowledged. In the end there is exactly one effect for each key of idempotency, in order for
each ordering key.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from ironbus import Event, EventBus
from torture import control, done, times

KEYS = 5

TABLE = "CREATE TABLE IF NOT EXISTS effects (at INTEGER PRIMARY KEY, once TEXT UNIQUE, key TEXT, number INTEGER)"

CHILD = (
    f"TABLE = {TABLE!r}"
    + """
import asyncio, os, sqlite3, sys
from ironbus import EventBus, RetryPolicy

path, effects, control = sys.argv[1:4]
firsts = [int(word) for word in sys.argv[4:]]

if control != "transaction":
    database = sqlite3.connect(effects, isolation_level=None)
    database.execute("PRAGMA synchronous = OFF")

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def handle(event):
    if control == "transaction":
        with event.delivery.transaction() as tx:
            tx.execute(TABLE)
            tx.execute("INSERT INTO effects (key, number) VALUES (?, ?)", (event.key, event.data["n"]))
            tx.publish("caused", {"n": event.data["n"]}, key=event.key)
        await asyncio.sleep(0)
        if event.data["n"] % 10 == 3 and event.delivery.attempt == 1:
            raise ConnectionError("what is in the transaction is not to happen")
        return
    insert = "INSERT" if control == "naive" else "INSERT OR IGNORE"
    once = None if control == "naive" else event.idempotency_key
    database.execute(
        insert + " INTO effects (once, key, number) VALUES (?, ?, ?)", (once, event.key, event.data["n"]))
    await asyncio.sleep(0)
    if event.data["n"] % 10 == 3 and event.delivery.attempt == 1:
        raise ConnectionError("the effect is there, and it is not known")

async def main():
    memory = control == "memory"
    bus = EventBus(max_queue_size=20) if memory else EventBus(path=path, durability="os", max_queue_size=20)
    # An event may be under way at any number of kills: none of them is its fault.
    retry = RetryPolicy(max_attempts=10_000, initial_delay=0.001, max_delay=0.001)
    bus.subscribe("e", handle, name="effect", retry=retry, retry_holds="key", concurrency=3)
    await bus.start()

    async def publisher(key, n):
        while True:
            receipt = await bus.publish("e", {"n": n}, idempotency_key=f"{key}/{n}", key=key, priority=int(key) % 2)
            say("ack", key, n)
            n += 1

    async with asyncio.TaskGroup() as group:
        for key, first in enumerate(firsts):
            group.create_task(publisher(str(key), first))

import logging
logging.getLogger("ironbus").setLevel(logging.CRITICAL)
asyncio.run(main())
"""
)


class World:
    """The files of the children, and what they have told."""

    def __init__(self, folder: Path, control: str = "") -> None:
        self.journal, self.control = folder / "x.bus", control
        self.effects = self.journal if control == "transaction" else folder / "effects"
        #: For each key how many events were acknowledged, which are those with the numbers below that.
        self.acknowledged = [0] * KEYS
        if control != "transaction":
            database = sqlite3.connect(self.effects)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(TABLE)
            database.close()

    def live(self, seconds: float) -> None:
        """One life: work for a while, then SIGKILL."""
        arguments = [os.fspath(self.journal), os.fspath(self.effects), self.control, *map(str, self.acknowledged)]
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stderr is not None
        timer = threading.Timer(seconds, child.send_signal, [signal.SIGKILL])
        started = False
        for line in child.stdout:
            if not started:
                started = True  # from its first word on
                timer.start()
            words = line.split()
            if line.endswith(b"\n") and words[0] == b"ack":
                key, number = int(words[1]), int(words[2])
                assert number == self.acknowledged[key]
                self.acknowledged[key] += 1
        timer.cancel()
        complaint = child.stderr.read().decode()
        child.stdout.close()
        child.stderr.close()
        assert child.wait() == -signal.SIGKILL, complaint

    async def finish(self) -> None:
        """The last life: what was not acknowledged once more, and then all that is left."""
        if self.control == "transaction":
            return await self.finish_in_transactions()
        database = sqlite3.connect(self.effects, isolation_level=None)

        async def handle(event):
            row = (event.idempotency_key, event.key, event.data["n"])
            database.execute("INSERT OR IGNORE INTO effects (once, key, number) VALUES (?, ?, ?)", row)

        await self.drain(handle)
        database.close()

    async def finish_in_transactions(self) -> None:
        """The same; and each effect has caused one event."""
        caused: Counter[tuple[str | None, int]] = Counter()

        async def handle(event):
            with event.delivery.transaction() as tx:
                tx.execute("INSERT INTO effects (key, number) VALUES (?, ?)", (event.key, event.data["n"]))
                tx.publish("caused", {"n": event.data["n"]}, key=event.key)

        await self.drain(handle)
        bus = EventBus(path=self.journal)
        bus.subscribe(
            "caused", lambda event: caused.update([(event.key, event.data["n"])]), name="count", since="start"
        )
        async with bus:
            await bus.drain(timeout=60)
        assert set(caused.values()) == {1}
        assert len(caused) == sum(self.acknowledged)

    async def drain(self, handle: Callable[[Event], Awaitable[None]]) -> None:
        """Publishes what is next for each key, and handles all that is left."""
        bus = EventBus(path=self.journal)
        bus.subscribe("e", handle, name="effect")
        async with bus:
            for key, number in enumerate(self.acknowledged):
                await bus.publish("e", {"n": number}, idempotency_key=f"{key}/{number}", key=str(key), priority=key % 2)
                self.acknowledged[key] += 1
            await bus.drain(timeout=60)
            assert bus.audit().balanced
            assert await bus.dead_letters.count() == 0

    def violations(self) -> list[str]:
        database = sqlite3.connect(self.effects)
        rows = database.execute("SELECT key, number FROM effects ORDER BY at").fetchall()
        database.close()
        found = []
        for key, count in enumerate(self.acknowledged):
            numbers = [number for own, number in rows if own == str(key)]
            often = Counter(numbers)
            found += [f"{key}/{n} has no effect" for n in range(count) if n not in often]
            found += [f"{key}/{n} has {many} effects" for n, many in often.items() if many > 1]
            found += [f"{key}/{n} was never published" for n in often if n >= count]
            if numbers != sorted(numbers):
                found.append(f"the effects of {key} are out of order")
        return found


@pytest.mark.parametrize("how", ["by idempotency key", "transaction"])
def test_effects_are_there_once_and_in_order_whatever_kills(tmp_path, how):
    seed = int(os.environ.get("IRONBUS_SEED", random.randrange(2**32)))
    print(f"IRONBUS_SEED={seed}")
    chance, world, kills = random.Random(seed), World(tmp_path, how), times(8, 100)
    for _ in range(kills):
        world.live(chance.uniform(0.01, 0.3))
    asyncio.run(world.finish())
    assert world.violations() == []
    assert sum(world.acknowledged) > kills, "the children did some work"
    done("kills", kills)
    done("acknowledged events", sum(world.acknowledged))


def test_effects_that_do_not_look_at_the_key_are_noticed(tmp_path):
    """A negative control: delivery is at least once, and a handler that does not say so writes twice."""
    world = World(tmp_path, "naive")
    for _ in range(2):
        world.live(0.2)
    asyncio.run(world.finish())
    assert any("2 effects" in each for each in world.violations())
    control()


def test_effects_of_a_bus_in_memory_are_missed(tmp_path):
    """A negative control: the same children without a journal."""
    world = World(tmp_path, "memory")
    for _ in range(3):
        world.live(0.1)
    asyncio.run(world.finish())
    assert any("no effect" in each for each in world.violations())
    control()
