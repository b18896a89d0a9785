"""How reports look: tables for people, plain objects for ``--json``."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ironbus.report import Latency, Ledger

if TYPE_CHECKING:
    from ironbus.cli.demo_crash import CrashReport

SHOWN_FAILURES = 5


def as_json(value: Any) -> Any:
    """A report as what ``json.dumps`` takes. (``dataclasses.asdict`` cannot copy a mapping proxy.)"""
    if dataclasses.is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    return value


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value / 1e-6:,.1f} µs"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, bytes_of_it in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_of_it:
            return f"{count / bytes_of_it:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def harmless(text: str, lines: bool = False) -> str:
    """A text of somebody else's for a terminal: control characters become escapes; line ends stay where wanted."""

    def written(c: str) -> str:
        return c if c.isprintable() or (lines and c in "\n\t") else c.encode("unicode_escape").decode()

    return "".join(map(written, text))


def cell(text: str) -> Text:
    """The same for a cell of a table, where it is no markup either."""
    return Text(harmless(text))


def ledger_table(ledger: Ledger) -> Table:
    """Where every delivery went, one line a subscription."""
    columns = ("routed", "done", "dead", "dropped", "expired", "filtered", "pending")
    table = Table(title=_balance(ledger), title_justify="left")
    table.add_column("subscription")
    for column in columns:
        table.add_column(column, justify="right")
    for name, lane in ledger.subscriptions.items():
        table.add_row(name, *(f"{getattr(lane, column):,}" for column in columns))
    return table


def _balance(ledger: Ledger) -> str:
    outcomes = ("accepted", "duplicate", "rejected", "waiting", "cancelled", "unknown")
    told = [f"{getattr(ledger, name):,} {name}" for name in outcomes if name == "accepted" or getattr(ledger, name)]
    verdict = "balanced" if ledger.balanced else "NOT BALANCED"
    return f"{ledger.offered:,} offered = {' + '.join(told)} ({verdict})"


def crash_lines(crash: CrashReport) -> Iterator[str]:
    """What a killed worker left, and what its successor made of it, for people."""
    died = "killed" if crash.died_of_sigkill else "NOT KILLED"
    yield f"{died} with {crash.events_at_kill:,} events in the file and {crash.backlog_at_kill:,} deliveries to go"
    yield (
        f"{crash.read:,} lines published again = {crash.accepted_after:,} accepted + {crash.duplicates_after:,} "
        f"duplicate; {crash.again:,} deliveries came again, whose settlement was not written yet"
    )
    lost = sum(lane.lost for lane in crash.subscriptions.values())
    yield (
        f"{crash.events:,} events, {crash.missing:,} missing, {crash.twice:,} twice; "
        f"{crash.backlog:,} deliveries to go, {lost:,} lost; the file is {'clean' if crash.clean else 'DAMAGED'} "
        f"({'balanced' if crash.balanced else 'NOT BALANCED'})"
    )


def crash_table(crash: CrashReport) -> Table:
    """Where every event went in the two lives of the worker, one line a subscription."""
    columns = ("routed", "done", "dead", "lost", "again")
    table = Table()
    table.add_column("subscription")
    for column in columns:
        table.add_column(column, justify="right")
    for name, lane in crash.subscriptions.items():
        table.add_row(name, *(f"{getattr(lane, column):,}" for column in columns))
    return table


def latency_table(times: Mapping[str, Latency]) -> Table:
    """Percentiles, one line a measured time."""
    columns = ("p50", "p90", "p99", "max")
    table = Table(title="latency", title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, latency in times.items():
        table.add_row(name, *(seconds(getattr(latency, column)) for column in columns))
    return table


class _FirstFew(logging.Handler):
    def __init__(self, console: Console, limit: int) -> None:
        super().__init__(logging.WARNING)
        self.console, self.limit, self.count = console, limit, 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        if self.count <= self.limit:
            self.console.print(record.getMessage(), markup=False, soft_wrap=True)


@contextmanager
def failures_on(console: Console, limit: int = SHOWN_FAILURES) -> Iterator[None]:
    """Shows the first few of the bus's log records: a handler that always fails must not flood the terminal."""
    logger, handler = logging.getLogger("ironbus"), _FirstFew(console, limit)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    if limit and handler.count > limit:
        console.print(f"… and {handler.count - limit:,} more failures", markup=False)


__all__ = [
    "as_json",
    "cell",
    "crash_lines",
    "crash_table",
    "failures_on",
    "harmless",
    "latency_table",
    "ledger_table",
    "seconds",
    "size",
]
