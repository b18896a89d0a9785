"""``RetryManager``: the interface of the ``pm.events`` API, and what it has beyond.

Nobody waits here: the sleep is handed in, and remembers how long it should have been.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import pickle
import random
import threading
import time
import traceback
import weakref
from dataclasses import asdict, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ironbus import CircuitOpenError, InvalidHandler, InvalidOption, Reject, RetryLater
from ironbus.recovery import CircuitBreaker, CircuitBreakerConfig, RetryManager, RetryPolicy

SECRET = "4111-1111-1111-1111"
PLAIN = RetryPolicy(jitter=False)


class Sleep:
    """Takes no time; a clock beside it moves on."""

    def __init__(self):
        self.slept = []

    async def __call__(self, seconds):
        await asyncio.sleep(0)
        self.slept.append(seconds)

    @property
    def total(self):
        return math.fsum(self.slept)


@pytest.fixture
def sleep():
    return Sleep()


class Flaky:
    """Raises what it is given, one after the other, then returns its arguments."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return args, kwargs

    async def later(self, *args, **kwargs):
        await asyncio.sleep(0)
        return self(*args, **kwargs)


def run(manager, func, *args, **kwargs):
    return asyncio.run(manager.execute_with_retry(func, *args, **kwargs))


# The contract of v1.0 --------------------------------------------------------------


def test_names_and_defaults_are_those_of_v1():
    policy = RetryPolicy()
    assert (policy.max_attempts, policy.initial_delay, policy.max_delay) == (3, 1.0, 60.0)
    assert (policy.exponential_base, policy.jitter) == (2.0, True)
    assert RetryPolicy(5, 0.5, 10, 3, False) == RetryPolicy(
        max_attempts=5, initial_delay=0.5, max_delay=10, exponential_base=3, jitter=False
    )
    assert RetryManager().policy == policy
    assert RetryManager(policy).policy is policy
    assert RetryManager(policy=None).policy == policy


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_it_tries_until_it_succeeds(sleep, kind):
    flaky = Flaky(ValueError("1"), OSError("2"))
    manager = RetryManager(PLAIN, sleep=sleep)
    assert run(manager, flaky if kind == "sync" else flaky.later, 1, two=2) == ((1,), {"two": 2})
    assert (flaky.calls, sleep.slept) == (3, [1.0, 2.0])


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_on_retry_is_told_and_awaited(sleep, kind):
    told, errors = [], [ValueError("1"), OSError("2")]

    def on_retry(attempt, error, delay):
        told.append((attempt, error, delay, len(sleep.slept)))

    async def on_retry_async(attempt, error, delay):
        await asyncio.sleep(0)
        on_retry(attempt, error, delay)

    manager = RetryManager(PLAIN, sleep=sleep)
    run(manager, Flaky(*errors), on_retry=on_retry if kind == "sync" else on_retry_async)
    assert told == [(1, errors[0], 1.0, 0), (2, errors[1], 2.0, 1)]


def test_the_last_error_is_raised_as_it_is(sleep):
    errors = [ValueError("1"), ValueError("2"), ValueError(SECRET)]
    with pytest.raises(ValueError, match=SECRET) as caught:
        run(RetryManager(PLAIN, sleep=sleep), Flaky(*errors))
    assert caught.value is errors[2]
    assert len(sleep.slept) == 2  # and none after the last attempt
    # Earlier errors are not chained to it, and nothing of ours is written on it.
    assert (caught.value.__context__, caught.value.__cause__) == (None, None)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "__call__"


def test_one_attempt_is_no_retry(sleep):
    flaky = Flaky(ValueError())
    with pytest.raises(ValueError, match=r"^$"):
        run(RetryManager(replace(PLAIN, max_attempts=1), sleep=sleep), flaky)
    assert (flaky.calls, sleep.slept) == (1, [])


def test_the_policy_may_be_replaced_or_changed_between_calls(sleep):
    manager = RetryManager(RetryPolicy(jitter=False), sleep=sleep)
    manager.policy.max_attempts = 2
    with pytest.raises(ValueError, match=r"^$"):
        run(manager, Flaky(ValueError(), ValueError()))
    manager.policy = replace(PLAIN, initial_delay=7)
    run(manager, Flaky(ValueError()))
    assert sleep.slept == [1.0, 7.0]
    manager.policy.max_delay = -1
    with pytest.raises(InvalidOption, match="max_delay"):
        run(manager, Flaky(ValueError()))


