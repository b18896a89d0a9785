"""The dead letters of a bus under kill -9, and two buses in two processes on one file.

What was handled is written down outside of the file under test: by this process, which reads it from
the pipes of those that it kills.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from ironbus import DeadLetters, Event, EventBus
from torture import control, done, times

COUNT = 400

# Fails with every event, and says so once that is settled.
DYING = """
import asyncio, logging, sys
from ironbus import DeadLetters, EventBus, Event

logging.disable()
path, first, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def fail(event):
    raise ValueError(event.data)

async def afail(event):
    raise ValueError(event.data)

async def main():
    bus = EventBus(dead_letters=None if how == "in memory" else DeadLetters(path=path))
    bus.subscribe("t", fail if how == "sync" else afail, name="s")
    await bus.start()
    for n in range(first, first + 100_000):
        receipt = await bus.publish(Event("t", n))
        await receipt.settled()
        print(n, flush=True)

asyncio.run(main())
"""

# Delivers dead letters again; the effect of each is the line that it prints. At one of them it may hang before that.
REDRIVER = """
import asyncio, sys
from ironbus import DeadLetters, EventBus

path, hang, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]

async def handler(event):
    if event.data == hang:
        print("inside", flush=True)
        await asyncio.get_running_loop().create_future()
    print(event.data, flush=True)

async def main():
    bus = EventBus(dead_letters=DeadLetters(path=path))
    bus.subscribe("t", handler, name="s")
    async with bus:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        if how == "too early":  # the negative control: each leaves before its handler succeeded
            letters = [letter async for letter in bus.dead_letters]
            for letter in letters:
                await bus.dead_letters.purge(letter.id)
                await (await bus.publish(letter.event)).settled()
            return
        report = await bus.dead_letters.redrive()
        assert not report.failed, report
    print("done", flush=True)

asyncio.run(main())
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str], most: int) -> list[str]:
    """So many lines, or all that there are."""
    assert process.stdout is not None
    found: list[str] = []
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


def left(path: Path) -> list[int]:
    """The payloads of the letters in the file, which must be whole."""
    return [letter.event.data for letter in EventBus(dead_letters=DeadLetters(path=path)).dead_letters]


@pytest.mark.parametrize("how", ["async", "sync"])
def test_what_is_settled_as_dead_survives_a_kill(tmp_path: Path, how: str) -> None:
    path, moments, settled = tmp_path / "x.dead", random.Random(7), []
    lives = times(6, 20)
    for number in range(lives):
        process = start(DYING, path, number * 1_000_000, how)
        settled += lines(process, moments.randrange(1, 400))
        settled += kill(process)
        # At most the one that was under way is there beside them.
        found = left(path)
        assert set(map(int, settled)) <= set(found)
        assert len(found) <= len(settled) + number + 1
        assert max(Counter(found).values()) == 1
    done("kills", lives)
    done("acknowledged dead letters", len(settled))


def test_the_check_notices_letters_that_are_not_kept(tmp_path: Path) -> None:
    """The negative control of the test above."""
    process = start(DYING, tmp_path / "x.dead", 0, "in memory")
    settled = lines(process, 10)
    kill(process)
    assert len(settled) == 10
    assert left(tmp_path / "x.dead") == []
    control()


async def fill(path: Path) -> None:
    async def fail(event: Event) -> None:
        raise ValueError

    bus = EventBus(dead_letters=DeadLetters(path=path))
    bus.subscribe("t", fail, name="s")
    async with bus:
        for n in range(COUNT):
            await bus.publish(Event("t", n))
        await bus.drain()
        assert await bus.dead_letters.count() == COUNT


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    asyncio.run(fill(tmp_path / "x.dead"))
    return tmp_path / "x.dead"


async def redrive_later(path: Path) -> list[int]:
    """What a redrive delivers once nobody holds anything any more: its clock is an hour ahead."""
    handled: list[int] = []

    async def handler(event: Event) -> None:
        handled.append(event.data)

    ahead = 0.0
    bus = EventBus(dead_letters=DeadLetters(path=path), clock=lambda: time.monotonic() + ahead)
    bus.subscribe("t", handler, name="s")
    async with bus:
        ahead = 3600.0
        report = await bus.dead_letters.redrive()
        assert (report.skipped, report.failed) == ({}, 0)
    return handled


def test_a_redrive_that_is_killed_loses_nothing(filled: Path) -> None:
    moments, effects = random.Random(7), []
    for _ in range(5):
        process = start(REDRIVER, filled, -1, "as it is")
        go(process)
        now = lines(process, moments.randrange(1, 40))
        now += kill(process)
        effects += now
        assert set(left(filled)) | set(map(int, effects)) == set(range(COUNT))
    hang = left(filled)[-1]
    process = start(REDRIVER, filled, hang, "as it is")
    go(process)
    while (said := lines(process, 1)) != ["inside"]:
        assert said
        effects += said
    kill(process)
    # What had begun and not ended is still there, and can be delivered once its time is over.
    assert hang in left(filled)
    handled = asyncio.run(redrive_later(filled))
    assert hang in handled
    assert set(map(int, effects)) | set(handled) == set(range(COUNT))
    assert left(filled) == []
    done("kills", 6)


def test_the_check_notices_a_letter_that_leaves_too_early(filled: Path) -> None:
    """The negative control of the test above."""
    process = start(REDRIVER, filled, 20, "too early")
    go(process)
    effects = lines(process, 21)
    assert effects.pop() == "inside"
    kill(process)
    assert set(left(filled)) | set(map(int, effects)) == set(range(COUNT)) - {20}
    control()


def test_two_processes_redrive_one_queue(filled: Path) -> None:
    """Each letter goes to one of them, and to both together all."""
    processes = [start(REDRIVER, filled, -1, "as it is") for _ in range(2)]
    for process in processes:
        assert lines(process, 1) == ["ready"]
    handled: list[str] = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        handled += lines(process, sys.maxsize)
        assert process.wait(60) == 0
        process.communicate()
    assert Counter(handled) == Counter([*map(str, range(COUNT)), "done", "done"])
    assert left(filled) == []


def test_two_processes_fail_into_one_queue(tmp_path: Path) -> None:
    path = tmp_path / "x.dead"
    processes = [start(DYING, path, first, how) for first, how in ((0, "async"), (1_000_000, "sync"))]
    settled = [line for process in processes for line in lines(process, 200)]
    settled += [line for process in processes for line in kill(process)]
    found = left(path)
    assert set(map(int, settled)) <= set(found)
    assert max(Counter(found).values()) == 1
