"""Events that fail, their letters, redrives of one, some and all, purges, a queue that is full, stops and starts, in
any order: every event is always in exactly one place, and the ledger balances. A fault that loses one is noticed.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ironbus import CircuitBreakerConfig, DeadLetters, Event, EventBus, EventPriority, RetryPolicy
from ironbus.testing import harness
from torture import control, times

ROOM = 3
NAMES = ("sync", "async", "keyed")
RETRY = RetryPolicy(max_attempts=2, initial_delay=5, jitter=False)
BREAKER = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, timeout=20, failure_rate=None)


@pytest.fixture(autouse=True)
def _quiet():
    """Handlers fail here on purpose, and lanes park."""
    logger = logging.getLogger("ironbus")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


class Machine(RuleBasedStateMachine):
    """Three subscriptions, and for each of them where its events are."""

    in_file = False

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.published = 0
        self.bugs = {name: set() for name in NAMES}
        self.done = {name: [] for name in NAMES}
        self.purged = {name: [] for name in NAMES}
        self.running = True

    def do(self, work):
        """Does it, and all that can be done then."""

        async def both():
            async with asyncio.timeout(60):
                result = await work
                if self.running:
                    await self.t.advance(0)
                return result

        return self.runner.run(both())

    @initialize(
        guarded=st.sampled_from([False, False, True]),
        holds=st.sampled_from(["level", "key", "nothing"]),
        causes=st.sets(st.integers(0, 2)),
    )
    def make(self, guarded, holds, causes):
        for bugs in self.bugs.values():
            bugs.update(causes)
        path = Path(self.folder.name) / "x.dead" if self.in_file else None
        self.bus = EventBus(dead_letters=DeadLetters(path=path, max_entries=ROOM))

        def handle(name, event):
            if event.data % 3 in self.bugs[name]:
                raise (ConnectionError, KeyError, TypeError)[event.data % 3]
            self.done[name].append(event.data)

        async def handler(event):
            handle("async", event)

        async def suspending(event):
            await asyncio.sleep(0)
            handle("keyed", event)

        self.guarded = guarded
        guard = {"breaker": BREAKER} if guarded else {}
        self.subscriptions = {
            "sync": self.bus.subscribe("t", lambda event: handle("sync", event), name="sync"),
            "async": self.bus.subscribe("t", handler, name="async", retry=RETRY, retry_holds=holds, **guard),
            "keyed": self.bus.subscribe("t", suspending, name="keyed", concurrency=2, retry=RETRY, **guard),
        }
        # Nothing here waits for something else than the bus: a slow machine makes no difference.
        self.harness = harness(self.bus, clock="virtual", patience=30)
        self.t = self.runner.run(self.harness.__aenter__())

    # What happens ----------------------------------------------------------------

    @rule(level=st.sampled_from(EventPriority), key=st.sampled_from("ab"), count=st.integers(1, 4))
    def publish(self, level, key, count):
        async def work():
            for n in range(self.published, self.published + count):
                await self.bus.publish(Event("t", n), priority=level, key=key)

        self.do(work())
        self.published += count

    @rule(name=st.sampled_from(NAMES), cause=st.integers(0, 2))
    def break_handler(self, name, cause):
        self.bugs[name].add(cause)

    @rule(name=st.sampled_from(NAMES))
    def repair_handler(self, name):
        self.bugs[name].clear()

    @precondition(lambda self: self.running)
    @rule(seconds=st.sampled_from([1, 6, 30]))
    def time_passes(self, seconds):
        self.do(self.t.advance(seconds))

    @rule(name=st.sampled_from(NAMES), paused=st.booleans())
    def pause(self, name, paused):
        async def work():
            subscription = self.subscriptions[name]
            subscription.pause() if paused else subscription.resume()

        self.do(work())

    @precondition(lambda self: self.running)
    @rule(
        name=st.sampled_from([None, *NAMES]),
        limit=st.none() | st.integers(0, 2),
        one=st.booleans(),
        away=st.booleans(),
    )
    def redrive(self, name, limit, one, away):
        """Of one, some or all; whoever started it goes ``away``, or waits for its end, without a timeout."""
        if not self.letters():
            return
        if self.guarded and not away:
            # While nothing works, a breaker may hold it up for as long.
            for bugs in self.bugs.values():
                bugs.clear()

        async def work():
            letters = self.bus.dead_letters
            if name is not None:
                letters = letters.filter(subscription=name)
            ids = [letter.id async for letter in letters]
            wanted = {"id": ids[0]} if one and ids else {"limit": limit}
            task = asyncio.create_task(letters.redrive(**wanted))
            if away:
                await self.t.advance(1)
                task.cancel()
                ended = (await asyncio.gather(task, return_exceptions=True))[0]
                # What it had asked of the file's thread is done before this is.
                await self.bus.dead_letters.count()
                return ended
            for subscription in self.subscriptions.values():
                subscription.resume()
            while not task.done():
                # Time passes for retries and breakers.
                await self.t.advance(30)
                await asyncio.wait([task], timeout=0.005)
            # However often that was, what waits only for that has come.
            await self.t.advance(60)
            return task.result()

        report = self.do(work())
        if not away:
            assert report.pending == 0
            assert report.delivered <= (1 if one else ROOM if limit is None else max(limit, 0)) or one
            assert report.succeeded + report.failed <= report.delivered

    @rule(everything=st.booleans())
    def purge(self, everything):
        async def work():
            letters = [letter async for letter in self.bus.dead_letters]
            for letter in letters if everything else letters[:1]:
                assert await self.bus.dead_letters.purge(letter.id) == 1
                self.purged[letter.subscription].append(letter.event.data)

        # What is under way of a letter is at rest: it is in one place only, with or without it.
        if not self.under_way():
            self.do(work())

    def under_way(self):
        ledger = self.bus.audit()
        return any(ledger.subscriptions[name].pending for name in NAMES)

    @precondition(lambda self: self.running)
    @rule()
    def stop(self):
        self.runner.run(self.bus.stop(timeout=0))
        self.running = False

    @precondition(lambda self: not self.running)
    @rule()
    def start(self):
        self.running = True
        self.do(self.bus.start())

    # What holds ------------------------------------------------------------------

    def letters(self):
        async def look():
            return [letter async for letter in self.bus.dead_letters]

        return self.runner.run(look())

    @precondition(lambda self: hasattr(self, "bus"))
    @invariant()
    def the_ledger_balances(self):
        assert self.bus.audit().balanced, "the ledger does not balance"

    @precondition(lambda self: hasattr(self, "bus"))
    @invariant()
    def each_event_is_in_one_place(self):
        """Done, purged, a letter, or not settled yet; a letter that is delivered again is one until that succeeds."""
        letters = self.letters()
        assert len(letters) <= ROOM
        ledger, kept = self.bus.audit(), self.bus._kept()
        for name in NAMES:
            buried = [letter.event.data for letter in letters if letter.subscription == name]
            places = [*self.done[name], *self.purged[name], *buried]
            assert len(places) == len(set(places)), name
            waiting = self.published - len(places)
            pending = ledger.subscriptions[name].pending + kept
            assert waiting <= pending <= waiting + len(buried), "an event is not where it should be"

    def teardown(self):
        if not hasattr(self, "bus"):
            return
        try:
            self.end()
        finally:
            self.runner.run(self.harness.__aexit__(None, None, None))
            self.runner.close()
            self.folder.cleanup()

    def end(self):
        """Once all is repaired, one redrive after the other brings every event to its end."""
        if not self.running:
            self.start()
        for name in NAMES:
            self.repair_handler(name)
            self.pause(name, False)
        for _ in range(self.published * len(NAMES) + 2):
            self.time_passes(60)
            self.redrive(None, None, False, False)
            if not self.letters() and not self.under_way():
                break
        for name in NAMES:
            assert sorted([*self.done[name], *self.purged[name]]) == list(range(self.published)), name
        self.t.assert_conserved()


class FileMachine(Machine):
    in_file = True


class LosingMachine(Machine):
    """The same with a fault that loses an event; the ledger notices."""

    @rule(name=st.sampled_from(NAMES))
    def lose(self, name):
        self.t._native.lose(self.bus._table.lanes()[name].handle)

    def redrive(self, name, limit, one, away):
        """Never here: it would wait for what is lost."""

    def end(self):
        """Nor is there one."""

    def each_event_is_in_one_place(self):
        """Left to the ledger."""


class CountingMachine(LosingMachine):
    """Here the places of events do."""

    each_event_is_in_one_place = Machine.each_event_is_in_one_place

    def the_ledger_balances(self):
        """Not looked at."""


# In the gate the same each time; at length, others each time.
STEPS = settings(
    max_examples=times(60, 300), stateful_step_count=30, deadline=None, database=None, derandomize=times(True, False)
)


@pytest.mark.parametrize("machine", [Machine, FileMachine])
def test_every_event_is_in_one_place(machine):
    run_state_machine_as_test(machine, settings=STEPS)


@pytest.mark.parametrize(
    ("machine", "what"),
    [(LosingMachine, "the ledger does not balance"), (CountingMachine, "an event is not where it should be")],
)
def test_a_fault_that_loses_one_event_is_noticed(machine, what):
    """The negative control: at the step that loses it."""
    # As many as it takes: it ends with the first.
    once = settings(
        STEPS,
        max_examples=10_000,
        print_blob=False,
        report_multiple_bugs=False,
        phases=[Phase.generate],
    )
    with pytest.raises(AssertionError, match=what):
        run_state_machine_as_test(machine, settings=once)
    control()
