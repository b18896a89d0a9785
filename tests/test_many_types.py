"""A publisher's types are remembered by the strings it uses, in more places the more there are: whatever their number,
each event goes where its type says, also once the subscriptions have changed.
"""

from __future__ import annotations

from collections import Counter

import pytest
from ironbus import Event, EventBus
from running import run

REMEMBERED = 65_536


@pytest.mark.parametrize("count", [1, 5, 300, 5_000, REMEMBERED + 5_000])
def test_each_event_goes_where_its_type_says(count: int) -> None:
    run(publish_to(count))


async def publish_to(count: int) -> None:
    types = [f"type.{n}" for n in range(count)]
    chosen = types[:: max(1, count // 50)]
    seen: Counter[tuple[str, str]] = Counter()

    def to(name: str):
        async def handle(event: Event) -> None:
            seen[name, event.type] += 1

        return handle

    async with EventBus() as bus:
        for type_ in chosen:
            bus.subscribe(type_, to(type_))
        for _ in range(2):
            for type_ in types:
                await bus.publish(type_)
        # Another string of the same text.
        await bus.publish("".join(chosen[0]))
        await bus.drain()
        expected = Counter({(type_, type_): 2 for type_ in chosen})
        expected[chosen[0], chosen[0]] += 1
        assert seen == expected

        added = bus.subscribe(chosen[-1], to("late"))
        for type_ in types:
            await bus.publish(type_)
        await bus.drain()
        expected += Counter({(type_, type_): 1 for type_ in chosen})
        expected["late", chosen[-1]] += 1
        assert seen == expected

        added.cancel()
        await bus.publish(chosen[-1])
        await bus.drain()
        expected[chosen[-1], chosen[-1]] += 1
        assert seen == expected
