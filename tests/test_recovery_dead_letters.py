"""``DeadLetterQueue``: the interface of the ``pm.events`` API, in memory and in a file, without the faults of v1.0."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import logging
import math
import os
import stat
import subprocess
import sys
import threading
import time
import traceback
import weakref
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ironbus import DeadLetterQueueFull, InvalidEvent, InvalidOption, InvalidType, QueueFull, StorageError, _failures
from ironbus.recovery import DeadLetterQueue, FailedEvent

SECRET = "4111-1111-1111-1111"


class Clock:
    def __init__(self, now=1_700_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory", "file"])
def path(request, tmp_path):
    return None if request.param == "memory" else tmp_path / "dlq"


@pytest.fixture
def queue(path, clock):
    return DeadLetterQueue(path, clock=clock)


def run(coroutine):
    return asyncio.run(coroutine)


def raised(error):
    try:
        raise error
    except Exception as caught:
        return caught


# The contract of v1.0 --------------------------------------------------------------


def test_names_and_defaults_are_those_of_v1():
    signature = inspect.signature(DeadLetterQueue)
    assert next(iter(signature.parameters)) == "storage_path"
    assert signature.parameters["storage_path"].default is None
    names = ["event_type", "event_data", "error", "attempts", "first_failure", "last_failure", "event_id"]
    assert [field.name for field in fields(FailedEvent)] == names
    event = FailedEvent("a", {"id": 1}, "boom", 1, 1.0, 2.0)
    assert event.event_id is None
    event.attempts += 1
    assert event == FailedEvent("a", {"id": 1}, "boom", 2, 1.0, 2.0, None)
    for method in ("add_failed_event", "get_failed_events", "remove_event"):
        assert inspect.iscoroutinefunction(getattr(DeadLetterQueue, method))


def test_add_get_remove(queue, clock):
    async def main():
        added = await queue.add_failed_event("order.paid", {"id": 7}, ValueError("boom"), "e-7")
        assert added == FailedEvent("order.paid", {"id": 7}, "boom", 1, clock.now, clock.now, "e-7")
        assert await queue.get_failed_events() == [added]
        await queue.add_failed_event("order.sent", [1, 2.5, None, "ä"], "a text", event_id="e-8")
        assert [event.event_id for event in await queue.get_failed_events()] == ["e-7", "e-8"]
        assert await queue.remove_event("e-7") is True
        assert await queue.remove_event("e-7") is False
        (event,) = await queue.get_failed_events()
        assert (event.event_data, event.error) == ([1, 2.5, None, "ä"], "a text")

    run(main())


def test_the_same_id_again_raises_attempts(queue, clock):
    async def main():
        first = clock.now
        await queue.add_failed_event("order.paid", {"id": 7}, ValueError("first"), "e-7")
        await queue.add_failed_event("order.paid", {"id": 8}, ValueError("other"), "e-8")
        clock.now += 60
        added = await queue.add_failed_event("order.paid", {"id": 7, "try": 2}, KeyError("second"), "e-7")
        assert added.attempts == 2
        seven, eight = await queue.get_failed_events()
        assert seven == FailedEvent("order.paid", {"id": 7, "try": 2}, "'second'", 2, first, clock.now, "e-7")
        assert eight.attempts == 1

    run(main())


def test_an_entry_without_an_id_gets_one_and_can_be_removed(queue):
    """A fault of v1.0: such entries could never be removed, and were reprocessed for ever."""

    async def main():
        added = [await queue.add_failed_event("a", n, "boom") for n in range(3)]
        events = await queue.get_failed_events()
        assert [event.event_id for event in events] == [event.event_id for event in added]
        assert len({event.event_id for event in events}) == 3
        for event in events:
            assert await queue.remove_event(event.event_id) is True
        assert await queue.get_failed_events() == []

    run(main())


def test_max_age_is_in_hours_since_the_last_failure(queue, clock):
    async def main():
        for hours in (5, 3, 1):
            clock.now += 3600 * 2
            await queue.add_failed_event("a", hours, "boom", f"e-{hours}")
        clock.now += 3600
        assert [event.event_data for event in await queue.get_failed_events(3)] == [3, 1]
        assert [event.event_data for event in await queue.get_failed_events(max_age_hours=2.999)] == [1]
        assert len(await queue.get_failed_events(None)) == 3
        await queue.add_failed_event("a", 5, "again", "e-5")
        assert [event.event_data for event in await queue.get_failed_events(0)] == [5]

    run(main())


def test_the_sync_forms_do_the_same(queue):
    added = queue.add_failed_event_sync("a", {"id": 1}, ValueError("boom"), "e-1", subscription="s", handler="h")
    assert queue.get_failed_events_sync() == [added] == run(queue.get_failed_events())
    assert queue.remove_event_sync("e-1") is True
    assert queue.get_failed_events_sync(max_age_hours=1) == []


def test_it_outlives_its_object(tmp_path):
    for n in range(3):
        queue = DeadLetterQueue(tmp_path)
        queue.add_failed_event_sync("a", n, "boom")
        assert [event.event_data for event in queue.get_failed_events_sync()] == list(range(n + 1))
        if n:
            queue.close()


def test_the_order_is_that_of_adding(queue):
    async def main():
        await asyncio.gather(*(queue.add_failed_event("a", n, "boom") for n in range(500)))
        assert [event.event_data for event in await queue.get_failed_events()] == list(range(500))

    run(main())


# Data and errors of any kind -------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=json_values)
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    for path in (None, tmp_path_factory.getbasetemp() / "json"):
        queue = DeadLetterQueue(path)
        queue.add_failed_event_sync("a", value, "boom", "e")
        (event,) = queue.get_failed_events_sync()
        assert event.event_data == value
        queue.close()


def test_data_without_a_json_form_is_the_object_here_and_its_text_elsewhere(tmp_path):
    cycle = []
    cycle.append(cycle)
    values = [{"at": datetime(2026, 1, 2, tzinfo=UTC)}, math.nan, {1, 2}, object(), cycle]
    queue = DeadLetterQueue(tmp_path)
    for n, value in enumerate(values):
        queue.add_failed_event_sync("a", value, "boom", f"e-{n}")
    assert all(event.event_data is value for event, value in zip(queue.get_failed_events_sync(), values, strict=True))
    elsewhere = DeadLetterQueue(tmp_path).get_failed_events_sync()
    assert elsewhere[0].event_data == {"at": "2026-01-02 00:00:00+00:00"}
    assert math.isnan(elsewhere[1].event_data)
    assert elsewhere[2].event_data == "{1, 2}"
    assert elsewhere[3].event_data.startswith("<object object")
    assert elsewhere[4].event_data == "[[...]]"
    # Once it has a form, that is what all see.
    queue.add_failed_event_sync("a", 5, "boom", "e-3")
    assert queue.get_failed_events_sync()[3].event_data == 5


def test_objects_are_let_go_with_their_entries(queue):
    class Payload:
        pass

    payload = Payload()
    gone = weakref.ref(payload)
    queue.add_failed_event_sync("a", payload, "boom", "e")
    del payload
    gc.collect()
    assert gone() is not None
    queue.remove_event_sync("e")
    gc.collect()
    assert gone() is None


def test_errors_of_any_kind_are_kept(tmp_path):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    queue = DeadLetterQueue(tmp_path)
    errors = [raised(ValueError("boom")), KeyError(), Mute(), "text", ValueError("\ud800"), ValueError("x" * 50_000)]
    for error in errors:
        queue.add_failed_event_sync("a", None, error)
    texts = [event.error for event in queue.get_failed_events_sync()]
    assert texts[0] == "boom"
    assert texts[1] == "KeyError"
    assert texts[2].startswith("<")
    assert "Mute" in texts[2]
    assert texts[3] == "text"
    assert texts[4] == "\\ud800"
    assert texts[5].startswith("x" * 1000)
    assert len(texts[5]) < 17_000


def test_messages_need_not_be_kept(tmp_path):
    queue = DeadLetterQueue(tmp_path, messages=False, tracebacks=False)
    queue.add_failed_event_sync("a", None, raised(ValueError(SECRET)))
    assert [event.error for event in queue.get_failed_events_sync()] == ["ValueError"]
    queue.close()
    assert SECRET.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


# Limits ----------------------------------------------------------------------------


def test_a_full_queue_refuses_and_keeps_what_it_has(path):
    queue = DeadLetterQueue(path, max_entries=2)
    for n in range(2):
        queue.add_failed_event_sync("a", n, "boom", f"e-{n}")
    with pytest.raises(DeadLetterQueueFull, match="max_entries") as caught:
        queue.add_failed_event_sync("a", SECRET, SECRET)
    assert isinstance(caught.value, QueueFull)
    assert SECRET not in str(caught.value)
    with pytest.raises(DeadLetterQueueFull):
        run(queue.add_failed_event("a", 3, "boom"))
    queue.add_failed_event_sync("a", 0, "again", "e-0")  # no more room needed
    queue.remove_event_sync("e-1")
    queue.add_failed_event_sync("a", 4, "boom")
    assert [event.event_data for event in queue.get_failed_events_sync()] == [0, 4]


def test_a_full_queue_may_let_its_oldest_go(path):
    queue = DeadLetterQueue(path, max_entries=2, when_full="drop_oldest")
    for n in range(4):
        queue.add_failed_event_sync("a", n, "boom")
    assert [event.event_data for event in queue.get_failed_events_sync()] == [2, 3]


def test_what_is_too_old_is_let_go(path, clock):
    queue = DeadLetterQueue(path, max_age=60, clock=clock)
    queue.add_failed_event_sync("a", 1, "boom")
    clock.now += 30
    queue.add_failed_event_sync("a", 2, "boom")
    clock.now += 31
    assert [event.event_data for event in queue.get_failed_events_sync()] == [2]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"storage_path": 5}, "storage_path"),
        ({"durability": "memory"}, "durability"),
        ({"max_entries": 0}, "max_entries"),
        ({"max_age": -1}, "max_age"),
        ({"when_full": "block"}, "when_full"),
        ({"messages": 1}, "messages"),
        ({"tracebacks": None}, "tracebacks"),
        ({"clock": 5}, "clock"),
    ],
)
def test_bad_options_are_refused_by_name(options, field):
    with pytest.raises(InvalidOption, match=field) as caught:
        DeadLetterQueue(**options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("arguments", "error", "field"),
    [
        (("", {}, "boom"), InvalidType, "event_type"),
        ((5, {}, "boom"), InvalidType, "event_type"),
        (("a", {}, 5), InvalidEvent, "error"),
        (("a", {}, "boom", ""), InvalidEvent, "event_id"),
        (("a", {}, "boom", 5), InvalidEvent, "event_id"),
        (("a", {}, "boom", "\ud800"), InvalidEvent, "event_id"),
    ],
)
def test_bad_events_are_refused_and_leave_nothing(queue, arguments, error, field):
    with pytest.raises(error, match=field):
        run(queue.add_failed_event(*arguments))
    assert queue.get_failed_events_sync() == []


# The file --------------------------------------------------------------------------


def test_nothing_happens_before_the_first_use(tmp_path):
    folder = tmp_path / "a" / "b"
    queue = DeadLetterQueue(folder)
    assert not folder.exists()
    queue.add_failed_event_sync("a", 1, "boom")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    DeadLetterQueue().add_failed_event_sync("a", 1, "boom")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    queue = DeadLetterQueue("dlq")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    queue.add_failed_event_sync("a", 1, "boom")
    assert (tmp_path / "dlq" / "dead_letters.db").is_file()


def test_a_path_that_cannot_be_used_is_named_and_left(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(StorageError, match="file"):
        run(DeadLetterQueue(file).add_failed_event("a", 1, "boom"))
    assert file.read_text() == "mine"
    folder = tmp_path / "dlq"
    folder.mkdir()
    (folder / "dead_letters.db").write_text("not a database, but long enough to be looked at. " * 20)
    queue = DeadLetterQueue(folder)
    for call in (queue.get_failed_events, lambda: queue.add_failed_event("a", 1, "boom")):
        with pytest.raises(StorageError, match=r"dead_letters\.db: is not a SQLite database"):
            run(call())
    assert (folder / "dead_letters.db").read_text().startswith("not a database")


# Holds the file until it is told to let go.
BLOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""


def test_the_loop_goes_on_while_the_file_is_worked_on(tmp_path):
    """Another process holds the file: the add waits for it, and the loop does not."""

    async def main():
        queue = DeadLetterQueue(tmp_path)
        await queue.add_failed_event("a", 0, "boom")
        arguments = [sys.executable, "-c", BLOCKER, str(tmp_path / "dead_letters.db")]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as blocker:
            assert blocker.stdout.readline() == "held\n"
            adding = asyncio.create_task(queue.add_failed_event("a", 1, "boom"))
            for _ in range(1000):
                await asyncio.sleep(0)
            assert not adding.done()
            blocker.stdin.write("go\n")
            blocker.stdin.flush()
            await adding
        assert len(await queue.get_failed_events()) == 2

    run(main())


def test_a_cancelled_add_is_kept_all_the_same(tmp_path):
    async def main():
        queue = DeadLetterQueue(tmp_path)
        await queue.get_failed_events()
        adding = asyncio.create_task(queue.add_failed_event("a", 1, "boom"))
        await asyncio.sleep(0)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        # Work is done in order, so this one sees it.
        assert len(await queue.get_failed_events()) == 1

    run(main())


def test_one_queue_serves_many_loops_and_threads(path):
    queue = DeadLetterQueue(path)

    def work(n):
        async def main():
            await asyncio.gather(*(queue.add_failed_event("a", n, "boom", f"{n}-{i}") for i in range(20)))

        run(main())
        for i in range(20):
            queue.add_failed_event_sync("a", n, "again", f"{n}-{i}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    events = queue.get_failed_events_sync()
    assert len(events) == 120
    assert {event.attempts for event in events} == {2}


def test_its_thread_ends_when_there_is_no_work(tmp_path):
    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "ironbus-dead-letters"]

    run(DeadLetterQueue(tmp_path).get_failed_events())
    for thread in threads():
        thread.join(30)
    assert threads() == []
    queue = DeadLetterQueue(tmp_path)
    run(queue.get_failed_events())
    (thread,) = threads()
    thread.join(30)
    run(queue.get_failed_events())  # and another begins
    for thread in threads():
        thread.join(30)


def test_the_interpreter_may_end_at_any_time(tmp_path):
    """The thread must not be torn out of native code."""
    code = f"""
