"""Effect once: statements and events that commit together with the settlement of a delivery."""

import asyncio
import logging
import sqlite3
import threading

import pytest
from ironbus import (
    EventBus,
    InvalidEvent,
    InvalidOption,
    InvalidTransaction,
    PayloadNotEncodable,
    RetryPolicy,
    TransactionFailed,
    current_delivery,
)
from running import run

TABLE = "CREATE TABLE IF NOT EXISTS effect (at INTEGER PRIMARY KEY, once TEXT UNIQUE NOT NULL, n INTEGER)"
INSERT = "INSERT INTO effect (once, n) VALUES (?, ?)"
SOON = RetryPolicy(max_attempts=3, initial_delay=0.001, max_delay=0.001)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.bus"


def effect(tx, event):
    tx.execute(TABLE)
    tx.execute(INSERT, (event.idempotency_key or str(event.sequence), event.data["n"]))


async def rows(bus, what="n"):
    answer = await bus.query(f"SELECT {what} FROM effect ORDER BY at")
    return [row[0] for row in answer.rows]


async def has_table(bus):
    answer = await bus.query("SELECT count(*) FROM sqlite_schema WHERE name = 'effect'")
    return answer.rows[0][0] == 1


async def letters(bus):
    return [letter async for letter in bus.dead_letters]


def kinds():
    """The four ways to write a handler with a transaction."""

    def sync(event):
        with event.delivery.transaction() as tx:
            effect(tx, event)

    async def plain(event):
        with event.delivery.transaction() as tx:
            effect(tx, event)

    async def suspended(event):
        delivery = current_delivery()
        async with delivery.transaction() as tx:
            await asyncio.sleep(0)
            effect(tx, event)
        await asyncio.sleep(0)

    def mixed(event):
        async def rest():
            await asyncio.sleep(0)
            effect(tx, event)
            tx.__exit__(None, None, None)

        tx = event.delivery.transaction()
        tx.__enter__()
        return rest()

    return [sync, plain, suspended, mixed]


@pytest.mark.parametrize("handler", kinds(), ids=lambda handler: handler.__name__)
def test_a_statement_happens_with_the_settlement(path, handler):
    async def main():
        bus = EventBus(path=path)
        bus.subscribe("e", handler, name="h")
        async with bus:
            for n in range(20):
                await bus.publish("e", {"n": n})
            await bus.drain(timeout=30)
            assert await rows(bus) == list(range(20))
            assert bus.audit().balanced
            assert bus.metrics().subscriptions["h"].ledger.done == 20
        async with EventBus(path=path) as bus:
            bus.subscribe("e", handler, name="h")
            await bus.drain(timeout=30)
            assert await rows(bus) == list(range(20))

    run(main())


def test_what_the_handler_left_is_forgotten_when_it_fails_after_the_block(path):
    attempts = []

    async def handler(event):
        attempts.append(event.delivery.attempt)
        with event.delivery.transaction() as tx:
            effect(tx, event)
            tx.publish("child", {"of": event.data["n"]}, idempotency_key=f"child of {event.data['n']}")
        if event.delivery.attempt == 1:
            raise ConnectionError

    async def main():
        bus, children = EventBus(path=path), []
        bus.subscribe("e", handler, name="h", retry=SOON)
        bus.subscribe("child", lambda event: children.append(event.data["of"]), name="children")
        async with bus:
            for n in range(3):
                await bus.publish("e", {"n": n})
            await bus.drain(timeout=30)
            assert (attempts, children) == ([1, 2] * 3, [0, 1, 2])
            assert await rows(bus) == [0, 1, 2]
            assert bus.audit().balanced
            assert (bus.audit().offered, bus.audit().accepted) == (6, 6)

    run(main())


def test_a_block_that_is_left_by_an_exception_is_forgotten_alone(path):
    async def handler(event):
        for n in (1, 2, 3):
            try:
                with event.delivery.transaction() as tx:
                    tx.execute(TABLE)
                    tx.execute(INSERT, (f"block {n}", n))
                    if n == 2:
                        raise ValueError
            except ValueError:
                pass

    async def main():
        bus = EventBus(path=path)
        bus.subscribe("e", handler, name="h")
        async with bus:
            await bus.publish("e", {"n": 0})
            await bus.drain(timeout=30)
            assert await rows(bus) == [1, 3]
            assert bus.metrics().subscriptions["h"].ledger.done == 1

    run(main())


