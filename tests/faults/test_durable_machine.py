"""Publishes, delays, failures, dead letters, redrives, pauses, handlers that hang, stops, starts, restarts and crashes
of a bus with a path, in any order, against a model that knows nothing of the bus: every call, level by level, and no
call more. The ledger balances after every step, and in the end each event has one outcome for each subscription.
An event that is lost, a row that is gone from the file and a settlement that is forgotten are noticed.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from ironbus import EventBus, Idempotency, RetryPolicy, _core
from journals import tamper
from torture import control, done, times

ATTEMPTS = {"plain": 1, "retried": 3}
NAMES = tuple(ATTEMPTS)
LEVELS = (1, 2)
LANES = [(name, level) for name in NAMES for level in LEVELS]
TTL = 20
WINDOW = 4
LATE = 2  # so many events of a level wait for their time at once: they have their room in the window
RETRY = RetryPolicy(max_attempts=3, initial_delay=1, jitter=False)


@pytest.fixture(autouse=True)
def _quiet():
    """Handlers fail here on purpose."""
    logger = logging.getLogger("ironbus")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


@dataclass
class Work:
    """What an event is, for the handlers and for the model."""

    fails: int = 0  # so many attempts do
    hangs: int = 0  # so many calls by "retried" do not end by themselves
    due: float = 0  # of one that was published with a delay


@dataclass
class Level:
    """What one subscription has to do with the events of one level, in the plainest way."""

    attempts: int
    waiting: list[int] = field(default_factory=list)  # numbers of events
    attempt: int = 0  # of the first of them
    due: float = 0
    hangs: bool = False
    #: Of events without a delay: number and attempt.
    calls: list[tuple[int, int]] = field(default_factory=list)
    #: Of those with one, which never fail and hold up nobody: numbers.
    delayed: list[int] = field(default_factory=list)
    letters: list[int] = field(default_factory=list)

    def run(self, now: float, work: list[Work]) -> None:
        """All that can be done at this time."""
        while self.waiting and self.due <= now and not self.hangs:
            first = self.waiting[0]
            if self.attempt == self.attempts:  # each of them has ended the process
                self.give_up()
                continue
            self.attempt += 1
            self.calls.append((first, self.attempt))
            if self.attempts > 1 and work[first].hangs:
                work[first].hangs -= 1
                self.hangs = True
            elif self.attempt > work[first].fails:
                self.waiting.pop(0)
                self.attempt, self.due = 0, 0
            elif self.attempt < self.attempts:
                self.due = now + 2 ** (self.attempt - 1)
            else:
                self.give_up()

    def give_up(self) -> None:
        self.letters.append(self.waiting.pop(0))
        self.attempt, self.due = 0, 0

    def end(self, crash: bool) -> None:
        """Of a life of the bus. One that ends in order does not count what it has cut off."""
        self.attempt -= self.hangs and not crash
        self.hangs = False


class Machine(RuleBasedStateMachine):
    """Two subscriptions on two levels each."""

    restarts = crashes = published = 0
    patience = 10.0

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "0" / "x.bus"
        self.path.parent.mkdir()
        self.lives = 0
        self.runner = asyncio.Runner()
        self.now = 1_000_000.0
        self.hair = 0
        self.sequence = 0
        self.keys = {}
        #: By number of the event; the second is what is left for the handlers to do of it.
        self.work, self.traps = [], []
        self.accepted = []
        self.lanes = {(name, level): Level(ATTEMPTS[name]) for name, level in LANES}
        self.calls = {lane: [] for lane in LANES}
        self.delayed = {lane: [] for lane in LANES}
        self.paused = dict.fromkeys(NAMES, False)
        self.running = False
        self.make()
        self.start()

    def clock(self):
        """The time of the model and a hair, which grows: no rounding decides about what is due just now."""
        return self.now + self.hair * 1e-6

    def make(self):
        #: How many events are kept for the start.
        self.kept = 0
        self.bus = EventBus(
            path=self.path,
            durability="os",
            clock=self.clock,
            idempotency=Idempotency(ttl=TTL),
            max_queue_size=WINDOW,
        )
        # All lives are in one time.
        assert _core.Harness(self.bus).set_epoch(0)

        def handle(name, event):
            number = event.data["n"]
            if self.work[number].due:
                self.delayed[name, event.priority].append((number, event.delivery.attempt, self.now))
                return
            self.calls[name, event.priority].append((number, event.delivery.attempt))
            if event.delivery.attempt <= self.work[number].fails:
                raise ConnectionError

        async def retried(event):
            await asyncio.sleep(0)
            handle("retried", event)
            number = event.data["n"]
            if self.traps[number]:
                self.traps[number] -= 1
                await asyncio.get_running_loop().create_future()

        self.subscriptions = {
            "plain": self.bus.subscribe("e", lambda event: handle("plain", event), name="plain"),
            "retried": self.bus.subscribe("e", retried, name="retried", retry=RETRY),
        }
        for name, paused in self.paused.items():
            if paused:
                self.subscriptions[name].pause()

    def step(self, work=None):
        """Does it, and waits until what the model does is done."""

        async def both():
            result = None if work is None else await work
            self.bus._tick()
            end = time.monotonic() + self.patience
            while self.running and not self.agrees():
                assert time.monotonic() < end, self.difference()
                await asyncio.sleep(0.0005)
            return result

        self.hair += 1
        return self.runner.run(both())

    def model(self):
        if not self.running:
            return
        for name in NAMES:
            if not self.paused[name]:
                for level in LEVELS:
                    if not self.hung(name):
                        self.lanes[name, level].run(self.now, self.work)

    def hung(self, name):
        """It makes one call at a time."""
        return any(self.lanes[name, level].hangs for level in LEVELS)

    # What is compared ------------------------------------------------------------

    def late(self, lane):
        """Delayed events of a lane that have not been handled."""
        handled = {number for number, _, _ in self.delayed[lane]}
        return [number for number in self.lanes[lane].delayed if number not in handled]

    def overdue(self, lane):
        """Those that nothing keeps from it."""
        name, _ = lane
        if self.paused[name] or self.hung(name) or self.lanes[lane].waiting:
            return []
        return [number for number in self.late(lane) if self.work[number].due <= self.now]

    def waiting(self):
        return sum(len(self.lanes[lane].waiting) + len(self.late(lane)) for lane in LANES)

    def agrees(self):
        if any(self.calls[lane] != self.lanes[lane].calls or self.overdue(lane) for lane in LANES):
            return False
        # What a window has no room for is in the file, and not pending.
        return self.is_still() and self.bus.audit().pending <= self.waiting()

    def is_still(self):
        """Nothing runs but what hangs, and nothing else could: the model does not say when a delayed event goes that
        comes behind others."""
        return _core.Harness(self.bus).is_still(sum(self.hung(name) for name in NAMES))

    def difference(self):
        for lane in LANES:
            calls, expected = self.calls[lane], self.lanes[lane].calls
            if calls != expected:
                return f"an event was not handled as it should be on {lane}: {calls}, {expected}"
            if overdue := self.overdue(lane):
                return f"an event was not handled when it was due on {lane}: {overdue}"
        if not self.is_still():
            return "something runs that should not, or does not that could"
        return f"an event is pending that should not be: {self.bus.audit().pending} of {self.waiting()}"

    # What happens ----------------------------------------------------------------

    def has_room(self, count):
        """A bus that is not started keeps so many events for its start; one place is for that of a crash."""
        if self.running:
            return True
        self.kept += count
        return self.kept < WINDOW

    def accept(self, work, level, count=1):
        """The next numbers, for events that each subscription will get."""
        first = len(self.work)
        numbers = range(first, first + count)
        for number in numbers:
            self.work.append(Work(work.fails, work.hangs, work.due))
            self.traps.append(work.hangs)
            self.accepted.append(number)
        for name in NAMES:
            lane = self.lanes[name, level]
            (lane.delayed if work.due else lane.waiting).extend(numbers)
        Machine.published += count
        self.model()
        return numbers

    @rule(
        level=st.sampled_from(LEVELS),
        key=st.sampled_from([None, None, "a", "b"]),
        fails=st.sampled_from([0, 0, 0, 1, 2, 3]),
        delay=st.sampled_from([None, None, None, 0.5, 3]),
    )
    def publish(self, level, key, fails, delay):
        if not self.has_room(1):
            return
        if any(len(self.late((name, level))) >= LATE for name in NAMES):
            delay = None
        duplicate = key is not None and self.keys.get(key, 0) > self.now
        if duplicate:
            number = len(self.work)
            self.work.append(Work())
            self.traps.append(0)
        else:
            # One with a delay does not fail, and holds up nothing else.
            work = Work(fails=0 if delay else fails, due=self.now + delay if delay else 0)
            [number] = self.accept(work, level)
        receipt = self.step(self.bus.publish("e", {"n": number}, priority=level, idempotency_key=key, delay=delay))
        assert receipt.duplicate == duplicate, "a key does not count as it should"
        if duplicate:
            return
        if key is not None:
            self.keys[key] = self.now + TTL
        assert receipt.sequence > self.sequence
        self.sequence = receipt.sequence

    @rule(level=st.sampled_from(LEVELS), count=st.integers(2, 6))
    def publish_many(self, level, count):
        if not self.has_room(count):
            return
        numbers = self.accept(Work(), level, count)
        batch = self.step(self.bus.publish_many([("e", {"n": n}, {"priority": level}) for n in numbers]))
        self.sequence = batch.receipts[-1].sequence

    def is_idle(self, name):
        return not self.paused[name] and not any(self.lanes[name, level].waiting for level in LEVELS)

    @precondition(lambda self: self.running and self.is_idle("retried"))
    @rule(hangs=st.sampled_from([1, 2, 3]))
    def publish_what_hangs(self, hangs):
        """One whose handler ends with the life of the bus, so many times; nothing comes before it."""
        [number] = self.accept(Work(hangs=hangs), LEVELS[0])
        self.sequence = self.step(self.bus.publish("e", {"n": number}, priority=LEVELS[0])).sequence

    @rule(seconds=st.sampled_from([0.5, 1, 2, 25]))
    def time_passes(self, seconds):
        end = self.now + seconds
        while self.now < end:
            # To the next retry, or delayed event.
            due = [lane.due for lane in self.lanes.values()]
            due += [self.work[number].due for lane in LANES for number in self.late(lane)]
            self.now = min([end, *(at for at in due if at > self.now)])
            self.model()
            self.step()

    @rule(name=st.sampled_from(NAMES), paused=st.booleans())
    def pause(self, name, paused):
        async def work():
            self.subscriptions[name].pause() if paused else self.subscriptions[name].resume()

        self.paused[name] = paused
        self.model()
        self.step(work())

    def redrivable(self):
        return [lane for lane in LANES if self.lanes[lane].letters and self.is_idle(lane[0])]

    @precondition(lambda self: self.running and self.redrivable())
    @rule(data=st.data(), repaired=st.booleans())
    def redrive(self, data, repaired):
        """Of one letter, when its subscription has nothing else to do. It stays one if its cause is still there."""
        name, level = data.draw(st.sampled_from(self.redrivable()))
        lane = self.lanes[name, level]
        number = lane.letters[0]
        if name == "retried":
            repaired = True  # it would take its time
        fails, self.work[number].fails = self.work[number].fails, 0 if repaired else 1
        self.work[number].hangs = self.traps[number] = 0
        lane.calls.append((number, 1))
        if repaired:
            lane.letters.pop(0)

        async def work():
            letters = [letter async for letter in self.bus.dead_letters.filter(subscription=name)]
            [letter] = [letter for letter in letters if letter.event.data["n"] == number]
            report = await self.bus.dead_letters.redrive(letter.id)
            assert (report.succeeded, report.failed) == (repaired, not repaired), "a redrive"

        self.step(work())
        self.work[number].fails = fails

    @precondition(lambda self: self.running)
    @rule()
    def stop(self):
        self.end_life(crash=False)
        self.runner.run(self.bus.stop(timeout=0))

    def end_life(self, crash):
        self.running = False
        for lane in self.lanes.values():
            lane.end(crash)

    @precondition(lambda self: not self.running)
    @rule()
    def start(self):
        self.running, self.kept = True, 0
        self.model()
        self.step(self.bus.start())

    @rule(crash=st.booleans(), start=st.booleans())
    def restart(self, crash, start):
        """Another bus on the same file, or on what a crash has left of it: a copy while the bus has it."""
        Machine.restarts += 1
        old = self.bus
        if crash:
            Machine.crashes += 1
            self.path = self.left()
        self.end_life(crash)
        self.runner.run(old.stop(timeout=0))
        del old, self.bus, self.subscriptions
        self.between()
        self.make()
        if start:
            self.start()

    def left(self):
        """A copy of the files, with all that the bus had to write by now."""
        # With it goes what was settled before.
        self.sequence = self.runner.run(self.bus.publish("nobody's", None)).sequence
        self.lives += 1
        copies = [Path(self.folder.name) / str(self.lives) / name / "x.bus" for name in ("there", "seen")]
        for copy in copies:
            copy.parent.mkdir(parents=True)
            for suffix in ("", "-wal", ".inflight"):
                file = self.path.with_name(self.path.name + suffix)
                if file.exists():
                    shutil.copy(file, copy.with_name(copy.name + suffix))
        with closing(sqlite3.connect(copies[1])) as database:
            [(waiting,)] = database.execute("SELECT sum(waiting + stragglers) FROM backlog")
        assert waiting == self.waiting(), "an event is pending in the file, or is not, that should be"
        return copies[0]

    def between(self):
        """Nobody has the file."""

    # What holds ------------------------------------------------------------------

    @invariant()
    def the_ledger_balances(self):
        assert self.bus.audit().balanced, "the ledger does not balance"

    @invariant()
    def it_did_what_the_model_did(self):
        assert all(self.calls[lane] == self.lanes[lane].calls for lane in LANES), self.difference()
        for calls in self.delayed.values():
            assert all(at >= self.work[number].due for number, _, at in calls), "an event came before it was due"

    @precondition(lambda self: self.running)
    @invariant()
    def the_letters_are_those_of_the_model(self):
        async def look():
            return [(letter.subscription, letter.event.data["n"]) async for letter in self.bus.dead_letters]

        expected = [(name, number) for (name, _), lane in self.lanes.items() for number in lane.letters]
        assert sorted(self.runner.run(look())) == sorted(expected)

    def teardown(self):
        try:
            self.end()
        finally:
            self.runner.run(self.bus.stop(timeout=0))
            self.runner.close()
            self.folder.cleanup()

    def end(self):
        """Each event has one outcome for each subscription, and after one more restart nothing comes again."""
        for _ in range(4):  # what hangs has an end
            if any(self.hung(name) for name in NAMES):
                self.restart(False, True)
        if not self.running:
            self.start()
        for name in NAMES:
            self.pause(name, False)
        while self.waiting():
            if any(self.hung(name) for name in NAMES):
                self.restart(False, True)
            self.time_passes(25)
        self.restart(False, True)
        self.time_passes(25)
        self.it_did_what_the_model_did()
        self.the_letters_are_those_of_the_model()
        for name in NAMES:
            outcomes = [number for level in LEVELS for number in self.lanes[name, level].letters]
            for level in LEVELS:
                outcomes += [number for number, _, _ in self.delayed[name, level]]
                outcomes += self.succeeded(name, level)
            assert sorted(outcomes) == self.accepted, f"not one outcome for each event by {name}"

    def succeeded(self, name, level):
        """Numbers of events without a delay whose last call went well, by what the handlers noted."""
        letters = self.lanes[name, level].letters
        return {number for number, _ in self.calls[name, level]} - set(letters)


class Control(Machine):
    """Where something goes wrong that should be noticed."""

    patience = 0.5

    def end(self):
        """Left to the steps."""


class LosingMachine(Control):
    """With a fault that loses an event."""

    @precondition(lambda self: self.running)
    @rule(name=st.sampled_from(NAMES))
    def lose(self, name):
        _core.Harness(self.bus).lose(self.bus._table.lanes()[name].handle)


class DeletingMachine(Control):
    """With somebody who deletes the last event from the file, if that is not settled."""

    def between(self):
        if any(lane.waiting and lane.waiting[-1] == len(self.work) - 1 for lane in self.lanes.values()):
            tamper(self.path, "DELETE FROM event WHERE sequence = (SELECT max(sequence) FROM event WHERE type = 'e')")


class ForgettingMachine(Control):
    """With somebody who puts subscriptions back to where they began."""

    def between(self):
        if any(lane.calls and not lane.waiting for lane in self.lanes.values()):
            tamper(self.path, "UPDATE cursor SET position = 0, runs = '[]'")


STEPS = settings(
    max_examples=times(15, 400),
    stateful_step_count=times(25, 60),
    derandomize=times(True, False),
    deadline=None,
    database=None,
)


def test_the_bus_does_what_the_model_does():
    run_state_machine_as_test(Machine, settings=STEPS)
    assert Machine.crashes > 5
    done("restarts of the state machine", Machine.restarts)
    done("crashes of the state machine", Machine.crashes)
    done("acknowledged events", Machine.published)


@pytest.mark.parametrize(
    ("machine", "what"),
    [
        (LosingMachine, "the ledger does not balance"),
        (DeletingMachine, "an event (was not handled|is pending)"),
        (ForgettingMachine, "an event was not handled as it should be"),
    ],
)
def test_an_event_that_is_lost_is_noticed(machine, what):
    """The negative controls."""
    once = settings(
        STEPS,
        max_examples=200,
        stateful_step_count=30,
        derandomize=True,
        print_blob=False,
        report_multiple_bugs=False,
        phases=[Phase.generate],
    )
    with pytest.raises(AssertionError, match=what):
        run_state_machine_as_test(machine, settings=once)
    control()