def test_without_a_sleep_it_really_waits():
    manager = RetryManager(RetryPolicy(initial_delay=0.02, jitter=False))
    begin = time.monotonic()
    run(manager, Flaky(ValueError(), ValueError()))
    assert time.monotonic() - begin >= 0.06
    begin = time.monotonic()
    manager.execute_with_retry_sync(Flaky(ValueError(), ValueError()))
    assert time.monotonic() - begin >= 0.06


# Delays ----------------------------------------------------------------------------

seconds = st.one_of(st.just(0), st.floats(1e-6, 1e6), st.integers(0, 10**6))
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 30),
    initial_delay=seconds,
    max_delay=seconds,
    exponential_base=st.one_of(st.floats(1, 10), st.just(1e200)),
    jitter=st.booleans(),
)


def delays(policy, numbers):
    told = []
    manager = RetryManager(policy, sleep=lambda seconds: None, random=numbers)
    with pytest.raises(ValueError, match=r"^$"):
        manager.execute_with_retry_sync(
            Flaky(*[ValueError() for _ in range(policy.max_attempts)]), on_retry=lambda *three: told.append(three)
        )
    assert [attempt for attempt, _, _ in told] == list(range(1, policy.max_attempts))
    return [delay for _, _, delay in told]


def expected(policy, failures):
    """Multiplied step by step, where the engine takes a power."""
    delay = min(policy.initial_delay, policy.max_delay)
    for _ in range(failures - 1):
        delay = min(delay * policy.exponential_base, policy.max_delay)
    return delay


@given(policy=policies, seed=st.integers(0, 2**32))
@example(policy=RetryPolicy(30, 1.0, 1e9, 1e200), seed=1)
@example(policy=RetryPolicy(6, 6.103515625e-05, 1.0, 2.0, False), seed=0)
def test_delays_stay_within_their_bounds(policy, seed):
    numbers = random.Random(seed)
    seen = delays(policy, numbers.random)
    numbers.seed(seed)
    # The first delay is taken to the next nanosecond, and that difference grows with it.
    inexact = 1e-9 + (1e-9 / policy.initial_delay if policy.initial_delay else 0)
    for failures, delay in enumerate(seen, 1):
        middle = expected(policy, failures)
        low, high = (middle / 2, min(middle * 1.5, policy.max_delay)) if policy.jitter else (middle, middle)
        share = low + (high - low) * numbers.random()
        assert delay <= policy.max_delay + 1e-9
        assert delay == pytest.approx(share, rel=inexact, abs=3e-9)
        assert low * (1 - inexact) - 3e-9 <= delay <= high * (1 + inexact) + 3e-9


@given(policy=policies, seed=st.integers())
def test_a_seed_makes_the_delays_reproducible(policy, seed):
    assert delays(policy, seed) == delays(policy, seed)


def test_jitter_is_spread_and_different_without_a_seed():
    policy = RetryPolicy(max_attempts=2, initial_delay=10)
    seen = [delays(policy, None)[0] for _ in range(400)]
    assert len(set(seen)) > 390
    assert all(5 <= delay <= 15 for delay in seen)
    assert min(seen) < 6 < 14 < max(seen)
    assert delays(replace(policy, max_attempts=9), 1) != delays(replace(policy, max_attempts=9), 2)


def test_at_the_limit_delays_are_still_spread():
    """To cut them there would send half of all callers back at the same moment."""
    policy = RetryPolicy(max_attempts=2, initial_delay=100, max_delay=10)
    seen = [delays(policy, None)[0] for _ in range(400)]
    assert len(set(seen)) > 390
    assert all(5 <= delay <= 10 for delay in seen)


# What is retried -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "calls"),
    [
        ({}, KeyError, 3),
        ({"retry_on": ConnectionError}, ConnectionResetError, 3),
        ({"retry_on": (ConnectionError, TimeoutError)}, TimeoutError, 3),
        ({"retry_on": [ConnectionError]}, KeyError, 1),
        ({"give_up_on": LookupError}, KeyError, 1),
        ({"give_up_on": LookupError}, ValueError, 3),
        ({"retry_on": LookupError, "give_up_on": (KeyError,)}, KeyError, 1),
        ({"retry_on": LookupError, "give_up_on": (KeyError,)}, IndexError, 3),
        ({"retry_on": ()}, ValueError, 1),
        ({"retry_on": Reject}, Reject, 1),
        ({}, Reject, 1),
    ],
)
def test_classes_say_what_is_worth_another_attempt(sleep, options, error, calls):
    flaky = Flaky(*[error() for _ in range(5)])
    with pytest.raises(error):
        run(RetryManager(RetryPolicy(**options), sleep=sleep), flaky)
    assert flaky.calls == calls


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_end_of_task_or_program_is_never_retried(sleep, error):
    flaky = Flaky(error())
    manager = RetryManager(sleep=sleep)
    with pytest.raises(error):
        run(manager, flaky)
    with pytest.raises(error):
        manager.execute_with_retry_sync(Flaky(error()))
    assert (flaky.calls, sleep.slept) == (1, [])


