"""Random publishes, failures, recoveries, redrives, pauses, stops and starts, over virtual time, against a model
that knows nothing of the bus. After every step the ledger balances; a fault that loses one event is noticed."""

from __future__ import annotations

import asyncio
import logging
import math

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from ironbus import CircuitBreakerConfig, EventBus, Idempotency, RetryPolicy
from ironbus.testing import harness
from lane_model import Breaker, LaneModel, Waiting
from torture import control, times

NAMES = ("plain", "retried", "guarded")
TTL = 20_000
RETRY = RetryPolicy(max_attempts=3, initial_delay=1, jitter=False)
BREAKER = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, timeout=10, failure_rate=None)


@pytest.fixture(autouse=True)
def _quiet():
    """Handlers fail here on purpose, and breakers open."""
    logger = logging.getLogger("ironbus")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


class RecoveryMachine(RuleBasedStateMachine):
    """One type of event, three subscriptions: a sync one, an async one, and one that suspends."""

    def __init__(self):
        super().__init__()
        self.now = 0
        self.started = True
        self.sequence = 0
        self.keys = {}
        self.kept = []
        self.lanes = {
            "plain": LaneModel(),
            "retried": LaneModel(3, 1000),
            "guarded": LaneModel(3, 1000, Breaker(2, 10_000)),
        }
        self.runner = asyncio.Runner()
        self.bus = EventBus(idempotency=Idempotency(ttl=TTL / 1000))

        async def at_once(event):
            pass

        async def suspends(event):
            await asyncio.sleep(0)

        self.subscriptions = {
            "plain": self.bus.subscribe("e", lambda event: None, name="plain"),
            "retried": self.bus.subscribe("e", at_once, name="retried", retry=RETRY),
            "guarded": self.bus.subscribe("e", suspends, name="guarded", retry=RETRY, breaker=BREAKER),
        }
        self.harness = harness(self.bus, clock="virtual", patience=30)
        self.t = self.runner.run(self.harness.__aenter__())

    def step(self, work):
        """Does it, and all that can be done then."""

        async def both():
            result = await work
            if self.started:
                await self.t.advance(0)
            return result

        return self.runner.run(both())

    def model(self):
        for lane in self.lanes.values():
            lane.run(self.now)

    # What happens ----------------------------------------------------------------

    @rule(
        delay=st.sampled_from([None, None, None, 1, 3, 15]),
        expires=st.sampled_from([None, None, 2, 12]),
        key=st.sampled_from([None, None, "a", "b"]),
    )
    def publish(self, delay, expires, key):
        if delay is not None and expires is not None and expires <= delay:
            expires = None
        times = {"delay": delay, "expires_in": expires}
        receipt = self.step(self.bus.publish("e", {}, idempotency_key=key, **times))
        duplicate = key is not None and self.keys.get(key, 0) > self.now
        assert receipt.duplicate == duplicate
        if duplicate:
            return
        if key is not None:
            self.keys[key] = self.now + TTL
        self.sequence += 1
        assert receipt.sequence == self.sequence
        due = 0 if delay is None else self.now + delay * 1000
        event = Waiting(self.sequence, due, math.inf if expires is None else self.now + expires * 1000)
        if not self.started:
            self.kept.append(event)
            return
        for lane in self.lanes.values():
            lane.accept(event, self.now)
        self.model()

    @rule(name=st.sampled_from(NAMES), times=st.integers(1, 4))
    def fail(self, name, times):
        self.t.fail(name, times=times, exc=ConnectionError)
        self.lanes[name].fails = times

    @rule(name=st.sampled_from(NAMES))
    def go_down(self, name):
        self.t.fail(name, every=1, exc=ConnectionError)
        self.lanes[name].fails = math.inf

    @rule(name=st.sampled_from(NAMES))
    def recover(self, name):
        self.t.fail(name, times=0)
        self.lanes[name].fails = 0

    @rule(milliseconds=st.sampled_from([0, 500, 1000, 1500, 4000, 10_000, 60_000]))
    def advance(self, milliseconds):
        self.runner.run(self.t.advance(milliseconds / 1000))
        end = self.now + milliseconds
        if self.started:
            for lane in self.lanes.values():
                at = self.now
                lane.run(at)
                while (due := lane.next_time(at)) <= end:
                    at = int(due)
                    lane.run(at)
                lane.run(end)
        self.now = end

    @rule(name=st.sampled_from(NAMES), paused=st.booleans())
    def pause(self, name, paused):
        subscription = self.subscriptions[name]

        async def change():
            subscription.pause() if paused else subscription.resume()

        self.step(change())
        self.lanes[name].paused = paused
        if self.started:
            self.model()

    @precondition(lambda self: self.started and any(self.redrivable(name) for name in NAMES))
    @rule(data=st.data())
    def redrive(self, data):
        name = data.draw(st.sampled_from([name for name in NAMES if self.redrivable(name)]))
        first = data.draw(st.sampled_from(self.redrivable(name)))
        letters = self.bus.dead_letters.filter(subscription=name)
        (letter,) = (letter for letter in letters if letter.event.sequence == first)

        async def deliver():
            task = asyncio.create_task(self.bus.dead_letters.redrive(letter.id))
            while self.bus.audit().accepted == self.sequence:
                assert not task.done()
                await asyncio.sleep(0)
            await self.t.advance(0)
            # What is under way goes on; nobody waits for it, because it may wait for its next attempt.
            task.cancel()
            await asyncio.wait([task])

        self.runner.run(deliver())
        self.sequence += 1
        self.lanes[name].redrive(first, self.sequence)
        self.model()

    def redrivable(self, name):
        lane = self.lanes[name]
        return [letter for letter in lane.letters if letter not in lane.under_way]

    @precondition(lambda self: self.started)
    @rule()
    def stop(self):
        self.runner.run(self.bus.stop(timeout=0))
        self.started = False

    @precondition(lambda self: not self.started)
    @rule()
    def start(self):
        self.started = True
        self.step(self.bus.start())
        for event in self.kept:
            for lane in self.lanes.values():
                lane.accept(event, self.now)
        self.kept.clear()
        self.model()

    # What holds ------------------------------------------------------------------

    @invariant()
    def the_ledger_balances(self):
        ledger = self.bus.audit()
        assert ledger.balanced, "the ledger does not balance"
        assert ledger.accepted == self.sequence

    @invariant()
    def it_did_what_the_model_did(self):
        ledger = self.bus.audit()
        for name, lane in self.lanes.items():
            calls = [
                (round(call.at * 1000), call.sequence, call.attempt, call.outcome == "done")
                for call in self.t.calls(name)
            ]
            assert calls == lane.calls, name
            counts = ledger.subscriptions[name]
            assert (counts.done, counts.dead, counts.expired, counts.pending) == (
                lane.done,
                lane.dead,
                lane.expired,
                lane.pending,
            ), name
            letters = [letter.event.sequence for letter in self.bus.dead_letters.filter(subscription=name)]
            assert letters == lane.letters, name
        assert self.subscriptions["guarded"].breaker.state == self.lanes["guarded"].breaker.state

    def teardown(self):
        try:
            if not self.started:
                self.start()
            for name in NAMES:
                self.recover(name)
                self.pause(name, False)
            self.advance(60_000)
            self.it_did_what_the_model_did()
            assert self.bus.audit().pending == 0
            self.runner.run(self.t.settle())
            self.t.assert_conserved()
        finally:
            self.runner.run(self.harness.__aexit__(None, None, None))
            self.runner.close()


