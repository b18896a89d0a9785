"""What the counters of a bus said before, for rates and for what is new. Kept by whoever asks: no event pays for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

#: A window is exact to this part of it.
_SLICES = 6


class LaneCounts(NamedTuple):
    """Of one lane since it was made."""

    settled: int
    dropped: int
    lost: int  # what the ledger misses; less than 0: what it has too much


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters at one moment."""

    at: int  # nanoseconds on the bus's clock: in seconds, a minute is not always sixty of them
    ran: float  # seconds for which the bus has been started in all
    accepted: int
    lost: int
    evicted: int
    letters_dropped: int  # as long as this bus has the queue
    letters_damaged: int
    lanes: Mapping[int, LaneCounts]  # by number

    @property
    def settled(self) -> int:
        return sum(lane.settled for lane in self.lanes.values())


_NOTHING = Sample(0, 0.0, 0, 0, 0, 0, 0, {})
_NO_LANE = LaneCounts(0, 0, 0)


class Since:
    """What has changed from one moment to another."""

    def __init__(self, then: Sample, now: Sample) -> None:
        self.then, self.now = then, now
        self.ran = max(now.ran - then.ran, 0.0)  # seconds of them in which the bus was started

    def lane(self, number: int) -> LaneCounts:
        """What is new in a lane."""
        now, then = self.now.lanes[number], self.then.lanes.get(number, _NO_LANE)
        return LaneCounts(now.settled - then.settled, now.dropped - then.dropped, now.lost - then.lost)

    @property
    def settled(self) -> int:
        """Deliveries, of lanes that are still there."""
        return sum(self.lane(number).settled for number in self.now.lanes)

    def rate(self, count: int) -> float:
        """So many per second; 0.0 while the bus is not started."""
        return count / self.ran if self.ran else 0.0


class History:
    """Samples of the last while. Any thread: what two threads add at once, one may lose."""

    def __init__(self, window: float) -> None:
        self._window = round(window * 1e9)
        self._samples: tuple[Sample, ...] = ()

    def look(self, report: Mapping[str, Any]) -> Since:
        """What has changed within the window, and since somebody looked before it if nobody did at its beginning."""
        now = _sample(report)
        samples = self._samples
        base = next((each for each in reversed(samples) if now.at - each.at >= self._window), None)
        kept = samples if base is None else samples[samples.index(base) :]
        # One between two that are close to each other is not needed any more.
        if len(kept) > 1 and now.at - kept[-2].at < self._window / _SLICES:
            kept = kept[:-1]
        self._samples = (*kept, now)
        return Since(base or _NOTHING, now)


def _sample(report: Mapping[str, Any]) -> Sample:
    ended = ("duplicate", "accepted", "rejected", "waiting", "cancelled", "unknown")
    return Sample(
        at=report["now"],
        ran=report["ran"],
        accepted=report["accepted"],
        lost=report["offered"] - sum(report[name] for name in ended),
        evicted=report["evicted"],
        letters_dropped=report["dead_letters_dropped_here"],
        letters_damaged=report["dead_letters_damaged_here"],
        lanes={lane["id"]: _lane(lane) for lane in report["lanes"] if not lane["passive"]},
    )


def _lane(lane: Mapping[str, Any]) -> LaneCounts:
    settled = lane["done"] + lane["dead"] + lane["dropped"] + lane["expired"] + lane["filtered"]
    return LaneCounts(settled, lane["dropped"], lane["routed"] - settled - lane["pending"])


__all__ = ["History", "Since"]
