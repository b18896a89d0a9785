"""Files that cannot be had as journals: the bus and the command line say which one, why and what to do,
and everything in the folder is as it was."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ironbus import EventBus
from torture import control, done

pytest.importorskip("typer", reason="needs the extra cli")

# Runs the bus and the verbs in the folder that it is given, as somebody with few rights if it is told so.
# First over a whole journal elsewhere: whoever may not read our files has all modules by then.
CHILD = """
import asyncio, contextlib, io, json, os, resource, sys
from ironbus import EventBus
from ironbus.cli.app import app
from ironbus.errors import IronbusError

whole, folder, how = sys.argv[1:]

async def start():
    bus = EventBus(path="x.bus")
    bus.subscribe("e", lambda event: None, name="h")
    try:
        await bus.start()
        await bus.publish("e", 1)
    except IronbusError as error:
        return [type(error).__name__, "", str(error)]
    finally:
        await bus.stop()
    return ["started", "", ""]

def verb(name):
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            app([name, "x.bus"], prog_name="ironbus")
    except SystemExit as end:
        return [end.code, out.getvalue(), err.getvalue()]

def all_of_them():
    found = {}
    for name in ("status", "verify", "events"):
        found[name] = verb(name)
        found[name + " left"] = sorted(os.listdir())
    found["start"] = asyncio.run(start())
    return found

os.chdir(whole)
all_of_them()
os.chdir(folder)
if how == "nobody" and os.geteuid() == 0:
    try:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    except OSError:
        sys.exit(77)
if how == "limit":
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
report = all_of_them()
if how == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(json.dumps(report))
"""


def write(path: Path) -> None:
    async def main() -> None:
        async with EventBus(path=path) as bus:
            await bus.publish_many([("e", {"n": n, "fill": "x" * 300}) for n in range(40)])

    asyncio.run(main())


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its rights and its bytes."""
    return {path.name: (path.stat().st_mode, path.read_bytes() if path.is_file() else b"") for path in folder.iterdir()}


# Readers leave an empty log and its index where they may, as SQLite's do.
READER = {"x.bus-wal", "x.bus-shm"}


def assert_same(folder: Path, before: dict[str, tuple[int, bytes]], but: set[str]) -> None:
    after = snapshot(folder)
    assert {name: after.get(name) for name in before} == before
    assert set(after) - set(before) <= but


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that others can get to, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write(folder / "x.bus")
    return folder


def attempt(whole: Path, folder: Path, how: str = "") -> dict[str, Any]:
    """What the bus and each verb came to."""
    arguments = [sys.executable, "-c", CHILD, os.fspath(whole), os.fspath(folder), how]
    child = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
    if child.returncode == 77:
        pytest.skip("this root may not become anybody else")
    assert child.returncode == 0, child.stderr
    found: dict[str, Any] = json.loads(child.stdout)
    return found


def newer(path: Path) -> None:
    write(path)
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 999")
    database.close()


def cut(size: Callable[[int], int]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write(path)
        os.truncate(path, size(path.stat().st_size))

    return make


DAMAGED = "is damaged; restore a backup, or recover it with the sqlite3 shell (.recover)"
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "newer": (newer, "has schema version 999, this ironbus knows versions up to 1; upgrade ironbus"),
    "folder": (Path.mkdir, "is not a regular file; give the path of a file"),
    "text": (lambda path: path.write_text("my diary\n" * 100), "is not a SQLite database; give another path"),
    "empty": (Path.touch, "is an empty file, which may be what is left of one with data; remove it to begin anew"),
    "half": (cut(lambda size: size // 8192 * 4096), DAMAGED),
    "one page": (cut(lambda size: 4096), DAMAGED),
    "no page": (cut(lambda size: 100), "is not a SQLite database; give another path"),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_journal_is_refused_and_left_as_it_is(place: Path, whole: Path, kind: str) -> None:
    make, text = FILES[kind]
    make(place / "x.bus")
    before = snapshot(place)
    found = attempt(whole, place)
    assert found["start"][0] == "StorageError"
    for verb in ("status", "verify", "events"):
        assert found[verb][:2] == [2, ""]
        assert found[verb + " left"] == ["x.bus"]
    for who in ("start", "status", "verify", "events"):
        assert f"x.bus: {text}" in found[who][2], who
    assert snapshot(place) == before
    done("files that were refused", 1)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_may_not_be_written_is_refused_and_can_be_read(place: Path, whole: Path, kind: str) -> None:
    """By somebody with no other rights; the folder alone, and the file alone."""
    path = place / "x.bus"
    write(path)
    path.chmod(0o444 if kind == "file" else 0o666)
    place.chmod(0o777 if kind == "file" else 0o555)
    before = snapshot(place)
    found = attempt(whole, place, "nobody")
    kind_of_error, _, text = found["start"]
    assert kind_of_error == "StorageError"
    assert "x.bus" in text
    assert "permissions" in text or "writable" in text
    for verb in ("status", "verify", "events"):
        code, out, err = found[verb]
        if kind == "file":
            assert (code, err) == (0, ""), verb
        else:
            assert (code, out) == (2, ""), verb
            assert "x.bus: is read-only; make the file and its folder writable for this user" in err
    assert_same(place, before, READER if kind == "file" else set())


def test_with_those_rights_it_is_had(place: Path, whole: Path) -> None:
    """The negative control: it was the rights."""
    write(place / "x.bus")
    (place / "x.bus").chmod(0o666)
    place.chmod(0o777)
    found = attempt(whole, place, "nobody")
    assert found["start"][0] == "started"
    assert [found[verb][0] for verb in ("status", "verify", "events")] == [0, 0, 0]
    control()


@pytest.mark.parametrize("exists", [True, False])
def test_a_file_that_cannot_grow_is_told_and_nothing_is_left(place: Path, whole: Path, exists: bool) -> None:
    if exists:
        write(place / "x.bus")
    before = snapshot(place)
    found = attempt(whole, place, "limit")
    kind_of_error, _, text = found["start"]
    assert kind_of_error == "StorageError"
    assert "x.bus" in text
    assert "input/output error" in text
    for verb in ("status", "verify", "events"):
        code, out, err = found[verb]
        assert (code, out) == (2, ""), verb
        assert "x.bus: " in err
    assert_same(place, before, READER if exists else set())


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that has no room for one more page."""
    folder = tmp_path / "full"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", os.fspath(folder)]
    if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here; tests/journal_faults.rs has the engine on a full disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", os.fspath(folder)], check=True)


def fill(folder: Path) -> None:
    def write() -> None:
        while True:
            ballast.write(b"x" * 4096)

    with (folder / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
        write()


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_is_told_and_nothing_is_left(full: Path, whole: Path, exists: bool) -> None:
    if exists:
        write(full / "x.bus")
    fill(full)
    before = snapshot(full)
    found = attempt(whole, full)
    kind_of_error, _, text = found["start"]
    assert (kind_of_error, "the disk is full; make room and try again" in text) == ("StorageError", True), text
    assert "x.bus" in text
    for verb in ("status", "verify", "events"):
        code, out, err = found[verb]
        assert (code, out) == (2, ""), verb
        assert "x.bus: " in err
    assert_same(full, before, READER if exists else set())
    # With room all is as it was.
    (full / "ballast").unlink()
    found = attempt(whole, full)
    assert found["start"][0] == "started"
    assert found["verify"][0] == (0 if exists else 2)
