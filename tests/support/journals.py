"""Journals for tests of what reads them, written by a bus that may go on."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from ironbus import Event, EventBus, EventPriority

NOW = 1_700_000_000.0  # the timestamps; the time of acceptance is the machine's
COUNT = 200
HANDLED = 26  # by "bill", of which the first failed for good


def fill(bus: EventBus, count: int, first: int) -> None:
    """Events one second apart: each fourth is HIGH, each fifth ``order.sent``, keys k0 to k2 in turn."""
    for n in range(first, first + count):
        bus.sync.publish(
            Event("order.sent" if n % 5 == 0 else "order.paid", {"n": n, "password": "hunter2"}, timestamp=NOW + n),
            priority=EventPriority.HIGH if n % 4 == 0 else EventPriority.NORMAL,
            key=f"k{n % 3}",
            headers={"h": "hunter2"} if n == 3 else None,
        )


def bill(event: Event[Any]) -> None:
    if event.data["n"] == 1:
        raise ValueError("hunter2")


def ship(event: Event[Any]) -> None:
    """It is paused, and gets none."""


def write(path: Path) -> EventBus:
    """A journal with two subscriptions, one of which is through with some, and a dead letter; its bus has it still."""
    bus = EventBus(path=path, durability="os")
    billing = bus.subscribe("order.*", bill, name="bill")
    # Before the start, so that it gets none before it is paused.
    bus.subscribe("order.sent", ship, name="ship", since="start").pause()
    bus.sync.start()
    fill(bus, HANDLED, 1)
    # A drain would wait for the other, too.
    while (lane := bus.audit().subscriptions["bill"]).done + lane.dead < HANDLED:
        pass
    billing.pause()
    # With the first of these goes what "bill" has settled.
    fill(bus, COUNT - HANDLED, HANDLED + 1)
    return bus


def stop(bus: EventBus) -> None:
    """In order, and at once: what is paused is never done."""
    bus.sync.stop(timeout=0)


def tamper(path: Path, sql: str) -> None:
    """Changes a row behind the back of everybody, of a journal that nobody has."""
    raw = sqlite3.connect(path)
    with raw:
        raw.execute(sql)
    raw.close()
