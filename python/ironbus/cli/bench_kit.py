"""What every row of the benchmark is made of: how much to do, what is measured, what it must reach."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Payload = dict[str, Any]
BATCH = 1_000
STAT = Path("/proc/stat")
TRIES = 2  # times as many rounds as are wanted, at most
QUIET = 0.01  # of the machine's time


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to do."""

    events: int = 100_000
    rounds: int = 9


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure must reach, and what it aims at."""

    label: str
    unit: str  # "x", "B", "s" or "/s"
    must: float
    aim: float
    at_most: bool = False

    def verdict(self, value: float) -> str:
        """``aim``, ``must`` or ``missed``: the best that is met."""
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if value <= bound if self.at_most else value >= bound:
                return name
        return "missed"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one row measured: a value for each of its targets, and the speeds behind them."""

    values: tuple[float, ...]
    rate: float = 0.0  # events per second, ours
    peer_rate: float = 0.0
    peak: int = 0  # bytes of memory at most, where the figure is a size


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of targets."""

    name: str
    targets: tuple[Target, ...]
    measure: Callable[[Scale], Sample] = field(repr=False)
    peer: str = ""
    durability: str = "memory"  # of our own events


Timed = Callable[[Sequence[Payload]], float]


@cache
def payloads(count: int) -> Sequence[Payload]:
    """The payload of the table of targets, ``count`` times, all different."""
    return [{"order_id": i, "customer": f"c{i % 100}", "amount": 19.99, "items": ["a", "b", "c"]} for i in range(count)]


@cache
def batches(count: int) -> Sequence[list[tuple[str, Payload]]]:
    """The same as pairs of type and data, a thousand in a list: the publisher's own work."""
    pairs = iter([("order", payload) for payload in payloads(count)])
    return list(iter(lambda: list(islice(pairs, BATCH)), []))


class Stretch:
    """A stretch of time, from now on, and how much of the machine's time its host took meanwhile."""

    def __init__(self) -> None:
        self.began, self.before = time.perf_counter(), stolen()

    def share(self) -> float:
        """What was stolen up to now, as a share of what the processors have."""
        return (stolen() - self.before) / ((time.perf_counter() - self.began) * (os.cpu_count() or 1))


def stolen() -> float:
    """Seconds for which a processor had work and the host of this virtual machine ran something else instead, since
    the start of the machine: ``steal`` of proc(5). 0 where the system does not say."""
    try:
        return int(STAT.read_text().split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


@dataclass
class Rounds(Generic[T]):
    """``while rounds.go_on(): ... rounds.add(measured)``, then ``rounds.best()``.

    A host that many machines share stops one of them for milliseconds, and no program can do anything about it.
    Rounds that met with that are repeated, and those with the least of it count. They are chosen by what the
    host took, whatever they measured.
    """

    wanted: int
    done: list[tuple[float, T]] = field(default_factory=list)  # with the share of its time that was stolen
    now: Stretch = field(default_factory=Stretch)

    def go_on(self) -> bool:
        """Whether to run another round, which begins now."""
        quiet = sum(share <= QUIET for share, _ in self.done)
        if quiet >= self.wanted or len(self.done) >= TRIES * self.wanted:
            return False
        self.now = Stretch()
        return True

    def add(self, measured: T) -> None:
        """What the round measured that ends now."""
        self.done.append((self.now.share(), measured))

    def best(self) -> list[T]:
        """As many as are wanted: the first of those that were left alone, then those from which least was stolen."""
        by_share = sorted(self.done, key=lambda done: max(done[0], QUIET))
        return [measured for _, measured in by_share[: self.wanted]]


def side_by_side(ours: Callable[[Sequence[Payload]], T], peer: Timed, scale: Scale) -> list[tuple[T, float]]:
    """What ours and the peer measure, in turn."""
    work = payloads(scale.events)
    rounds: Rounds[tuple[T, float]] = Rounds(scale.rounds)
    while rounds.go_on():
        gc.collect()
        theirs = peer(work)
        gc.collect()
        rounds.add((ours(work), theirs))
    return rounds.best()


def against(ours: Timed, peer: Timed, scale: Scale) -> Sample:
    """Ours and the peer's in turn; how many times as fast ours is."""
    return compared(side_by_side(ours, peer, scale), scale)


def compared(pairs: Sequence[tuple[float, float]], scale: Scale) -> Sample:
    """The same of times that were measured."""
    return Sample(
        values=(statistics.median(theirs / own for own, theirs in pairs),),
        rate=scale.events / statistics.median(own for own, _ in pairs),
        peer_rate=scale.events / statistics.median(theirs for _, theirs in pairs),
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which ``percent`` of a hundred values are."""
    if len(values) < 100:
        raise NotHere("too few events to measure a time")
    return statistics.quantiles(values, n=100)[percent - 1]


class NotHere(Exception):
    """This machine cannot measure that; the text says why."""


def expect(got: int, wanted: int) -> None:
    """A round that lost something measured nothing."""
    if got != wanted:
        raise RuntimeError(f"{got} of {wanted} events arrived: the round does not count")


__all__ = [
    "BATCH",
    "QUIET",
    "NotHere",
    "Payload",
    "Rounds",
    "Row",
    "Sample",
    "Scale",
    "Stretch",
    "Target",
    "Timed",
    "against",
    "batches",
    "compared",
    "expect",
    "payloads",
    "percentile",
    "side_by_side",
    "stolen",
]