@pytest.mark.parametrize("on_loop", [True, False])
def test_a_statement_that_fails_fails_the_delivery_and_undoes_all_of_it(path, on_loop, caplog):
    attempts, children = [], []

    def work(event):
        attempts.append(event.data["n"])
        with event.delivery.transaction() as tx:
            tx.execute(TABLE)
            tx.execute(INSERT, ("hunter2", event.data["n"]))
            tx.publish("child", {"of": event.data["n"]}, idempotency_key=f"child of {event.data['n']}")

    async def on_the_loop(event):
        work(event)

    async def main():
        bus = EventBus(path=path)
        bus.subscribe("e", on_the_loop if on_loop else work, name="h", retry=SOON)
        bus.subscribe("child", lambda event: children.append(event.data["of"]), name="children")
        async with bus:
            for n in range(3):
                await bus.publish("e", {"n": n})
            await bus.drain(timeout=30)
            assert (attempts, children) == ([0, 1, 1, 1, 2, 2, 2], [0])
            assert await rows(bus) == [0]
            found = await letters(bus)
            assert [letter.exception_type for letter in found] == ["ironbus.errors.TransactionFailed"] * 2
            for letter in found:
                assert letter.attempts == 3
                assert letter.message == (
                    "statement 2 of the transaction failed, and nothing of it happened: "
                    "UNIQUE constraint failed: effect.once"
                )
            assert bus.audit().balanced
            # What was refused is free again.
            receipt = await bus.publish("child", {"of": "me"}, idempotency_key="child of 1")
            assert not receipt.duplicate
            await bus.drain(timeout=30)
            assert children == [0, "me"]
            assert "hunter2" not in caplog.text
            # The first event of the refused transactions was never anybody's.
            assert bus.audit().rejected == 6

    with caplog.at_level(logging.DEBUG):
        run(main())


def test_events_of_a_transaction_are_as_any_other_and_come_after_the_commit(path):
    seen, committed = [], []

    async def handler(event):
        with event.delivery.transaction() as tx:
            effect(tx, event)
            tx.publish("child", {"of": event.data["n"]}, key="k", headers={"h": "v"}, priority=1)

    async def child(event):
        seen.append(event)
        committed.append(await rows(bus))

    async def main():
        bus.subscribe("e", handler, name="h")
        bus.subscribe("child", child, name="children")
        async with bus:
            receipt = await bus.publish("e", {"n": 7})
            settlement = await receipt.settled(cascade=True)
            assert settlement.outcomes == {"h": "done"}
            (event,) = seen
            assert (event.key, event.headers["h"], event.priority, event.sequence) == (
                "k",
                "v",
                1,
                receipt.sequence + 1,
            )
            assert event.causation_id == event.correlation_id == receipt.event_id
            assert committed == [[7]]
            assert bus.audit().balanced

    bus = EventBus(path=path)
    run(main())


def test_an_event_whose_key_was_seen_is_a_duplicate_and_the_rest_happens(path):
    children = []

    async def handler(event):
        with event.delivery.transaction() as tx:
            effect(tx, event)
            tx.publish("child", event.data["n"], idempotency_key="the one")
            tx.publish("child", event.data["n"], idempotency_key="the one")

    async def main():
        bus = EventBus(path=path)
        bus.subscribe("e", handler, name="h")
        bus.subscribe("child", lambda event: children.append(event.data), name="children")
        async with bus:
            for n in range(1, 4):
                await bus.publish("e", {"n": n})
            await bus.drain(timeout=30)
            ledger = bus.audit()
            assert (children, await rows(bus)) == ([1], [1, 2, 3])
            assert (ledger.duplicate, ledger.accepted, ledger.balanced) == (5, 4, True)
        bus = EventBus(path=path)
        bus.subscribe("e", handler, name="h")
        bus.subscribe("child", lambda event: children.append(event.data), name="children")
        async with bus:
            await bus.publish("e", {"n": 4})
            await bus.drain(timeout=30)
            assert (children, await rows(bus)) == ([1], [1, 2, 3, 4])

    run(main())


