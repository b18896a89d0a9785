"""A durable queue is a window over the file: what waits for its key or its time keeps no others from being read."""

from __future__ import annotations

import asyncio

import pytest
from ironbus import EventBus, RetryLater
from running import run

WINDOW = 100
WAITING = 2 * WINDOW
OTHERS = 3 * WINDOW


@pytest.fixture
def path(tmp_path):
    return tmp_path / "orders.bus"


async def publish_others(bus):
    await asyncio.gather(*(bus.publish("order", {"n": n}, key=f"k{n}") for n in range(OTHERS)))


class Handled:
    """What was handled of the others, and of the rest, in order."""

    def __init__(self):
        self.others, self.rest = [], []
        self.complete = asyncio.Event()

    async def __call__(self, event):
        if event.key is None or event.key == "parked":
            self.rest.append(event.data["n"])
            return
        self.others.append(event.data["n"])
        if len(self.others) == OTHERS:
            self.complete.set()


@pytest.mark.parametrize("paused", [False, True], ids=["as they come", "out of the file"])
def test_a_key_whose_handler_hangs_leaves_room_for_others(path, paused):
    async def main():
        handled, opened = Handled(), asyncio.Event()

        async def handle(event):
            if event.key == "parked":
                await opened.wait()
            await handled(event)

        bus = EventBus(path=path, max_queue_size=WINDOW, durability="os")
        bill = bus.subscribe("order", handle, name="bill", concurrency=4)
        async with bus:
            if paused:
                bill.pause()
            await bus.publish_many([("order", {"n": n}) for n in range(WAITING)], key="parked")
            await publish_others(bus)
            bill.resume()
            async with asyncio.timeout(20):
                await handled.complete.wait()
            assert handled.rest == []
            opened.set()
            await bus.drain()
        assert sorted(handled.others) == list(range(OTHERS))
        assert handled.rest == list(range(WAITING)), "in order, and each once"

    run(main())


def test_a_key_that_waits_for_a_retry_leaves_room_for_others(path):
    async def main():
        handled = Handled()

        async def handle(event):
            if event.key == "parked":
                raise RetryLater(3600)
            await handled(event)

        bus = EventBus(path=path, max_queue_size=WINDOW, durability="os")
        bus.subscribe("order", handle, name="bill", concurrency=4, retry_holds="key")
        async with bus:
            await bus.publish_many([("order", {"n": n}) for n in range(WAITING)], key="parked")
            await publish_others(bus)
            async with asyncio.timeout(20):
                await handled.complete.wait()
            assert handled.rest == []
            await bus.stop(timeout=0)
        return handled

    handled = run(main())
    assert sorted(handled.others) == list(range(OTHERS))


def test_events_far_ahead_of_their_time_leave_room_for_others(path):
    async def main():
        handled = Handled()
        bus = EventBus(path=path, max_queue_size=WINDOW, durability="os")
        bus.subscribe("order", handled, name="bill")
        async with bus:
            await bus.publish_many([("order", {"n": n}) for n in range(WAITING)], delay=3600)
            await publish_others(bus)
            async with asyncio.timeout(20):
                await handled.complete.wait()
            await bus.stop(timeout=0)
        assert handled.others == list(range(OTHERS))
        assert handled.rest == []

    run(main())
