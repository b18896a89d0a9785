"""``ironbus status``, ``events``, ``verify``, ``backup``, ``replay`` and ``query``: a journal seen from outside.

All of them work beside the bus that owns the journal, and change nothing.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ironbus import Event, EventPriority, _core
from ironbus._log import place
from ironbus._subscriptions import is_async
from ironbus.cli import moments
from ironbus.cli.console import AsJson, AsJsonLines, consoles, errors_told, fail, load_handler, print_json, run, say
from ironbus.cli.render import cell, failures_on, harmless, size
from ironbus.journal import Journal, JournalEvents, Moment, ReplayReport

POLL = 0.2  # seconds between two looks for new events

journal = typer.Typer()

File = Annotated[Path, typer.Argument(help="The journal: the path= of a bus.", show_default=False)]
OfTypes = Annotated[
    list[str] | None,
    typer.Option("--type", help="Events of this type or pattern; may be repeated.", show_default=False),
]
OfKey = Annotated[str | None, typer.Option("--key", help="Events with this key.", show_default=False)]
Since = Annotated[
    float | None,
    typer.Option(parser=moments.parse_moment, metavar="TIME", help=f"Accepted then or later. {moments.HELP}."),
]
Until = Annotated[float | None, typer.Option(parser=moments.parse_moment, metavar="TIME", help="Accepted before then.")]
After = Annotated[int | None, typer.Option("--after", min=0, help="Behind this sequence number.", show_default=False)]
Limit = Annotated[int | None, typer.Option(min=0, help="At most so many.", show_default=False)]


@journal.command()
def status(file: File, as_json: AsJson = False) -> None:
    """Show who owns a journal, who listens and where, what waits, and how large it is."""
    with errors_told():
        found = _core.journal_status(file)
    if as_json:
        print_json(found)
        return
    out, _ = consoles()
    out.print(_ownership(found), soft_wrap=True)
    out.print(
        f"{found['events']:,} events"
        + (f", {found['first_sequence']:,} to {found['last_sequence']:,}" if found["events"] else "")
        + (f", the last one at {moments.shown(found['last_accepted'])} UTC" if found["events"] else "")
        + (f"; old ones up to {found['deleted_through']:,} are gone" if found["deleted_through"] else "")
        + f"; {found['dead_letters']:,} dead letters"
    )
    out.print(
        f"{size(found['bytes'])}, {size(found['free_bytes'])} of it free; {size(found['log_bytes'])} of log beside it"
    )
    if found["noted_damage"]:
        out.print(f"damage was noticed in {found['noted_damage']:,} places and dealt with")
    if found["subscriptions"]:
        out.print(_subscriptions(found["subscriptions"]))


def _ownership(found: dict[str, Any]) -> str:
    if found["owned"]:
        return "in use by " + (f"process {found['owner_pid']}" if found["owner_pid"] else "a process")
    return "not in use" + ("" if found["closed"] else "; its last bus did not end in order, the next one will recover")


def _subscriptions(found: list[dict[str, Any]]) -> Table:
    levels = [level.name for level in EventPriority]
    table = Table()
    for column in ("subscription", "topics"):
        table.add_column(column, overflow="fold")
    for column in (*levels, "left behind", "position"):
        table.add_column(column if column not in levels else f"waiting\n{column}", justify="right")
    table.add_column("last seen (UTC)")
    for each in found:
        positions = [position for position in each["positions"].values() if position is not None]
        table.add_row(
            cell(each["name"]),
            cell(", ".join(each["topics"])),
            *(f"{each['waiting'][level]:,}" for level in levels),
            f"{sum(each['stragglers'].values()):,}",
            f"{min(positions):,}" if positions else "-",
            moments.shown(each["seen"]),
        )
    return table


@journal.command()
def events(
    file: File,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events as they come.")] = False,
    payload: Annotated[bool, typer.Option("--payload", help="Show data and headers, too.")] = False,
    type: OfTypes = None,
    key: OfKey = None,
    since: Since = None,
    until: Until = None,
    after: After = None,
    limit: Limit = None,
    as_json: AsJsonLines = False,
) -> None:
    """List the events that a journal keeps, oldest first, one on each line."""
    if follow and until is not None:
        fail("--follow waits for new events, which --until does not let through; give one of them")
    out, _ = consoles()
    try:
        with errors_told():
            wanted = _wanted(file, type, key, since, until, after)
            walk = Following(wanted) if follow else wanted()
            for event in islice(walk, limit):
                if as_json:
                    print(json.dumps(told(event, payload), default=str), flush=follow)
                else:
                    out.print(_line(event, payload), markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    _tell_damage(walk.damaged)


def told(event: Event[Any], payload: bool) -> dict[str, Any]:
    """An event as plain values; what the publisher said only where it is wanted."""
    said = {"data": event.data, "headers": dict(event.headers)} if payload else {}
    return {
        "sequence": event.sequence,
        "type": event.type,
        "priority": event.priority.name,
        "key": event.key,
        "timestamp": event.timestamp,
        "event_id": event.event_id,
        "source": event.source,
        "idempotency_key": event.idempotency_key,
        "correlation_id": event.correlation_id,
        "causation_id": event.causation_id,
        **said,
    }


def _line(event: Event[Any], payload: bool) -> str:
    key = f" key={event.key!r}" if event.key is not None else ""
    line = f"{event.sequence} {moments.shown(event.timestamp)} {event.priority.name} {harmless(event.type)}{key}"
    if payload:
        line += f" {json.dumps(event.data)}"
        if event.headers:
            line += f" headers={json.dumps(dict(event.headers))}"
    return line


class Following:
    """Events as they come, for ever: each look begins behind the last event that was there."""

    def __init__(self, wanted: Callable[..., JournalEvents]) -> None:
        self._wanted = wanted
        self.damaged = 0

    def __iter__(self) -> Iterator[Event[Any]]:
        after: int | None = None
        while True:
            look = self._wanted() if after is None else self._wanted(after)
            yield from look
            self.damaged += look.damaged
            if look.through == after:
                time.sleep(POLL)
            after = look.through


def _wanted(
    file: Path, types: list[str] | None, key: str | None, since: float | None, until: float | None, after: int | None
) -> Callable[..., JournalEvents]:
    """The events of these filters; called with a number, only those behind it."""
    begin = _begin(since, after)
    kept = Journal(file)

    def behind(position: int | None = None) -> JournalEvents:
        first: Moment | None = begin if position is None else position + 1
        return kept.events(since=first, until=until, types=types or None, key=key)

    return behind


def _begin(since: float | None, after: int | None) -> Moment | None:
    if since is not None and after is not None:
        fail("--since and --after both say where to begin; give one of them")
    return since if after is None else after + 1


@journal.command()
def verify(file: File, as_json: AsJson = False) -> None:
    """Look at everything in a journal. The exit code is 1 if something is damaged or missing."""
    with errors_told():
        found = _core.verify_journal(file)
    if as_json:
        print_json(found)
    else:
        out, _ = consoles()
        for fault in found["damage"]:
            if fault["what"] == "damaged":
                out.print(f"event {fault['sequence']} is damaged")
            else:
                out.print(f"{fault['priority']} events are missing: after {fault['after']}, up to {fault['through']}")
        for finding in found["findings"]:
            out.print(harmless(finding), markup=False, soft_wrap=True)
        noted = f"; damage in {found['noted']:,} places was dealt with before" if found["noted"] else ""
        verdict = "clean" if found["clean"] else "DAMAGED; restore a backup to have it whole"
        out.print(f"{found['events']:,} events and {found['dead_letters']:,} dead letters: {verdict}{noted}")
    raise typer.Exit(0 if found["clean"] else 1)


@journal.command()
def backup(
    file: File,
    destination: Annotated[Path, typer.Argument(help="A file that is not there yet.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Copy a journal, as it is at one moment, to a new private file."""
    with errors_told():
        Journal(file).backup_sync(destination)
    count = destination.stat().st_size
    if as_json:
        print_json({"destination": str(destination), "bytes": count})
    else:
        out, _ = consoles()
        out.print(f"{size(count)} copied to {harmless(str(destination))}", markup=False, soft_wrap=True)