@pytest.mark.parametrize("where", ["func", "sleep", "on_retry"])
def test_cancelling_the_call_ends_it(where):
    reached = []

    async def hang(*_):
        reached.append(1)
        await asyncio.get_running_loop().create_future()

    flaky = Flaky(ValueError())
    manager = RetryManager(sleep=hang if where == "sleep" else None)

    async def main():
        call = asyncio.create_task(
            manager.execute_with_retry(
                hang if where == "func" else flaky, on_retry=hang if where == "on_retry" else None
            )
        )
        while not reached:
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())
    assert (len(reached), flaky.calls) == (1, 0 if where == "func" else 1)


def test_an_error_of_on_retry_ends_it(sleep):
    def on_retry(*three):
        raise LookupError(SECRET)

    with pytest.raises(LookupError):
        run(RetryManager(sleep=sleep), Flaky(ValueError()), on_retry=on_retry)
    assert sleep.slept == []


def test_retry_later_waits_as_long_as_it_says_and_uses_no_attempt(sleep):
    told = []
    flaky = Flaky(*[RetryLater(100 + n) for n in range(5)], ValueError(), RetryLater(0), ValueError())
    run(RetryManager(PLAIN, sleep=sleep), flaky, on_retry=lambda attempt, error, delay: told.append((attempt, delay)))
    assert told == [(1, 100.0), (1, 101.0), (1, 102.0), (1, 103.0), (1, 104.0), (1, 1.0), (2, 0.0), (2, 2.0)]


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, "30", None, True])
def test_retry_later_wants_seconds(seconds):
    with pytest.raises(InvalidOption, match="seconds"):
        RetryLater(seconds)


# With a circuit breaker ------------------------------------------------------------


class Dependency:
    """Down until a moment; the clock moves with the sleep."""

    def __init__(self, until, **config):
        self.now, self.until, self.calls, self.slept = 0.0, until, 0, []
        self.breaker = CircuitBreaker("db", CircuitBreakerConfig(**config), clock=lambda: self.now)

    def __call__(self):
        self.calls += 1
        if self.now < self.until:
            raise ConnectionError(SECRET)
        return self.now

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def test_calls_that_a_breaker_refuses_use_up_no_attempt():
    """A fault of v1.0. The third and last attempt is the probe, after a refusal."""
    dependency = Dependency(until=30, failure_threshold=2, timeout=20)
    told = []
    with pytest.raises(ConnectionError):
        run(
            RetryManager(PLAIN, sleep=dependency.sleep),
            dependency.breaker.call,
            dependency,
            on_retry=lambda *three: told.append(three),
        )
    assert dependency.calls == 3
    assert [(attempt, type(error), delay) for attempt, error, delay in told] == [
        (1, ConnectionError, 1.0),
        (2, ConnectionError, 2.0),
        (3, CircuitOpenError, 18.0),
    ]


def test_an_open_breaker_is_waited_for():
    dependency = Dependency(until=10, failure_threshold=2, timeout=20, success_threshold=1)
    manager = RetryManager(PLAIN, sleep=dependency.sleep)
    assert run(manager, dependency.breaker.call, dependency) == 21.0
    assert (dependency.calls, dependency.slept) == (3, [1.0, 2.0, 18.0])


def test_refusals_alone_never_exhaust_the_attempts():
    dependency = Dependency(until=0, timeout=20)
    dependency.breaker.state = "open"
    attempts = []

    async def sleep(seconds):
        await dependency.sleep(seconds)
        if len(dependency.slept) < 50:  # somebody else's probe has failed just now
            dependency.breaker.state = "closed"
            dependency.breaker.state = "open"

    manager = RetryManager(PLAIN, sleep=sleep)
    run(manager, dependency.breaker.call, dependency, on_retry=lambda attempt, *_: attempts.append(attempt))
    assert (attempts, dependency.calls) == ([1] * 50, 1)


def test_a_breaker_that_is_open_for_longer_than_a_pause_may_be_is_not_waited_for():
    dependency = Dependency(until=0, timeout=61)
    dependency.breaker.state = "open"
    with pytest.raises(CircuitOpenError):
        run(RetryManager(PLAIN, sleep=dependency.sleep), dependency.breaker.call, dependency)
    assert (dependency.calls, dependency.slept) == (0, [])


