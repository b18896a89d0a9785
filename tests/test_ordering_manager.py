"""The manager orders by priority and number, loses nothing, and its sequences are dataclasses to their callers."""

from __future__ import annotations

import copy
import dataclasses
import gc
import inspect
import itertools
import pickle
import threading
import time
import typing
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ironbus.errors import InvalidOption, InvalidPriority, QueueFull
from ironbus.ordering import EventOrderingManager, EventPriority, EventSequence

PRIORITIES = list(EventPriority)


def test_priorities_are_the_numbers_of_v1() -> None:
    assert {p.name: int(p) for p in EventPriority} == {"CRITICAL": 0, "HIGH": 1, "NORMAL": 2, "LOW": 3}
    assert EventPriority.CRITICAL < EventPriority.LOW


# --- the manager ---


def test_numbers_rise_by_exactly_one_across_priorities() -> None:
    manager = EventOrderingManager()
    numbers = [manager.assign_sequence(f"e{i}", PRIORITIES[i % 4]).sequence_number for i in range(100)]
    assert numbers == list(range(1, 101))


def test_a_refused_priority_uses_up_no_number() -> None:
    manager = EventOrderingManager()
    for wrong in (4, -1, "HIGH", 1.0, object()):
        with pytest.raises(InvalidPriority):
            manager.assign_sequence("e", wrong)  # type: ignore[arg-type]
    assert manager.assign_sequence("e").sequence_number == 1


def test_a_sequence_says_when_and_what() -> None:
    before = time.time()
    sequence = EventOrderingManager().assign_sequence("e", EventPriority.HIGH)
    assert before <= sequence.timestamp <= time.time()
    assert (sequence.event_id, sequence.sequence_number, sequence.priority) == ("e", 1, EventPriority.HIGH)
    assert type(sequence.priority) is EventPriority
    assert EventOrderingManager().assign_sequence("e").priority is EventPriority.NORMAL
    assert EventOrderingManager().assign_sequence("e", 3).priority is EventPriority.LOW  # type: ignore[arg-type]


def test_events_come_out_by_priority_then_number() -> None:
    manager = EventOrderingManager()
    sequences = [manager.assign_sequence(f"e{i}", PRIORITIES[i * 7 % 4]) for i in range(20)]
    for sequence in reversed(sequences):
        manager.queue_event({"id": sequence.event_id}, sequence)
    first, rest = manager.get_next_events(), manager.get_next_events(100)
    assert len(first) == 10
    expected = sorted(sequences, key=lambda s: (s.priority, s.sequence_number))
    assert [sequence for sequence, _ in first + rest] == expected
    assert all(event == {"id": sequence.event_id} for sequence, event in first + rest)
    assert manager.get_next_events() == []


def test_the_very_objects_come_back() -> None:
    manager = EventOrderingManager()
    sequence, event = manager.assign_sequence("e"), object()
    manager.queue_event(event, sequence)
    [(same_sequence, same_event)] = manager.get_next_events(batch_size=1)
    assert same_sequence is sequence
    assert same_event is event


@pytest.mark.parametrize("size", [0, -1])
def test_no_batch_takes_nothing(size: int) -> None:
    manager = EventOrderingManager()
    manager.queue_event(None, manager.assign_sequence("e"))
    assert manager.get_next_events(size) == []
    assert len(manager.get_next_events()) == 1


class Size(int):
    """An integer of a class of its own."""


@pytest.mark.parametrize("size", [Size(2), True, 2**63 - 1])
def test_any_integer_is_a_batch_size(size: int) -> None:
    manager = EventOrderingManager()
    for name in "abc":
        manager.queue_event(name, manager.assign_sequence(name))

    assert [event for _, event in manager.get_next_events(size)] == list("abc")[:size]


@pytest.mark.parametrize("size", [2**63, -(2**63) - 1, "10", 1.0, None])
def test_what_is_no_batch_size_is_refused_and_nothing_is_lost(size: Any) -> None:
    manager = EventOrderingManager()
    manager.queue_event("a", manager.assign_sequence("a"))

    with pytest.raises((TypeError, OverflowError)):
        manager.get_next_events(size)
    assert [event for _, event in manager.get_next_events()] == ["a"]


