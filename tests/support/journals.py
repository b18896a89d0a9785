"""Journals for tests of what reads them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from ironbus import EventPriority
from ironbus._core import JournalScribe

NOW = 1_700_000_000.0
COUNT = 200


def fill(scribe: JournalScribe, count: int = COUNT, first: int = 1) -> None:
    """Events one second apart: each fourth is HIGH, each fifth ``order.sent``, keys k0 to k2 in turn."""
    for n in range(first, first + count):
        scribe.publish(
            "order.sent" if n % 5 == 0 else "order.paid",
            json.dumps({"n": n, "password": "hunter2"}),
            NOW + n,
            priority=EventPriority.HIGH if n % 4 == 0 else EventPriority.NORMAL,
            key=f"k{n % 3}",
            headers='{"h": "hunter2"}' if n == 3 else None,
        )


def write(path: Path) -> JournalScribe:
    """A journal with two subscriptions, one of which is through with some; still owned."""
    scribe = JournalScribe(path)
    scribe.subscribe("bill", ["order.*"])
    scribe.subscribe("ship", ["order.sent"])
    fill(scribe)
    scribe.settle("bill", EventPriority.NORMAL, 20)
    scribe.dead_letter("letter-1", "bill")
    return scribe


def tamper(path: Path, sql: str) -> None:
    """Changes a row behind the back of everybody, of a journal that nobody has."""
    raw = sqlite3.connect(path)
    with raw:
        raw.execute(sql)
    raw.close()
