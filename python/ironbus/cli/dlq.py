"""``ironbus dlq``: the commands, their arguments and their output. The work is in :mod:`ironbus.cli.letters`.

A list shows names, places, counts and times. What the exception said is shown for one letter that is asked for; what
the publisher said, only where that is asked for too. ``export`` writes everything.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text

from ironbus import RedriveReport
from ironbus._jsonl import write_lines
from ironbus.cli import letters as work
from ironbus.cli import moments
from ironbus.cli.console import AsJson, AsJsonLines, consoles, errors_told, fail, load_handler, print_json, run, say
from ironbus.cli.letters import By, Group, Letters, Selection
from ironbus.cli.render import cell, failures_on, harmless

SHOWN = 50  # letters in a table, unless --limit says otherwise
NAMES = 3  # names in a cell of a summary

dlq = typer.Typer(
    help="Look at dead letters, deliver them again, let go of them.", no_args_is_help=True, rich_markup_mode=None
)

File = Annotated[
    Path, typer.Argument(help="That of DeadLetters(path=), dead_letters.db of a DeadLetterQueue, or a journal.")
]
OfType = Annotated[str | None, typer.Option("--type", help="Events of this type or pattern.", show_default=False)]
OfSubscription = Annotated[
    str | None, typer.Option("--subscription", help="Deliveries to this subscription.", show_default=False)
]
OfHandler = Annotated[str | None, typer.Option("--of-handler", help="Failures of this handler.", show_default=False)]
OfException = Annotated[
    str | None, typer.Option("--exception", help="Failures with this type of exception.", show_default=False)
]
OfFingerprint = Annotated[str | None, typer.Option("--fingerprint", help="Failures of this cause.", show_default=False)]
Since = Annotated[
    float | None,
    typer.Option(parser=moments.parse_moment, metavar="TIME", help=f"Failed last then or later. {moments.HELP}."),
]
Until = Annotated[
    float | None, typer.Option(parser=moments.parse_moment, metavar="TIME", help="Failed last before then.")
]
OneId = Annotated[str | None, typer.Argument(metavar="[ID]", help="Only the letter of this id.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


@dlq.command("list")
def list_letters(
    file: File,
    by: Annotated[By | None, typer.Option(help="Sum up by this, the largest group first.", show_default=False)] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help=f"At most so many. Default: {SHOWN}, with --json all.", show_default=False),
    ] = None,
    type: OfType = None,
    subscription: OfSubscription = None,
    handler: OfHandler = None,
    exception: OfException = None,
    fingerprint: OfFingerprint = None,
    since: Since = None,
    until: Until = None,
    as_json: AsJsonLines = False,
) -> None:
    """List dead letters, oldest first, or sum them up: --by fingerprint tells the causes."""
    selection = Selection(None, type, subscription, handler, exception, fingerprint, since, until)
    out, _ = consoles()
    with errors_told():
        letters = Letters(file, selection)
        if by is not None:
            _show_groups(letters, by, limit, out, as_json)
        else:
            _show_list(letters, limit, out, as_json)
    _tell_damage(letters)


def _show_list(letters: Letters, limit: int | None, out: Console, as_json: bool) -> None:
    if as_json:
        for letter in islice(letters, limit):
            print_json(work.brief(letter))
        return
    shown = list(islice(letters, SHOWN if limit is None else limit))
    table = Table()
    for column in ("id", "type", "subscription", "exception", "attempts", "last failure (UTC)", "fingerprint"):
        table.add_column(column, justify="right" if column == "attempts" else "left", overflow="fold")
    for letter in shown:
        table.add_row(
            *map(cell, (letter.id, letter.event.type, letter.subscription, letter.exception_type)),
            f"{letter.attempts:,}",
            moments.shown(letter.last_failure),
            letter.fingerprint,
        )
    if shown:
        out.print(table)
    rest = max(letters.count() - len(shown), 0)
    out.print(f"{len(shown):,} dead letters" + (f", and {rest:,} more: --limit, --by fingerprint" if rest else ""))


def _show_groups(letters: Letters, by: By, limit: int | None, out: Console, as_json: bool) -> None:
    found = work.groups(letters, by)
    if as_json:
        for group in found[:limit]:
            print_json(group.to_dict(by))
        return
    if found:
        out.print(_groups_table(found[:limit], by))
    out.print(f"{sum(group.entries for group in found):,} dead letters in {len(found):,} groups")


def _groups_table(found: list[Group], by: By) -> Table:
    table = Table()
    columns = {"subscription": "subscriptions", "exception": "exception_types", "type": "types"}
    others = {title: name for title, name in columns.items() if title != by.value}
    table.add_column(by.value, overflow="fold")
    table.add_column("letters", justify="right")
    for title in (*others, "first failure (UTC)", "last failure (UTC)"):
        table.add_column(title, overflow="fold")
    for group in found:
        table.add_row(
            cell(group.name),
            f"{group.entries:,}",
            *(_few(getattr(group, name)) for name in others.values()),
            moments.shown(group.first_failure),
            moments.shown(group.last_failure),
        )
    return table


def _few(names: set[str]) -> Text:
    few = ", ".join(sorted(names)[:NAMES])
    return cell(few + (f" and {len(names) - NAMES} more" if len(names) > NAMES else ""))


@dlq.command()
def show(
    file: File,
    id: Annotated[str, typer.Argument(help="The letter's id.", show_default=False)],
    payload: Annotated[bool, typer.Option("--payload", help="Show the event's data and headers, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: its event, its exception with the traceback, its attempts.

    The exception's message is the handler's text, and may quote the payload.
    """
    out, _ = consoles()
    with errors_told():
        letters = Letters(file, Selection(id))
        letter = next(iter(letters), None)
    _tell_damage(letters)
    if letter is None:
        fail(f"there is no dead letter with the id {harmless(id)}")
    whole = work.details(letter, payload)
    if as_json:
        print(json.dumps(whole, default=str))
        return
    for name, value in whole.items():
        if name not in ("traceback", *work.PAYLOAD):
            text = moments.shown(value) + " UTC" if name in ("timestamp", "first_failure", "last_failure") else value
            out.print(f"{name:<16} {_text(text)}", markup=False, soft_wrap=True)
    if payload:
        for name in work.PAYLOAD:
            out.print(f"{name:<16} {_text(whole[name])}", markup=False, soft_wrap=True)
    out.print(harmless(letter.traceback or "(no traceback is kept)", lines=True), markup=False, soft_wrap=True)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return harmless(value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False), lines=True)