def test_transactions_that_publish_one_key_at_once_publish_it_once(path):
    children = []

    async def handler(event):
        with event.delivery.transaction() as tx:
            effect(tx, event)
            for n in range(5):
                tx.publish("child", n, idempotency_key=f"{event.data['n'] // 4}/{n}")

    async def main():
        bus = EventBus(path=path)
        bus.subscribe("e", handler, name="h", concurrency=8, ordered=False)
        bus.subscribe("child", lambda event: children.append(event.idempotency_key), name="children")
        async with bus:
            await bus.publish_many([("e", {"n": n}) for n in range(40)])
            # And the keys of others, whose fate is open while the transactions come.
            others = [bus.publish("child", 0, idempotency_key=f"{n}/0") for n in range(10)]
            await asyncio.gather(*others)
            await bus.drain(timeout=30)
            assert sorted(children) == sorted(f"{i}/{n}" for i in range(10) for n in range(5))
            assert sorted(await rows(bus)) == list(range(40))
            assert bus.audit().balanced

    run(main())


@pytest.mark.parametrize("on_loop", [True, False])
def test_the_next_of_an_ordered_lane_starts_after_the_commit(path, on_loop):
    found = []

    def work(event):
        # Of this subscription nothing else is under way, and all before it is there.
        found.append(bus.sync.query("SELECT count(*) FROM effect").rows[0][0] if event.data["n"] else 0)
        with event.delivery.transaction() as tx:
            effect(tx, event)

    async def on_the_loop(event):
        found.append((await bus.query("SELECT count(*) FROM effect")).rows[0][0] if event.data["n"] else 0)
        with event.delivery.transaction() as tx:
            effect(tx, event)

    async def main():
        bus.subscribe("e", on_the_loop if on_loop else work, name="h")
        async with bus:
            await bus.publish_many([("e", {"n": n}) for n in range(30)])
            await bus.drain(timeout=30)
            assert found == list(range(30))

    bus = EventBus(path=path, durability="os")
    run(main())


@pytest.mark.parametrize("on_loop", [True, False])
def test_many_at_once_have_one_effect_each(path, on_loop):
    def work(event):
        with event.delivery.transaction() as tx:
            effect(tx, event)
        if event.data["n"] % 7 == 3 and event.delivery.attempt == 1:
            raise ConnectionError

    async def on_the_loop(event):
        await asyncio.sleep(0)
        work(event)

    async def main():
        bus = EventBus(path=path, durability="os")
        bus.subscribe("e", on_the_loop if on_loop else work, name="h", concurrency=8, retry=SOON, retry_holds="key")
        async with bus:
            for n in range(200):
                await bus.publish("e", {"n": n}, key=str(n % 13))
            await bus.drain(timeout=30)
            assert bus.audit().balanced
            for key in range(13):
                answer = await bus.query("SELECT n FROM effect WHERE n % 13 = ? ORDER BY at", (key,))
                assert [n for (n,) in answer.rows] == list(range(key, 200, 13))

    run(main())


def test_values_come_as_they_are_given(path):
    values = {"none": None, "yes": True, "whole": -(2**63), "broken": 0.5, "text": "Ä\0b", "raw": b"\0\xff"}

    async def handler(event):
        with event.delivery.transaction() as tx:
            tx.execute("CREATE TABLE given (none, yes, whole, broken, text, raw)")
            tx.execute("INSERT INTO given VALUES (:none, @yes, $whole, :broken, :text, :raw)", values | {"more": 1})
            tx.execute("INSERT INTO given VALUES (?, ?, ?, ?, ?, ?)", list(values.values()))
            tx.execute("INSERT INTO given SELECT * FROM given WHERE rowid = 1;  -- and no more")

    async def main():
        bus = EventBus(path=path)
        bus.subscribe("e", handler, name="h")
        async with bus:
            await bus.publish("e", {})
            await bus.drain(timeout=30)
            assert await letters(bus) == []
            answer = await bus.query("SELECT * FROM given")
            assert list(answer.rows) == [tuple(values.values())] * 3

    run(main())


REFUSED = [
    ("DELETE FROM event", (), "statement 1 .* table of ironbus"),
    ("UPDATE cursor SET position = 0", (), "table of ironbus"),
    ("DROP TABLE straggler", (), "table of ironbus"),
    ("PRAGMA synchronous = OFF", (), "PRAGMA"),
    ("ATTACH ':memory:' AS other", (), "ATTACH"),
    ("COMMIT", (), "the transaction that it runs in"),
    ("SAVEPOINT x", (), "the transaction that it runs in"),
    ("ROLLBACK", (), "the commit is not its own"),
    ("INSERT OR Rollback INTO t VALUES (1)", (), "the commit is not its own"),
    ("SELECT 1; SELECT 2", (), "more than one"),
    ("-- nothing", (), "empty"),
    ("SELECT ?, ?", (1,), "2 parameters, and 1 were given"),
    ("SELECT 1", (1,), "0 parameters, and 1 were given"),
    ("SELECT :a, :b", {"a": 1}, "parameter b was not given"),
    ("SELECT ?", {"a": 1}, "no names"),
    ("SELECT hunter FROM nowhere", (), "no such table: nowhere"),
    ("SELEKT 1", (), "syntax error"),
    ("SELECT json_extract('{}', ?)", ("hunter2",), "SQL logic error|Error code 1"),
    ("SELECT abs(?)", (-(2**63),), "overflow|SQL logic error|Error code 1"),
]


