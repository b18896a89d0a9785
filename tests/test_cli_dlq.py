"""``ironbus dlq``: what it shows and hides, what it delivers and lets go of, how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli, command_line
from ironbus import DeadLetters, EventBus
from ironbus.recovery import DeadLetterQueue

pytest.importorskip("typer", reason="needs the extra cli")

SECRET = "hunter2"

HANDLERS = """
import os, pathlib

def note(event):
    with open("seen", "a") as seen:
        print(event.type, event.data["id"], event.key, file=seen)

async def fine(event):
    note(event)

def bad(event):
    note(event)
    raise ValueError("hunter2")

def crash(event):
    if event.data["id"] == 4:
        os._exit(9)
    note(event)
"""


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """The failures are meant."""
    logging.getLogger("ironbus").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("ironbus").setLevel(logging.NOTSET)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    return command_line(tmp_path)


def bill(event: Any) -> None:
    raise KeyError(SECRET)


async def mail(event: Any) -> None:
    raise ConnectionError(f"{SECRET} [bold]\x1b[31m")


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Two of ``bill``, for order.paid; six of ``mailer``, for order.paid and order.sent."""
    path = tmp_path / "x.dead"
    fill(path)
    return path


def fill(path: Path) -> None:
    bus = EventBus(dead_letters=DeadLetters(path=path))
    bus.subscribe("order.paid", bill, name="bill")
    bus.subscribe("order.*", mail, name="mailer")

    async def main() -> None:
        async with bus:
            for n in range(6):
                data = {"id": n, "password": SECRET, "odd": "\x1b[31m"}
                await bus.publish("order.sent" if n % 3 else "order.paid", data, headers={"h": SECRET}, key="anna")
                await bus.drain()  # one after the other, so that the order is known

    asyncio.run(main())


def seen(folder: Path) -> list[str]:
    path = folder / "seen"
    return path.read_text().splitlines() if path.exists() else []


# Looking ---------------------------------------------------------------------------


def test_a_list_says_what_failed_where_and_nothing_that_the_payload_holds(cli: Cli, letters: Path) -> None:
    """An operator looks at it on a shared screen."""
    table, rows = cli("dlq", "list", "x.dead"), cli("dlq", "list", "x.dead", "--json")
    assert (table.code, rows.code, table.err, rows.err) == (0, 0, "", "")
    assert SECRET not in table.out + rows.out
    assert "8 dead letters" in table.out
    first = rows.lines[0]
    assert first["id"] in table.out
    assert {(row["subscription"], row["type"], row["exception_type"], row["attempts"]) for row in rows.lines} == {
        ("bill", "order.paid", "KeyError", 1),
        ("mailer", "order.paid", "ConnectionError", 1),
        ("mailer", "order.sent", "ConnectionError", 1),
    }


def test_a_summary_by_fingerprint_tells_the_causes(cli: Cli, letters: Path) -> None:
    """A thousand letters of one bug are one thing to look at."""
    rows = cli("dlq", "list", "x.dead", "--by", "fingerprint", "--json").lines
    assert [(row["entries"], row["subscriptions"], row["exception_types"], row["types"]) for row in rows] == [
        (6, ["mailer"], ["ConnectionError"], ["order.paid", "order.sent"]),
        (2, ["bill"], ["KeyError"], ["order.paid"]),
    ]
    assert rows[0]["first_failure"] < rows[0]["last_failure"]
    table = cli("dlq", "list", "x.dead", "--by", "fingerprint").out
    assert rows[0]["fingerprint"] in table
    assert "8 dead letters in 2 groups" in table
    for by, names in {"subscription": ["mailer", "bill"], "type": ["order.paid", "order.sent"]}.items():
        rows = cli("dlq", "list", "x.dead", "--by", by, "--json").lines
        assert [row[by] for row in rows] == names


