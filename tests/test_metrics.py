"""Metrics: rates of the last while, latencies and ages in seconds of the bus's clock."""

from __future__ import annotations

import asyncio

import pytest
from ironbus import EventBus, HealthThresholds
from ironbus.testing import harness
from running import run


async def _async(event):
    pass


def _sync(event):
    pass


@pytest.mark.parametrize("handler", [_async, _sync])
def test_rates_follow_the_last_window(handler):
    """Once a second somebody asks, as an exporter would; ten events a second, then none."""

    async def main():
        bus = EventBus()
        bus.subscribe("a", handler, name="s")
        async with harness(bus, clock="virtual") as t:
            for _ in range(120):
                await bus.publish_many([("a", n) for n in range(10)])
                await t.advance(1)
                metrics = bus.metrics()
                assert metrics.rates_over <= 71
            assert metrics.rates_over >= 60
            rates = (metrics.publish_rate, metrics.processing_rate, metrics.subscriptions["s"].rate)
            assert rates == (pytest.approx(10),) * 3
            assert metrics.uptime == pytest.approx(120)
            for _ in range(71):
                await t.advance(1)
                metrics = bus.metrics()
            assert (metrics.publish_rate, metrics.processing_rate, metrics.subscriptions["s"].rate) == (0, 0, 0)
            assert metrics.subscriptions["s"].ledger.done == 1200

    run(main())


def test_the_first_who_asks_gets_the_mean_since_the_start():
    async def main():
        bus = EventBus()
        bus.subscribe("a", _async, name="s")
        assert (bus.metrics().processing_rate, bus.metrics().rates_over) == (0.0, 0.0)
        async with harness(bus, clock="virtual") as t:
            await bus.publish_many([("a", n) for n in range(100)])
            await t.advance(1000)
            metrics = bus.metrics()
            assert metrics.rates_over == pytest.approx(1000)
            assert metrics.processing_rate == pytest.approx(0.1)

    run(main())


def test_time_in_which_the_bus_was_stopped_does_not_count():
    async def main():
        now = [0.0]
        bus = EventBus(clock=lambda: now[0], health=HealthThresholds(window=1000))
        bus.subscribe("a", _async, name="s")
        for _ in range(3):
            async with bus:
                await bus.publish_many([("a", n) for n in range(50)])
                await bus.drain()
                now[0] += 10
            now[0] += 500
        metrics = bus.metrics()
        assert (metrics.uptime, metrics.rates_over, metrics.processing_rate) == (0.0, 30.0, 5.0)

    run(main())


def test_waits_and_ages_are_seconds_and_percentiles_have_two_digits():
    async def main():
        bus = EventBus()
        subscription = bus.subscribe("a", _sync, name="s")
        async with harness(bus, clock="virtual") as t:
            subscription.pause()
            for _ in range(100):
                await bus.publish("a")
                await t.advance(1)
            assert bus.metrics().subscriptions["s"].oldest_age == 100
            subscription.resume()
            await t.settle()
            statistics = bus.metrics().subscriptions["s"]
            wait = statistics.wait
            assert wait.count == 100
            assert [wait.p50, wait.p90, wait.p99, wait.max] == pytest.approx([50, 90, 99, 100], rel=0.02)
            assert statistics.work.count == 100
            assert statistics.work.max == 0.0, "no time of the bus's clock has passed"
            assert (statistics.oldest_age, statistics.longest_run) == (0.0, 0.0)

    run(main())


def test_the_time_of_a_handler_is_seconds():
    async def main():
        bus, go = EventBus(), asyncio.Event()

        async def waits(event):
            await go.wait()

        bus.subscribe("a", waits, name="s")
        async with harness(bus, clock="virtual") as t:
            await bus.publish("a")
            await t.advance(5)
            assert bus.metrics().subscriptions["s"].longest_run == 5
            go.set()
            await t.settle()
            assert bus.metrics().subscriptions["s"].work.max == pytest.approx(5, rel=0.02)

    run(main())
