"""``ironbus feed --into``, killed again and again: each event has its effect once, key by key in order."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from torture import control, done, times

pytest.importorskip("typer", reason="needs the extra cli")

HANDLER = """
import sqlite3

effects = sqlite3.connect("effects.db", isolation_level=None, check_same_thread=False)
effects.execute("PRAGMA journal_mode = WAL")
effects.execute("PRAGMA synchronous = OFF")  # survives a kill, which is all that happens here
effects.execute("CREATE TABLE IF NOT EXISTS effect (sequence INTEGER UNIQUE, key TEXT, data TEXT)")


async def note(event):
    effects.execute("INSERT OR IGNORE INTO effect VALUES (?, ?, ?)", (event.sequence, event.key, str(event.data)))
    print("effect", flush=True)
"""


def log(path: Path) -> int:
    """Lines of 40 keys, every fifth of which is a copy; how many are not."""
    records = [{"type": "t", "key": f"k{n % 40}", "data": {"n": n - (n % 5 == 4)}} for n in range(3_000)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return sum(n % 5 != 4 for n in range(3_000))


def feed(folder: Path, source: Path, kill_after: int | None) -> int:
    """Runs the command, and kills it after so many effects; its exit code."""
    command = [sys.executable, "-m", "ironbus.cli", "feed", str(source), "--into", "t.bus", "--dedupe"]
    options = ["--key-field", "key", "--concurrency", "4", "--handler", "effects:note", "--json"]
    with subprocess.Popen(
        [*command, *options], cwd=folder, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ""}
    ) as child:
        assert child.stdout is not None
        for count, _ in enumerate(child.stdout, 1):
            if count == kill_after:
                child.send_signal(signal.SIGKILL)
                break
        return child.wait()


def effects(folder: Path) -> list[tuple[int, str]]:
    """In the order in which they happened."""
    with closing(sqlite3.connect(folder / "effects.db")) as connection:
        return connection.execute("SELECT sequence, key FROM effect ORDER BY rowid").fetchall()


def check(folder: Path, expected: int) -> None:
    """Each event once, each key in order, and a journal that is whole."""
    found = effects(folder)
    assert len(found) == expected
    for key in {key for _, key in found}:
        of_key = [sequence for sequence, other in found if other == key]
        assert of_key == sorted(of_key), key
    verify = [sys.executable, "-m", "ironbus.cli", "verify", "t.bus", "--json"]
    assert subprocess.run(verify, cwd=folder, capture_output=True).returncode == 0


def work(folder: Path, source: Path, expected: int, kills: int, chance: random.Random) -> None:
    (folder / "effects.py").write_text(HANDLER)
    for _ in range(kills):
        assert feed(folder, source, chance.randint(1, max(1, expected // kills - 20))) == -signal.SIGKILL
    assert feed(folder, source, None) == 0
    check(folder, expected)
    done("kills", kills)
    done("effects of fed events", expected)


def test_a_feed_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """The position is in the events; what was delivered and not settled comes again, and has its effect once."""
    source = tmp_path / "log.jsonl"
    expected = log(source)
    work(tmp_path, source, expected, times(3, 20), random.Random(3))


def test_without_the_journal_the_kill_is_felt(tmp_path: Path) -> None:
    """The control: with a new journal after the kill, events have more than one effect."""
    source = tmp_path / "log.jsonl"
    expected = log(source)
    (tmp_path / "effects.py").write_text(HANDLER.replace("event.sequence, event.key", "None, event.key"))
    assert feed(tmp_path, source, 500) == -signal.SIGKILL
    for left in tmp_path.glob("t.bus*"):
        left.unlink()
    assert feed(tmp_path, source, None) == 0
    with pytest.raises(AssertionError):
        check(tmp_path, expected)
    control()


def test_a_real_log_is_fed_through_ten_kills(tmp_path: Path) -> None:
    """65,533 incidents, of which 50,273 are not copies of earlier ones."""
    data = Path(os.environ.get("IRONBUS_DATA", Path(__file__).parents[3] / "shared" / "data"))
    packed = data / "bpic2013_incidents.jsonl.gz"
    if not packed.exists():
        pytest.skip("the incident log is not here (IRONBUS_DATA)")
    source = tmp_path / "incidents.jsonl.gz"
    with gzip.open(packed) as whole, gzip.open(source, "wb") as part:
        part.write(whole.read())
    work(tmp_path, source, 50_273, times(2, 10), random.Random(4))
