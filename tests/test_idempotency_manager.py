"""``IdempotencyManager``: one winner per content, an exact deadline, a limit that is counted."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ironbus import errors
from ironbus._core import IdempotencyManager


class Clock:
    def __init__(self, now=1_000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_the_contract_of_v1():
    manager = IdempotencyManager(ttl_seconds=3600)
    assert manager.is_duplicate("order.paid", {"id": 1, "amount": 19.99}) is False
    assert manager.is_duplicate("order.paid", {"amount": 19.99, "id": 1}) is True
    assert manager.is_duplicate("order.paid", {"id": 2, "amount": 19.99}) is False
    assert manager.is_duplicate("order.made", {"id": 1, "amount": 19.99}) is False
    assert manager.is_duplicate(event_type="order.made", event_data={"id": 1, "amount": 19.99}) is True
    assert IdempotencyManager(60).is_duplicate("a", None) is False
    assert IdempotencyManager().is_duplicate("a", [1, "two", None]) is False


def test_equal_is_what_has_equal_json():
    manager = IdempotencyManager()
    assert not manager.is_duplicate("a", [1, 2])
    assert manager.is_duplicate("a", (1, 2))
    assert not manager.is_duplicate("a", [1.0, 2])
    assert not manager.is_duplicate("a", {"1": True})
    assert manager.is_duplicate("a", {1: True})
    assert not manager.is_duplicate("a", {"1": 1})


@pytest.mark.parametrize("ttl", [10, 0.5, 1e-6, 3600, 86_400 * 365])
def test_a_key_is_alive_strictly_before_its_deadline(clock, ttl):
    clock.now = 0.0
    manager = IdempotencyManager(ttl, clock=clock)
    assert not manager.is_duplicate("a", 1)
    clock.now = ttl * 0.999
    assert manager.is_duplicate("a", 1)
    assert len(manager) == 1
    clock.now = ttl
    assert not manager.is_duplicate("a", 1), "at the deadline it is gone"
    clock.now = ttl * 1.999
    assert manager.is_duplicate("a", 1), "and counts from the second time on"
    clock.now = ttl * 2
    assert not manager.is_duplicate("a", 1)


def test_a_duplicate_does_not_prolong_a_key(clock):
    manager = IdempotencyManager(10, clock=clock)
    assert not manager.is_duplicate("a", 1)
    for _ in range(9):
        clock.now += 1
        assert manager.is_duplicate("a", 1)
    clock.now += 1
    assert not manager.is_duplicate("a", 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.booleans()), max_size=200))
def test_against_a_model(steps):
    clock = Clock(0.0)
    manager = IdempotencyManager(10, clock=clock)
    model = {}
    for key, pause, forget in steps:
        clock.now += pause
        model = {key: deadline for key, deadline in model.items() if clock.now < deadline}
        if forget:
            assert manager.forget("a", {"key": key}) is (model.pop(key, None) is not None)
        else:
            assert manager.is_duplicate("a", {"key": key}) is (key in model)
            model.setdefault(key, clock.now + 10)
        assert len(manager) == len(model)
    assert manager.evicted == 0


def test_expired_keys_do_not_count(clock):
    manager = IdempotencyManager(10, clock=clock)
    for n in range(1_000):
        manager.is_duplicate("a", n)
    assert len(manager) == 1_000
    clock.now += 10
    assert len(manager) == 0
    assert manager.evicted == 0, "they lived their time"
    assert manager, "a manager without keys is one all the same"


def test_a_forgotten_key_may_come_again(clock):
    manager = IdempotencyManager(10, clock=clock)
    assert manager.forget("a", 1) is False
    manager.is_duplicate("a", 1)
    assert manager.forget("a", 1) is True
    assert manager.forget("a", 1) is False
    assert len(manager) == 0
    assert not manager.is_duplicate("a", 1)
    clock.now += 10
    assert manager.forget("a", 1) is False, "expired is not known"


def test_the_limit_holds_and_the_oldest_go(clock):
    manager = IdempotencyManager(3600, max_keys=1_000, clock=clock)
    for n in range(5_000):
        clock.now += 0.001
        assert not manager.is_duplicate("a", n)
        assert len(manager) <= 1_000 if n % 100 == 0 else True
    assert len(manager) + manager.evicted == 5_000
    assert len(manager) <= 1_000
    assert manager.evicted >= 4_000
    assert manager.is_duplicate("a", 4_999), "the youngest stays"
    assert not any(manager.is_duplicate("a", n) for n in range(1_000)), "the oldest went"


def test_a_limit_of_one():
    manager = IdempotencyManager(max_keys=1)
    for n in range(100):
        assert not manager.is_duplicate("a", n)
        assert manager.is_duplicate("a", n)
        assert len(manager) == 1
    assert manager.evicted == 99


@pytest.mark.parametrize("rare", [False, True])
def test_one_winner_per_key_of_eight_threads(rare):
    manager = IdempotencyManager()
    keys = 500 if rare else 3_000
    wins = [0] * 8
    start = threading.Barrier(8)

    def race(me):
        start.wait()
        for n in range(keys):
            # An integer key is left to json.dumps, which gives other threads a turn.
            if not manager.is_duplicate("a", {n if rare else "n": n, **({} if rare else {"list": [1.5, "x"]})}):
                wins[me] += 1

    threads = [threading.Thread(target=race, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(wins) == keys
    assert len(manager) == keys


def test_the_default_clock_is_the_machines():
    manager = IdempotencyManager(0.05)
    assert not manager.is_duplicate("a", 1)
    assert manager.is_duplicate("a", 1)
    time.sleep(0.06)
    assert not manager.is_duplicate("a", 1)


def test_what_is_refused_leaves_no_trace():
    manager = IdempotencyManager()
    with pytest.raises(errors.PayloadNotFinite) as caught:
        manager.is_duplicate("a", {"x": math.nan})
    assert caught.value.field == "data.x"
    with pytest.raises(errors.PayloadNotEncodable):
        manager.forget("a", {1})
    with pytest.raises(errors.InvalidType):
        manager.is_duplicate(1, {})
    assert len(manager) == 0


def test_a_clock_that_fails():
    def clock():
        raise LookupError("no time")

    manager = IdempotencyManager(clock=clock)
    with pytest.raises(LookupError):
        manager.is_duplicate("a", 1)
    with pytest.raises(TypeError):
        IdempotencyManager(clock=lambda: "noon").is_duplicate("a", 1)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        *[({"ttl_seconds": ttl}, "ttl_seconds") for ttl in (0, -1, math.nan, math.inf, 1e9, True, "60", 10**400)],
        *[({"max_keys": most}, "max_keys") for most in (0, -1, 1.5, True, "9", 2**31, 10**30)],
        *[({"clock": clock}, "clock") for clock in (1, "now")],
    ],
)
def test_invalid_options(options, field):
    with pytest.raises(errors.InvalidOption) as caught:
        IdempotencyManager(**options)
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


def test_a_manager_in_a_cycle_with_its_clock_is_collected():
    clock = Clock()
    clock.manager = IdempotencyManager(clock=clock)
    gone = weakref.ref(clock.manager)
    del clock
    gc.collect()
    assert gone() is None


def test_it_may_be_subclassed():
    class Counting(IdempotencyManager):
        calls = 0

        def is_duplicate(self, event_type, event_data):
            type(self).calls += 1
            return super().is_duplicate(event_type, event_data)

    manager = Counting(60, max_keys=5)
    assert not manager.is_duplicate("a", 1)
    assert Counting.calls == 1