def test_filters_and_limits(cli: Cli, letters: Path) -> None:
    """All that is given must fit."""
    rows = cli("dlq", "list", "x.dead", "--json").lines

    def count(*wanted: str) -> int:
        run = cli("dlq", "list", "x.dead", "--json", *wanted)
        assert run.code == 0, run.err
        return len(run.lines)

    cause = next(row["fingerprint"] for row in rows if row["subscription"] == "bill")
    assert count("--subscription", "mailer", "--type", "order.p*") == 2
    assert count("--fingerprint", cause) == count("--exception", "KeyError") == 2
    assert count("--of-handler", rows[0]["handler"], "--limit", "1") == 1
    assert count("--since", str(rows[6]["last_failure"])) == 2
    assert count("--until", str(rows[6]["last_failure"])) == 6
    assert count("--since", "1h") == 8
    assert count("--until", "2000-01-01") == count("--until", "1d") == 0
    assert "2 dead letters, and 6 more" in cli("dlq", "list", "x.dead", "--limit", "2").out


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (["--since", "yesterday"], "is not a time"),
        (["--since", "nan"], "is not a time"),
        (["--fingerprint", "xyz"], "fingerprint must be 16 hexadecimal digits"),
        (["--by", "nothing"], "is not one of"),
        (["--limit", "-1"], "--limit"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(cli: Cli, letters: Path, wanted: list[str], text: str) -> None:
    """Before anything is shown."""
    run = cli("dlq", "list", "x.dead", *wanted)
    assert (run.code, run.out) == (2, "")
    assert text in " ".join(run.err.replace("│", " ").split())


def test_one_letter_is_shown_with_its_exception_and_its_payload_only_on_request(cli: Cli, letters: Path) -> None:
    """What the publisher sent is not needed to find the bug, most of the time."""
    row = next(row for row in cli("dlq", "list", "x.dead", "--json").lines if row["subscription"] == "bill")
    text = cli("dlq", "show", "x.dead", row["id"]).out
    assert "Traceback" in text
    assert ", in bill" in text
    assert '"password"' not in text
    shown = cli("dlq", "show", "x.dead", row["id"], "--json").json
    assert shown["message"] == repr(SECRET)
    assert shown["key"] == "anna"
    assert not {"data", "headers"} & set(shown)
    text = cli("dlq", "show", "x.dead", row["id"], "--payload").out
    assert '"password": "hunter2"' in text
    shown = cli("dlq", "show", "x.dead", row["id"], "--payload", "--json").json
    assert (shown["data"]["id"], shown["headers"]) == (0, {"h": SECRET})
    missing = cli("dlq", "show", "x.dead", "nothing")
    assert (missing.code, missing.out) == (2, "")
    assert "there is no dead letter with the id nothing" in missing.err


def test_no_control_character_of_an_event_reaches_the_terminal(cli: Cli, letters: Path) -> None:
    """A payload could rewrite the screen of whoever looks at it."""
    rows = cli("dlq", "list", "x.dead", "--json", "--subscription", "mailer").lines
    text = cli("dlq", "show", "x.dead", rows[0]["id"], "--payload").out
    assert "[bold]\\x1b[31m" in text
    assert "\x1b" not in text


def test_looking_changes_nothing_and_needs_no_right_to_write(cli: Cli, letters: Path) -> None:
    """Damage too is left for the queue itself to move aside."""
    with sqlite3.connect(letters) as raw:
        raw.execute("UPDATE dead_letter SET data = 'x' WHERE position = 2")
    raw.close()
    before = letters.read_bytes()
    run = cli("dlq", "list", "x.dead", "--json")
    assert (run.code, len(run.lines)) == (1, 7)
    assert "1 damaged dead letters were left out" in run.err
    assert cli("dlq", "export", "x.dead").code == 1
    letters.chmod(0o400)
    assert len(cli("dlq", "list", "x.dead", "--json").lines) == 7
    assert letters.read_bytes() == before


@pytest.mark.parametrize("verb", ["list", "show", "redrive", "purge", "export"])
def test_a_file_that_is_none_is_named_and_left_alone(cli: Cli, tmp_path: Path, verb: str) -> None:
    """A wrong path must cost nothing."""
    more = {"show": ["id"], "redrive": ["--all", "--handler", "handlers:fine"], "purge": ["--all", "--yes"]}
    (tmp_path / "text").write_text("order\n" * 200)
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE t (x)")
    other.close()
    for name, text in {
        "missing": "there is no such file",
        "text": "is not a SQLite database",
        "empty": "is an empty file",
        "folder": "is not a regular file",
        "other": "is a database of another program",
    }.items():
        path = tmp_path / name
        before = path.read_bytes() if path.is_file() else None
        run = cli("dlq", verb, name, *more.get(verb, []))
        assert (run.code, run.out) == (2, "")
        assert text in run.err
        assert (path.read_bytes() if path.is_file() else None) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "empty",
        "folder",
        "handlers.py",
        "other",
        "text",
    ]


# Delivering again ------------------------------------------------------------------


def test_a_redrive_delivers_all_in_order_and_leaves_one_file(cli: Cli, letters: Path, tmp_path: Path) -> None:
    """With the bug fixed everything goes through, and the queue is empty."""
    run = cli("dlq", "redrive", "x.dead", "--all", "--handler", "handlers:fine", "--json")
    assert run.code == 0, run.err
    assert run.json == {
        "delivered": 8,
        "succeeded": 8,
        "failed": 0,
        "skipped": {},
        "stopped": [],
        "pending": 0,
        "left": 0,
    }
    assert seen(tmp_path) == sorted(seen(tmp_path), key=lambda line: line.split()[1])
    assert len(seen(tmp_path)) == 8
    assert set(seen(tmp_path)) == {f"order.{'sent' if n % 3 else 'paid'} {n} anna" for n in range(6)}
    assert sorted(path.name for path in tmp_path.glob("x.dead*")) == ["x.dead"]
    assert "0 delivered" in cli("dlq", "redrive", "x.dead", "--all", "--handler", "handlers:fine").out


