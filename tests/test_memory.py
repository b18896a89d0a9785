"""The memory of short-lived native objects, watched by the interpreter's own checks."""

from __future__ import annotations

import os
import subprocess
import sys

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