@pytest.mark.parametrize(("sql", "parameters", "text"), REFUSED, ids=lambda value: str(value)[:30])
def test_statements_that_are_refused_harm_nobody_else(path, sql, parameters, text):
    failures = []

    async def handler(event):
        with event.delivery.transaction() as tx:
            tx.execute(sql, parameters)

    async def main():
        bus = EventBus(path=path)
        bus.subscribe("e", handler, name="h")
        async with bus:
            receipts = await asyncio.gather(bus.publish("e", {}), *[bus.publish("other", n) for n in range(5)])
            failures.extend((await receipts[0].settled()).failures)
            assert bus.audit().balanced
            assert len(await letters(bus)) == 1

    run(main())
    (failure,) = failures
    assert type(failure) is TransactionFailed
    with pytest.raises(TransactionFailed, match=text):
        raise failure
    assert "hunter2" not in str(failure)


OTHERS = {
    "conflict": ("CREATE TABLE one (n UNIQUE ON CONFLICT ROLLBACK)", "UNIQUE constraint failed: one.n"),
    "trigger": (
        "CREATE TABLE one (n); CREATE TRIGGER t AFTER INSERT ON one "
        "WHEN (SELECT count(*) FROM one WHERE n = new.n) > 1 BEGIN SELECT RAISE(ROLLBACK, 'hunter2'); END",
        "constraint failed",
    ),
    "deferred": (
        "CREATE TABLE p (n PRIMARY KEY); INSERT INTO p VALUES (0), (1), (3), (4); "
        "CREATE TABLE one (n REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
        "deferred FOREIGN KEY constraint fails",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_table_of_another_program_that_undoes_the_commit_fails_its_delivery_alone(path, kind):
    """Those that are written together with it go through, and the journal goes on."""
    made, text = OTHERS[kind]

    async def handler(event):
        n = event.data["n"]
        with event.delivery.transaction() as tx:
            # The third one is as the second, or has no parent.
            tx.execute("INSERT INTO one VALUES (?)", (1 if n == 2 and kind != "deferred" else n,))
            tx.publish("child", {"n": n})

    async def main():
        async with EventBus(path=path):
            pass
        database = sqlite3.connect(path)
        database.executescript(made)
        database.close()
        bus, children = EventBus(path=path), []
        bus.subscribe("e", handler, name="h", concurrency=8, ordered=False)
        bus.subscribe("child", lambda event: children.append(event.data["n"]), name="children")
        async with bus:
            await bus.publish("e", {"n": 1})
            await bus.drain(timeout=30)
            many = bus.publish_many([("e", {"n": n}) for n in (0, 2, 3, 4)])
            await asyncio.gather(many, *(bus.publish("other", n) for n in range(5)))
            await bus.drain(timeout=30)
            assert sorted((await bus.query("SELECT n FROM one")).rows) == [(0,), (1,), (3,), (4,)]
            assert sorted(children) == [0, 1, 3, 4]
            (letter,) = await letters(bus)
            assert letter.exception_type == "ironbus.errors.TransactionFailed"
            assert letter.message.startswith("statement 1 of the transaction failed, and nothing of it happened: ")
            assert text in letter.message
            assert "hunter2" not in letter.message
            assert bus.audit().balanced

    run(main())


def in_a_handler(work, bus=None, path=None):
    """What ``work`` returns or raises, called in a handler."""
    result = []

    async def handler(event):
        try:
            result.append(work(event))
        except Exception as error:
            result.append(error)

    async def main():
        own = EventBus(path=path)
        own.subscribe("e", handler, name="h")
        async with own:
            await own.publish("e", {"n": 1})
            await own.drain(timeout=30)
            assert own.audit().balanced
            return own.audit()

    ledger = run(main())
    (only,) = result
    if isinstance(only, BaseException):
        raise only
    return only, ledger


def test_a_bus_without_a_path_has_no_transactions():
    with pytest.raises(InvalidTransaction, match=r'EventBus\(path="orders.bus"\)'):
        in_a_handler(lambda event: event.delivery.transaction())


def wrong_use():
    def before(event):
        event.delivery.transaction().execute("SELECT 1")

    def after(event):
        with event.delivery.transaction() as tx:
            pass
        tx.execute("SELECT 1")

    def after_publish(event):
        with event.delivery.transaction() as tx:
            pass
        tx.publish("child")

    def twice(event):
        with event.delivery.transaction() as tx, tx:
            pass

    def elsewhere(event):
        errors = []

        def work():
            try:
                event.delivery.transaction()
            except InvalidTransaction as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        raise errors[0]

    def by_hand(event):
        type(event.delivery)(1, "h").transaction()

    return {
        before: "not entered",
        after: "was left",
        after_publish: "was left",
        twice: "entered once",
        elsewhere: "for the handler itself",
        by_hand: "not the delivery that is under way",
    }


@pytest.mark.parametrize(("work", "text"), wrong_use().items(), ids=lambda value: getattr(value, "__name__", ""))
def test_wrong_use_says_what_is_right(path, work, text):
    with pytest.raises(InvalidTransaction, match=text):
        in_a_handler(work, path=path)


def test_the_delivery_of_another_event_is_not_this_one(path):
    kept, errors = [], []

    async def handler(event):
        kept.append(event)
        try:
            with kept[0].delivery.transaction() as tx:
                effect(tx, event)
        except InvalidTransaction as error:
            errors.append(str(error))

    async def main():
        bus = EventBus(path=path)
        bus.subscribe("e", handler, name="h")
        async with bus:
            await bus.publish("e", {"n": 1})
            await bus.publish("e", {"n": 2})
            await bus.drain(timeout=30)
            assert await rows(bus) == [1]
        with pytest.raises(InvalidTransaction, match="for the handler itself"):
            kept[0].delivery.transaction()

    run(main())
    (error,) = errors
    assert "not the delivery that is under way" in error


def test_a_transaction_is_over_with_its_delivery(path):
    kept = []

    async def handler(event):
        kept.append(event.delivery.transaction())
        with event.delivery.transaction() as tx:
            kept.append(tx)
            effect(tx, event)

    async def main():
        bus = EventBus(path=path)
        bus.subscribe("e", handler, name="h")
        async with bus:
            await bus.publish("e", {"n": 1})
            await bus.drain(timeout=30)
            fresh, left = kept
            with pytest.raises(InvalidTransaction, match="is over"):
                fresh.__enter__()
            with pytest.raises(InvalidTransaction, match="is over"):
                left.execute("SELECT 1")
            with pytest.raises(InvalidTransaction, match="is over"):
                left.publish("child", {})
            assert await rows(bus) == [1]
            assert bus.audit().offered == 1

    run(main())


def test_a_handler_that_returns_within_a_block_has_failed(path):
    kept = []

    async def handler(event):
        tx = event.delivery.transaction()
        tx.__enter__()
        effect(tx, event)
        tx.publish("child", 1, idempotency_key="c")
        kept.append(tx)

    async def main():
        bus = EventBus(path=path)
        bus.subscribe("e", handler, name="h")
        async with bus:
            receipt = await bus.publish("e", {"n": 1})
            (failure,) = (await receipt.settled()).failures
            assert type(failure) is InvalidTransaction
            assert "returned before" in str(failure)
            with pytest.raises(InvalidTransaction, match="is over"):
                kept[0].__exit__(None, None, None)
            assert not await has_table(bus)
            assert not (await bus.publish("child", 1, idempotency_key="c")).duplicate
            await bus.drain(timeout=30)
            assert bus.audit().balanced

    run(main())


@pytest.mark.parametrize(
    ("sql", "parameters", "field"),
    [
        (None, (), "sql"),
        (b"SELECT 1", (), "sql"),
        (" ", (), "sql"),
        ("SELECT 1\0", (), "sql"),
        ("SELECT ?", "a", "parameters"),
        ("SELECT ?", b"a", "parameters"),
        ("SELECT ?", 7, "parameters"),
        ("SELECT ?", {1}, "parameters"),
        ("SELECT ?, ?", (1, 2**63), "parameters[1]"),
        ("SELECT ?", ([],), "parameters[0]"),
        ("SELECT ?", ("\ud800",), "parameters[0]"),
        ("SELECT :a", {"a": object()}, 'parameters["a"]'),
        ("SELECT :a", {1: 1}, "parameters"),
    ],
)
def test_a_statement_is_checked_at_the_call(path, sql, parameters, field):
    def work(event):
        with event.delivery.transaction() as tx:
            tx.execute(sql, parameters)

    with pytest.raises(InvalidOption) as caught:
        in_a_handler(work, path=path)
    assert caught.value.field == field
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("event", "data", "options", "error"),
    [
        ("", {}, {}, InvalidEvent),
        (7, {}, {}, InvalidEvent),
        ("e2", {"a": (1,)}, {}, PayloadNotEncodable),
        ("e2", object(), {}, PayloadNotEncodable),
        ("e2", {}, {"idempotency_key": 1}, InvalidEvent),
        ("e2", {}, {"delay": -1}, InvalidEvent),
        ("e2", {}, {"durability": "os"}, TypeError),
    ],
)
def test_an_event_is_checked_at_the_call(path, event, data, options, error):
    def work(own):
        with own.delivery.transaction() as tx:
            tx.publish("fine", {}, idempotency_key="fine")
            tx.publish(event, data, **options)

    with pytest.raises(error):
        in_a_handler(work, path=path)


def test_a_handler_that_takes_too_long_has_no_effect(path):
    """Its time is over when it has left the block, on a thread and on the loop."""
    let_go = threading.Event()
    attempts = []

    def on_a_thread(event):
        with event.delivery.transaction() as tx:
            effect(tx, event)
        attempts.append(event.delivery.attempt)
        if event.delivery.attempt == 1:
            let_go.wait(0.05)

    async def on_the_loop(event):
        with event.delivery.transaction() as tx:
            effect(tx, event)
        attempts.append(event.delivery.attempt)
        if event.delivery.attempt == 1:
            await asyncio.Event().wait()

    async def main():
        for name, handler, n in (("thread", on_a_thread, 1), ("loop", on_the_loop, 2)):
            bus = EventBus(path=path.with_suffix(f".{name}.bus"))
            bus.subscribe("e", handler, name=name, timeout=0.02, retry=SOON)
            attempts.clear()
            async with bus:
                await bus.publish("e", {"n": n})
                await bus.drain(timeout=30)
                assert (attempts, await rows(bus), bus.audit().balanced) == ([1, 2], [n], True)

    run(main())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_handler_that_outlives_its_bus_does_not_have_its_effect_twice(path, when):
    """The delivery was not settled when the file was closed, so the file gives it again."""
    begun, let_go = threading.Event(), threading.Event()
    runs, errors = [], []

    def slow(event):
        runs.append(event.sequence)
        before = event.delivery.transaction() if when == "before" else None
        begun.set()
        assert let_go.wait(30)
        try:
            with before or event.delivery.transaction() as tx:
                effect(tx, event)
        except InvalidTransaction as error:
            errors.append(str(error))
            raise

    async def main():
        bus = EventBus(path=path)
        bus.subscribe("e", slow, name="h", retry=SOON)
        await bus.start()
        await bus.publish("e", {"n": 1})
        await asyncio.get_running_loop().run_in_executor(None, begun.wait, 30)
        await bus.stop(timeout=0)
        await bus.start()
        let_go.set()
        await bus.publish("e", {"n": 2})
        await bus.drain(timeout=30)
        assert sorted(await rows(bus)) == [1, 2]
        assert runs.count(1) >= 2
        await bus.stop(timeout=0)
        async with EventBus(path=path) as bus:
            bus.subscribe("e", slow, name="h")
            await bus.drain(timeout=30)
            assert sorted(await rows(bus)) == [1, 2]

    run(main())
    assert all("was stopped while" in error for error in errors)
    assert bool(errors) == (when == "after")


def test_a_dead_letter_that_is_delivered_again_leaves_with_its_effect(path):
    broken = True

    async def handler(event):
        with event.delivery.transaction() as tx:
            effect(tx, event)
        if broken:
            raise ValueError

    async def main():
        nonlocal broken
        bus = EventBus(path=path)
        bus.subscribe("e", handler, name="h")
        async with bus:
            for n in range(5):
                await bus.publish("e", {"n": n})
            await bus.drain(timeout=30)
            assert (await bus.dead_letters.count(), await has_table(bus)) == (5, False)
            broken = False
            report = await bus.dead_letters.redrive()
            assert (report.succeeded, await bus.dead_letters.count()) == (5, 0)
            assert await rows(bus) == list(range(5))
            assert bus.audit().balanced
            assert (await bus.dead_letters.redrive()).delivered == 0

    run(main())
