"""What a harness says when something is not as it should be. Never with payloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ironbus.report import LaneLedger, Ledger, Metrics, SubscriptionStatistics
from ironbus.testing._published import lines

if TYPE_CHECKING:
    from ironbus._core import Event

#: Failed deliveries that a text names.
_NAMED = 10


class Failed(Protocol):
    """A delivery that failed for good."""

    subscription: str
    event_type: str
    sequence: int
    attempt: int


def failures(failed: Sequence[Failed]) -> str:
    """Which deliveries failed; the group has what was raised."""
    named = [
        f"{each.subscription} on event {each.sequence} of type {each.event_type!r} (attempt {each.attempt})"
        for each in failed[:_NAMED]
    ]
    more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
    return f"{_count(len(failed), 'delivery', 'deliveries')} failed: {', '.join(named)}{more}"


def unsettled(seconds: float, metrics: Metrics) -> str:
    """What is left to do."""
    busy = [_busy(each) for each in metrics.subscriptions.values() if each.running or any(each.depth.values())]
    left = "; ".join(busy) or "nothing is queued, but something came again and again"
    return f"the bus has not settled within {seconds:g} s: {left}. It goes on, and settle() may be called again"


def _busy(each: SubscriptionStatistics) -> str:
    queued = sum(each.depth.values())
    waiting = "".join(
        f", {count} of them {what}"
        for count, what in ((each.held, "for a retry"), (each.delayed, "for their time"))
        if count
    )
    return f"{each.name} is {each.state} with {each.running} running, {queued} queued{waiting}"


def conservation(ledger: Ledger, open_events: list[Event[Any]], metrics: Metrics) -> str:
    """What is missing where, and the ledger."""
    text = "" if ledger.balanced else "the ledger does not balance"
    if open_events:
        what = _count(len(open_events), "published event has", "published events have")
        text += f"{' and ' if text else ''}{what} no outcome for some subscription:\n{lines(open_events)}"
    rows = [_publishers(ledger)]
    for name, lane in ledger.subscriptions.items():
        rows.append(_lane(name, lane, metrics.subscriptions.get(name)))
    return f"{text}\nthe ledger:\n" + "\n".join(rows)


def _publishers(ledger: Ledger) -> str:
    names = ("accepted", "duplicate", "rejected", "waiting", "cancelled", "unknown")
    counts = [(name, getattr(ledger, name)) for name in names]
    return _row("publishers", "offered", ledger.offered, counts)


def _lane(name: str, lane: LaneLedger, statistics: SubscriptionStatistics | None) -> str:
    names = ("done", "dead", "dropped", "expired", "filtered", "pending")
    state = f"  ({statistics.state})" if statistics is not None and lane.pending else ""
    return _row(name, "routed", lane.routed, [(name, getattr(lane, name)) for name in names]) + state


def _row(name: str, total: str, count: int, parts: list[tuple[str, int]]) -> str:
    missing = count - sum(part for _, part in parts)
    told = " + ".join(f"{part} {what}" for what, part in parts if part) or "0"
    return f"  {name}: {count} {total} = {told}" + (f"  <- {missing} missing" if missing else "")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


__all__ = ["conservation", "failures", "unsettled"]
