"""The commands: reading arguments, showing results, exit codes. The work is in the modules beside it.

Exit codes: 0 fine, 1 something was lost, dead or not as it should be, 2 the
command could not begin, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

import ironbus
from ironbus import _core
from ironbus.cli import feed as feeding
from ironbus.cli.console import AsJson, consoles, errors_told, fail, load_handler, print_json, run
from ironbus.cli.dlq import dlq
from ironbus.cli.journal import journal
from ironbus.cli.lines import Fields
from ironbus.cli.render import as_json as plain
from ironbus.cli.render import crash_lines, crash_table, failures_on, latency_table, ledger_table, seconds
from ironbus.report import Ledger

app = typer.Typer(
    help="The embedded event bus for Python.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(journal)
app.add_typer(dlq, name="dlq")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ironbus {ironbus.__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """The embedded event bus for Python."""


@app.command()
def feed(
    file: Annotated[str, typer.Argument(help="JSON Lines, also gzipped; - is standard input.", show_default=False)],
    type_field: Annotated[str, typer.Option(help="The field with the event's type.")] = "type",
    data_field: Annotated[str, typer.Option(help="The field with the event's data.")] = "data",
    key_field: Annotated[
        str | None, typer.Option(help="The field with the key; every line must have it.", show_default=False)
    ] = None,
    priority_field: Annotated[
        str | None,
        typer.Option(help="The field with the priority, a name or 0 to 3; NORMAL where absent.", show_default=False),
    ] = None,
    handler: Annotated[
        str | None,
        typer.Option(help="module:function that gets each event. Without it events are counted.", show_default=False),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Keep the events in this journal, made if it is not there. Started again, the feed goes on behind"
            " the last line that is in it. Without --handler events are stored and not delivered.",
            show_default=False,
        ),
    ] = None,
    dedupe: Annotated[bool, typer.Option("--dedupe", help="Deliver events of equal type and data once.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="How many events the handler may have at once.")] = 1,
    unordered: Annotated[bool, typer.Option("--unordered", help="Keep no order, not even for each key.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a log of events through a bus, and account for every line.

    A bad line is reported with its number and does not stop the rest. The exit
    code is 1 if an event was lost or its handler failed.
    """
    if concurrency > 1 and key_field is None and not unordered:
        fail("--concurrency above 1 needs --key-field, to keep the order of each key, or --unordered")
    chosen = None if handler is None else load_handler(handler)
    # What comes through a pipe is new each time.
    name = None if file == "-" else str(Path(file).resolve())
    target = None if into is None else feeding.Into(into, name)
    raw, size = open_input(file)
    out, err = consoles()

    def complain(number: int, reason: str) -> None:
        err.print(f"line {number}: {reason}", markup=False, soft_wrap=True)

    with (
        errors_told(),
        failures_on(err),
        Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[lines]:,} lines"),
            BarColumn(),
            TimeElapsedColumn(),
            console=err,
            transient=True,
            disable=as_json or not err.is_terminal,
        ) as bar,
    ):
        task = bar.add_task("feed", total=size, lines=0)

        def progress(lines: int) -> None:
            bar.update(task, completed=raw.tell() if size is not None else None, lines=lines)

        report = run(
            feeding.feed(
                raw,
                Fields(type=type_field, data=data_field, key=key_field, priority=priority_field),
                handler=chosen,
                into=target,
                dedupe=dedupe,
                concurrency=concurrency,
                ordered=not unordered,
                complain=complain,
                progress=progress,
            )
        )
    raw.close()
    if report.incomplete:
        print(f"ironbus: {report.incomplete}", file=sys.stderr)
    if report.forgotten:
        text = f"{report.forgotten:,} events were too long ago for --dedupe; a copy of one counts as delivered"
        print(f"ironbus: {text}", file=sys.stderr)
    show_feed(report, out, as_json)
    raise typer.Exit(1 if report.failed else 0)


