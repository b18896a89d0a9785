"""What the counters said before: nothing goes by unseen between two looks, and nothing stays new for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from ironbus._history import History

WINDOW = 60.0


def report(at, *, ran=None, evicted=0, lanes=()):
    """As the native half gives it, of lanes of (number, done, dropped, missing)."""
    counts = dict.fromkeys(("offered", "accepted", "duplicate", "rejected", "waiting", "cancelled", "unknown"), 0)
    counts |= dict.fromkeys(("dead_letters_dropped_here", "dead_letters_damaged_here"), 0)
    return counts | {
        "now": round(at * 1e9),
        "ran": at if ran is None else ran,
        "evicted": evicted,
        "lanes": [lane(*each) for each in lanes] + [{"id": 99, "passive": True}],
    }


def lane(number, done, dropped=0, missing=0):
    """One that has nothing pending."""
    counts = dict.fromkeys(("dead", "expired", "filtered", "pending"), 0)
    counts |= {"id": number, "passive": False, "done": done, "dropped": dropped, "routed": done + dropped + missing}
    return counts


def test_rates_are_of_the_last_window_once_somebody_has_asked_that_long():
    history = History(WINDOW)
    for second in range(0, 601, 5):
        done = second * 2 if second <= 300 else 600 + (second - 300) * 10
        since = history.look(report(float(second), lanes=[(1, done)]))
        assert WINDOW <= since.ran < WINDOW * 7 / 6 or since.ran == second
        if second == 300:
            assert since.rate(since.settled) == since.rate(since.lane(1).settled) == 2
    assert since.rate(since.settled) == 10


def test_rates_are_over_the_time_in_which_the_bus_was_started():
    history = History(WINDOW)
    assert history.look(report(1000.0, ran=0.0)).rate(0) == 0.0
    since = history.look(report(2000.0, ran=10.0, lanes=[(1, 50)]))
    assert (since.ran, since.rate(since.settled)) == (10.0, 5.0)
    since = history.look(report(2060.0, ran=10.0, lanes=[(1, 50)]))
    assert (since.ran, since.rate(since.settled)) == (0.0, 0.0), "it was stopped meanwhile"


def test_a_lane_that_is_new_counts_from_its_beginning_and_one_that_is_gone_not_at_all():
    history = History(WINDOW)
    history.look(report(0.0, lanes=[(1, 100)]))
    since = history.look(report(60.0, lanes=[(2, 7, 3, 2)]))
    assert since.lane(2) == (10, 3, 2)
    assert since.settled == 10


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.floats(0, 40), st.integers(0, 3)), min_size=1, max_size=60))
def test_each_change_is_new_for_at_least_a_window_and_not_much_longer(steps):
    """Somebody asks at any times; between two of them things happen."""
    history, at, evicted = History(WINDOW), 0.0, 0
    looks = [(0.0, 0)]  # before the first one nothing had happened
    for pause, happens in steps:
        at, evicted = at + pause, evicted + happens
        looks.append((at, evicted))
        since = history.look(report(at, evicted=evicted))
        new = since.now.evicted - since.then.evicted
        # Everything since the last look that was a window ago, and nothing that was seen much earlier.
        old = max(count for time, count in looks if round(at * 1e9) - round(time * 1e9) >= WINDOW * 1e9 or time == 0.0)
        assert new >= evicted - old
        older = [count for time, count in looks if at - time >= WINDOW * 8 / 6 + 40]
        assert new <= evicted - max(older, default=0)
        assert len(history._samples) <= 16
