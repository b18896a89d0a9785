"""The second act of ``ironbus demo``: a worker is killed with SIGKILL at work, started again, and held to account.

The account has two sides that do not know each other: what the worker told while it lived, read from its output, and
what the file holds, read by this process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ironbus._core import verify_journal
from ironbus.cli.demo import FAILING, TOPICS, sample
from ironbus.journal import Journal

KILL_AT = 60  # parcels that the warehouse has told as handled when the signal is sent; below the worker's HELD_PARCEL
SLOWEST = "warehouse"

Watch = Callable[[str, int], None]
"""Gets a subscription and how many of its events were handled so far, each counted once."""

Delivery = tuple[str, int]  # a subscription, and the sequence number of an event


@dataclass(slots=True)
class Life:
    """What a worker told from its start to its end."""

    accepted: int = 0
    duplicates: int = 0
    began: set[Delivery] = field(default_factory=set)
    ended: set[Delivery] = field(default_factory=set)
    ledger: dict[str, Any] | None = None
    exit_status: int | None = None

    def hear(self, line: bytes) -> Delivery | None:
        """Takes one line, and gives the delivery that began, if one did; one that a kill has cut off tells nothing."""
        if not line.endswith(b"\n"):
            return None
        what, _, rest = line.decode().strip().partition(" ")
        if what == "accepted":
            self.accepted += int(rest)
        elif what == "duplicate":
            self.duplicates += int(rest)
        elif what == "ledger":
            self.ledger = json.loads(rest)
        else:
            name, sequence = rest.split()
            delivery = (name, int(sequence))
            if what == "began":
                self.began.add(delivery)
                return delivery
            self.ended.add(delivery)
        return None


@dataclass(frozen=True, slots=True)
class Killed:
    """The worker's first life, and what it left in the file."""

    life: Life
    events: int
    backlog: int


@dataclass(frozen=True, slots=True)
class LaneAccount:
    """The events of one subscription: ``routed == done + dead``, if none was lost."""

    routed: int
    done: int
    dead: int
    lost: int  # neither done nor dead
    again: int  # delivered in both lives: the kill came before their settlement was written


@dataclass(frozen=True, slots=True)
class CrashReport:
    """How a kill in the middle and a restart went."""

    read: int
    died_of_sigkill: bool
    accepted_before: int  # lines whose acceptance the worker had told when it was killed
    events_at_kill: int  # in the file; at least as many
    backlog_at_kill: int  # deliveries that were not settled
    accepted_after: int
    duplicates_after: int
    events: int
    missing: int  # lines of the log that are not in the file
    twice: int  # events that are in the file more than once
    subscriptions: Mapping[str, LaneAccount]
    dead_letters: int
    clean: bool  # as ``ironbus verify`` says
    backlog: int
    worker_ledger: Mapping[str, Any] | None  # of the second life; None if it did not come to its end
    seconds: float

    @property
    def again(self) -> int:
        """Deliveries that both lives have begun."""
        return sum(lane.again for lane in self.subscriptions.values())

    @property
    def balanced(self) -> bool:
        """Whether the kill came in the middle, and yet everything is there once and came to its announced end."""
        lanes = self.subscriptions
        return (
            self.died_of_sigkill
            and self.backlog_at_kill > 0
            and self.accepted_before <= self.events_at_kill
            and self.events_at_kill + self.accepted_after == self.events
            and self.accepted_after + self.duplicates_after == self.read
            and not (self.missing or self.twice or self.backlog)
            and all(lane.lost == 0 and lane.routed == lane.done + lane.dead for lane in lanes.values())
            and all(lane.dead == (lane.routed if name == FAILING else 0) for name, lane in lanes.items())
            and self.dead_letters == sum(lane.dead for lane in lanes.values())
            and self.clean
            and self.worker_ledger is not None
            and self.worker_ledger["balanced"] is True
            and self.worker_ledger["accepted"] == self.accepted_after
        )


