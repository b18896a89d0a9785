"""Retries inside the bus: attempts, order, what waits meanwhile, and what a handler may say."""

from __future__ import annotations

import asyncio

import pytest
from ironbus import (
    EventBus,
    RetryPolicy,
    current_delivery,
)
from recovering import Clock, advance, still

PLAIN = RetryPolicy(max_attempts=3, initial_delay=10, jitter=False)


def run(main, limit=60):
    async def limited():
        async with asyncio.timeout(limit):
            return await main

    with asyncio.Runner() as runner:
        return runner.run(limited())


class Failing:
    """A handler that notes each call, and fails those that it was told to."""

    def __init__(self, fails=None, error=ConnectionError):
        self.fails = dict(fails or {})
        self.error = error
        self.calls = []
        self.done = []

    def call(self, event):
        name = event.data["name"]
        self.calls.append((name, current_delivery().attempt))
        if self.fails.get(name, 0) > 0:
            self.fails[name] -= 1
            raise self.error() if isinstance(self.error, type) else self.error
        self.done.append(name)

    async def async_handler(self, event):
        self.call(event)

    async def suspending_handler(self, event):
        await asyncio.sleep(0)
        self.call(event)

    def sync_handler(self, event):
        self.call(event)


KINDS = ["async_handler", "suspending_handler", "sync_handler"]


@pytest.mark.parametrize("kind", KINDS)
def test_three_attempts_one_effect_order_intact(kind):
    """A handler that fails twice and then succeeds holds what comes after it, and nothing happens twice."""

    async def main():
        clock, failing = Clock(), Failing({"a": 2})
        bus = EventBus(clock=clock)
        bus.subscribe("t", getattr(failing, kind), name="s", retry=PLAIN)
        async with bus:
            for name in "abc":
                await bus.publish("t", {"name": name})
            await still(bus)
            assert failing.calls == [("a", 1)]
            statistics = bus.metrics().subscriptions["s"]
            assert (statistics.state, statistics.held, statistics.retries) == ("waiting", 1, 1)
            assert statistics.ledger.pending == 3
            await advance(bus, clock, 9.9)
            assert failing.calls == [("a", 1)]
            await advance(bus, clock, 0.2)
            assert failing.calls == [("a", 1), ("a", 2)]
            await advance(bus, clock, 20)
            assert failing.calls == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("c", 1)]
            assert failing.done == ["a", "b", "c"]
            ledger = bus.audit()
            assert ledger.balanced
            assert (ledger.subscriptions["s"].done, ledger.subscriptions["s"].dead) == (3, 0)

    run(main())
