"""What every row of the benchmark is made of: how much to do, what is measured, what it must reach."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any

Payload = dict[str, Any]
BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Scale:
    """How much to do."""

    events: int = 100_000
    rounds: int = 5


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


def against(ours: Timed, peer: Timed, scale: Scale) -> Sample:
    """Ours and the peer's in turn; how many times as fast ours is."""
    work = payloads(scale.events)
    pairs = []
    for _ in range(scale.rounds):
        gc.collect()
        theirs = peer(work)
        gc.collect()
        pairs.append((ours(work), theirs))
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
    "NotHere",
    "Payload",
    "Row",
    "Sample",
    "Scale",
    "Target",
    "Timed",
    "against",
    "batches",
    "expect",
    "payloads",
    "percentile",
]
