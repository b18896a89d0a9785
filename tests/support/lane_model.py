"""A subscription with retries and a breaker, told in the plainest way: a queue, times and counts.

It knows nothing of ironbus, and is what the bus is compared with. Times are whole milliseconds.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass


@dataclass
class Waiting:
    """An event that is not settled."""

    sequence: int
    due: int  # may be started then; 0: at once
    expires: float
    attempt: int = 0
    letter: int | None = None  # the first number of a dead letter that is delivered again


@dataclass
class Breaker:
    """Opens after failures in a row, and closes after one success of a probe."""

    threshold: int
    timeout: int
    state: str = "closed"
    failures: int = 0
    opened: int = 0

    def lets_through(self, now: int) -> bool:
        """Asked only when there is something to start."""
        if self.state == "open" and now >= self.opened + self.timeout:
            self.state = "half_open"
        return self.state != "open"

    def note(self, well: bool, now: int) -> None:
        """How a call went."""
        if well:
            self.state, self.failures = "closed", 0
            return
        self.failures += 1
        if self.state == "half_open" or self.failures >= self.threshold:
            self.state, self.opened = "open", now


class LaneModel:
    """One level of one subscription, one call at a time; a retry holds what comes after it."""

    def __init__(self, attempts: int = 1, delay: int = 0, breaker: Breaker | None = None) -> None:
        self.attempts, self.delay, self.breaker = attempts, delay, breaker
        self.queue: list[Waiting] = []
        self.delayed: list[tuple[int, int, Waiting]] = []
        self.ripe: list[tuple[int, int, Waiting]] = []
        self.held: Waiting | None = None
        self.paused = False
        #: How many calls from now on fail.
        self.fails: float = 0
        #: Time, number, attempt, and whether it went well.
        self.calls: list[tuple[int, int, int, bool]] = []
        self.done = self.dead = self.expired = 0
        #: Dead letters by the number that their event had first, and those of them that are under way again.
        self.letters: list[int] = []
        self.under_way: set[int] = set()

    @property
    def pending(self) -> int:
        """Events that are not settled."""
        return len(self.queue) + len(self.delayed) + len(self.ripe) + (self.held is not None)

    def accept(self, event: Waiting, now: int) -> None:
        """An event comes in."""
        own = Waiting(event.sequence, event.due, event.expires)
        if own.due:
            bisect.insort(self.delayed, (own.due, own.sequence, own))
        else:
            self.queue.append(own)

    def redrive(self, letter: int, sequence: int) -> None:
        """A dead letter comes in again, behind all others; it stays one until it has succeeded."""
        self.under_way.add(letter)
        self.queue.append(Waiting(sequence, 0, math.inf, letter=letter))

    def next_time(self, after: int) -> float:
        """When something may change by itself the next time."""
        times = [due for due, _, _ in self.delayed]
        if self.held is not None:
            times.append(self.held.due)
        if self.breaker is not None and self.breaker.state == "open":
            times.append(self.breaker.opened + self.breaker.timeout)
        return min((time for time in times if time > after), default=math.inf)

    def run(self, now: int) -> None:
        """Does all that can be done at this time."""
        while self.delayed and self.delayed[0][0] <= now:
            self.ripe.append(self.delayed.pop(0))
        while not self.paused and (event := self._first(now)) is not None:
            if self.breaker is not None and not self.breaker.lets_through(now):
                return
            self._take(event)
            if event.expires <= now:
                self.expired += 1
            else:
                self._call(event, now)

    def _first(self, now: int) -> Waiting | None:
        if self.held is not None:
            return self.held if self.held.due <= now else None
        return self.ripe[0][2] if self.ripe else self.queue[0] if self.queue else None

    def _take(self, event: Waiting) -> None:
        if event is self.held:
            self.held = None
        elif self.ripe and event is self.ripe[0][2]:
            self.ripe.pop(0)
        else:
            self.queue.pop(0)

    def _call(self, event: Waiting, now: int) -> None:
        event.attempt += 1
        probe = self.breaker is not None and self.breaker.state == "half_open"
        well = self.fails <= 0
        self.fails -= not well
        self.calls.append((now, event.sequence, event.attempt, well))
        if self.breaker is not None:
            self.breaker.note(well, now)
        if well:
            self.done += 1
            if event.letter is not None:
                self.letters.remove(event.letter)
                self.under_way.remove(event.letter)
        elif probe or event.attempt < self.attempts:
            event.attempt -= probe  # it says nothing about the event
            event.due = now + self.delay * 2 ** (max(event.attempt, 1) - 1)
            self.held = event
        else:
            self.dead += 1
            if event.letter is None:
                self.letters.append(event.sequence)
            else:
                self.under_way.remove(event.letter)
