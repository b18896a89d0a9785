"""The worker that ``ironbus demo`` kills: the shop's log through a durable bus, told line by line on stdout.

Its parent counts from these lines, and not from what the bus says of itself:
``accepted COUNT`` and ``duplicate COUNT`` when a publish returns, ``began NAME SEQUENCE`` and ``ended NAME SEQUENCE``
around each handler, and ``ledger JSON`` when all is settled.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ironbus import Event, EventBus
from ironbus.cli.demo import TOPICS, Shop, sample
from ironbus.cli.render import as_json

FIRST = 100  # lines that come as one batch; the others one by one, as fast as the disk takes them

# Where a worker that is to be killed waits for it, so that neither publishing nor the warehouse can be through before
# the signal comes, on the slowest disk and on the fastest. The warehouse does not get to the end of the first batch.
HELD_LINE = 250
HELD_PARCEL = 80


def say(*words: object) -> None:
    """One line in one write: lines of threads do not mix, and a kill leaves none behind in a buffer."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def telling(name: str, handler: Callable[[Event], Any]) -> Callable[[Event], Any]:
    """The handler, async or not as it is, which tells when it begins and when it has ended well."""

    async def later(event: Event) -> None:
        say("began", name, event.sequence)
        await handler(event)
        say("ended", name, event.sequence)

    def now(event: Event) -> None:
        say("began", name, event.sequence)
        handler(event)
        say("ended", name, event.sequence)

    return later if inspect.iscoroutinefunction(handler) else now


class Held(Shop):
    """A shop whose warehouse stands still after so many parcels."""

    def __init__(self) -> None:
        super().__init__()
        self.parcels = 0

    async def warehouse(self, event: Event) -> None:
        """Slow, and then waits for the kill."""
        self.parcels += 1
        if self.parcels > HELD_PARCEL:
            await asyncio.Event().wait()
        await super().warehouse(event)


async def work(path: Path, held: bool) -> None:
    """One life of the worker."""
    shop = Held() if held else Shop()
    bus = EventBus(path=path, idempotency="content")
    for name, topic in TOPICS.items():
        bus.subscribe(topic, telling(name, getattr(shop, name)), name=name)
    async with bus:
        lines = sample()
        batch = await bus.publish_many(lines[:FIRST])
        say("accepted", batch.accepted)
        say("duplicate", batch.duplicates)
        for kind, data, options in lines[FIRST : HELD_LINE if held else None]:
            receipt = await bus.publish(kind, data, **options)
            say("duplicate" if receipt.duplicate else "accepted", 1)
        if held:
            await asyncio.Event().wait()
        await bus.drain()
        ledger = bus.audit()
    say("ledger", json.dumps(as_json(ledger) | {"balanced": ledger.balanced}))


def main(
    path: Annotated[Path, typer.Argument(help="The journal.")],
    held: Annotated[bool, typer.Option("--held", help="Wait for a kill before the end.")] = False,
) -> None:
    """Take the sample log into a journal and through the handlers of the demonstration."""
    logging.getLogger("ironbus").setLevel(logging.CRITICAL)  # the failures are announced, and in the ledger
    asyncio.run(work(path, held))


if __name__ == "__main__":
    typer.run(main)
