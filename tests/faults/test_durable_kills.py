"""Kills a working process at random and starts it again, many times over.

The history is kept outside of the journal: a child tells each acknowledged event, and each handled
one, on a pipe that its parent reads. What the parent has read must hold, whatever happened.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from ironbus import EventBus
from torture import control, done, times

KILLS = times(12, 100)
KEYS = 7

CHILD = """
import asyncio, os, sys
from ironbus import EventBus

path, durability, control = sys.argv[1], sys.argv[2], sys.argv[3]
begin = int(sys.argv[4])

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def handle(event):
    say("began", event.sequence, event.data["n"], event.priority)
    await asyncio.sleep(0)
    say("done", event.sequence, event.data["n"], event.priority)

async def main():
    memory = control == "memory"
    bus = EventBus(max_queue_size=20) if memory else EventBus(path=path, durability=durability, max_queue_size=20)
    bus.subscribe("*", handle, name="handle")
    await bus.start()
    n = begin

    async def publisher(own):
        nonlocal n
        while True:
            n += 1
            mine = n
            receipt = await bus.publish(
                "e", {"n": mine}, priority=mine % 3, idempotency_key=f"key-{mine}", key=str(mine % 7))
            say("ack", receipt.sequence or 0, mine, mine % 3)

    async with asyncio.TaskGroup() as group:
        for own in range(8):
            group.create_task(publisher(own))

asyncio.run(main())
"""


class History:
    """What children have told."""

    def __init__(self) -> None:
        self.acknowledged: dict[int, int] = {}  # payload number to sequence
        self.done: list[tuple[int, int]] = []  # sequence, payload number
        self.lives: list[list[tuple[str, int, int, int]]] = []

    def tell(self, life: list[tuple[str, int, int, int]], line: bytes) -> None:
        words = line.split()
        if len(words) != 4 or not line.endswith(b"\n"):
            return  # cut off by the kill
        what, sequence, number, level = words[0].decode(), *map(int, words[1:])
        life.append((what, sequence, number, level))
        if what == "ack":
            self.acknowledged[number] = sequence
        elif what == "done":
            self.done.append((sequence, number))


def live(path: Path, history: History, seconds: float, control: str = "") -> None:
    """One life: work for a while, then SIGKILL."""
    begin = max(history.acknowledged, default=0) + 1000
    arguments = [sys.executable, "-c", CHILD, os.fspath(path), "os", control, str(begin)]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    life: list[tuple[str, int, int, int]] = []
    history.lives.append(life)
    assert child.stdout is not None
    assert child.stderr is not None
    timer = threading.Timer(seconds, child.send_signal, [signal.SIGKILL])
    started = False
    for line in child.stdout:
        if not started:
            started = True  # from its first word on
            timer.start()
        history.tell(life, line)
    timer.cancel()
    complaint = child.stderr.read().decode()
    child.stdout.close()
    child.stderr.close()
    assert child.wait() == -signal.SIGKILL, complaint


async def finish(path: Path, history: History) -> None:
    """The last life: handle what is left."""
    bus = EventBus(path=path)

    async def handle(event):
        history.done.append((event.sequence, event.data["n"]))

    bus.subscribe("*", handle, name="handle")
    async with bus:
        await bus.drain(timeout=60)
        assert bus.audit().balanced
        again = await bus.publish("e", {"n": 0}, idempotency_key=f"key-{max(history.acknowledged)}")
        assert again.duplicate


def violations(history: History) -> list[str]:
    found = []
    handled = {number: sequence for sequence, number in history.done}
    for number, sequence in history.acknowledged.items():
        if number not in handled:
            found.append(f"event {number} was acknowledged and never handled")
        elif handled[number] != sequence:
            found.append(f"event {number} has the numbers {sequence} and {handled[number]}")
    reused = Counter(sequence for sequence in history.acknowledged.values())
    found += [f"number {sequence} was given {count} times" for sequence, count in reused.items() if count > 1]
    for life in history.lives:
        last: dict[int, int] = {}
        open_events: set[int] = set()
        for what, sequence, _, level in life:
            if what == "began":
                if open_events:
                    found.append(f"{sequence} began while {open_events} ran")
                if sequence <= last.get(level, 0):
                    found.append(f"{sequence} began after {last[level]} on level {level}")
                last[level] = sequence
                open_events.add(sequence)
            elif what == "done":
                open_events.discard(sequence)
    return found


def test_a_process_that_is_killed_at_random_loses_nothing_that_it_acknowledged(tmp_path):
    seed = int(os.environ.get("IRONBUS_SEED", random.randrange(2**32)))
    print(f"IRONBUS_SEED={seed}")
    chance, history = random.Random(seed), History()
    path = tmp_path / "x.bus"
    for _ in range(KILLS):
        live(path, history, chance.uniform(0.01, 0.4))
    asyncio.run(finish(path, history))
    assert violations(history) == []
    assert len(history.acknowledged) > KILLS, "the children did some work"
    # At least once: only what ran or was settled just before a kill came again.
    twice = len(history.done) - len({number for _, number in history.done})
    assert twice < len(history.done)
    done("kills", KILLS)
    done("acknowledged events", len(history.acknowledged))


def test_without_a_journal_the_same_is_noticed(tmp_path):
    """The negative control: the same children with a bus in memory."""
    history = History()
    for _ in range(3):
        live(tmp_path / "x.bus", history, 0.05, control="memory")
    assert any("never handled" in each for each in violations(history)) or any(
        "was given" in each for each in violations(history)
    )
    control()


KILLER = """
import asyncio, os, sys
from ironbus import EventBus

async def handle(event):
    print("began", event.data["n"], event.delivery.attempt, flush=True)
    if event.data["n"] == 2:
        os._exit(9)
    print("done", event.data["n"], event.delivery.attempt, flush=True)

async def main():
    bus = EventBus(path=sys.argv[1])
    bus.subscribe("*", handle, name="handle")
    async with bus:
        if sys.argv[2] == "publish":
            await bus.publish_many([("e", {"n": n}) for n in (1, 2, 3)])
        await bus.drain()
        letters = [letter async for letter in bus.dead_letters]
        print("letters", *[(letter.event.data["n"], letter.exception_type, letter.attempts) for letter in letters])

asyncio.run(main())
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_a_handler_that_kills_its_process_is_given_up_after_its_attempts(tmp_path, guarded):
    """And the others go on. Negative control: without the note of what runs it would go on for ever."""
    path, lives = tmp_path / "x.bus", []
    for life in range(6):
        arguments = [sys.executable, "-c", KILLER, os.fspath(path), "publish" if life == 0 else "go on"]
        ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        lives.append((ended.returncode, ended.stdout.splitlines()))
        if ended.returncode == 0:
            break
        assert ended.returncode == 9, ended.stderr
        if not guarded:
            (tmp_path / "x.bus.inflight").unlink()
    if not guarded:
        assert [code for code, _ in lives] == [9] * 6
        control()
        return
    assert [code for code, _ in lives] == [9, 9, 9, 0]
    attempts = [line.split()[2] for _, lines in lives for line in lines if line.startswith("began 2")]
    assert attempts == ["1", "2", "3"]
    assert lives[-1][1][-2:] == ["done 3 1", "letters (2, 'ironbus.errors.HandlerKilledProcess', 3)"]