def test_a_cause_that_comes_back_stops_the_redrive(cli: Cli, letters: Path, tmp_path: Path) -> None:
    """A thousand letters of a bug that is still there would only fail once more."""
    args = ("dlq", "redrive", "x.dead", "--subscription", "mailer", "--handler", "handlers:bad")
    first = cli(*args, "--json")
    assert first.code == 1
    # The first of the old cause and, because it failed in a new way, one more.
    assert first.json["failed"] == len(first.json["stopped"]) == len(seen(tmp_path)) == 2
    assert first.json["skipped"] == {"same_cause": 4}
    assert first.json["left"] == 6
    again = cli(*args, "--type", "order.*", "--exception", "ValueError")
    assert again.code == 1
    assert "1 delivered: 0 succeeded, 1 failed again; 2 of those meant are left" in again.out
    assert "this cause came back" in again.out
    assert SECRET not in first.out + first.err + again.out + again.err


def test_one_letter_a_filter_or_a_limit(cli: Cli, letters: Path, tmp_path: Path) -> None:
    """The first is tried alone, before the rest."""
    rows = cli("dlq", "list", "x.dead", "--json").lines
    fine = ("--handler", "handlers:fine", "--json")
    assert cli("dlq", "redrive", "x.dead", rows[3]["id"], *fine).json["succeeded"] == 1
    assert cli("dlq", "redrive", "x.dead", "--subscription", "bill", *fine).json["succeeded"] == 2
    assert cli("dlq", "redrive", "x.dead", "--all", "--limit", "2", *fine).json["succeeded"] == 2
    assert len(cli("dlq", "list", "x.dead", "--json").lines) == 3
    gone = cli("dlq", "redrive", "x.dead", rows[3]["id"], *fine)
    assert (gone.code, gone.out) == (2, "")


def test_details_of_a_new_failure_are_left_out_on_request(cli: Cli, letters: Path) -> None:
    """A queue that keeps no messages must not get any from here."""
    row = cli("dlq", "list", "x.dead", "--json").lines[0]
    assert cli("dlq", "redrive", "x.dead", row["id"], "--handler", "handlers:bad", "--no-details").code == 1
    shown = cli("dlq", "show", "x.dead", row["id"], "--json").json
    assert (shown["exception_type"], shown["message"], shown["traceback"]) == ("ValueError", "", "")
    assert "(no traceback is kept)" in cli("dlq", "show", "x.dead", row["id"]).out


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "say which dead letters are meant"),
        (["--limit", "3"], "say which dead letters are meant"),
        (["--all", "--type", "order.*"], "--all means all"),
        (["--all", "--handler", "handlers:none"], "the module has no none"),
    ],
)
def test_a_redrive_must_say_what_it_means(cli: Cli, letters: Path, tmp_path: Path, args: list[str], text: str) -> None:
    """Nothing is delivered by accident."""
    handler = [] if "--handler" in args else ["--handler", "handlers:fine"]
    run = cli("dlq", "redrive", "x.dead", *args, *handler)
    assert (run.code, run.out, seen(tmp_path)) == (2, "", [])
    assert text in run.err


def test_a_crash_in_the_middle_loses_nothing(cli: Cli, letters: Path, tmp_path: Path) -> None:
    """The process dies inside a handler: what it had is held for a while, and still there."""
    run = cli("dlq", "redrive", "x.dead", "--subscription", "mailer", "--handler", "handlers:crash")
    assert run.code == 9
    left = {row["event_id"] for row in cli("dlq", "list", "x.dead", "--json", "--subscription", "mailer").lines}
    # Of those that had succeeded the last may not have been told yet: at least once.
    assert len(left) + len(seen(tmp_path)) >= 6
    with sqlite3.connect(letters) as raw:
        held = raw.execute("SELECT count(*) FROM dead_letter WHERE lease_until IS NOT NULL").fetchone()
    raw.close()
    assert held[0] >= 1
    again = cli("dlq", "redrive", "x.dead", "--subscription", "mailer", "--handler", "handlers:fine", "--json")
    assert again.code == 1
    assert again.json["skipped"]["held"] == held[0]


