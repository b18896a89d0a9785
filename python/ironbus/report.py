"""What the bus reports about itself: plain frozen values, safe to keep and to send on.

All times are seconds, all counts are numbers of events (or of deliveries, one
per event and subscription, where the class says so).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of one measured time, in seconds, to two significant digits."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class LaneLedger:
    """Where the deliveries of one subscription are: each in exactly one place.

    ``routed == done + dead + dropped + expired + filtered + pending``. Every
    figure is counted where it happens; ``pending`` is counted from the queues
    and the running handlers, not derived from the others.
    """

    routed: int
    done: int
    dead: int
    dropped: int
    expired: int
    filtered: int
    pending: int

    @property
    def balanced(self) -> bool:
        """Whether the equation holds."""
        return self.routed == self.done + self.dead + self.dropped + self.expired + self.filtered + self.pending


@dataclass(frozen=True, slots=True)
class Ledger:
    """What became of everything that was offered to the bus.

    ``offered == accepted + duplicate + rejected + waiting + cancelled + unknown``,
    and the equation of :class:`LaneLedger` for every subscription. ``cancelled``
    publishes were given up while they waited for room.
    """

    offered: int
    accepted: int
    duplicate: int
    rejected: int
    waiting: int
    cancelled: int
    unknown: int
    subscriptions: Mapping[str, LaneLedger]

    @property
    def balanced(self) -> bool:
        """Whether all equations hold."""
        return self.offered == (
            self.accepted + self.duplicate + self.rejected + self.waiting + self.cancelled + self.unknown
        ) and all(lane.balanced for lane in self.subscriptions.values())

    @property
    def pending(self) -> int:
        """Deliveries that are not settled yet."""
        return sum(lane.pending for lane in self.subscriptions.values())


@dataclass(frozen=True, slots=True)
class SubscriptionStatistics:
    """One subscription at one moment."""

    name: str
    # "idle", "ready", "running"; "waiting" (all that is queued waits for a time, or behind what does); "paused";
    # "open" (its circuit breaker lets nothing through); "parked" (the dead letter queue is full)
    state: str
    depth: Mapping[str, int]  # deliveries that are not settled and do not run, by priority name
    running: int
    oldest_age: float  # seconds that the oldest queued delivery has waited; 0.0 when none is queued
    rate: float  # settled deliveries per second, lately: see ``Metrics.rates_over``
    ledger: LaneLedger
    wait: Latency  # from acceptance (or the end of its delay) to the handler's first start
    work: Latency  # from the handler's start to its end
    held: int = 0  # how many of the depth wait for their next attempt
    delayed: int = 0  # how many of the depth wait for the end of their publisher's ``delay``
    retries: int = 0  # runs so far that ended with "again later"
    breaker: str | None = None  # the state of its circuit breaker, if it has one
    longest_run: float = 0.0  # seconds that the handler has run which began first of those at work; 0.0 if none is
    stuck: bool = False  # whether that is too long by the ``health`` thresholds of the bus


@dataclass(frozen=True, slots=True)
class DeadLetterMetrics:
    """The dead letter queue of a bus: as this process knows it, without a look at the file.

    The last three count since the queue was made, of a file by all processes.
    """

    entries: int  # letters in the queue
    growth: int  # new letters of this bus within the ``health`` window
    dropped: int  # let go because the queue was full
    expired: int  # let go because they were older than ``max_age``
    damaged: int  # moved aside because their checksum was wrong


@dataclass(frozen=True, slots=True)
class Metrics:
    """The whole bus at one moment."""

    uptime: float  # seconds since start; 0.0 when the bus is not running
    publish_rate: float  # accepted events per second, lately: see ``rates_over``
    idempotency_keys: int  # keys that are remembered now
    idempotency_evicted: int  # keys that went before their time because of the key limit
    ledger: Ledger
    subscriptions: Mapping[str, SubscriptionStatistics]
    processing_rate: float  # deliveries settled per second, lately, of all subscriptions that are still there
    # Seconds for which the bus was started within the time that the rates are of: the ``health`` window, or more, from
    # the last call of ``metrics()`` or ``health()`` before it, or from the first start
    rates_over: float
    retries: int  # runs so far that ended with "again later", of all subscriptions
    dead_letters: DeadLetterMetrics
    # events by which the subscription is behind that is furthest, of those that are here and not paused: never fewer
    # than it has still to do, retries that wait not counted; 0 without a path
    backlog: int = 0


@dataclass(frozen=True, slots=True)
class StopReport:
    """How a stop went."""

    drained: bool  # everything was settled within the timeout
    left: int  # deliveries that stay queued for the next start
    interrupted: int  # handlers that were cancelled; their events are among ``left``
    seconds: float


__all__ = ["DeadLetterMetrics", "LaneLedger", "Latency", "Ledger", "Metrics", "StopReport", "SubscriptionStatistics"]