class Text(str):
    """A string with a hash of its own making: the manager must ask for it."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return str(self) == other

    def __hash__(self) -> int:
        return hash(str(self))


@pytest.mark.parametrize("name", ["plain", Text("own"), 7, ("a", 1)])
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("kind", [EventOrderingManager, type("Derived", (EventOrderingManager,), {})])
def test_every_form_of_a_call_means_the_same(name: Any, by_name: bool, kind: type[EventOrderingManager]) -> None:
    # Ordinary calls take a shorter way inside; it must not be a different one.
    manager = kind()
    if by_name:
        sequence = manager.assign_sequence(event_id=name, priority=EventPriority.HIGH)
        manager.queue_event(event="event", sequence=sequence)
        assert manager.get_next_events(batch_size=10) == [(sequence, "event")]
        assert manager.in_flight == 1
        manager.mark_processed(event_id=name)
    else:
        sequence = manager.assign_sequence(name, EventPriority.HIGH)
        manager.queue_event("event", sequence)
        assert manager.get_next_events(10) == [(sequence, "event")]
        assert manager.in_flight == 1
        manager.mark_processed(name)
    assert manager.in_flight == 0
    assert dataclasses.astuple(sequence) == (name, 1, sequence.timestamp, EventPriority.HIGH)
    for method in (manager.assign_sequence, manager.queue_event, manager.mark_processed):
        with pytest.raises(TypeError):
            method()
        with pytest.raises(TypeError):
            method(1, 2, 3)
        with pytest.raises(TypeError):
            method(unknown=1)


def test_a_full_level_refuses_and_nothing_is_lost() -> None:
    manager = EventOrderingManager(max_queue_size=2)
    for name in "ab":
        manager.queue_event(name, manager.assign_sequence(name))
    refused = manager.assign_sequence("c")
    with pytest.raises(QueueFull, match="NORMAL") as caught:
        manager.queue_event("c", refused)
    assert caught.value.field == "max_queue_size"
    # Another level has room of its own, and the refused event fits later.
    manager.queue_event("urgent", manager.assign_sequence("d", EventPriority.CRITICAL))
    assert [event for _, event in manager.get_next_events(2)] == ["urgent", "a"]
    manager.queue_event("c", refused)
    assert [event for _, event in manager.get_next_events()] == ["b", "c"]


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_without_room_is_refused(size: int) -> None:
    with pytest.raises(InvalidOption, match="max_queue_size"):
        EventOrderingManager(size)
    with pytest.raises(ValueError, match="max_queue_size"):
        EventOrderingManager(max_queue_size=size)


def test_what_is_no_sequence_is_refused_and_leaves_nothing() -> None:
    manager = EventOrderingManager()
    wrong: list[tuple[Any, type[Exception]]] = [
        ("sequence", TypeError),
        (EventSequence("e", "1", 0.0), TypeError),  # type: ignore[arg-type]
        (EventSequence("e", 2**63, 0.0), OverflowError),
        (EventSequence("e", 1, 0.0, 9), InvalidPriority),  # type: ignore[arg-type]
        (EventSequence([], 1, 0.0), TypeError),  # type: ignore[arg-type]
    ]
    for sequence, error in wrong:
        with pytest.raises(error):
            manager.queue_event(None, sequence)
    with pytest.raises(TypeError):
        manager.mark_processed([])  # type: ignore[arg-type]
    assert manager.get_next_events() == []


def test_sequences_of_ones_own_are_ordered_like_any() -> None:
    manager = EventOrderingManager()
    for number in (5, -3, 5, 0):
        manager.queue_event(number, EventSequence("e", number, 0.0, EventPriority.LOW))
    edited = manager.assign_sequence("edited")
    edited.priority = EventPriority.LOW
    edited.sequence_number = 3
    manager.queue_event(3, edited)
    edited.sequence_number = 99  # too late: the place was read when it was queued
    assert [event for _, event in manager.get_next_events()] == [-3, 0, 3, 5, 5]


def test_events_are_in_flight_until_they_are_marked() -> None:
    manager = EventOrderingManager()
    for name in ("a", "b", "b"):
        manager.queue_event(None, manager.assign_sequence(name))
    assert manager.in_flight == 0
    manager.get_next_events()
    assert manager.in_flight == 2  # a table of ids: the same one counts once
    manager.mark_processed("unknown")
    manager.mark_processed("a")
    manager.mark_processed("a")
    assert manager.in_flight == 1


def test_events_that_are_never_marked_do_not_pile_up() -> None:
    manager = EventOrderingManager(max_queue_size=5)
    for i in range(1000):
        manager.queue_event(None, manager.assign_sequence(f"e{i}"))
        manager.get_next_events()
        assert manager.in_flight <= 2 * 4 * 5
    manager.mark_processed("e999")
    assert 20 <= manager.in_flight < 40


def test_a_subclass_may_have_a_constructor_of_its_own() -> None:
    class Named(EventOrderingManager):
        def __init__(self, name: str) -> None:
            super().__init__(max_queue_size=1)
            self.name = name

    manager = Named("orders")
    manager.queue_event(None, manager.assign_sequence("a"))
    with pytest.raises(QueueFull):
        manager.queue_event(None, manager.assign_sequence("b"))
    assert manager.name == "orders"


def test_the_default_size_is_ten_thousand_per_level() -> None:
    manager = EventOrderingManager()
    for priority in PRIORITIES:
        for i in range(10_000):
            manager.queue_event(i, manager.assign_sequence("e", priority))
        with pytest.raises(QueueFull):
            manager.queue_event(None, manager.assign_sequence("e", priority))
    assert len(manager.get_next_events(100_000)) == 40_000


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("queue"), st.integers(-5, 5), st.sampled_from(PRIORITIES)),
            st.tuples(st.just("get"), st.integers(-1, 6), st.none()),
            st.tuples(st.just("mark"), st.integers(-5, 5), st.none()),
        ),
        max_size=60,
    )
)
def test_the_manager_against_a_sorted_list(steps: list[tuple[str, int, EventPriority | None]]) -> None:
    manager = EventOrderingManager(max_queue_size=4)
    queued: list[tuple[EventPriority, int, int]] = []
    flying: set[str] = set()
    for arrival, (step, number, priority) in enumerate(steps):
        if priority is not None:
            full = sum(level == priority for level, _, _ in queued) == 4
            try:
                manager.queue_event(arrival, EventSequence(f"e{number}", number, 0.0, priority))
                assert not full
                queued.append((priority, number, arrival))
            except QueueFull:
                assert full
        elif step == "get":
            queued.sort()
            size = max(number, 0)
            expected, queued = queued[:size], queued[size:]
            got = [(s.priority, s.sequence_number, event) for s, event in manager.get_next_events(number)]
            assert got == expected
            flying |= {f"e{n}" for _, n, _ in expected}
        else:
            manager.mark_processed(f"e{number}")
            flying.discard(f"e{number}")
        assert manager.in_flight == len(flying)


def test_eight_threads_get_numbers_without_gap_or_repeat_and_every_event_once() -> None:
    manager = EventOrderingManager(max_queue_size=100)
    each, barrier = 2_000, threading.Barrier(8)
    numbers: list[list[int]] = [[] for _ in range(8)]
    events: list[list[tuple[int, int]]] = [[] for _ in range(8)]
    left = threading.Semaphore(0)

    def work(me: int) -> None:
        def take() -> None:
            for sequence, event in manager.get_next_events(7):
                events[me].append(event)
                manager.mark_processed(sequence.event_id)
                left.release()

        barrier.wait()
        for i in range(each):
            sequence = manager.assign_sequence(f"{me}-{i}", PRIORITIES[i % 4])
            numbers[me].append(sequence.sequence_number)
            while True:
                try:
                    manager.queue_event((me, i), sequence)
                    break
                except QueueFull:
                    take()
        while left._value < 8 * each:
            take()

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(mine == sorted(mine) for mine in numbers)
    assert sorted(itertools.chain(*numbers)) == list(range(1, 8 * each + 1))
    assert sorted(itertools.chain(*events)) == [(me, i) for me in range(8) for i in range(each)]
    assert manager.in_flight == 0


def test_cycles_through_a_manager_are_collected() -> None:
    class Event:
        pass

    event = Event()
    event.manager = manager = EventOrderingManager()  # type: ignore[attr-defined]
    manager.queue_event(event, manager.assign_sequence("late"))
    manager.queue_event(event, EventSequence("early", 0, 0.0))
    alive = weakref.ref(event)
    del event, manager
    gc.collect()
    assert alive() is None


def test_a_destructor_may_call_the_manager_that_drops_it() -> None:
    # Would deadlock if anything were dropped while the lock is held.
    manager = EventOrderingManager()
    seen: list[int] = []

    class Event:
        def __del__(self) -> None:
            seen.append(manager.in_flight)

    manager.queue_event(Event(), manager.assign_sequence("e"))
    manager.__init__()  # type: ignore[misc]
    assert seen == [0]


# --- sequences ---


def test_a_sequence_is_the_dataclass_that_v1_had() -> None:
    @dataclass
    class V1:
        event_id: str
        sequence_number: int
        timestamp: float
        priority: EventPriority = EventPriority.NORMAL

    ours, theirs = EventSequence("e", 1, 2.5), V1("e", 1, 2.5)
    assert dataclasses.is_dataclass(EventSequence)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert dataclasses.astuple(ours) == dataclasses.astuple(theirs)
    assert repr(ours) == repr(theirs).replace(V1.__qualname__, "EventSequence")
    assert EventSequence.__match_args__ == V1.__match_args__
    shape = [(f.name, f.type, f.default) for f in dataclasses.fields(EventSequence)]
    assert [name for name, _, _ in shape] == [f.name for f in dataclasses.fields(V1)]
    assert shape[3] == ("priority", EventPriority, EventPriority.NORMAL)
    assert [str(p) for p in inspect.signature(EventSequence).parameters.values()] == [
        "event_id: str",
        "sequence_number: int",
        "timestamp: float",
        "priority: ironbus.priority.EventPriority = <EventPriority.NORMAL: 2>",
    ]
    assert typing.get_type_hints(EventSequence) == typing.get_type_hints(V1, localns={"EventPriority": EventPriority})
    assert EventSequence.__module__ == "ironbus.ordering"
    assert "Unix seconds" in (EventSequence.__doc__ or "")
    with pytest.raises(TypeError, match="unhashable"):
        hash(ours)
    with pytest.raises(TypeError, match="missing 2 required"):
        EventSequence("e")  # type: ignore[call-arg]


def given_out() -> EventSequence:
    return EventOrderingManager().assign_sequence("e", EventPriority.LOW)


@pytest.mark.parametrize("make", [given_out, lambda: EventSequence("e", 1, 2.5)], ids=["given out", "made"])
def test_a_sequence_is_a_mutable_value(make: Any) -> None:
    sequence = make()
    assert sequence == sequence
    assert sequence == EventSequence(*dataclasses.astuple(sequence))
    assert sequence != dataclasses.astuple(sequence)
    for same in (
        copy.copy(sequence),
        copy.deepcopy(sequence),
        dataclasses.replace(sequence),
        *(pickle.loads(pickle.dumps(sequence, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)),
    ):
        assert same is not sequence
        assert type(same) is EventSequence
        assert same == sequence
        same.event_id = "other"
        assert same != sequence
    assert dataclasses.replace(sequence, sequence_number=8).sequence_number == 8
    for value in (3, 2**70, "text", None, 1.5):
        for field in dataclasses.fields(sequence):
            setattr(sequence, field.name, value)
        assert dataclasses.astuple(sequence) == (value,) * 4
    match EventSequence("m", 7, 0.0):
        case EventSequence(event_id, number):
            assert (event_id, number) == ("m", 7)


@pytest.mark.parametrize("make", [given_out, lambda: EventSequence("e", 1, 2.5)], ids=["given out", "made"])
def test_a_sequence_without_an_id_is_not_queued(make: Any) -> None:
    sequence, manager = make(), EventOrderingManager()
    del sequence.event_id
    with pytest.raises(AttributeError):
        sequence.event_id  # noqa: B018
    with pytest.raises(AttributeError, match="event_id"):
        manager.queue_event("event", sequence)
    sequence.event_id = "again"
    manager.queue_event("event", sequence)
    assert manager.get_next_events() == [(sequence, "event")]


def test_what_a_sequence_held_is_let_go_with_it() -> None:
    # Its memory is used again; what was in it must not be, and must not be kept.
    class Id:
        pass

    manager = EventOrderingManager()
    for _ in range(3):
        ids = [Id() for _ in range(3_000)]  # more than are kept
        alive = [weakref.ref(one) for one in ids]
        sequences = [manager.assign_sequence(one) for one in ids]  # type: ignore[arg-type]
        for sequence, one in zip(sequences[::2], ids, strict=False):
            sequence.priority = one  # type: ignore[assignment]
        assert [sequence.event_id for sequence in sequences] == ids
        del ids, sequences, sequence, one
        assert not any(ref() for ref in alive)
    assert manager.assign_sequence("e").priority is EventPriority.NORMAL


@dataclass
class Traced(EventSequence):
    """A dataclass on top, with a field of its own."""

    trace: str = "none"


@dataclass(slots=True)
class Slotted(EventSequence):
    """The same with slots."""

    trace: str = "none"


class Plain(EventSequence):
    """A class on top, with other arguments."""

    def __init__(self, event_id: str, *, extra: int) -> None:
        super().__init__(event_id, 1, 0.0)
        self.extra = extra


@pytest.mark.parametrize(
    "sequence", [Traced("e", 1, 0.0, EventPriority.HIGH, "t"), Slotted("e", 1, 0.0, trace="t"), Plain("e", extra=3)]
)
def test_subclasses_are_values_too_and_can_be_queued(sequence: EventSequence) -> None:
    for same in (copy.copy(sequence), copy.deepcopy(sequence), pickle.loads(pickle.dumps(sequence))):
        assert type(same) is type(sequence)
        assert same == sequence
        assert getattr(same, "extra", None) == getattr(sequence, "extra", None)
        assert getattr(same, "trace", None) == getattr(sequence, "trace", None)
    assert sequence != EventSequence("e", 1, 0.0)
    assert type(sequence).__qualname__ in repr(sequence)
    manager = EventOrderingManager()
    manager.queue_event("event", sequence)
    assert manager.get_next_events() == [(sequence, "event")]


def test_cycles_through_a_sequence_are_collected() -> None:
    class Id:
        pass

    for given_at_once in (True, False):
        holder = Id()
        sequence = EventOrderingManager().assign_sequence(holder if given_at_once else "e")  # type: ignore[arg-type]
        sequence.event_id = holder  # type: ignore[assignment]
        holder.sequence = sequence  # type: ignore[attr-defined]
        alive = weakref.ref(holder)
        del holder, sequence
        gc.collect()
        assert alive() is None


def test_an_id_that_leads_back_to_its_sequence_is_collected() -> None:
    class Id:
        pass

    holder = Id()
    holder.sequence = EventOrderingManager().assign_sequence(holder)  # type: ignore[attr-defined, arg-type]
    alive = weakref.ref(holder)
    del holder
    gc.collect()
    assert alive() is None


def test_eight_threads_may_set_and_read_one_sequence() -> None:
    sequence = EventOrderingManager().assign_sequence("e")
    barrier = threading.Barrier(8)
    failures: list[object] = []

    def work(me: int) -> None:
        barrier.wait()
        for i in range(2_000):
            sequence.event_id = f"{me}-{i}"
            if not isinstance(sequence.event_id, str) or sequence.sequence_number != 1:
                failures.append(dataclasses.astuple(sequence))

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
