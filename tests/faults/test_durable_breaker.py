"""A dependency that is down for long, with a restart in between (promise 9).

The breaker forgets with its process; the attempts of an event are in the journal. No life costs an event an
attempt for what an earlier one knew: nothing is dead-lettered, nothing is dropped, and order holds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from ironbus import CircuitBreakerConfig, EventBus, RetryPolicy, _core
from ironbus.testing import harness
from torture import control, done, times

EVENTS = 10
BREAKER = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, timeout=60)


class World:
    """The dependency, and who calls it."""

    def __init__(self, path, breaker: CircuitBreakerConfig | None):
        self.path, self.breaker = path, breaker
        self.up, self.calls, self.handled = False, 0, list[int]()
        #: Unix time: all lives are in one.
        self.time = 1_000_000.0

    def bus(self) -> EventBus:
        bus = EventBus(path=self.path)

        async def call(event):
            self.calls += 1
            if not self.up:
                raise ConnectionError
            self.handled.append(event.data["n"])

        retry = RetryPolicy(max_attempts=3, initial_delay=1, max_delay=1, jitter=False)
        bus.subscribe("*", call, name="call", retry=retry, breaker=self.breaker)
        return bus

    async def live(self, rounds: int, publish: int = 0) -> int:
        """One life, so many times as long as the breaker is open. How many dead letters there are."""
        bus = self.bus()
        clock = _core.Harness(bus)
        assert clock.set_epoch(self.time - clock.now() / 1e9)
        async with harness(bus, clock="virtual") as t:
            for number in range(publish):
                await bus.publish("e", {"n": number})
            for _ in range(rounds):
                await t.advance(BREAKER.timeout)
                self.time += BREAKER.timeout
            return await bus.dead_letters.count()


async def downtime(world: World, lives: int) -> list[int]:
    dead = [await world.live(5, publish=EVENTS)]
    return dead + [await world.live(5) for _ in range(lives)]


def test_nothing_is_dead_and_calls_are_few_however_often_it_is_restarted(tmp_path):
    world = World(tmp_path / "x.bus", BREAKER)
    lives = times(4, 40)
    assert asyncio.run(downtime(world, lives)) == [0] * (lives + 1)
    # Two before it opens, and then a probe for each time that it was open, and one to begin with.
    assert world.calls <= 2 + 6 * (lives + 1)
    world.up = True
    assert asyncio.run(world.live(1)) == 0
    assert world.handled == list(range(EVENTS))
    done("restarts while a dependency is down", lives)


CHILD = """
import asyncio, logging, os, sys
from ironbus import CircuitBreakerConfig, EventBus, RetryPolicy

path, breaker, attempts, first = sys.argv[1:]
logging.getLogger("ironbus").setLevel(logging.CRITICAL)

async def call(event):
    os.write(1, b"call\\n")
    raise ConnectionError

async def main():
    bus = EventBus(path=path, durability="os")
    config = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, timeout=0.01) if breaker else None
    retry = RetryPolicy(max_attempts=int(attempts), initial_delay=0.001, max_delay=0.001)
    bus.subscribe("*", call, name="call", retry=retry, breaker=config)
    await bus.start()
    if first:
        await bus.publish_many([("e", {"n": number}) for number in range(int(first))])
    await asyncio.Event().wait()

asyncio.run(main())
"""


def killed(path: Path, calls: int, *, attempts: int, breaker: bool, publish: int = 0) -> None:
    """A process that is killed after so many calls, mostly in the middle of the last one."""
    arguments = [os.fspath(path), "yes" if breaker else "", str(attempts), str(publish or "")]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    for _ in range(calls):
        if not child.stdout.readline():
            break
    child.send_signal(signal.SIGKILL)
    complaint = child.stderr.read().decode()
    child.stdout.close()
    child.stderr.close()
    assert child.wait() == -signal.SIGKILL, complaint


async def recovered(path: Path, attempts: int) -> tuple[list[int], int]:
    """What is handled once the dependency is up again, and how many are dead."""
    handled = []

    async def call(event):
        handled.append(event.data["n"])

    bus = EventBus(path=path)
    bus.subscribe("*", call, name="call", retry=RetryPolicy(max_attempts=attempts))
    async with bus:
        await bus.drain(timeout=30)
        assert bus.audit().balanced
        return handled, await bus.dead_letters.count()


def test_nothing_is_dead_when_it_is_killed_while_its_dependency_is_down(tmp_path):
    path, kills = tmp_path / "x.bus", times(4, 40)
    # Two before the breaker opens for the first time, and each death in the handler, are attempts of the event.
    attempts = 2 + kills + 1
    killed(path, 6, attempts=attempts, breaker=True, publish=EVENTS)
    for _ in range(kills - 1):
        killed(path, 4, attempts=attempts, breaker=True)
    assert asyncio.run(recovered(path, attempts)) == (list(range(EVENTS)), 0)
    done("kills", kills)


def test_without_a_breaker_kills_find_attempts_used_up(tmp_path):
    """A negative control."""
    path = tmp_path / "x.bus"
    killed(path, 8, attempts=3, breaker=False, publish=EVENTS)
    handled, dead = asyncio.run(recovered(path, 3))
    assert dead > 0
    assert len(handled) + dead == EVENTS
    control()


def test_without_a_breaker_attempts_are_used_up(tmp_path):
    """A negative control."""
    assert asyncio.run(downtime(World(tmp_path / "x.bus", None), 1))[-1] == EVENTS
    control()
