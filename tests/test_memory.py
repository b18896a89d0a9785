"""The memory of short-lived native objects, watched by the interpreter's own checks."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import weakref

import pytest
from ironbus import EventBus

CODE = """
import asyncio, gc
from ironbus import EventBus

async def main():
    bus = EventBus()
    bus.subscribe("a", lambda event: None)
    async with bus:
        for _ in range(3):
            receipts = [await bus.publish("a", {"n": n}) for n in range(1_000)]
            waiting = [bus.publish("a", {"n": n}) for n in range(1_000)]
            gc.collect()
            for each in waiting:
                await each
            del receipts, waiting, each
            gc.collect()

asyncio.run(main())
print("done")
"""


def test_receipts_and_coroutines_beyond_the_pools_go_back_whence_they_came() -> None:
    """A pool that frees into the wrong allocator corrupts the heap, and nothing else need show it."""
    environment = os.environ | {"PYTHONMALLOC": "debug"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


class Handler:
    """One that can be watched."""

    async def __call__(self, event: object) -> None:
        await asyncio.sleep(0)


class SyncHandler:
    """The same for threads."""

    def __call__(self, event: object) -> None:
        pass


@pytest.mark.parametrize("kind", [Handler, SyncHandler])
def test_a_stopped_bus_is_collected_with_its_handlers(kind: type[Handler | SyncHandler]) -> None:
    """A program may make a bus for each job that it has, and they must not add up."""

    async def main() -> list[weakref.ref[object]]:
        bus, handler = EventBus(), kind()
        bus.subscribe("t", handler)
        async with bus:
            await bus.publish("t")
            await bus.drain()
        return [weakref.ref(bus), weakref.ref(handler)]

    references = asyncio.run(main())
    gc.collect()
    assert [reference() for reference in references] == [None, None]
