"""The rules of :meth:`ironbus.EventBus.health`, applied to what the native half counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ironbus._history import Since
from ironbus.health import Health, HealthReason, HealthThresholds, ReasonCode, Severity
from ironbus.priority import EventPriority

_Lane = dict[str, Any]


class _Look(NamedTuple):
    report: Mapping[str, Any]
    lanes: list[_Lane]  # without streams
    thresholds: HealthThresholds
    since: Since
    breakers: Mapping[str, str]  # the names of breakers, by subscription


def health(
    report: Mapping[str, Any], thresholds: HealthThresholds, since: Since, breakers: Mapping[str, str]
) -> Health:
    lanes = [lane for lane in report["lanes"] if not lane["passive"]]
    look = _Look(report, lanes, thresholds, since, breakers)
    reasons = [reason for check in _CHECKS for reason in check(look)]
    reasons.sort(key=lambda reason: reason.severity, reverse=True)
    return Health(reasons[0].severity if reasons else "ok", tuple(reasons))


def stuck(lane: _Lane, thresholds: HealthThresholds) -> float | None:
    """After how many seconds the handler of a lane counts as stuck, if it is; else None."""
    limit = thresholds.handler_stuck
    if limit is None:
        return None
    if lane["timeout"] is not None:
        limit = min(limit, lane["timeout"])
    return limit if lane["longest_run"] >= limit else None


# A check for each thing that is counted ------------------------------------------------


def _ledger(look: _Look) -> Iterator[HealthReason]:
    """What is lost stays lost, and in the ledger; the reason is that it is new."""
    if look.since.now.lost and (new := look.since.now.lost - look.since.then.lost):
        yield HealthReason("ledger_unbalanced", "failing", abs(new), 1)
    for lane in look.lanes:
        number = lane["id"]
        if look.since.now.lanes[number].lost and (new := look.since.lane(number).lost):
            yield HealthReason("ledger_unbalanced", "failing", abs(new), 1, lane["name"])


def _lanes(look: _Look) -> Iterator[HealthReason]:
    for lane in look.lanes:
        yield from _lane(look, lane)


def _lane(look: _Look, lane: _Lane) -> Iterator[HealthReason]:
    name, thresholds = lane["name"], look.thresholds
    if lane["state"] == "parked":
        yield HealthReason("lane_parked", "failing", sum(lane["depth"]), 1, name)
    if lane["breaker"] not in (None, "closed"):
        yield HealthReason("breaker_open", "degraded", lane["breaker_for"], 0, name, breaker=look.breakers.get(name))
    if thresholds.lane_filling is not None:
        for level in EventPriority:
            share = lane["depth"][level] / lane["bound"]
            if share >= thresholds.lane_filling:
                # Where a policy drops events, or has them wait in the journal, a full queue keeps no publisher waiting.
                full = share >= 1 and lane["refuses"]
                severity: Severity = "failing" if full else "degraded"
                yield HealthReason("lane_filling", severity, share, thresholds.lane_filling, name, level.name)
    if thresholds.oldest_event is not None and lane["oldest_age"] >= thresholds.oldest_event:
        yield HealthReason("oldest_event", "degraded", lane["oldest_age"], thresholds.oldest_event, name)
    dropped = look.since.lane(lane["id"]).dropped
    if thresholds.events_dropped is not None and dropped >= thresholds.events_dropped:
        yield HealthReason("events_dropped", "degraded", dropped, thresholds.events_dropped, name)


def _handlers(look: _Look) -> Iterator[HealthReason]:
    held = {lane["id"]: (lane, limit) for lane in look.lanes if (limit := stuck(lane, look.thresholds)) is not None}
    on_threads = [number for number, seconds in look.report["threads"] if number in held and seconds >= held[number][1]]
    # If all threads are held, no sync handler can begin.
    all_held = len(on_threads) >= look.report["threads_bound"]
    for number, (lane, limit) in held.items():
        severity: Severity = "failing" if all_held and number in on_threads else "degraded"
        yield HealthReason("handler_stuck", severity, lane["longest_run"], limit, lane["name"])


def _kept(look: _Look) -> Iterator[HealthReason]:
    limit, share = look.thresholds.lane_filling, look.report["kept"] / look.report["kept_bound"]
    if limit is not None and share >= limit:
        yield HealthReason("kept_filling", "failing" if share >= 1 else "degraded", share, limit)


def _dead_letters(look: _Look) -> Iterator[HealthReason]:
    report, thresholds, since = look.report, look.thresholds, look.since
    if report["dead_letters_unreadable"]:
        yield HealthReason("dead_letters_unreadable", "failing", 1, 1)
    growth, limit = report["dead_letters_grown"], thresholds.dead_letters_growing
    if limit is not None and growth >= limit:
        yield HealthReason("dead_letters_growing", "degraded", growth, limit)
    share, most = report["dead_letters"] / report["dead_letters_bound"], thresholds.dead_letters_filling
    if most is not None and share >= most:
        full = share >= 1 and report["dead_letters_park"]
        yield HealthReason("dead_letters_filling", "failing" if full else "degraded", share, most)
    news: tuple[tuple[ReasonCode, int], ...] = (
        ("dead_letters_dropped", since.now.letters_dropped - since.then.letters_dropped),
        ("dead_letters_damaged", since.now.letters_damaged - since.then.letters_damaged),
    )
    for code, new in news:
        if new > 0:
            yield HealthReason(code, "degraded", new, 1)


def _journal(look: _Look) -> Iterator[HealthReason]:
    if look.report["journal_unreadable"]:
        yield HealthReason("journal_unreadable", "failing", 1, 1)
    journal, thresholds = look.report["journal"], look.thresholds
    if journal is None:
        return
    if journal["read_only"]:
        yield HealthReason("journal_read_only", "failing", 1, 1)
    if journal["checkpoint_failed"]:
        yield HealthReason("journal_checkpoint", "degraded", 1, 1)
    if journal["upkeep_failed"]:
        yield HealthReason("journal_upkeep", "degraded", 1, 1)
    if thresholds.journal_size is not None and journal["size"] >= thresholds.journal_size:
        yield HealthReason("journal_size", "degraded", journal["size"], thresholds.journal_size)
    bound, most = journal["backlog_bound"], thresholds.backlog_filling
    if bound is not None and most is not None and (share := journal["backlog"] / bound) >= most:
        severity: Severity = "failing" if journal["publishers"] else "degraded"
        yield HealthReason("backlog_filling", severity, share, most, journal["backlog_of"])
    limit = thresholds.subscription_absent
    for name, seconds in journal["absent"]:
        if limit is not None and seconds >= limit:
            yield HealthReason("subscription_absent", "degraded", seconds, limit, name)


def _keys(look: _Look) -> Iterator[HealthReason]:
    evicted, limit = look.since.now.evicted - look.since.then.evicted, look.thresholds.keys_evicted
    if limit is not None and evicted >= limit:
        yield HealthReason("keys_evicted", "degraded", evicted, limit)


_CHECKS = (_ledger, _journal, _lanes, _handlers, _kept, _dead_letters, _keys)

__all__ = ["health", "stuck"]