import asyncio, threading
from ironbus.recovery import DeadLetterQueue
queue = DeadLetterQueue({str(tmp_path)!r})
async def main():
    await asyncio.gather(*(queue.add_failed_event("a", n, "boom") for n in range(51)))
    for n in range(50):
        asyncio.ensure_future(queue.add_failed_event("b", n, "boom"))
    await asyncio.sleep(0)
asyncio.run(main())
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 10
    events = DeadLetterQueue(tmp_path).get_failed_events_sync()
    assert sorted(event.event_data for event in events if event.event_type == "a") == list(range(51))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_may_go_on_with_the_queue(path):
    queue = DeadLetterQueue(path)
    run(queue.add_failed_event("a", "parent", "boom"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(queue.add_failed_event("a", "child", "boom"))
            code = 0 if len(queue.get_failed_events_sync()) == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run(queue.add_failed_event("a", "parent", "boom"))
    seen = [event.event_data for event in queue.get_failed_events_sync()]
    assert seen == (["parent", "parent"] if path is None else ["parent", "child", "parent"])


IO = Path("/proc/self/io")


@pytest.mark.skipif(not IO.exists(), reason="needs the counters of /proc")
def test_what_an_entry_costs_does_not_grow_with_the_queue(tmp_path):
    """v1.0 rewrote its file for each entry: quadratic. Counted in bytes written, which no busy machine changes."""

    def written():
        counters = dict(line.split(": ") for line in IO.read_text().splitlines())
        return int(counters["wchar"])

    async def add(queue, numbers):
        error = raised(ConnectionError("the database is down"))
        before = written()
        for n in numbers:
            await queue.add_failed_event("order.paid", {"id": n, "text": "x" * 200}, error, f"e-{n}")
        return (written() - before) / len(numbers)

    async def main():
        queue = DeadLetterQueue(tmp_path)
        first = await add(queue, range(1_000))
        await add(queue, range(1_000, 9_000))
        last = await add(queue, range(9_000, 10_000))
        assert len(await queue.get_failed_events()) == 10_000
        return first, last

    first, last = run(main())
    assert first > 200  # the counter counts
    assert last < 3 * first


# What v1.0 left --------------------------------------------------------------------


def legacy(folder, content):
    folder.mkdir(exist_ok=True)
    file = folder / "dead_letters.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def old(n, **changes):
    return {
        "event_type": "order.paid",
        "event_data": {"id": n},
        "error": f"boom {n}",
        "attempts": n,
        "first_failure": "2025-01-02T03:04:05",
        "last_failure": 1_735_787_045.5,
        "event_id": f"e-{n}",
        **changes,
    }


def test_dead_letters_of_v1_are_taken_over_once(tmp_path, caplog):
    file = legacy(tmp_path, [old(1), old(2, event_id=None), old(3, event_data=SECRET, error=SECRET)])
    before = file.read_bytes()
    with caplog.at_level(logging.INFO):
        one, two, three = DeadLetterQueue(tmp_path).get_failed_events_sync()
    first = datetime(2025, 1, 2, 3, 4, 5).timestamp()
    assert asdict(one) == {**old(1), "first_failure": first}
    assert (two.event_data, two.attempts, three.error) == ({"id": 2}, 2, SECRET)
    assert "3 dead letters taken over" in caplog.text
    assert SECRET not in caplog.text
    queue = DeadLetterQueue(tmp_path)
    for event in (one, two, three):
        assert queue.remove_event_sync(event.event_id)
    queue.close()
    assert DeadLetterQueue(tmp_path).get_failed_events_sync() == []
    assert file.read_bytes() == before


def test_other_shapes_of_the_old_file(tmp_path):
    """What JSON may have made of a dict by id, of missing fields and of strange numbers."""
    legacy(tmp_path, {"x": old(1, event_id=None), "y": {"event_type": "b"}})
    x, y = DeadLetterQueue(tmp_path).get_failed_events_sync()
    assert (x.event_id, x.event_data) == ("x", {"id": 1})
    assert (y.event_id, y.event_type, y.event_data, y.error, y.attempts) == ("y", "b", None, "", 1)
    folder = tmp_path / "other"
    legacy(
        folder, '[{"event_type": "a", "event_data": NaN, "attempts": 0}, {"event_type": "a", "event_data": "\\ud800"}]'
    )
    nan, surrogate = DeadLetterQueue(folder).get_failed_events_sync()
    assert math.isnan(nan.event_data)
    assert (nan.attempts, surrogate.event_data) == (1, "\ud800")


def test_equal_entries_without_an_id_are_all_kept(tmp_path):
    legacy(tmp_path, [old(1, event_id=None)] * 3 + [old(1)] * 2)
    events = DeadLetterQueue(tmp_path).get_failed_events_sync()
    assert len({event.event_id for event in events}) == 5


def test_what_an_older_program_adds_later_is_taken_over_too(tmp_path):
    legacy(tmp_path, [old(1), old(2, event_id=None)])
    assert len(DeadLetterQueue(tmp_path).get_failed_events_sync()) == 2
    legacy(tmp_path, [old(1), old(2, event_id=None), old(3)])
    assert [event.attempts for event in DeadLetterQueue(tmp_path).get_failed_events_sync()] == [1, 2, 3]


@pytest.mark.parametrize(
    "content",
    [
        "",
        '[{"event_type": "a"',
        "5",
        '"text"',
        "[5]",
        '[{"event_data": 1}]',
        '[{"event_type": 5}]',
        '[{"event_type": "a", "attempts": "many"}]',
        '[{"event_type": "a", "first_failure": "yesterday"}]',
        '[{"event_type": "a", "last_failure": Infinity}]',
        '{"x": 5}',
        "[" * 100_000,
    ],
)
def test_an_unreadable_old_file_is_said_and_left(tmp_path, content):
    """v1.0 took it for empty, and wrote over it. Of a file with one bad entry nothing is taken."""
    if content.startswith("[{"):
        content = "[" + json.dumps(old(1, event_data=SECRET)) + "," + content[1:]
    file = legacy(tmp_path, content)
    queue = DeadLetterQueue(tmp_path)
    for call in (queue.get_failed_events, lambda: queue.add_failed_event("a", 1, "boom")):
        with pytest.raises(StorageError, match=r"dead_letters\.json: .*; repair it, or move it away") as caught:
            run(call())
        assert SECRET not in str(caught.value)
    assert file.read_text() == content
    file.rename(tmp_path / "moved.json")
    assert run(queue.get_failed_events()) == []


def test_an_old_file_that_may_not_be_read_is_said_and_left(tmp_path):
    (tmp_path / "dead_letters.json").mkdir()
    with pytest.raises(StorageError, match=r"dead_letters\.json: cannot be read"):
        run(DeadLetterQueue(tmp_path).get_failed_events())


def test_tracebacks_are_those_that_python_prints():
    """Formatted once for each place and taken again after that; deep ones and those of equal functions as well."""

    def make(name):
        space = {}
        code = "def fail(n):\n    if n:\n        return fail(n - 1)\n    raise ValueError\n"
        exec(compile(code, name, "exec"), space)
        return space["fail"]

    def described(name, depth):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - it has no text
            make(name)(depth)
        error = caught.value
        kind, message, trace, place = _failures.describe(error)
        assert trace == "".join(traceback.format_exception(error))
        assert (kind, message, place) == ("ValueError", "", f"{name}:4 in fail")

    for _ in range(2):
        for name in ("one.py", "other.py"):
            for depth in (0, 3, 100):
                described(name, depth)
    for n in range(2 * _failures.KNOWN):
        described(f"{n}.py", 0)
    assert len(_failures._known) <= _failures.KNOWN