def test_letters_of_plain_calls_are_delivered_too(cli: Cli, tmp_path: Path) -> None:
    """The queue of ``ironbus.recovery`` keeps the same kind of file, in a folder."""
    queue = DeadLetterQueue(tmp_path / "dlq")
    for n in range(3):
        queue.add_failed_event_sync("order.paid", {"id": n}, ValueError("x"), f"pay-{n}")
    queue.close()
    assert [row["id"] for row in cli("dlq", "list", "dlq/dead_letters.db", "--json").lines] == [
        "pay-0",
        "pay-1",
        "pay-2",
    ]
    assert cli("dlq", "redrive", "dlq/dead_letters.db", "--all", "--handler", "handlers:fine").code == 0
    assert seen(tmp_path) == ["order.paid 0 None", "order.paid 1 None", "order.paid 2 None"]
    assert queue.get_failed_events_sync() == []
    queue.close()


# Letting go, exporting -------------------------------------------------------------


def test_a_purge_asks_and_takes_only_what_was_meant(cli: Cli, letters: Path) -> None:
    """It cannot be taken back."""
    for run in (cli("dlq", "purge", "x.dead", "--all"), cli("dlq", "purge", "x.dead", "--all", stdin=b"n\n")):
        assert run.code == 1
        assert "Purge 8 dead letters for good?" in run.err
        assert "nothing was purged" in run.err
    assert cli("dlq", "purge", "x.dead", "--type", "order.sent", stdin=b"y\n").out == "4 dead letters purged\n"
    assert cli("dlq", "purge", "x.dead", "--yes").code == 2
    assert cli("dlq", "purge", "x.dead", "--subscription", "bill", "--json").code == 2
    assert cli("dlq", "purge", "x.dead", "--subscription", "bill", "--yes", "--json").json == {"purged": 2}
    assert {row["subscription"] for row in cli("dlq", "list", "x.dead", "--json").lines} == {"mailer"}
    assert cli("dlq", "purge", "x.dead", "nothing", "--yes").code == 2
    assert cli("dlq", "purge", "x.dead", "--all", "--yes").out == "2 dead letters purged\n"


def test_what_fails_while_the_purge_asks_is_not_meant(letters: Path, tmp_path: Path) -> None:
    """Only what was shown may go."""
    asking = subprocess.Popen(
        [sys.executable, "-m", "ironbus.cli", "dlq", "purge", "x.dead", "--all"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert asking.stdin is not None
    assert asking.stderr is not None
    said = b""
    while b"[y/n]" not in said:
        said += asking.stderr.read1()
    fill(letters)
    out, _ = asking.communicate(b"y\n", timeout=60)
    assert out == b"8 dead letters purged\n"
    assert len(list(EventBus(dead_letters=DeadLetters(path=letters)).sync.dead_letters)) == 8


def test_an_export_is_private_whole_and_overwrites_nothing(cli: Cli, letters: Path, tmp_path: Path) -> None:
    """It holds everything."""
    assert cli("dlq", "export", "x.dead", "out.jsonl", "--subscription", "bill").code == 0
    out = tmp_path / "out.jsonl"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["data"]["password"], row["message"]) for row in rows] == [(SECRET, repr(SECRET))] * 2
    refused = cli("dlq", "export", "x.dead", "out.jsonl")
    assert refused.code == 2
    assert "is there already" in refused.err
    assert len(out.read_text().splitlines()) == 2
    assert cli("dlq", "export", "x.dead", "out.jsonl", "--force").code == 0
    assert len(out.read_text().splitlines()) == 8
    assert len(cli("dlq", "export", "x.dead", "-").lines) == len(cli("dlq", "export", "x.dead").lines) == 8
    assert cli("dlq", "export", "x.dead", "x.dead", "--force").code == 2
    assert cli("dlq", "export", "x.dead", "nowhere/out.jsonl").code == 2
    assert not [path for path in tmp_path.iterdir() if "new" in path.name]


# Beside a bus that works -----------------------------------------------------------


def test_all_of_it_works_while_a_bus_has_the_file(cli: Cli, letters: Path, tmp_path: Path) -> None:
    """An operator does not stop the service to look at its failures."""
    bus = EventBus(dead_letters=DeadLetters(path=letters))
    bus.subscribe("order.paid", bill, name="bill")

    async def main() -> None:
        async with bus:

            async def command(*args: str) -> Any:
                run = await asyncio.to_thread(cli, "dlq", *args)
                assert run.code == 0, run.err
                return run

            await bus.publish("order.paid", {"id": 7})
            await bus.drain()
            assert len((await command("list", "x.dead", "--json")).lines) == 9
            await command("redrive", "x.dead", "--subscription", "mailer", "--handler", "handlers:fine")
            await command("purge", "x.dead", "--until", "0", "--yes")
            assert await bus.dead_letters.count() == 3
            await bus.publish("order.paid", {"id": 8})
            await bus.drain()
            assert len((await command("export", "x.dead")).lines) == await bus.dead_letters.count() == 4

    asyncio.run(main())
