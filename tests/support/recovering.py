"""What tests of failures share: a clock that a test moves, and waits for a bus that has no more to do until then."""

from __future__ import annotations

import asyncio


class Clock:
    """Seconds that pass when a test says so. They begin where no delay is due by chance."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


#: States of a subscription that does nothing by itself until the clock moves, or somebody does something.
STILL = {"idle", "waiting", "open", "paused", "parked"}


async def still(bus, limit=30):
    """Waits until no handler runs or could run. Handlers that wait for something never let it end."""
    async with asyncio.timeout(limit):
        turns = 0
        while turns < 5:  # whoever publishes from a task gets some turns, too
            await asyncio.sleep(0)
            busy = any(each.state not in STILL or each.running for each in bus.metrics().subscriptions.values())
            turns = 0 if busy else turns + 1


async def advance(bus, clock, seconds, limit=30):
    """Lets time pass, from one thing that is due to the next, and waits for what they start."""
    end = clock.now + seconds
    await still(bus, limit)
    while (due := bus._next_due()) is not None and due <= end + 1e-6:
        # Never back, and a little beyond: the bus counts nanoseconds.
        clock.now = max(clock.now, due + 1e-9)
        bus._tick()
        await still(bus, limit)
    clock.now = max(clock.now, end)
    bus._tick()
    await still(bus, limit)


def letters(bus):
    """All dead letters of a bus without a file, as plain values."""
    return [letter.to_dict() for letter in bus.dead_letters]
