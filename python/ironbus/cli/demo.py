"""``ironbus demo``: a sample log of a shop through handlers of every kind.

One handler is slow and one fails for good, so that one sees what the bus makes
of them: the others are not held up, and the failures stand in the ledger. This is the
first act, in memory; the second one, in ``demo_crash``, kills a durable worker.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files

from ironbus import Event, EventBus, EventPriority
from ironbus.cli.lines import Fields, Item, parse
from ironbus.report import Latency, Ledger

FIELDS = Fields(key="key", priority="priority")
SLOW = 0.002  # seconds that the slow handler takes for each event
TOPICS = {"billing": "order.paid", "warehouse": "*", "mailer": "payment.failed", "audit": "*", "stock": "stock.low"}
FAILING = "mailer"
TICK = 0.05  # seconds between two reports of progress


class MailServerDown(Exception):
    """What the handler that fails on purpose raises."""


@dataclass(frozen=True, slots=True)
class DemoReport:
    """How the demonstration went."""

    read: int
    duplicates: int
    deliveries: int
    announced_failures: int  # deliveries to the handler that was said to fail
    seconds: float
    slow_waits: Mapping[str, float]  # mean seconds that an event waited for the slow handler, by priority
    latency: Mapping[str, Latency]  # from acceptance to the handler's start, by subscription
    ledger: Ledger

    @property
    def as_announced(self) -> bool:
        """Whether the ledger balances, nothing was lost, and just the announced failures are dead."""
        lanes = self.ledger.subscriptions
        return (
            self.ledger.balanced
            and all(lane.routed == lane.done + lane.dead for lane in lanes.values())
            and all(lane.dead == (lane.routed if name == FAILING else 0) for name, lane in lanes.items())
        )


def sample() -> list[Item]:
    """The events that the package ships."""
    log = files("ironbus.cli").joinpath("sample.jsonl").read_bytes()
    return [parse(line, FIELDS) for line in log.splitlines()]


class Shop:
    """The handlers, and the little that they note."""

    def __init__(self) -> None:
        self.waits: dict[str, list[float]] = defaultdict(list)
        self.counting = threading.Lock()
        self.audited = 0

    async def billing(self, event: Event) -> None:
        """Asynchronous: books a payment, with a turn of the loop in between."""
        await asyncio.sleep(0)

    async def warehouse(self, event: Event) -> None:
        """Slow: takes its time for each event of an order, one after another."""
        self.waits[EventPriority(event.priority).name].append(time.time() - event.timestamp)
        await asyncio.sleep(SLOW)

    async def mailer(self, event: Event) -> None:
        """Fails each time, as announced."""
        raise MailServerDown

    def audit(self, event: Event) -> None:
        """Synchronous, so it runs on one of the bus's threads."""
        with self.counting:
            self.audited += 1

    def stock(self, event: Event) -> None:
        """Synchronous too, and of its own lane."""


async def demo(progress: Callable[[Ledger], None]) -> DemoReport:
    """Runs the sample log; ``progress`` gets the ledger now and then."""
    items, shop = sample(), Shop()
    bus = EventBus(idempotency="content")
    for name, topic in TOPICS.items():
        bus.subscribe(topic, getattr(shop, name), name=name)
    async with bus:
        start = time.perf_counter()
        await bus.publish_many(items)
        settled = asyncio.ensure_future(bus.drain())
        while not settled.done():
            progress(bus.audit())
            await asyncio.wait([settled], timeout=TICK)
        await settled
        seconds = time.perf_counter() - start
        metrics = bus.metrics()
        progress(metrics.ledger)
    waits = {p.name: shop.waits[p.name] for p in EventPriority if shop.waits[p.name]}
    return DemoReport(
        read=len(items),
        duplicates=metrics.ledger.duplicate,
        deliveries=sum(lane.routed for lane in metrics.ledger.subscriptions.values()),
        announced_failures=metrics.ledger.subscriptions[FAILING].dead,
        seconds=seconds,
        slow_waits={name: sum(values) / len(values) for name, values in waits.items()},
        latency={name: statistics.wait for name, statistics in metrics.subscriptions.items()},
        ledger=metrics.ledger,
    )


__all__ = ["FAILING", "TOPICS", "DemoReport", "Shop", "demo", "sample"]
