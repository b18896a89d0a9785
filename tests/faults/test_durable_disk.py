"""A file that may not grow any more, under a working bus.

What the publisher was told must hold after a restart: what was acknowledged is there, what was refused
is not, and of what is unknown the key tells.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest
from ironbus import EventBus
from torture import control, done, times

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the size of files")

CHILD = """
import asyncio, json, resource, sys
from ironbus import DurabilityUnknown, EventBus, JournalReadOnly, StorageError

path, limit = sys.argv[1], int(sys.argv[2])

async def main():
    bus = EventBus(path=path)
    told = {"stored": [], "unknown": [], "read-only": [], "refused": []}
    handled = []
    async def handle(event):
        handled.append(event.data["n"])
    bus.subscribe("*", handle, name="handle")

    async def publish(n, into=told):
        try:
            receipt = await bus.publish("e", {"n": n, "fill": "x" * 1000}, idempotency_key=f"k{n}")
        except DurabilityUnknown:
            told["unknown"].append(n)
        except JournalReadOnly:
            told["read-only"].append(n)
        except StorageError:
            told["refused"].append(n)
        else:
            told["stored"].append(n)

    await bus.start()
    if limit:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    for begin in range(0, 400, 8):
        await asyncio.gather(*(publish(n) for n in range(begin, begin + 8)))
    ledger = bus.audit()
    balanced = ledger.balanced and ledger.unknown == len(told["unknown"])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await bus.stop()
    await bus.start()  # the same bus: the file is opened again
    fates = {}
    for n in told["unknown"] + told["read-only"] + told["refused"]:
        fates[n] = (await bus.publish("e", {"n": n}, idempotency_key=f"k{n}")).duplicate
    await bus.drain()
    await bus.stop()
    print(json.dumps({"told": told, "fates": fates, "handled": handled, "balanced": balanced}))

asyncio.run(main())
"""


def work(path, limit):
    arguments = [sys.executable, "-c", CHILD, os.fspath(path), str(limit)]
    child = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


async def everything(path):
    seen = []

    async def note(event):
        seen.append(event.data["n"])

    bus = EventBus(path=path)
    bus.subscribe("*", note, name="late", since="start")
    async with bus:
        await bus.drain()
    return seen


@pytest.mark.parametrize("limit", times([150_000], range(100_000, 700_000, 23_456)))
def test_what_was_told_of_a_file_that_could_not_grow_holds(tmp_path, limit):
    path = tmp_path / "x.bus"
    found = work(path, limit)
    told = found["told"]
    assert found["balanced"]
    assert told["stored"], "at first there is room"
    assert told["unknown"] or told["refused"], "and then there is none"
    if told["unknown"]:
        assert told["read-only"], "after a flush of which nobody knows nothing is written"
    # What was refused was free to be published again.
    for n in told["read-only"] + told["refused"]:
        assert found["fates"][str(n)] is False, n
    stored = asyncio.run(everything(path))
    assert sorted(stored) == list(range(400)), "each once: stored, found by its key, or published again"
    assert set(range(400)) == set(found["handled"])
    done("files that could not grow", 1)
    done("acknowledged events", len(told["stored"]))


def test_with_room_nothing_is_refused(tmp_path):
    """The negative control: it was the limit."""
    found = work(tmp_path / "x.bus", 0)
    # Those that wait for one commit are woken by it in any order.
    stored = sorted(found["told"].pop("stored"))
    assert stored == list(range(400))
    assert found["told"] == {"unknown": [], "read-only": [], "refused": []}
    control()
