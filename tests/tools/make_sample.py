"""Writes the log that ``ironbus demo`` runs: the same bytes each time.

python tests/tools/make_sample.py > python/ironbus/cli/sample.jsonl
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

ORDERS = 72
PRODUCTS = {"keyboard": 4900, "monitor": 18900, "mouse": 1900, "dock": 12900, "webcam": 5900}  # prices in cents


def order(number: int, rng: random.Random) -> list[dict[str, object]]:
    """The events of one order, in the order in which they happen."""
    key = f"order-{number:03d}"
    product = rng.choice(sorted(PRODUCTS))
    quantity = rng.randint(1, 3)
    total = PRODUCTS[product] * quantity

    def event(kind: str, priority: str, **data: object) -> dict[str, object]:
        return {"type": kind, "key": key, "priority": priority, "data": {"order": number, **data}}

    events = [event("order.placed", "NORMAL", product=product, quantity=quantity, cents=total)]
    events.append(event("audit.logged", "LOW", action="placed", by=f"customer-{rng.randint(1, 20):02d}"))
    if rng.random() < 0.15:
        events.append(event("payment.failed", "CRITICAL", cents=total, reason=rng.choice(["declined", "expired"])))
        if rng.random() < 0.6:
            return [*events, event("order.cancelled", "HIGH", refund=0)]
    events.append(event("order.paid", "HIGH", cents=total, method=rng.choice(["card", "transfer"])))
    if rng.random() < 0.2:
        events.append(event("stock.low", "CRITICAL", product=product, left=rng.randint(0, 4)))
    if rng.random() < 0.1:
        events.append(event("order.cancelled", "HIGH", refund=total))
    else:
        events.append(event("order.shipped", "NORMAL", parcels=quantity))
    return events


def sample() -> Iterator[dict[str, object]]:
    """All orders interleaved, each order's own events in sequence, with a few lines sent twice."""
    rng = random.Random(20240229)
    waiting = [order(number, rng) for number in range(1, ORDERS + 1)]
    running: list[list[dict[str, object]]] = []
    while waiting or running:
        while waiting and len(running) < 8:
            running.append(waiting.pop(0))
        chosen = rng.choice(running)
        event = chosen.pop(0)
        yield event
        if rng.random() < 0.04:
            yield event  # a shop that did not hear the answer sends again
        running = [events for events in running if events]


if __name__ == "__main__":
    for line in sample():
        print(json.dumps(line))
