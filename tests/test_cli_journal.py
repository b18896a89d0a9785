"""``ironbus status``, ``events``, ``verify``, ``backup``, ``replay`` and ``query``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Cli, command_line
from ironbus import EventBus
from journals import COUNT, HANDLED, fill, stop, tamper, write

pytest.importorskip("typer", reason="needs the extra cli")

HANDLERS = """
def note(event):
    with open("seen", "a") as seen:
        print(event.sequence, event.data["n"], event.key, file=seen)

async def fine(event):
    note(event)

def bad(event):
    if event.sequence == 7:
        raise ValueError("hunter2")
    note(event)

def always(event):
    raise KeyError("hunter2")

def crash(event):
    import os
    os._exit(9)

lazy = lambda event: fine(event)
"""

VERBS = {
    "status": [],
    "events": [],
    "verify": [],
    "backup": ["copy.bus"],
    "replay": ["--handler", "handlers:fine"],
    "query": ["SELECT 1"],
}


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    return command_line(tmp_path)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[EventBus]:
    bus = write(tmp_path / "x.bus")
    yield bus
    stop(bus)


def seen(folder: Path) -> list[str]:
    return (folder / "seen").read_text().splitlines()


def test_status_says_who_owns_it_who_listens_and_what_waits(cli: Cli, live: EventBus) -> None:
    """Beside the bus that works, and after."""
    found = cli("status", "x.bus", "--json").json
    assert (found["owned"], found["owner_pid"], found["closed"]) == (True, os.getpid(), False)
    assert (found["events"], found["first_sequence"], found["last_sequence"]) == (COUNT, 1, COUNT)
    assert (found["dead_letters"], found["noted_damage"]) == (1, 0)
    assert found["bytes"] > 0
    assert found["first_accepted"] <= found["last_accepted"]
    bill, ship = found["subscriptions"]
    assert (bill["name"], bill["topics"]) == ("bill", ["order.*"])
    assert bill["waiting"] == {"CRITICAL": 0, "HIGH": 44, "NORMAL": 130, "LOW": 0}
    assert bill["positions"]["NORMAL"] == HANDLED
    assert ship["waiting"] == {"CRITICAL": 0, "HIGH": 10, "NORMAL": 30, "LOW": 0}
    text = cli("status", "x.bus").out
    assert f"in use by process {os.getpid()}" in text
    assert "200 events, 1 to 200" in text
    stop(live)
    assert cli("status", "x.bus", "--json").json["closed"] is True
    assert cli("status", "x.bus").out.startswith("not in use\n")


def test_status_of_a_journal_whose_bus_was_killed(cli: Cli, tmp_path: Path) -> None:
    """Its lock ends with it, however it ends."""
    program = "import sys, journals; bus = journals.write('x.bus'); print('ready', flush=True); sys.stdin.read()"
    support = str(Path(__file__).parent / "support")
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": support},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"ready\n"
    assert cli("status", "x.bus", "--json").json["owner_pid"] == owner.pid
    owner.kill()
    owner.communicate()
    assert owner.returncode == -signal.SIGKILL
    found = cli("status", "x.bus", "--json").json
    assert (found["owned"], found["owner_pid"], found["closed"], found["events"]) == (False, None, False, COUNT)
    assert "its last bus did not end in order" in cli("status", "x.bus").out
    assert cli("verify", "x.bus").code == 0


def test_events_are_listed_by_filters_and_without_payloads(cli: Cli, live: EventBus) -> None:
    """The payload comes where it is asked for."""
    run = cli("events", "x.bus", "--json", "--type", "order.sent", "--type", "nothing", "--key", "k1", "--limit", "2")
    assert run.code == 0, run.err
    assert [(row["sequence"], row["priority"], row["key"]) for row in run.lines] == [
        (10, "NORMAL", "k1"),
        (25, "NORMAL", "k1"),
    ]
    assert not {"data", "headers"} & set(run.lines[0])
    text = cli("events", "x.bus", "--after", "2", "--limit", "2")
    assert (
        text.out == "3 2023-11-14 22:13:23 NORMAL order.paid key='k0'\n4 2023-11-14 22:13:24 HIGH order.paid key='k1'\n"
    )
    shown = cli("events", "x.bus", "--payload", "--json", "--after", "2", "--limit", "1")
    assert [(row["data"]["n"], row["headers"]) for row in shown.lines] == [(3, {"h": "hunter2"})]
    assert (
        '{"n": 3, "password": "hunter2"} headers={"h": "hunter2"}'
        in cli("events", "x.bus", "--payload", "--after", "2", "--limit", "1").out
    )


def test_following_shows_events_as_they_come(live: EventBus, tmp_path: Path) -> None:
    """Until it is interrupted, and disturbs nobody."""
    following = subprocess.Popen(
        [sys.executable, "-m", "ironbus.cli", "events", "x.bus", "--follow", "--json", "--after", "198", "--key", "k1"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["sequence"] == 199
    fill(live, 3, first=201)
    assert json.loads(following.stdout.readline())["sequence"] == 202
    fill(live, 2, first=204)
    assert json.loads(following.stdout.readline())["sequence"] == 205
    following.send_signal(signal.SIGINT)
    out, err = following.communicate(timeout=60)
    assert (following.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--follow", "--until", "1h"], "give one of them"),
        (["--since", "1h", "--after", "7"], "give one of them"),
        (["--since", "soon"], "is not a time"),
    ],
)
def test_filters_that_make_no_sense_are_named(cli: Cli, live: EventBus, args: list[str], text: str) -> None:
    """Before anything is shown."""
    run = cli("events", "x.bus", *args)
    assert (run.code, run.out) == (2, "")
    assert text in " ".join(run.err.replace("│", " ").split())


def test_verify_finds_damage_and_says_so_by_its_exit_code(cli: Cli, tmp_path: Path, live: EventBus) -> None:
    """For a script that checks backups."""
    fine = cli("verify", "x.bus")
    assert (fine.code, fine.out) == (0, "200 events and 1 dead letters: clean\n")
    assert cli("verify", "x.bus", "--json").json["clean"] is True
    stop(live)
    tamper(tmp_path / "x.bus", "UPDATE event SET data = '{}' WHERE sequence = 6")
    tamper(tmp_path / "x.bus", "DELETE FROM event WHERE sequence = 10")
    tamper(tmp_path / "x.bus", "UPDATE dead_letter SET attempts = 9")
    run = cli("verify", "x.bus")
    assert run.code == 1
    assert "event 6 is damaged" in run.out
    assert "NORMAL events are missing: after 9, up to 10" in run.out
    assert "dead letter at position 1 is damaged" in run.out
    assert "DAMAGED" in run.out
    run = cli("verify", "x.bus", "--json")
    assert (run.code, run.json["clean"], run.json["events"]) == (1, False, COUNT - 2)
    listed = cli("events", "x.bus", "--json")
    assert (listed.code, len(listed.lines)) == (1, COUNT - 2)
    assert "in 2 places events are damaged or missing" in listed.err
    assert cli("replay", "x.bus", "--handler", "handlers:fine", "--limit", "20").code == 1


def test_a_backup_of_a_live_journal(cli: Cli, live: EventBus, tmp_path: Path) -> None:
    """Whole, and nothing is overwritten."""
    run = cli("backup", "x.bus", "copy.bus", "--json")
    assert run.json == {"destination": "copy.bus", "bytes": (tmp_path / "copy.bus").stat().st_size}
    assert cli("verify", "copy.bus").code == 0
    again = cli("backup", "x.bus", "copy.bus")
    assert again.code == 2
    assert "is there already" in again.err


def test_a_replay_calls_a_function_and_touches_no_subscription(cli: Cli, live: EventBus, tmp_path: Path) -> None:
    """Sync or async, in order."""
    before = cli("status", "x.bus", "--json").json["subscriptions"]
    run = cli("replay", "x.bus", "--handler", "handlers:fine", "--key", "k1", "--after", "10", "--limit", "3", "--json")
    assert (run.code, run.json) == (0, {"replayed": 3, "failed": 0, "last": 19, "damaged": 0, "stopped_at": None})
    assert seen(tmp_path) == ["13 13 k1", "16 16 k1", "19 19 k1"]
    stopped = cli("replay", "x.bus", "--handler", "handlers:bad", "--after", "4")
    assert (stopped.code, stopped.out) == (1, "2 replayed, 1 failed\n")
    assert "stopped at event 7: ValueError at " in stopped.err
    assert "go on with --after 6" in stopped.err
    going = cli("replay", "x.bus", "--handler", "handlers:bad", "--keep-going", "--limit", "20", "--json")
    assert (going.code, going.json["replayed"], going.json["failed"]) == (1, 19, 1)
    assert "hunter2" not in stopped.out + stopped.err + going.err
    lazy = cli("replay", "x.bus", "--handler", "handlers:lazy")
    assert lazy.code == 2
    assert "make it an async function" in lazy.err
    assert cli("status", "x.bus", "--json").json["subscriptions"] == before


def test_a_query_only_asks(cli: Cli, live: EventBus) -> None:
    """The views are pleasant to ask."""
    rows = cli("query", "x.bus", "SELECT subscription, waiting FROM backlog", "--json")
    assert rows.lines == [{"subscription": "bill", "waiting": 174}, {"subscription": "ship", "waiting": 40}]
    assert "174" in cli("query", "x.bus", "SELECT * FROM backlog").out
    cut = cli("query", "x.bus", "SELECT sequence FROM event", "--limit", "2", "--json")
    assert (cut.code, len(cut.lines)) == (0, 2)
    assert "more rows than 2" in cut.err
    for sql in ("DELETE FROM event", "no sql"):
        run = cli("query", "x.bus", sql)
        assert (run.code, run.out) == (2, "")
        assert "SQLite error" in run.err


def test_dead_letters_of_a_live_journal_are_shown_and_its_bus_alone_changes_them(cli: Cli, live: EventBus) -> None:
    """One owner writes to a journal."""
    [row] = cli("dlq", "list", "x.bus", "--json").lines
    assert (row["subscription"], row["sequence"], row["exception_type"]) == ("bill", 1, "ValueError")
    assert cli("dlq", "show", "x.bus", row["id"], "--json", "--payload").json["data"]["n"] == 1
    assert len(cli("dlq", "export", "x.bus").lines) == 1
    before = cli("status", "x.bus", "--json").json
    for verb, more in {"purge": ["--yes"], "redrive": ["--handler", "handlers:fine"]}.items():
        run = cli("dlq", verb, "x.bus", "--all", *more)
        assert (run.code, run.out) == (2, "")
        assert f"is in use by process {os.getpid()}" in run.err
    assert cli("status", "x.bus", "--json").json == before


def test_dead_letters_of_a_journal_are_delivered_again_and_let_go_of(cli: Cli, tmp_path: Path) -> None:
    """Where no bus has it. The subscriptions and what waits for them stay as they are."""
    bus = write(tmp_path / "x.bus")
    stop(bus)
    before = cli("status", "x.bus", "--json").json
    failed = cli("dlq", "redrive", "x.bus", "--all", "--handler", "handlers:always", "--json")
    assert (failed.code, failed.json["failed"], failed.json["left"]) == (1, 1, 1)
    [row] = cli("dlq", "list", "x.bus", "--json").lines
    assert (row["exception_type"], row["attempts"]) == ("KeyError", 2)
    assert "hunter2" not in failed.out + failed.err
    fine = cli("dlq", "redrive", "x.bus", "--subscription", "bill", "--handler", "handlers:fine", "--json")
    assert (fine.code, fine.json["succeeded"], fine.json["left"]) == (0, 1, 0)
    assert seen(tmp_path)[-1].split()[1:] == ["1", "k1"]
    after = cli("status", "x.bus", "--json").json
    assert after["dead_letters"] == 0
    for name in ("events", "subscriptions", "closed", "owned"):
        assert after[name] == before[name], name
    assert cli("verify", "x.bus").code == 0


def test_a_redrive_of_a_journal_that_is_killed_loses_nothing(cli: Cli, tmp_path: Path) -> None:
    """The letter is there, held for a while; what the redrive needed in the journal goes with the next one."""
    stop(write(tmp_path / "x.bus"))
    before = cli("status", "x.bus", "--json").json
    assert cli("dlq", "redrive", "x.bus", "--all", "--handler", "handlers:crash").code == 9
    assert len(cli("status", "x.bus", "--json").json["subscriptions"]) == 3
    assert len(cli("dlq", "list", "x.bus", "--json").lines) == 1
    again = cli("dlq", "redrive", "x.bus", "--all", "--handler", "handlers:fine", "--json")
    assert (again.code, again.json["skipped"], again.json["left"]) == (1, {"held": 1}, 1)
    assert not (tmp_path / "seen").exists()
    assert cli("status", "x.bus", "--json").json["subscriptions"] == before["subscriptions"]
    assert cli("verify", "x.bus").code == 0


def test_a_purge_of_a_journal(cli: Cli, tmp_path: Path) -> None:
    """As of any other file of dead letters."""
    stop(write(tmp_path / "x.bus"))
    assert cli("dlq", "purge", "x.bus", "--all", "--yes", "--json").json == {"purged": 1}
    assert cli("dlq", "list", "x.bus", "--json").lines == []
    assert cli("verify", "x.bus").code == 0


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_file_that_is_none_is_named_and_left_alone(cli: Cli, tmp_path: Path, verb: str) -> None:
    """A wrong path must cost nothing."""
    (tmp_path / "text").write_text("order\n" * 200)
    for name, text in {"missing": "there is no such file", "text": "is not a SQLite database"}.items():
        run = cli(verb, name, *VERBS[verb])
        assert (run.code, run.out) == (2, "")
        assert text in run.err
    assert (tmp_path / "text").read_text() == "order\n" * 200
    assert {path.name for path in tmp_path.iterdir()} <= {"text", "handlers.py", "__pycache__"}