@dlq.command()
def redrive(
    file: File,
    id: OneId = None,
    *,
    handler: Annotated[
        str, typer.Option(help="module:function that gets each event, sync or async.", show_default=False)
    ],
    every: All = False,
    limit: Annotated[int | None, typer.Option(min=0, help="Deliver at most so many.", show_default=False)] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which no more are begun.", show_default=False)
    ] = None,
    no_details: Annotated[
        bool, typer.Option("--no-details", help="Of what fails again, keep no message and no traceback.")
    ] = False,
    type: OfType = None,
    subscription: OfSubscription = None,
    of_handler: OfHandler = None,
    exception: OfException = None,
    fingerprint: OfFingerprint = None,
    since: Since = None,
    until: Until = None,
    as_json: AsJson = False,
) -> None:
    """Deliver dead letters again, to a handler of yours, oldest first.

    A letter leaves the file only after its handler succeeded. Of each cause one is tried first; if that comes back, the
    others of it are left alone. The exit code is 1 if something that was meant is still there.
    """
    selection = Selection(id, type, subscription, of_handler, exception, fingerprint, since, until)
    _check_meant(selection, every)
    chosen = load_handler(handler)
    out, err = consoles()
    with errors_told():
        letters = Letters(file, selection)
        total = letters.count()
        if id is not None and not total:
            fail(f"there is no dead letter with the id {harmless(id)}")
        letters.close()
        with (
            failures_on(err),
            Progress(
                TextColumn("redrive"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=err,
                transient=True,
                disable=as_json or not err.is_terminal,
            ) as bar,
        ):
            task = bar.add_task("redrive", total=total if limit is None else min(total, limit))
            report, left = run(
                work.redrive(
                    file,
                    chosen,
                    selection,
                    limit=limit,
                    timeout=timeout,
                    keep_details=not no_details,
                    progress=lambda done: bar.update(task, completed=done),
                )
            )
    _show_redrive(report, left, out, as_json)
    whole = not (report.failed or report.stopped or report.pending or report.skipped)
    raise typer.Exit(0 if whole else 1)


def _show_redrive(report: RedriveReport, left: int, out: Console, as_json: bool) -> None:
    if as_json:
        told = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
        print_json({**told, "skipped": dict(report.skipped), "stopped": list(report.stopped), "left": left})
        return
    out.print(
        f"{report.delivered:,} delivered: {report.succeeded:,} succeeded, {report.failed:,} failed again"
        + (f", {report.pending:,} not over yet" if report.pending else "")
        + f"; {left:,} of those meant are left"
    )
    for reason, count in report.skipped.items():
        out.print(f"{count:,} left alone: {SKIPPED.get(reason, reason)}")
    for cause in report.stopped:
        out.print(f"stopped at {cause}: this cause came back")


SKIPPED = {
    "same_cause": "one of the same cause had just failed again",
    "held": "another redrive has them",
    "payload_elsewhere": "their payloads have no JSON, and only the process that has them can deliver them",
    "not_handled": "the handler did not get them",
}


@dlq.command()
def purge(
    file: File,
    id: OneId = None,
    every: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    type: OfType = None,
    subscription: OfSubscription = None,
    handler: OfHandler = None,
    exception: OfException = None,
    fingerprint: OfFingerprint = None,
    since: Since = None,
    until: Until = None,
    as_json: AsJson = False,
) -> None:
    """Let go of dead letters for good. Asks first, unless --yes is given."""
    selection = Selection(id, type, subscription, handler, exception, fingerprint, since, until)
    _check_meant(selection, every)
    if as_json and not yes:
        fail("--json does not ask; give --yes as well")
    out, err = consoles()
    with errors_told():
        letters = Letters(file, selection)
        if id is not None and not letters.count():
            fail(f"there is no dead letter with the id {harmless(id)}")
        if not yes:
            selection = _confirm(letters, selection, err)
        letters.close()
        gone = work.purge(file, selection)
    if as_json:
        print_json({"purged": gone})
    else:
        out.print(f"{gone:,} dead letters purged")


def _confirm(letters: Letters, selection: Selection, err: Console) -> Selection:
    """What was shown and agreed to: what fails meanwhile is not meant."""
    found = work.groups(letters, By.fingerprint)
    if found:
        err.print(_groups_table(found, By.fingerprint))
    count = sum(group.entries for group in found)
    try:
        agreed = Confirm.ask(f"Purge {count:,} dead letters for good?", console=err, default=False)
    except EOFError:
        agreed = False
    if not agreed:
        say("nothing was purged")
        raise typer.Exit(1)
    newest = max((group.last_failure for group in found), default=-math.inf)
    until = math.nextafter(newest, math.inf) if found else 0.0
    return dataclasses.replace(selection, until=until if selection.until is None else min(until, selection.until))


@dlq.command()
def export(
    file: File,
    target: Annotated[
        str, typer.Argument(metavar="[TARGET]", help="The file to write, private; - is standard output.")
    ] = "-",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    type: OfType = None,
    subscription: OfSubscription = None,
    handler: OfHandler = None,
    exception: OfException = None,
    fingerprint: OfFingerprint = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Write dead letters as JSON Lines, with payloads, messages and tracebacks."""
    selection = Selection(None, type, subscription, handler, exception, fingerprint, since, until)
    with errors_told():
        letters = Letters(file, selection)
        objects = (letter.to_dict() for letter in letters)
        if target == "-":
            write_lines(sys.stdout, objects)
        elif os.path.realpath(target) == os.path.realpath(file):
            fail(f"{target}: is the file with the dead letters; choose another path")
        else:
            count = write_lines(target, objects, replace=force)
            say(f"{count:,} dead letters written to {target}")
    _tell_damage(letters)


def _check_meant(selection: Selection, every: bool) -> None:
    if selection.is_all and not every:
        fail("say which dead letters are meant: an ID, a filter such as --fingerprint, or --all")
    if every and not selection.is_all:
        fail("--all means all; give either --all, or an ID or filters")


def _tell_damage(letters: Letters) -> None:
    if letters.damaged:
        say(f"{letters.damaged:,} damaged dead letters were left out; restore a backup to see them")
        raise typer.Exit(1)


__all__ = ["dlq"]
