"""A bus with a path reads its own journal: events, replay, SQL, copies; and an aggregate from them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ironbus import Event, EventBus, InvalidOption
from ironbus._core import verify_journal
from ironbus.journal import Journal, ReplayReport


def ignore(event: Event[Any]) -> None:
    """Takes what comes."""


@pytest.fixture
def bus(tmp_path: Path) -> EventBus:
    bus = EventBus(path=tmp_path / "x.bus", durability="os")
    bus.subscribe("order.*", ignore, name="bill")
    return bus


async def publish(bus: EventBus, count: int) -> None:
    for n in range(count):
        await bus.publish("order.paid", {"n": n}, key=f"k{n % 3}", headers={"h": str(n)}, idempotency_key=f"pay-{n}")


def test_an_accepted_event_is_there_at_once_and_as_it_was(bus: EventBus) -> None:
    """What publish returned for is kept; handlers and readers see the same event."""

    async def main() -> None:
        seen: list[Event[Any]] = []
        bus.subscribe("order.paid", seen.append, name="watch")
        async with bus:
            receipt = await bus.publish("order.paid", {"n": 1}, key="anna", headers={"h": "1"}, idempotency_key="pay")
            [event] = [event async for event in bus.events()]
            await bus.drain()
            assert event.sequence == receipt.sequence == seen[0].sequence
            assert event == seen[0]
            for name in ("event_id", "key", "priority", "idempotency_key", "correlation_id", "causation_id"):
                assert getattr(event, name) == getattr(seen[0], name), name
            assert dict(event.headers) == {"h": "1"}
            assert event.delivery is None

    asyncio.run(main())


def test_a_replay_while_the_bus_works_disturbs_no_lane(bus: EventBus) -> None:
    """Neither sequence numbers nor outcomes change, and the handler may publish."""

    async def main() -> None:
        async with bus:
            await publish(bus, 100)
            await bus.drain()
            before = bus.audit().subscriptions["bill"]
            seen: list[int] = []

            async def again(event: Event[Any]) -> None:
                seen.append(event.data["n"])
                if len(seen) == 50:
                    await bus.publish("order.counted", {"n": -1})

            report = await bus.replay(again, types="order.paid", key="k0")
            assert report == ReplayReport(replayed=34, failed=0, last=100, damaged=0)
            assert seen == list(range(0, 100, 3))
            assert bus.audit().subscriptions["bill"] == before
            assert bus.audit().balanced

    asyncio.run(main())


def test_sql_and_a_copy_while_the_bus_works(bus: EventBus, tmp_path: Path) -> None:
    """The copy is a journal of its own, which another bus can go on with."""

    async def main() -> None:
        async with bus:
            await publish(bus, 10)
            answer = await bus.query("SELECT count(*) FROM event WHERE key = ?", ["k0"])
            assert answer.rows == [(4,)]
            await bus.backup(tmp_path / "copy.bus")
            await publish(bus, 0)
        assert verify_journal(tmp_path / "copy.bus")["clean"]
        seen: list[Event[Any]] = []
        other = EventBus(path=tmp_path / "copy.bus", durability="os")
        other.subscribe("order.*", seen.append, name="late", since="start")
        async with other:
            await other.drain()
        assert [event.sequence for event in seen] == list(range(1, 11))

    asyncio.run(main())


def test_the_same_without_a_loop(bus: EventBus, tmp_path: Path) -> None:
    """``bus.sync``, started and stopped."""
    with bus:
        for n in range(5):
            bus.sync.publish("order.paid", {"n": n})
        assert [event.data["n"] for event in bus.events()] == [0, 1, 2, 3, 4]
    seen: list[Any] = []
    assert bus.sync.replay(seen.append, since=4).replayed == 2
    assert bus.sync.query("SELECT max(sequence) FROM event").rows == [(5,)]
    bus.sync.backup(tmp_path / "copy.bus")
    assert len(list(Journal(tmp_path / "copy.bus").events())) == 5


def test_a_bus_in_memory_keeps_none() -> None:
    """The error says what to do."""
    bus = EventBus()
    for call in (bus.events, lambda: bus.sync.query("SELECT 1"), lambda: asyncio.run(bus.query("SELECT 1"))):
        with pytest.raises(InvalidOption, match="path") as caught:
            call()
        assert caught.value.field == "path"