def test_who_does_not_want_to_wait_says_so():
    dependency = Dependency(until=0, timeout=5)
    dependency.breaker.state = "open"
    policy = RetryPolicy(give_up_on=CircuitOpenError)
    with pytest.raises(CircuitOpenError):
        run(RetryManager(policy, sleep=dependency.sleep), dependency.breaker.call, dependency)
    assert dependency.slept == []


def test_while_probes_are_under_way_the_pause_is_that_of_the_policy():
    dependency = Dependency(until=0, timeout=0)
    dependency.breaker.state = "open"

    async def main():
        over = asyncio.Event()
        probe = asyncio.create_task(dependency.breaker.call(over.wait))
        await asyncio.sleep(0)

        async def sleep(seconds):
            dependency.slept.append(seconds)
            if len(dependency.slept) == 5:
                over.set()
                await probe

        manager = RetryManager(PLAIN, sleep=sleep)
        await manager.execute_with_retry(dependency.breaker.call, dependency)

    asyncio.run(main())
    assert (dependency.calls, dependency.slept) == (1, [1.0] * 5)


# Sync, settings, discretion --------------------------------------------------------


def test_sync_calls_from_a_thread():
    slept, told = [], []
    manager = RetryManager(PLAIN, sleep=slept.append)
    flaky = Flaky(ValueError(), RetryLater(5))
    result = []

    def work():
        result.append(manager.execute_with_retry_sync(flaky, 1, on_retry=lambda *three: told.append(three), two=2))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert result == [((1,), {"two": 2})]
    assert slept == [1.0, 5.0]
    assert [attempt for attempt, _, _ in told] == [1, 2]
    with pytest.raises(InvalidHandler, match=r"await execute_with_retry"):
        manager.execute_with_retry_sync(flaky.later)


def test_calls_at_once_do_not_share_attempts(sleep):
    manager = RetryManager(PLAIN, sleep=sleep)

    async def main():
        flaky = [Flaky(ValueError(), ValueError()) for _ in range(20)]
        await asyncio.gather(*(manager.execute_with_retry(one.later) for one in flaky))
        assert {one.calls for one in flaky} == {3}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 2.0}, "max_attempts"),
        ({"initial_delay": -1}, "initial_delay"),
        ({"initial_delay": math.nan}, "initial_delay"),
        ({"max_delay": math.inf}, "max_delay"),
        ({"max_delay": None}, "max_delay"),
        ({"exponential_base": 0.5}, "exponential_base"),
        ({"exponential_base": math.inf}, "exponential_base"),
        ({"jitter": 0.5}, "jitter"),
        ({"retry_on": "ValueError"}, "retry_on"),
        ({"retry_on": (ValueError, 5)}, "retry_on"),
        ({"retry_on": BaseException}, "retry_on"),
        ({"retry_on": asyncio.CancelledError}, "retry_on"),
        ({"give_up_on": [int]}, "give_up_on"),
    ],
)
def test_bad_policies_are_refused_by_name(options, field):
    with pytest.raises(InvalidOption, match=field) as caught:
        RetryPolicy(**options)
    assert caught.value.field == field
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"policy": 5}, "policy"), ({"sleep": 5}, "sleep"), ({"random": "5"}, "random"), ({"random": True}, "random")],
)
def test_bad_arguments_are_refused_by_name(options, field):
    with pytest.raises(InvalidOption, match=field) as caught:
        RetryManager(**options)
    assert caught.value.field == field


def test_a_policy_is_a_plain_dataclass():
    policy = RetryPolicy(7, retry_on=[ConnectionError])
    assert asdict(policy)["max_attempts"] == 7
    assert policy.retry_on == (ConnectionError,)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert replace(policy, max_attempts=8).retry_on == (ConnectionError,)


def test_nothing_of_the_call_is_logged(sleep, caplog):
    with caplog.at_level(logging.DEBUG), pytest.raises(Reject):
        run(RetryManager(sleep=sleep), Flaky(ValueError(SECRET), Reject(SECRET)).later, SECRET)
    assert SECRET not in caplog.text


def test_a_call_that_is_over_keeps_nothing_alive(sleep):
    """An exception's traceback refers to frames, which refer to the exception."""

    class Argument:
        pass

    argument = Argument()
    gone = weakref.ref(argument)
    manager = RetryManager(sleep=sleep)
    gc.collect()
    gc.disable()
    try:
        run(manager, Flaky(ValueError()).later, argument)
        del argument
        assert gone() is None
    finally:
        gc.enable()
