"""The plain values of :mod:`ironbus.report`, made of what the native half counts."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from ironbus._health import stuck
from ironbus.priority import EventPriority
from ironbus.report import DeadLetterMetrics, LaneLedger, Latency, Ledger, Metrics, SubscriptionStatistics

if TYPE_CHECKING:
    from ironbus._durable import JournalSettings
    from ironbus._history import Since
    from ironbus._idempotency import Idempotency
    from ironbus.dead_letters import DeadLetters
    from ironbus.health import HealthThresholds


def ledger(report: dict[str, Any]) -> Ledger:
    return Ledger(
        offered=report["offered"],
        accepted=report["accepted"],
        duplicate=report["duplicate"],
        rejected=report["rejected"],
        waiting=report["waiting"],
        cancelled=report["cancelled"],
        unknown=report["unknown"],
        subscriptions={lane["name"]: _lane_ledger(lane) for lane in report["lanes"] if not lane["passive"]},
    )


def metrics(report: dict[str, Any], since: Since, thresholds: HealthThresholds) -> Metrics:
    lanes = [lane for lane in report["lanes"] if not lane["passive"]]
    return Metrics(
        uptime=report["uptime"],
        publish_rate=since.rate(since.now.accepted - since.then.accepted),
        idempotency_keys=report["keys"],
        idempotency_evicted=report["evicted"],
        ledger=ledger(report),
        subscriptions={lane["name"]: _statistics(lane, since, thresholds) for lane in lanes},
        processing_rate=since.rate(since.settled),
        rates_over=since.ran,
        retries=sum(lane["retries"] for lane in lanes),
        dead_letters=DeadLetterMetrics(
            entries=report["dead_letters"],
            growth=report["dead_letters_grown"],
            dropped=report["dead_letters_dropped"],
            expired=report["dead_letters_expired"],
            damaged=report["dead_letters_damaged"],
        ),
        backlog=0 if report["journal"] is None else report["journal"]["backlog"],
    )


def settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What was set, as plain values."""
    idempotency: Idempotency = settings["idempotency"]
    letters: DeadLetters = settings["dead_letters"]
    journal: JournalSettings | None = settings["journal"]
    return {
        "path": None if journal is None else os.fspath(journal["path"]),
        "durability": "memory" if journal is None else journal["durability"],
        "retention": None if journal is None else journal["retention"],
        "absent_ttl": None if journal is None else journal["absent_ttl"],
        "max_backlog": None if journal is None else journal["max_backlog"],
        "max_queue_size": settings["max_queue_size"],
        "overflow": settings["overflow"],
        "context": settings["context"],
        "workers": settings["workers"],
        "idempotency": {"mode": idempotency.mode, "ttl": idempotency.ttl, "max_keys": idempotency.max_keys},
        "dead_letters": {
            "path": None if letters.path is None else os.fspath(letters.path),
            "max_entries": letters.max_entries,
            "max_age": letters.max_age,
            "when_full": letters.when_full,
            "details": letters.details,
            "durability": letters.durability,
        },
        "health": dataclasses.asdict(settings["health"]),
    }


def _lane_ledger(lane: dict[str, Any]) -> LaneLedger:
    names = ("routed", "done", "dead", "dropped", "expired", "filtered", "pending")
    return LaneLedger(*(lane[name] for name in names))


def _statistics(lane: dict[str, Any], since: Since, thresholds: HealthThresholds) -> SubscriptionStatistics:
    return SubscriptionStatistics(
        name=lane["name"],
        state=lane["state"],
        depth={level.name: lane["depth"][level] for level in EventPriority},
        running=lane["running"],
        oldest_age=lane["oldest_age"],
        rate=since.rate(since.lane(lane["id"]).settled),
        ledger=_lane_ledger(lane),
        wait=Latency(*lane["wait"]),
        work=Latency(*lane["work"]),
        held=lane["held"],
        delayed=lane["delayed"],
        retries=lane["retries"],
        breaker=lane["breaker"],
        longest_run=lane["longest_run"],
        stuck=stuck(lane, thresholds) is not None,
    )


__all__ = ["ledger", "metrics", "settings"]
