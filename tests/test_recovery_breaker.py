"""``CircuitBreaker``: the interface of the ``pm.events`` API, and what it has beyond.

Time is a number that the tests set.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import inspect
import itertools
import logging
import pickle
import threading
import time
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ironbus import CircuitOpenError, InvalidHandler, InvalidOption, IronbusError, Reject, RetryLater
from ironbus.recovery import CircuitBreaker, CircuitBreakerConfig, CircuitState

CLOSED, OPEN, HALF_OPEN = CircuitState
SECRET = "4111-1111-1111-1111"


class Clock:
    def __init__(self, now=1_000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def fail(error=ConnectionError):
    raise error(SECRET)


def succeed(*args, **kwargs):
    return args, kwargs


def outcomes(breaker, text):
    """One call for each letter: F fails, any other succeeds."""
    for letter in text:
        with contextlib.suppress(ConnectionError):
            breaker.call_sync(fail if letter == "F" else succeed)


def opened(clock, **options):
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(timeout=10, **options), clock=clock)
    breaker.state = OPEN
    clock.now += 10
    return breaker


# The contract of v1.0 --------------------------------------------------------------


def test_names_values_and_defaults_are_those_of_v1():
    assert {state.name: state.value for state in CircuitState} == {
        "CLOSED": "closed",
        "OPEN": "open",
        "HALF_OPEN": "half_open",
    }
    config = CircuitBreakerConfig()
    assert (config.failure_threshold, config.success_threshold, config.timeout, config.window_size) == (5, 2, 60.0, 10)
    assert CircuitBreakerConfig(1, 2, 3.0, 4) == CircuitBreakerConfig(
        failure_threshold=1, success_threshold=2, timeout=3.0, window_size=4
    )
    breaker = CircuitBreaker("orders")
    assert (breaker.name, breaker.config, breaker.state) == ("orders", config, CLOSED)
    assert (breaker.failure_count, breaker.success_count) == (0, 0)
    given = CircuitBreakerConfig(2)
    assert CircuitBreaker("orders", given).config is given
    assert CircuitBreaker(name="orders", config=None).config == config


async def returns_async(*args, **kwargs):
    await asyncio.sleep(0)
    return args, kwargs


@pytest.mark.parametrize("func", [succeed, returns_async])
def test_call_passes_arguments_result_and_exception(func):
    breaker = CircuitBreaker("orders")
    assert asyncio.run(breaker.call(func, 1, two=2)) == ((1,), {"two": 2})
    error = ValueError("mine")

    async def raises_async():
        raise error

    def raises():
        raise error

    for bad in (raises, raises_async):
        with pytest.raises(ValueError, match="mine") as caught:
            asyncio.run(breaker.call(bad))
        assert caught.value is error
    assert breaker.failure_count == 2
    assert inspect.iscoroutinefunction(breaker.call)


def test_it_opens_refuses_probes_and_closes(clock):
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(failure_threshold=3, timeout=10), clock=clock)
    outcomes(breaker, "FF")
    assert (breaker.state, breaker.failure_count) == (CLOSED, 2)
    outcomes(breaker, "F")
    assert (breaker.state, breaker.failure_count) == (OPEN, 3)
    called = []
    with pytest.raises(Exception, match=r"orders.*OPEN") as caught:
        asyncio.run(breaker.call(called.append, 1))
    assert called == []
    assert isinstance(caught.value, CircuitOpenError)
    assert isinstance(caught.value, IronbusError)
    assert (caught.value.name, caught.value.retry_after) == ("orders", 10.0)
    clock.now += 9.75
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call_sync(called.append, 1)
    assert caught.value.retry_after == pytest.approx(0.25)
    clock.now += 0.25
    assert breaker.state is OPEN  # until somebody calls
    outcomes(breaker, "S")
    assert (breaker.state, breaker.success_count) == (HALF_OPEN, 1)
    outcomes(breaker, "S")
    assert (breaker.state, breaker.success_count, breaker.failure_count) == (CLOSED, 0, 0)


def test_a_failed_probe_opens_it_for_another_timeout(clock):
    breaker = opened(clock)
    outcomes(breaker, "F")
    assert breaker.state is OPEN
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call_sync(succeed)
    assert caught.value.retry_after == 10.0


def test_get_state_tells_what_v1_told(clock):
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(failure_threshold=1), clock=clock)
    assert breaker.get_state() == {
        "name": "orders",
        "state": "closed",
        "failure_count": 0,
        "success_count": 0,
        "last_failure": None,
        "last_state_change": 1_000.0,
    }
    clock.now = 1_005.5
    outcomes(breaker, "F")
    assert breaker.get_state() == {
        "name": "orders",
        "state": CircuitState.OPEN,
        "failure_count": 1,
        "success_count": 0,
        "last_failure": 1_005.5,
        "last_state_change": 1_005.5,
    }


def test_without_a_clock_the_times_are_unix_times():
    before = time.time()
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(failure_threshold=1))
    outcomes(breaker, "F")
    state = breaker.get_state()
    assert state["last_failure"] == pytest.approx(before, abs=5)
    assert state["last_state_change"] == state["last_failure"]


# Faults of v1.0 --------------------------------------------------------------------


def test_window_size_counts():
    """Never five in a row, but most of the last ten."""
    breaker = CircuitBreaker("orders")
    outcomes(breaker, "FFFFSFFFF")
    assert breaker.state is CLOSED
    outcomes(breaker, "S")
    assert breaker.state is OPEN
    for config in (CircuitBreakerConfig(failure_rate=None), CircuitBreakerConfig(window_size=11)):
        breaker = CircuitBreaker("orders", config)
        outcomes(breaker, "FFFFSFFFFS")
        assert breaker.state is CLOSED


def test_the_window_rolls():
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(failure_rate=0.4, window_size=5))
    outcomes(breaker, "FSSSS" * 20)
    assert breaker.state is CLOSED
    outcomes(breaker, "FSSF")
    assert breaker.state is OPEN


@pytest.mark.parametrize("most", [1, 7])
def test_of_a_hundred_callers_exactly_so_many_probe(clock, most):
    breaker = opened(clock, half_open_max_calls=most)

    async def main():
        release = asyncio.Event()
        running = []

        async def probe():
            running.append(1)
            await release.wait()

        calls = [asyncio.create_task(breaker.call(probe)) for _ in range(100)]
        await asyncio.sleep(0)
        assert len(running) == most
        release.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    results = asyncio.run(main())
    refused = [result for result in results if isinstance(result, CircuitOpenError)]
    assert len(refused) == 100 - most
    assert {error.retry_after for error in refused} == {None}
    assert all("HALF_OPEN" in str(error) for error in refused)


def test_of_a_hundred_threads_exactly_so_many_probe(clock):
    breaker = opened(clock, half_open_max_calls=3)
    start, answered = threading.Barrier(100), threading.Barrier(100)
    running, refused = [], []

    def probe():
        running.append(1)
        answered.wait(30)

    def caller():
        start.wait(30)
        try:
            breaker.call_sync(probe)
        except CircuitOpenError:
            refused.append(1)
            answered.wait(30)

    threads = [threading.Thread(target=caller) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(running), len(refused)) == (3, 97)


def test_probes_one_after_the_other_close_it(clock):
    """The place of a probe that succeeded is free for the next."""
    breaker = opened(clock, success_threshold=3)
    outcomes(breaker, "SS")
    assert (breaker.state, breaker.success_count) == (HALF_OPEN, 2)
    outcomes(breaker, "S")
    assert breaker.state is CLOSED


# Calls that count for nothing ------------------------------------------------------


@pytest.mark.parametrize("ends_well", [True, False])
def test_results_of_calls_begun_before_a_change_do_not_count(clock, ends_well):
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(2, 1, 10), clock=clock)

    async def main():
        release = asyncio.Event()

        async def early():
            await release.wait()
            if not ends_well:
                fail()

        closed = [asyncio.create_task(breaker.call(early)) for _ in range(5)]
        await asyncio.sleep(0)
        outcomes(breaker, "FF")
        clock.now += 10
        probe = asyncio.create_task(breaker.call(early))
        await asyncio.sleep(0)
        breaker.state = OPEN
        before = breaker.get_state()
        release.set()
        await asyncio.gather(*closed, probe, return_exceptions=True)
        assert breaker.get_state() == before

    asyncio.run(main())
    assert breaker.state is OPEN


def test_cancellation_counts_neither_way_and_gives_the_place_back(clock):
    breaker = opened(clock, success_threshold=1)

    async def cancelled():
        for _ in range(10):
            hangs = asyncio.create_task(breaker.call(asyncio.Event().wait))
            await asyncio.sleep(0)
            assert breaker.state is HALF_OPEN
            hangs.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hangs
        assert (breaker.state, breaker.success_count, breaker.failure_count) == (HALF_OPEN, 0, 0)

    asyncio.run(cancelled())
    outcomes(breaker, "S")
    assert breaker.state is CLOSED


@pytest.mark.parametrize("error", [Reject, lambda text: RetryLater(1), KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_says_nothing_about_the_dependency_does_not_count(clock, error):
    def raises():
        raise error(SECRET)

    breaker = CircuitBreaker("orders", CircuitBreakerConfig(1, 1, 10), clock=clock)
    for _ in range(2):
        with pytest.raises((Reject, RetryLater, KeyboardInterrupt, SystemExit, GeneratorExit)):
            breaker.call_sync(raises)
        assert (breaker.failure_count, breaker.success_count) == (0, 0)
        breaker.state = OPEN
        clock.now += 10
    with pytest.raises(BaseException, match=r".*"):
        breaker.call_sync(raises)
    assert breaker.state is HALF_OPEN
    outcomes(breaker, "S")
    assert breaker.state is CLOSED


def test_a_clock_that_fails_keeps_no_place(clock):
    """The error is seen, and the breaker goes on."""
    breaker = opened(clock, success_threshold=2)

    def breaks():
        clock.now = "never"

    with pytest.raises(TypeError):
        breaker.call_sync(breaks)
    with pytest.raises(TypeError):
        breaker.call_sync(succeed)
    clock.now = 2_000.0
    assert (breaker.state, breaker.success_count) == (HALF_OPEN, 1)
    outcomes(breaker, "S")
    assert breaker.state is CLOSED


# Other ways to call ----------------------------------------------------------------


def test_as_a_decorator(clock):
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(failure_threshold=2), clock=clock)

    @breaker
    def double(n: int) -> int:
        """Doubles."""
        return n * 2

    @breaker
    async def double_async(n: int) -> int:
        return n * 2

    class Shop:
        @breaker
        async def pay(self, n: int) -> int:
            if n < 0:
                fail()
            return n

    assert (double.__name__, double.__doc__, double(4)) == ("double", "Doubles.", 8)
    assert inspect.iscoroutinefunction(double_async)
    assert not inspect.iscoroutinefunction(double)
    assert asyncio.run(double_async(n=4)) == 8
    assert asyncio.run(Shop().pay(1)) == 1
    for _ in range(2):
        with pytest.raises(ConnectionError):
            asyncio.run(Shop().pay(-1))
    for call in (lambda: double(1), lambda: asyncio.run(double_async(1))):
        with pytest.raises(CircuitOpenError):
            call()


def test_a_generator_is_no_call():
    """Its work begins after the call, so every call would count as a success."""
    breaker = CircuitBreaker("orders")

    def rows():
        yield 1

    async def rows_async():
        yield 1

    for func in (rows, rows_async):
        with pytest.raises(InvalidHandler, match="with breaker"):
            breaker(func)


def test_an_async_function_is_not_called_without_await():
    breaker = CircuitBreaker("orders")
    with pytest.raises(InvalidHandler, match=r"await breaker\.call"):
        breaker.call_sync(returns_async)


def test_as_a_context_manager(clock):
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(2, 2, 10), clock=clock)
    with breaker as same:
        assert same is breaker
    for _ in range(2):
        with pytest.raises(ConnectionError), breaker:
            fail()
    assert breaker.state is OPEN
    entered = []
    with pytest.raises(CircuitOpenError), breaker:
        entered.append(1)

    async def enter():
        async with breaker:
            entered.append(2)

    with pytest.raises(CircuitOpenError):
        asyncio.run(enter())
    assert entered == []
    clock.now += 10
    asyncio.run(enter())
    assert (breaker.state, breaker.success_count) == (HALF_OPEN, 1)


def test_blocks_in_many_tasks_keep_their_own_permits(clock):
    """One block began before the breaker opened, the other after it closed: only the latter counts."""
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(2, 1, 10), clock=clock)

    async def main():
        release = asyncio.Event()

        async def block():
            async with breaker:
                await release.wait()
                fail()

        early = asyncio.create_task(block())
        await asyncio.sleep(0)
        breaker.state = OPEN
        breaker.state = CLOSED
        late = asyncio.create_task(block())
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(early, late, return_exceptions=True)

    asyncio.run(main())
    assert breaker.failure_count == 1


def test_blocks_may_be_nested_and_left_in_any_order(clock):
    one = CircuitBreaker("one", CircuitBreakerConfig(1), clock=clock)
    two = CircuitBreaker("two", CircuitBreakerConfig(1), clock=clock)
    one.__enter__()
    with two:
        one.__exit__(None, None, None)
        with one, one:
            pass
    with pytest.raises(ConnectionError), one, two:
        fail()
    assert (one.state, two.state) == (OPEN, OPEN)


def test_a_block_that_is_left_elsewhere_says_so():
    breaker = CircuitBreaker("orders")
    breaker.__enter__()
    errors = []

    def leave():
        try:
            breaker.__exit__(None, None, None)
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert errors == ["circuit breaker 'orders' must be left in the task or thread that entered it"]
    breaker.__exit__(None, None, None)


# State, settings, listeners --------------------------------------------------------


def test_the_state_can_be_set(clock):
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(timeout=10), clock=clock)
    breaker.state = CircuitState.OPEN
    with pytest.raises(CircuitOpenError):
        breaker.call_sync(succeed)
    breaker.state = "closed"
    outcomes(breaker, "SFFFF")
    assert breaker.state is CLOSED
    with pytest.raises(InvalidOption, match="CircuitState"):
        breaker.state = "ajar"


def test_settings_can_be_changed(clock):
    breaker = CircuitBreaker("orders", clock=clock)
    outcomes(breaker, "FFF")
    breaker.config = CircuitBreakerConfig(failure_threshold=4)
    outcomes(breaker, "F")
    assert (breaker.state, breaker.config.failure_threshold) == (OPEN, 4)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"failure_threshold": 0}, "failure_threshold"),
        ({"failure_threshold": True}, "failure_threshold"),
        ({"failure_threshold": 2.5}, "failure_threshold"),
        ({"success_threshold": -1}, "success_threshold"),
        ({"timeout": -0.1}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "60"}, "timeout"),
        ({"window_size": 0}, "window_size"),
        ({"failure_rate": 0}, "failure_rate"),
        ({"failure_rate": 1.1}, "failure_rate"),
        ({"half_open_max_calls": 0}, "half_open_max_calls"),
        ({"half_open_max_calls": 2**64}, "half_open_max_calls"),
    ],
)
def test_bad_settings_are_refused_by_name(options, field):
    with pytest.raises(InvalidOption, match=field) as caught:
        CircuitBreakerConfig(**options)
    assert caught.value.field == field
    config = CircuitBreakerConfig()
    setattr(config, field, options[field])
    with pytest.raises(InvalidOption, match=field):
        CircuitBreaker("orders", config)
    with pytest.raises(InvalidOption, match=field):
        CircuitBreaker("orders").config = config


@pytest.mark.parametrize(
    ("arguments", "options", "field"),
    [
        (("",), {}, "name"),
        ((7,), {}, "name"),
        (("a\n",), {}, "name"),
        (("orders", 5), {}, "config"),
        (("orders",), {"clock": 5}, "clock"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, options, field):
    with pytest.raises(InvalidOption, match=field) as caught:
        CircuitBreaker(*arguments, **options)
    assert caught.value.field == field
    with pytest.raises(InvalidOption, match="listener"):
        CircuitBreaker("orders").add_listener(5)


def test_a_config_may_be_changed_before_its_use():
    config = CircuitBreakerConfig()
    config.failure_threshold = 1
    breaker = CircuitBreaker("orders", config)
    outcomes(breaker, "F")
    assert breaker.state is OPEN
    assert copy.copy(config) == pickle.loads(pickle.dumps(config)) == config


def test_listeners_are_told_in_order(clock):
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(1, 1, 10), clock=clock)
    told = []

    def listener(old, new):
        told.append((old, new, breaker.state))

    breaker.add_listener(listener)
    outcomes(breaker, "F")
    clock.now += 10
    outcomes(breaker, "S")
    assert told == [(CLOSED, OPEN, OPEN), (OPEN, HALF_OPEN, HALF_OPEN), (HALF_OPEN, CLOSED, CLOSED)]
    assert breaker.remove_listener(listener) is True
    assert breaker.remove_listener(listener) is False
    outcomes(breaker, "F")
    assert len(told) == 3


def test_a_listener_may_change_the_state_itself(clock):
    """What it changes is told after what it is told of, to all."""
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(1), clock=clock)
    told = []

    def closes(old, new):
        told.append(("first", new))
        if new is OPEN:
            breaker.state = CLOSED

    breaker.add_listener(closes)
    breaker.add_listener(lambda old, new: told.append(("second", new)))
    outcomes(breaker, "F")
    assert told == [("first", OPEN), ("second", OPEN), ("first", CLOSED), ("second", CLOSED)]


def test_changes_of_many_threads_are_told_one_by_one():
    breaker = CircuitBreaker("orders")
    told, inside = [], threading.Lock()

    def listener(old, new):
        assert inside.acquire(blocking=False)
        told.append((old, new))
        inside.release()

    breaker.add_listener(listener)

    def change():
        for _ in range(300):
            breaker.state = OPEN
            breaker.state = HALF_OPEN
            breaker.state = CLOSED

    threads = [threading.Thread(target=change) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert told[0][0] is CLOSED
    assert all(before[1] is after[0] for before, after in itertools.pairwise(told))
    assert told[-1][1] is breaker.state


def test_a_listener_that_fails_is_logged_and_disturbs_nobody(caplog):
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(1))
    told = []
    breaker.add_listener(lambda old, new: fail())
    breaker.add_listener(lambda old, new: told.append(new))
    with caplog.at_level(logging.DEBUG):
        outcomes(breaker, "F")
    assert told == [OPEN]
    assert "a listener of circuit breaker 'orders' failed: ConnectionError at " in caplog.text
    assert SECRET not in caplog.text


def test_changes_are_logged_without_what_was_called(caplog):
    breaker = CircuitBreaker("orders", CircuitBreakerConfig(1))
    with caplog.at_level(logging.DEBUG):
        outcomes(breaker, "F")
        with pytest.raises(CircuitOpenError) as caught:
            breaker.call_sync(succeed, SECRET)
    (record,) = [record for record in caplog.records if record.name == "ironbus"]
    assert record.getMessage() == "circuit breaker 'orders': closed -> open"
    assert (record.levelno, record.circuit, record.state) == (logging.WARNING, "orders", "open")
    assert SECRET not in caplog.text + repr(record.__dict__) + str(caught.value)


def test_a_breaker_in_a_cycle_is_collected():
    class Holder:
        def __init__(self):
            self.breaker = CircuitBreaker("orders", clock=self.clock)
            self.breaker.add_listener(self.listener)

        def clock(self):
            return 1.0

        def listener(self, old, new):
            self.last = new

    holder = Holder()
    holder.breaker.state = OPEN
    gone = weakref.ref(holder)
    assert holder.last is OPEN
    del holder
    gc.collect()
    assert gone() is None


def test_a_subclass_that_forgets_init_is_told():
    class Mine(CircuitBreaker):
        def __init__(self):
            pass

    with pytest.raises(RuntimeError, match=r"super\(\).__init__\(\)"):
        Mine().call_sync(succeed)
    with pytest.raises(RuntimeError, match="before"):
        CircuitBreaker("orders").__init__("again")


def test_its_error_survives_a_trip_to_another_process():
    for error in (CircuitOpenError("orders", 1.5), CircuitOpenError("orders"), Reject("no"), RetryLater(3)):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


# Against a model -------------------------------------------------------------------


class BreakerMachine(RuleBasedStateMachine):
    """The model keeps every result since the last change and derives everything from them."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.loop = asyncio.new_event_loop()
        self.told = []
        self.changes = []

    @rule(
        failures=st.integers(1, 4),
        successes=st.integers(1, 3),
        timeout=st.integers(0, 20),
        window=st.integers(1, 6),
        rate=st.sampled_from([None, 0.25, 0.5, 1.0]),
        most=st.integers(1, 3),
    )
    @precondition(lambda self: not hasattr(self, "breaker"))
    def make(self, failures, successes, timeout, window, rate, most):
        self.config = CircuitBreakerConfig(
            failures, successes, timeout, window, failure_rate=rate, half_open_max_calls=most
        )
        self.breaker = CircuitBreaker("model", self.config, clock=self.clock)
        self.breaker.add_listener(lambda old, new: self.told.append((old, new)))
        self.state, self.since, self.epoch = CLOSED, self.clock.now, 0
        self.results, self.row, self.running = [], 0, []

    def enter(self, state):
        self.changes.append((self.state, state))
        self.state, self.since, self.epoch, self.results = state, self.clock.now, self.epoch + 1, []
        if state is CLOSED:
            self.row = 0

    def step(self):
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    @rule()
    @precondition(lambda self: hasattr(self, "breaker"))
    def begin(self):
        if self.state is OPEN and self.clock.now >= self.since + self.config.timeout:
            self.enter(HALF_OPEN)
        probes = sum(epoch == self.epoch for _, _, epoch in self.running)
        room = self.state is CLOSED or (self.state is HALF_OPEN and probes < self.config.half_open_max_calls)
        future = self.loop.create_future()

        async def wait():
            return await future

        call = self.loop.create_task(self.breaker.call(wait))
        self.step()
        if room:
            assert not call.done()
            self.running.append((call, future, self.epoch))
            return
        error = call.exception()
        assert isinstance(error, CircuitOpenError)
        left = self.since + self.config.timeout - self.clock.now if self.state is OPEN else None
        assert error.retry_after == (left if left is None else pytest.approx(left))

    @rule(data=st.data(), how=st.sampled_from(["fail", "fail", "succeed", "cancel", "reject"]))
    @precondition(lambda self: getattr(self, "running", None))
    def end(self, data, how):
        call, future, epoch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if how == "cancel":
            call.cancel()
        elif how == "succeed":
            future.set_result(None)
        else:
            future.set_exception(ConnectionError() if how == "fail" else Reject())
        while not call.done():
            self.step()
        assert call.cancelled() or isinstance(call.exception(), (type(None), ConnectionError, Reject))
        if epoch != self.epoch or how in ("cancel", "reject"):
            return
        self.results.append(how == "fail")
        self.row = self.row + 1 if how == "fail" else 0
        if self.state is HALF_OPEN:
            if how == "fail":
                self.enter(OPEN)
            elif len(self.results) == self.config.success_threshold:
                self.enter(CLOSED)
            return
        window = self.results[-self.config.window_size :]
        rate = self.config.failure_rate
        enough = rate is not None and len(window) == self.config.window_size
        if self.row >= self.config.failure_threshold or (enough and sum(window) >= rate * len(window)):
            self.enter(OPEN)

    @rule(seconds=st.integers(0, 12))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(state=st.sampled_from(CircuitState))
    @precondition(lambda self: hasattr(self, "breaker"))
    def force(self, state):
        if state is not self.state:
            self.enter(state)
        self.breaker.state = state

    @invariant()
    def agrees(self):
        if hasattr(self, "breaker"):
            state = self.breaker.get_state()
            assert (state["state"], state["failure_count"]) == (self.state, self.row)
            assert state["success_count"] == (len(self.results) if self.state is HALF_OPEN else 0)
            assert state["last_state_change"] == self.since
            assert self.told == self.changes

    def teardown(self):
        for call, _, _ in getattr(self, "running", ()):
            call.cancel()
        self.step()
        self.loop.close()


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