@journal.command()
def replay(
    file: File,
    *,
    handler: Annotated[
        str, typer.Option(help="module:function that gets each event, sync or async.", show_default=False)
    ],
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Go on when the handler fails, and count that.")
    ] = False,
    type: OfTypes = None,
    key: OfKey = None,
    since: Since = None,
    until: Until = None,
    after: After = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Call a function with kept events, one after the other, in order; no subscription is touched.

    Stops at the first failure and says where, unless --keep-going is given. The exit code is 1 if one failed.
    """
    out, err = consoles()
    course = Course(load_handler(handler))
    with errors_told():
        begin = _begin(since, after)
        wanted = {"since": begin, "until": until, "types": type or None, "key": key, "limit": limit}
        report = _replay(Journal(file), course, wanted, keep_going, err, quiet=as_json)
    if as_json:
        print_json({**dataclasses.asdict(report), "stopped_at": course.stopped_at})
    else:
        out.print(f"{report.replayed:,} replayed, {report.failed:,} failed")
    if course.stopped_at is not None:
        say(f"stopped at event {course.stopped_at}: {course.why}; go on with --after {course.stopped_at - 1}")
    _tell_damage(report.damaged)
    raise typer.Exit(1 if report.failed else 0)


def _replay(
    kept: Journal, course: Course, wanted: dict[str, Any], keep_going: bool, err: Console, quiet: bool
) -> ReplayReport:
    with (
        failures_on(err),
        Progress(
            TextColumn("replay, event {task.fields[at]:,}"),
            TimeElapsedColumn(),
            console=err,
            transient=True,
            disable=quiet or not err.is_terminal,
        ) as bar,
    ):
        task = bar.add_task("replay", total=None, at=0)
        handler = course.watch(lambda at: bar.update(task, at=at))
        on_error: Literal["raise", "skip"] = "skip" if keep_going else "raise"
        try:
            if is_async(handler):
                return run(kept.replay(handler, **wanted, on_error=on_error))
            return kept.replay_sync(handler, **wanted, on_error=on_error)
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(130) from None
        except Exception as error:
            if error is not course.error:
                raise
            return course.stop(error)


class Course:
    """A handler, how far it is, and where it stopped."""

    def __init__(self, handler: Callable[[Event[Any]], Any]) -> None:
        self._handler = handler
        self.done = 0
        self.at = 0
        self.error: Exception | None = None
        self.stopped_at: int | None = None
        self.why = ""

    def watch(self, progress: Callable[[int], object]) -> Callable[[Event[Any]], Any]:
        """The handler as the replay gets it."""
        handler = self._handler

        def begin(event: Event[Any]) -> None:
            self.at = event.sequence or 0
            progress(self.at)

        def failed(error: Exception) -> None:
            self.error = error

        if is_async(handler):

            @functools.wraps(handler)
            async def later(event: Event[Any]) -> None:
                begin(event)
                try:
                    await handler(event)
                except Exception as error:
                    failed(error)
                    raise
                self.done += 1

            return later

        @functools.wraps(handler)
        def now(event: Event[Any]) -> Any:
            begin(event)
            try:
                result = handler(event)
            except Exception as error:
                failed(error)
                raise
            self.done += 1
            return result

        return now

    def stop(self, error: Exception) -> ReplayReport:
        """The handler's failure ended it."""
        self.stopped_at, self.why = self.at, f"{builtins.type(error).__qualname__}{place(error)}"
        return ReplayReport(self.done, 1, self.at)


@journal.command()
def query(
    file: File,
    sql: Annotated[
        str, typer.Argument(help="One question in SQL, such as 'SELECT * FROM backlog'.", show_default=False)
    ],
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 1_000,
    as_json: AsJsonLines = False,
) -> None:
    """Ask a journal in SQL, read-only. Of use: the views backlog, stragglers, events, dead_letters and failures."""
    with errors_told():
        answer = Journal(file).query_sync(sql, limit=limit)
    if as_json:
        for row in answer:
            print(json.dumps(dict(zip(answer.columns, row, strict=True)), default=repr))
    else:
        out, _ = consoles()
        table = Table()
        for column in answer.columns:
            table.add_column(cell(column), overflow="fold")
        for row in answer:
            table.add_row(*(cell("-" if value is None else str(value)) for value in row))
        out.print(table)
    if answer.cut:
        say(f"there are more rows than {limit:,}; raise --limit")


def _tell_damage(damaged: int) -> None:
    if damaged:
        say(f"in {damaged:,} places events are damaged or missing, and were left out; see ironbus verify")
        raise typer.Exit(1)


__all__ = ["journal"]