def totals() -> dict[str, int]:
    """How many events the log has for each subscription."""
    kinds = [json.loads(content)[0] for content in {_content(kind, data) for kind, data, _ in sample()}]
    return {name: sum(topic in ("*", kind) for kind in kinds) for name, topic in TOPICS.items()}


async def crash(path: Path, watch: Watch) -> Killed:
    """A worker's life up to the kill."""
    life = await _live(path, Life(), watch, kill=True)
    kept = Journal(path)
    ((events,),) = await kept.query("SELECT count(*) FROM event")
    return Killed(life, events, await _backlog(kept))


async def recover(path: Path, killed: Killed, watch: Watch, since: float) -> CrashReport:
    """The life of a worker on what the first one left, and the account of both. ``since``: as of ``perf_counter()``."""
    before = killed.life
    after = await _live(path, before, watch, kill=False)
    seconds = time.perf_counter() - since
    kept = Journal(path)
    lines = sample()
    wanted = {_content(kind, data) for kind, data, _ in lines}
    found = Counter([_content(event.type, event.data) async for event in kept.events()])
    letters = [
        (name, sequence) for name, sequence in await kept.query("SELECT subscription, sequence FROM dead_letter")
    ]
    done, dead = before.ended | after.ended, set(letters)
    lanes = {}
    for name, topic in TOPICS.items():
        routed = {(name, event.sequence) async for event in kept.events(types=topic)}
        lanes[name] = LaneAccount(
            routed=len(routed),
            done=sum(lane == name for lane, _ in done),
            dead=sum(lane == name for lane, _ in dead),
            lost=len(routed - done - dead),
            again=sum(lane == name for lane, _ in before.began & after.began),
        )
    return CrashReport(
        read=len(lines),
        died_of_sigkill=before.exit_status == -signal.SIGKILL,
        accepted_before=before.accepted,
        events_at_kill=killed.events,
        backlog_at_kill=killed.backlog,
        accepted_after=after.accepted,
        duplicates_after=after.duplicates,
        events=found.total(),
        missing=len(wanted - found.keys()),
        twice=found.total() - len(found),
        subscriptions=lanes,
        dead_letters=len(letters),
        clean=(await asyncio.to_thread(verify_journal, path))["clean"],
        backlog=await _backlog(kept),
        worker_ledger=after.ledger if after.exit_status == 0 else None,
        seconds=seconds,
    )


async def crash_and_recover(folder: Path, watch: Watch) -> CrashReport:
    """Both lives, on a file in ``folder``."""
    start, path = time.perf_counter(), folder / "shop.bus"
    return await recover(path, await crash(path, watch), watch, start)


async def _live(path: Path, before: Life, watch: Watch, kill: bool) -> Life:
    """Starts a worker and hears it to its end, which is a kill in the middle or its own."""
    command = [sys.executable, "-m", "ironbus.cli.demo_worker", os.fspath(path), *(["--held"] if kill else [])]
    worker = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        process_group=0,  # Ctrl-C is for this process, which then ends the worker
    )
    assert worker.stdout is not None
    life, handled = Life(), Counter(name for name, _ in before.began)
    try:
        async for line in worker.stdout:
            delivery = life.hear(line)
            if delivery is not None and delivery not in before.began:
                handled[delivery[0]] += 1
                watch(delivery[0], handled[delivery[0]])
            if kill and sum(name == SLOWEST for name, _ in life.ended) == KILL_AT:
                worker.kill()
                kill = False
        life.exit_status = await worker.wait()
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
    return life


async def _backlog(kept: Journal) -> int:
    ((waiting,),) = await kept.query("SELECT coalesce(sum(waiting + stragglers), 0) FROM backlog")
    return int(waiting)


def _content(kind: str, data: Any) -> str:
    return json.dumps([kind, data], sort_keys=True)


__all__ = ["CrashReport", "Killed", "LaneAccount", "Life", "crash", "crash_and_recover", "recover", "totals"]
