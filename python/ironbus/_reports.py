"""The plain values of :mod:`ironbus.report`, made of what the native half counts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ironbus.priority import EventPriority
from ironbus.report import LaneLedger, Latency, Ledger, Metrics, SubscriptionStatistics

if TYPE_CHECKING:
    from ironbus._idempotency import Idempotency
    from ironbus.dead_letters import DeadLetters


def ledger(report: dict[str, Any]) -> Ledger:
    return Ledger(
        offered=report["offered"],
        accepted=report["accepted"],
        duplicate=report["duplicate"],
        rejected=report["rejected"],
        waiting=report["waiting"],
        cancelled=report["cancelled"],
        unknown=0,
        subscriptions={lane["name"]: _lane_ledger(lane) for lane in report["lanes"] if not lane["passive"]},
    )


def metrics(report: dict[str, Any]) -> Metrics:
    uptime = report["uptime"]
    counts = ledger(report)
    return Metrics(
        uptime=uptime,
        publish_rate=counts.accepted / uptime if uptime else 0.0,
        idempotency_keys=report["keys"],
        idempotency_evicted=report["evicted"],
        ledger=counts,
        subscriptions={lane["name"]: _statistics(lane, uptime) for lane in report["lanes"] if not lane["passive"]},
    )


def settings(settings: dict[str, Any]) -> dict[str, Any]:
    """What was set, as plain values."""
    idempotency: Idempotency = settings["idempotency"]
    letters: DeadLetters = settings["dead_letters"]
    return {
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
    }


def _lane_ledger(lane: dict[str, Any]) -> LaneLedger:
    names = ("routed", "done", "dead", "dropped", "expired", "filtered", "pending")
    return LaneLedger(*(lane[name] for name in names))


def _statistics(lane: dict[str, Any], uptime: float) -> SubscriptionStatistics:
    ledger = _lane_ledger(lane)
    settled = ledger.done + ledger.dead + ledger.dropped + ledger.expired + ledger.filtered
    return SubscriptionStatistics(
        name=lane["name"],
        state=lane["state"],
        depth={level.name: lane["depth"][level] for level in EventPriority},
        running=lane["running"],
        oldest_age=lane["oldest_age"],
        rate=settled / uptime if uptime else 0.0,
        ledger=ledger,
        wait=Latency(*lane["wait"]),
        work=Latency(*lane["work"]),
        held=lane["held"],
        delayed=lane["delayed"],
        retries=lane["retries"],
        breaker=lane["breaker"],
    )


__all__ = ["ledger", "metrics", "settings"]
