"""Whether a bus is well, in words that a machine reads: codes, values and thresholds, never payloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ironbus import _settings

Severity = Literal["degraded", "failing"]

#: What may be wrong. Codes are stable: new ones may come, none changes its meaning.
ReasonCode = Literal[
    "backlog_filling",
    "breaker_open",
    "dead_letters_damaged",
    "dead_letters_dropped",
    "dead_letters_filling",
    "dead_letters_growing",
    "dead_letters_unreadable",
    "events_dropped",
    "handler_stuck",
    "journal_checkpoint",
    "journal_read_only",
    "journal_size",
    "journal_unreadable",
    "journal_upkeep",
    "keys_evicted",
    "kept_filling",
    "lane_filling",
    "lane_parked",
    "ledger_unbalanced",
    "oldest_event",
    "subscription_absent",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthThresholds:
    """From where on :meth:`ironbus.EventBus.health` gives a reason: when its value has reached the threshold.

    A threshold has the name of its reason. None: there is no such reason.

    ``window``: seconds that "lately" means, on the bus's clock, exact to a sixth. ``lane_filling``: the depth of one
    priority of a subscription, as a share of its bound; also for events that are kept for the start. ``oldest_event``:
    seconds that the oldest queued event of a subscription has waited. ``handler_stuck``: seconds that a
    handler runs; where the subscription's ``timeout`` is shorter, that one counts. ``events_dropped``:
    events of a subscription that its overflow policy dropped lately. ``dead_letters_growing``: new dead
    letters lately. ``dead_letters_filling``: their number as a share of ``max_entries``. ``keys_evicted``: idempotency
    keys that lately went before their time because of ``max_keys``. ``journal_size``: bytes of the journal and its log.
    ``backlog_filling``: how far a subscription is behind, as a share of ``max_backlog``.
    ``subscription_absent``: seconds for which a subscription that the journal keeps events for has not been there.

    Raises :class:`ironbus.InvalidOption`.
    """

    window: float = 60.0
    lane_filling: float | None = 0.8
    oldest_event: float | None = 60.0
    handler_stuck: float | None = 60.0
    events_dropped: int | None = 1
    dead_letters_growing: int | None = 10
    dead_letters_filling: float | None = 0.8
    keys_evicted: int | None = 1
    journal_size: int | None = 10 * 2**30
    subscription_absent: float | None = 60.0
    backlog_filling: float | None = 0.8

    def __post_init__(self) -> None:
        _settings.check_number(self.window, "window", 1, 86_400)
        for name in ("lane_filling", "dead_letters_filling", "backlog_filling"):
            if getattr(self, name) is not None:
                _settings.check_number(getattr(self, name), name, 0.01, 1)
        for name in ("oldest_event", "handler_stuck", "subscription_absent"):
            if getattr(self, name) is not None:
                _settings.check_number(getattr(self, name), name, 0.001, _settings.LONGEST)
        for name in ("events_dropped", "dead_letters_growing", "keys_evicted", "journal_size"):
            if getattr(self, name) is not None:
                _settings.check_whole(getattr(self, name), name)


@dataclass(frozen=True, slots=True)
class HealthReason:
    """One thing that is wrong. The unit of ``value`` and ``threshold`` depends on the code; see the README."""

    code: ReasonCode
    severity: Severity
    value: float
    threshold: float
    subscription: str | None = None  # None: it concerns the whole bus
    level: str | None = None  # the name of a priority
    breaker: str | None = None  # the name of a circuit breaker


@dataclass(frozen=True, slots=True)
class Health:
    """A bus at one moment: "failing" if one of the reasons is, "degraded" if there are others, else "ok"."""

    status: Literal["ok", "degraded", "failing"]
    reasons: tuple[HealthReason, ...]  # those that are failing come first


__all__ = ["Health", "HealthReason", "HealthThresholds", "ReasonCode", "Severity"]