class LosingMachine(RecoveryMachine):
    """The same with a fault that loses an event; nothing is compared with the model."""

    @precondition(lambda self: any(lane.pending for lane in self.lanes.values()))
    @rule()
    def lose(self):
        name = next(name for name, lane in self.lanes.items() if lane.pending)
        assert self.t._native.lose(self.bus._table.lanes()[name].handle)

    @invariant()
    def it_did_what_the_model_did(self):
        """Left to the ledger, which is what this is about."""

    def teardown(self):
        self.runner.run(self.harness.__aexit__(None, None, None))
        self.runner.close()


# In the gate the same each time; at length, others each time.
STEPS = settings(
    max_examples=times(80, 400), stateful_step_count=40, deadline=None, database=None, derandomize=times(True, False)
)


def test_the_bus_does_what_the_model_does():
    """Every call with its time, every outcome, the breaker's state, and the ledger, after every step."""
    run_state_machine_as_test(RecoveryMachine, settings=STEPS)


def test_a_fault_that_loses_one_event_is_noticed():
    """The negative control: by the ledger, at the step that loses it."""
    # As many as it takes: it ends with the first, and nobody reads how short that could be.
    once = settings(STEPS, max_examples=10_000, print_blob=False, report_multiple_bugs=False, phases=[Phase.generate])
    with pytest.raises(AssertionError, match="the ledger does not balance"):
        run_state_machine_as_test(LosingMachine, settings=once)
    control()
