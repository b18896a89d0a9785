"""The file of a ``DeadLetterQueue`` under kill -9 and under two processes.

What was acknowledged is written down outside of the file under test: by this process, which
reads it from the pipe of the one that it kills.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from ironbus.recovery import DeadLetterQueue
from torture import control, done, times

# Adds entries and says so after each: one at a time, or as many as come at once.
ADDER = """
import asyncio, sys
from ironbus.recovery import DeadLetterQueue

path, name, count, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]

def acknowledge(event):
    print(event.event_id, flush=True)

async def add(queue, n):
    acknowledge(await queue.add_failed_event("order.paid", {"n": n, "text": "x" * 300}, "boom", f"{name}-{n}"))

async def main():
    queue = DeadLetterQueue(path)
    await queue.get_failed_events()
    if how == "one by one":
        for n in range(count):
            await add(queue, n)
    elif how == "at once":
        for first in range(0, count, 100):
            await asyncio.gather(*(add(queue, n) for n in range(first, first + 100)))
    else:  # the negative control: acknowledged before it is kept
        for n in range(count):
            asyncio.ensure_future(queue.add_failed_event("order.paid", {"n": n}, "boom", f"{name}-{n}"))
            print(f"{name}-{n}", flush=True)
        sys.stdin.read()
    print("done", flush=True)

asyncio.run(main())
"""

# Adds under ids that both processes use, and reads in between.
SHARER = """
import asyncio, sys
from ironbus.recovery import DeadLetterQueue

path, name = sys.argv[1], sys.argv[2]

async def main():
    queue = DeadLetterQueue(path)
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(300):
        await queue.add_failed_event("shared", n, name, f"shared-{n}")
        await queue.add_failed_event("own", n, name, f"{name}-{n}")
        if n % 3 == 0:
            assert await queue.remove_event(f"{name}-{n}")
        if n % 50 == 0:
            await queue.get_failed_events()
    print("done", flush=True)

asyncio.run(main())
"""


# Works on dead letters; the effect of each is the line that it prints. At one of them it may hang before that.
REDRIVER = """
import asyncio, sys
from ironbus.recovery import DeadLetterQueue, ResilientEventProcessor

path, hang, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]

async def handler(data):
    if data == hang:
        print("inside", flush=True)
        await asyncio.get_running_loop().create_future()
    print(data, flush=True)

class TooEarly(DeadLetterQueue):  # the negative control: an entry leaves before its handler succeeded
    async def _claim(self, after):
        claimed = await super()._claim(after)
        if claimed is not None:
            await self.remove_event(claimed.event_id)
        return claimed

async def main():
    queue = (TooEarly if how == "too early" else DeadLetterQueue)(path)
    processor = ResilientEventProcessor("redrive", dlq=queue)
    print("ready", flush=True)
    sys.stdin.readline()
    result = await processor.reprocess_dlq(handler, 10_000)
    assert result["failed"] == 0
    print("done", flush=True)

asyncio.run(main())
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str], most: int) -> list[str]:
    """So many lines, or all that there are."""
    assert process.stdout is not None
    found = []
    while len(found) < most and (line := process.stdout.readline()).endswith("\n"):
        found.append(line.strip())
    return found


def go(process: subprocess.Popen[str]) -> None:
    """Starts the work of one that is ready."""
    assert lines(process, 1) == ["ready"]
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def kill(process: subprocess.Popen[str]) -> list[str]:
    """Kills it; what it had still said."""
    process.kill()
    rest = lines(process, sys.maxsize)
    assert process.wait(30) == -signal.SIGKILL
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    return rest


def lost(path: Path, acknowledged: list[str]) -> set[str]:
    """Opening the file must work, and every entry in it must be whole."""
    events = DeadLetterQueue(path).get_failed_events_sync()
    assert all(event.event_data["n"] == int(str(event.event_id).split("-")[1]) for event in events)
    return set(acknowledged) - {str(event.event_id) for event in events}