def show_feed(report: feeding.FeedReport, out: Console, json_wanted: bool) -> None:
    """The report of ``feed``."""
    names = ("read", "skipped", "bad", "duplicates", "delivered", "lost", "dead")
    counts = {name: getattr(report, name) for name in names}
    times = {name: time for name, time in (("wait", report.wait), ("work", report.work)) if time is not None}
    if json_wanted:
        print_json(
            {
                **counts,
                "seconds": round(report.seconds, 6),
                "rate": round(report.rate, 1),
                "complete": not report.incomplete,
                "latency": plain(times),
                "ledger": plain(report.ledger),
            }
        )
        return
    out.print(", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name != "skipped"))
    out.print(f"{report.seconds:,.2f} s, {report.rate:,.0f} lines/s")
    out.print(ledger_table(report.ledger))
    out.print(latency_table(times))


@app.command()
def demo(as_json: AsJson = False) -> None:
    """Run a sample log of a shop through handlers of every kind; then again with a worker that is killed at work."""
    from ironbus.cli import demo as showing
    from ironbus.cli import demo_crash as crashing

    out, err = consoles()
    quiet = as_json or not err.is_terminal
    if not as_json:
        out.print(
            "A shop's log goes through five handlers, in four priorities. [bold]warehouse[/] is slow,\n"
            "and [bold]mailer[/] fails each time: its deliveries end as dead, and nobody waits for it."
        )
    with failures_on(err, limit=0), _bars(err, quiet) as bar:  # the failures are announced, and in the ledger
        tasks: dict[str, TaskID] = {}

        def progress(ledger: Ledger) -> None:
            for name, lane in ledger.subscriptions.items():
                if name not in tasks:
                    tasks[name] = bar.add_task(name)
                bar.update(tasks[name], total=lane.routed, completed=lane.done + lane.dead)

        report = run(showing.demo(progress))
    if not as_json:
        out.print(
            f"{report.read} lines, {report.duplicates} of them sent twice, {report.deliveries:,} deliveries in "
            f"{report.seconds:.2f} s; {report.announced_failures} failures, as announced"
        )
        out.print(ledger_table(report.ledger))
        waits = ", ".join(f"{name} {seconds(wait)}" for name, wait in report.slow_waits.items())
        out.print(f"mean wait for the slow handler, by priority: {waits}")
        out.print(latency_table(report.latency))
        out.print("\nThe same log, in a worker with a journal. It is killed with SIGKILL at work, and started again.")
    with tempfile.TemporaryDirectory(prefix="ironbus-demo-") as folder, _bars(err, quiet) as bar:
        names = {name: bar.add_task(name, total=total) for name, total in crashing.totals().items()}

        def handled(name: str, count: int) -> None:
            bar.update(names[name], completed=count)

        with errors_told():
            crash = run(crashing.crash_and_recover(Path(folder), handled))
    if as_json:
        crashed = plain(crash) | {"again": crash.again, "balanced": crash.balanced}
        print_json(plain(report) | {"as_announced": report.as_announced, "crash": crashed})
    else:
        for line in crash_lines(crash):
            out.print(line, soft_wrap=True)
        out.print(crash_table(crash))
    raise typer.Exit(0 if report.as_announced and crash.balanced else 1)


def _bars(console: Console, quiet: bool) -> Progress:
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=console, disable=quiet)


@app.command()
def bench(
    events: Annotated[int, typer.Option(min=1_000, help="Events in each round.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, ours and the peer's in turn; the median counts.")] = 9,
    only: Annotated[
        str | None, typer.Option(help="Only the rows whose name has this in it.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    r"""Measure the bus on this machine beside its peers and against its targets.

    Peers that are not installed are left out: pip install "ironbus\[bench]".

    Each row runs in a process of its own, so that it does not matter which were run before it.

    On a virtual machine whose host stops it for others, the rounds that met with that are repeated, up to twice as
    many; those with the least of it count, whatever they measured. (Not in the rows of memory, of the parked key and
    of opening a file.)
    """
    if _core.debug_build:
        fail("this is a debug build, and its figures would mean nothing; install a release build")
    from ironbus.cli import bench as benching
    from ironbus.cli.bench_kit import Scale
    from ironbus.cli.bench_rows import ROWS

    rows = [row for row in ROWS if only is None or only in row.name]
    if not rows:
        fail(f"no row has {only!r} in its name; there are: {', '.join(row.name for row in ROWS)}")
    out, err = consoles()
    results: list[benching.Result] = []
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=as_json or not err.is_terminal,
    ) as bar:
        task = bar.add_task("", total=len(rows))
        for row in rows:
            bar.update(task, description=row.name)
            try:
                results.append(benching.measure_apart(row, Scale(events, rounds)))
            except KeyboardInterrupt:
                print("ironbus: interrupted", file=sys.stderr)
                raise typer.Exit(130) from None
            bar.advance(task)
    if as_json:
        print_json({"machine": benching.machine(), "rows": [benching.result_json(result) for result in results]})
        return
    benching.show(results, out)


def open_input(file: str) -> tuple[io.FileIO, int | None]:
    """The bytes of ``file``, and how many there are if that is known."""
    try:
        raw = io.FileIO(0 if file == "-" else file, "rb", closefd=file != "-")
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}")
    status = os.fstat(raw.fileno())
    return raw, status.st_size if stat.S_ISREG(status.st_mode) else None


__all__ = ["app"]