@pytest.mark.parametrize("how", ["one by one", "at once"])
def test_every_acknowledged_entry_survives_a_kill(tmp_path: Path, how: str) -> None:
    """Of thousands; among what is killed are checkpoints, one for some hundred entries."""
    moments, wanted = random.Random(7), times(3_000, 10_000)
    acknowledged: list[str] = []
    number = 0
    while len(acknowledged) < wanted:
        process = start(ADDER, tmp_path, f"p{number}", 100_000, how)
        acknowledged += lines(process, moments.randrange(1, wanted // 5))
        acknowledged += kill(process)
        assert lost(tmp_path, acknowledged) == set()
        number += 1
    assert number > 4
    done("kills", number)
    done("acknowledged dead letters", len(acknowledged))


def test_the_check_notices_what_is_acknowledged_too_early(tmp_path: Path) -> None:
    """The negative control of the test above."""
    process = start(ADDER, tmp_path, "control", 200, "too early")
    acknowledged = lines(process, 200)
    acknowledged += kill(process)
    assert len(acknowledged) == 200
    assert lost(tmp_path, acknowledged) != set()
    control()


def test_two_processes_share_a_queue(tmp_path: Path) -> None:
    processes = [start(SHARER, tmp_path, name) for name in ("one", "two")]
    for process in processes:
        assert lines(process, 1) == ["ready"]
    for process in processes:
        process.communicate("go\n", timeout=90)
        assert process.returncode == 0
    events = DeadLetterQueue(tmp_path).get_failed_events_sync()
    attempts = Counter({str(event.event_id): event.attempts for event in events})
    expected = Counter({f"shared-{n}": 2 for n in range(300)})
    expected.update({f"{name}-{n}": 1 for name in ("one", "two") for n in range(300) if n % 3})
    assert attempts == expected


def old(n: int) -> dict[str, object]:
    event_id = None if n % 2 else f"old-{n}"
    return {"event_type": "a", "event_data": n, "error": "boom", "attempts": 1, "event_id": event_id}


def test_two_processes_take_an_old_file_over_once(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "dead_letters.json").write_text(json.dumps([old(n) for n in range(800)]))
        processes = [start(REDRIVER, folder, -1, "as it is") for _ in range(2)]
        for process in processes:
            go(process)
        handled = []
        for process in processes:
            handled += lines(process, sys.maxsize)
            assert process.wait(60) == 0
            process.communicate()
        assert Counter(handled) == Counter([*map(str, range(800)), "done", "done"])
        assert DeadLetterQueue(folder).get_failed_events_sync() == []


def filled(path: Path) -> DeadLetterQueue:
    queue = DeadLetterQueue(path)
    for n in range(600):
        queue.add_failed_event_sync("a", n, "boom", f"e-{n}")
    return queue


def left(queue: DeadLetterQueue) -> set[str]:
    return {str(event.event_data) for event in queue.get_failed_events_sync()}


def test_a_redrive_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    moments = random.Random(7)
    queue = filled(tmp_path)
    effects: list[str] = []
    for _ in range(6):
        process = start(REDRIVER, tmp_path, -1, "as it is")
        go(process)
        now = lines(process, moments.randrange(1, 60))
        now += kill(process)
        effects += now
        assert left(queue) | set(effects) == set(map(str, range(600)))
        # All but the last had left before the next was begun.
        assert not left(queue) & set(now[:-1])
    process = start(REDRIVER, tmp_path, 599, "as it is")
    go(process)
    while (said := lines(process, 1)) != ["inside"]:
        assert said
    kill(process)
    assert "599" in left(queue)
    done("kills", 7)


def test_the_check_notices_an_entry_that_leaves_too_early(tmp_path: Path) -> None:
    """The negative control of the test above."""
    queue = filled(tmp_path)
    process = start(REDRIVER, tmp_path, 20, "too early")
    go(process)
    effects = lines(process, 21)
    assert effects.pop() == "inside"
    kill(process)
    assert left(queue) | set(effects) == set(map(str, range(600))) - {"20"}
    control()
