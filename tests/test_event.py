"""``Event`` is native, and callers of the ``pm.events`` API must not notice.

Most tests do the same thing to an ``Event`` and to a real dataclass with the same
five fields, and compare what comes of it.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import inspect
import json
import multiprocessing
import pickle
import threading
import time
import typing
import uuid
import weakref
from dataclasses import dataclass, field

import ironbus
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ironbus import Delivery, Event
from ironbus.priority import EventPriority


@dataclass
class Model:
    """What ``Event`` was before it was native."""

    type: str
    data: typing.Any
    timestamp: float = None
    event_id: str = None
    source: str = "pm_system"

    def __post_init__(self):
        if self.timestamp is None:
            self.timestamp = time.time()
        if self.event_id is None:
            self.event_id = str(uuid.uuid4())


BASES = [Model, Event]
FIELDS = ["type", "data", "timestamp", "event_id", "source"]
FULL = ("a", {"x": [1]}, 1.5, "id-1", "test")


def variants(base):
    """The ways in which callers subclass."""

    class Plain(base):
        def __init__(self, x):
            super().__init__("plain", {"x": x}, 1.0, "id")
            self.x = x

    @dataclass
    class Extra(base):
        extra: int = 0

    @dataclass
    class Defaults(base):
        data: dict = field(default_factory=dict)
        source: str = "elsewhere"
        tags: list = field(default_factory=list)

    @dataclass(kw_only=True)
    class Keyword(base):
        extra: int

    @dataclass(slots=True)
    class Slots(base):
        extra: int = 0

    @dataclass
    class Narrow(base):
        data: dict
        priority: int = 9

    @dataclass
    class Clash(base):
        key: str = "k"
        sequence: int = 5
        delivery: str = "dhl"

    return {
        "Plain": Plain(7),
        "Extra": Extra(*FULL, extra=3),
        "Defaults": Defaults("a", timestamp=1.0, event_id="id"),
        "Keyword": Keyword(*FULL, extra=3),
        "Slots": Slots(*FULL, extra=3),
        "Narrow": Narrow(*FULL),
        "Clash": Clash(*FULL),
    }


VARIANTS = list(variants(Model))


@dataclass
class Extended(Event):
    """At module level, where pickle finds it."""

    extra: int = 0
    tags: list = field(default_factory=list)


@dataclass(slots=True)
class Slotted(Event):
    extra: int = 0


class Handwritten(Event):
    def __init__(self, x):
        super().__init__("handwritten", {"x": x})
        self.x = x


class Node(Event):
    __slots__ = ("left", "right")


def outcome(function, *args):
    """What came of a call: its result, or the class of what it raised."""
    try:
        return function(*args)
    except Exception as error:
        return type(error)


def both(function):
    """The outcomes with the model and with the event, made comparable."""

    def plain(value):
        return repr(value).replace("Model", "Event")

    return plain(outcome(function, Model)), plain(outcome(function, Event))


def assert_same(function):
    model, event = both(function)
    assert event == model


# --- the constructor and the fields


@pytest.mark.parametrize(
    "call",
    [
        lambda E: E(*FULL),
        lambda E: E("a", None, 1, 2, 3),
        lambda E: E(type="a", data=1, timestamp=2, event_id=3, source=None),
        lambda E: E("a", 1, 2, 3, None),
        lambda E: E(),
        lambda E: E("a"),
        lambda E: E("a", 1, 2, 3, 4, 5),
        lambda E: E("a", 1, nonsense=1),
        lambda E: E("a", 1, type="b"),
        lambda E: E("a", 1, 2, "i").source,
        lambda E: E(None, [], "yesterday", 0, ""),
    ],
)
def test_construction(call):
    assert_same(call)


def test_defaults():
    before = time.time()
    event = Event("a", {})
    assert before <= event.timestamp <= time.time()
    assert type(event.timestamp) is float
    assert type(event.event_id) is str
    assert event.source == "pm_system"
    assert str(uuid.UUID(event.event_id)) == event.event_id
    assert uuid.UUID(event.event_id).version == 8
    assert uuid.UUID(event.event_id).variant == uuid.RFC_4122
    assert event.event_id == event.event_id


def test_the_payload_is_shared():
    data = {"a": object()}
    assert Event("a", data).data is data


@pytest.mark.parametrize("name", FIELDS)
def test_fields_can_be_set_and_deleted(name):
    def work(E):
        event = E(*FULL)
        seen = [getattr(E, name, "missing")]
        for value in (None, 3, {"deep": []}):
            setattr(event, name, value)
            seen.append(getattr(event, name))
        delattr(event, name)
        seen.append(outcome(getattr, event, name))
        seen.append(outcome(delattr, event, name))
        setattr(event, name, "again")
        return [*seen, event]

    assert_same(work)


def test_missing_fields_say_so_as_python_does():
    for base in BASES:
        event = base.__new__(base)
        with pytest.raises(AttributeError, match=f"'{base.__name__}' object has no attribute 'data'"):
            event.data  # noqa: B018
        with pytest.raises(AttributeError, match=f"type object '{base.__name__}' has no attribute 'data'"):
            base.data  # noqa: B018
        assert event.source == "pm_system"
        assert event.timestamp is None


def test_new_takes_anything():
    assert isinstance(Event.__new__(Event, 1, 2, x=3), Event)


def test_constructing_again_replaces_the_fields():
    def work(E):
        event = E(*FULL)
        event.__init__("b", 2, 3, 4, 5)
        return event

    assert_same(work)


def test_arbitrary_attributes():
    def work(E):
        event = E(*FULL)
        event.trace = 1
        event.to_dict = "shadowed"
        seen = [event.trace, event.to_dict, hasattr(event, "other")]
        del event.trace
        return [*seen, hasattr(event, "trace"), event]

    assert_same(work)


def test_vars_are_the_fields_and_stay_live():
    def work(E):
        event = E(*FULL)
        event.trace = 1
        own = vars(event)
        seen = sorted(own.items(), key=str)
        event.data = 2
        own["source"] = "through the dict"
        del own["timestamp"]
        seen.append((sorted(own), event.data, event.source, event.timestamp))
        event.__dict__ = {"type": "new"}
        return [*seen, vars(event), event.type, hasattr(event, "data")]

    assert_same(work)


# --- dataclass behaviour


def test_it_is_a_dataclass():
    assert dataclasses.is_dataclass(Event)
    assert Event.__match_args__ == Model.__match_args__
    assert [f.name for f in dataclasses.fields(Event)] == FIELDS
    assert [f.default for f in dataclasses.fields(Event)] == [f.default for f in dataclasses.fields(Model)]
    assert typing.get_type_hints(Event) == typing.get_type_hints(Model)
    assert Event.__hash__ is None
    assert Event.__module__ == "ironbus"
    parameters = inspect.signature(Event).parameters.values()
    expected = inspect.signature(Model).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [(p.name, p.default) for p in expected]
    assert dataclasses.asdict(Event(*FULL)) == dataclasses.asdict(Model(*FULL))
    assert dataclasses.astuple(Event(*FULL)) == FULL
    assert_same(lambda E: dataclasses.replace(E(*FULL), data=5, source="replaced"))
    with pytest.raises(TypeError, match="unhashable"):
        hash(Event(*FULL))
    match Event(*FULL):
        case Event("a", {"x": [first]}):
            assert first == 1
        case _:
            pytest.fail("did not match")


values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()))
arguments = st.tuples(st.text(), values, st.floats(), st.text(), st.text())


@given(first=arguments, second=arguments)
def test_equality_and_repr(first, second):
    for left, right in ((first, second), (first, first), (first, copy.deepcopy(first))):
        assert_same(lambda E, left=left, right=right: (E(*left) == E(*right), E(*left) != E(*right)))
    assert_same(lambda E: E(*first))


def test_equality_is_within_one_class():
    @dataclass
    class Same(Event):
        pass

    class Undecorated(Event):
        pass

    event = Event(*FULL)
    assert event == Event(*FULL)
    assert event != Same(*FULL)
    assert event != Undecorated(*FULL)
    assert Undecorated(*FULL) == Undecorated(*FULL)
    assert event != FULL
    assert event.__eq__(FULL) is NotImplemented
    with pytest.raises(TypeError):
        event < event  # noqa: B015


def test_repr_of_an_event_within_itself():
    def work(E):
        event = E(*FULL)
        event.data["self"] = event
        return event

    assert "..." in both(work)[1]
    FULL[1].pop("self", None)


@given(arguments)
def test_to_dict_and_to_json(args):
    event = Event(*args)
    expected = dict(zip(FIELDS, args, strict=True))
    assert repr(event.to_dict()) == repr(expected)
    assert event.to_dict()["data"] is event.data
    assert event.to_json() == json.dumps(expected, default=str)


def test_to_json_goes_through_str_where_it_must():
    identity = uuid.uuid4()
    assert json.loads(Event("a", {"id": identity}, 1.0, "i").to_json())["data"] == {"id": str(identity)}


# --- subclasses


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "look",
    [
        repr,
        vars,
        lambda e: e.data,
        lambda e: dataclasses.asdict(e),
        lambda e: [(f.name, repr(f.default)) for f in dataclasses.fields(e)],
        lambda e: inspect.signature(type(e)).parameters.keys(),
        lambda e: copy.copy(e) == e,
        lambda e: copy.copy(e).data is e.data,
        lambda e: copy.deepcopy(e) == e,
        lambda e: copy.deepcopy(e).data is e.data,
        lambda e: vars(copy.copy(e)),
        lambda e: e.__getstate__(),
        lambda e: [getattr(e, n, "missing") for n in (*FIELDS, "extra", "tags", "x")],
        lambda e: e == e,
    ],
)
def test_subclasses(name, look):
    assert_same(lambda E: look(variants(E)[name]))


def test_names_of_the_bus_are_free_in_subclasses():
    class Mine(Event):
        def __init__(self):
            super().__init__("mine", {})
            self.priority = "mine"
            self.headers = {"a": 1}

    assert Mine().priority == "mine"
    assert Mine().headers == {"a": 1}
    assert Mine().sequence is None
    assert variants(Event)["Clash"].sequence == 5


def test_the_hook_runs_once_and_may_be_overridden():
    def work(E):
        calls = []

        class Hooked(E):
            def __post_init__(self):
                calls.append(self.timestamp)
                super().__post_init__()

        return Hooked("a", 1).timestamp is None, calls

    assert_same(work)


def test_properties_may_replace_fields():
    def work(E):
        class Shouting(E):
            @property
            def source(self):
                return self._source.upper()

            @source.setter
            def source(self, value):
                self._source = value

        return Shouting("a", 1, 2, "i", "quiet").source

    assert_same(work)


def test_subclass_defaults_are_filled_in():
    event = Extended("a", {})
    assert event.extra == 0
    assert event.tags == []
    assert isinstance(event.timestamp, float)
    assert uuid.UUID(event.event_id)
    assert event.event_id == event.event_id


# --- copies and pickles


def examples():
    used = Event(*FULL)
    used.trace = ["t"]
    looked_at = Event(*FULL)
    vars(looked_at)
    node = Node("node", 1, 2.0, "i")
    node.left = [1]
    handwritten = Handwritten(3)
    handwritten.more = {"m": 1}
    return [
        Event(*FULL),
        Event("lazy", {}),
        used,
        looked_at,
        Extended(*FULL, extra=4, tags=["x"]),
        Slotted(*FULL, extra=4),
        handwritten,
        node,
    ]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dumps", [pickle.dumps, pickle._dumps], ids=["c", "python"])
@pytest.mark.parametrize("index", range(len(examples())))
def test_pickles(protocol, dumps, index):
    event = examples()[index]
    again = pickle.loads(dumps(event, protocol))
    assert type(again) is type(event)
    assert again == event
    assert vars(again) == vars(event)
    assert getattr(again, "left", None) == getattr(event, "left", None)
    assert again.data is not event.data or not isinstance(event.data, dict)


@pytest.mark.parametrize("index", range(len(examples())))
def test_copies(index):
    event = examples()[index]
    shallow, deep = copy.copy(event), copy.deepcopy(event)
    for again in (shallow, deep):
        assert type(again) is type(event)
        assert again == event
        assert vars(again) == vars(event)
    assert shallow.data is event.data
    shallow.type = "changed"
    assert event.type != "changed"


def test_a_pickled_event_may_contain_itself():
    event = Event("a", {})
    event.data["event"] = event
    for again in (pickle.loads(pickle.dumps(event)), copy.deepcopy(event)):
        assert again.data["event"] is again


def test_the_state_may_be_customised():
    def work(E):
        class Lock(E):
            def __getstate__(self):
                state = self.__dict__.copy()
                del state["lock"]
                return state

            def __setstate__(self, state):
                self.__dict__.update(state)
                self.lock = "new"

        event = Lock(*FULL)
        event.lock = threading.Lock()
        again = copy.copy(event)
        return vars(again), again == event

    assert_same(work)


# --- what the bus adds


def test_before_it_is_published():
    event = Event("a", {})
    assert event.sequence is None
    assert event.priority is EventPriority.NORMAL
    assert event.key is None
    assert event.headers == {}
    assert event.idempotency_key is None
    assert event.correlation_id == event.event_id
    assert event.causation_id is None
    assert event.delivery is None
    with pytest.raises(TypeError):
        event.headers["a"] = "b"


@pytest.mark.parametrize(
    "name",
    ["sequence", "priority", "key", "headers", "idempotency_key", "correlation_id", "causation_id", "delivery"],
)
def test_what_the_bus_adds_is_read_only(name):
    event = Event("a", {})
    with pytest.raises(AttributeError, match=f"{name} of an Event is set by the bus"):
        setattr(event, name, 1)
    with pytest.raises(AttributeError):
        delattr(event, name)


def test_delivery_is_a_value():
    delivery = Delivery(1, "bill", 2.5)
    assert (delivery.attempt, delivery.subscription, delivery.deadline) == (1, "bill", 2.5)
    assert delivery == Delivery(1, "bill", 2.5)
    assert hash(delivery) == hash(Delivery(1, "bill", 2.5))
    assert delivery != Delivery(2, "bill", 2.5)
    assert delivery != (1, "bill", 2.5)
    assert repr(Delivery(1, "bill")) == "Delivery(attempt=1, subscription='bill', deadline=None)"
    assert pickle.loads(pickle.dumps(delivery)) == delivery
    with pytest.raises(AttributeError):
        delivery.attempt = 2


def test_events_are_generic():
    alias = Event[int]
    assert typing.get_origin(alias) is Event
    assert typing.get_args(alias) == (int,)
    assert alias("a", 1, 2.0, "i") == Event("a", 1, 2.0, "i")

    class Typed(Event[int]):
        pass

    assert issubclass(Typed, Event)


# --- memory


@pytest.mark.parametrize("place", ["data", "type", "timestamp", "event_id", "source", "other"])
@pytest.mark.parametrize("make", [lambda: Event("a", 1), lambda: Extended("a", 1), lambda: Node("a", 1)])
def test_cycles_are_collected(make, place):
    class Canary:
        pass

    event = make()
    canary = Canary()
    setattr(event, place, [event, canary])
    gone, dead = weakref.ref(event), weakref.ref(canary)
    del event, canary
    gc.collect()
    assert gone() is None
    assert dead() is None


def test_destructors_may_look_at_the_event():
    seen = []

    class Payload:
        def __init__(self, event):
            self.event = event

        def __del__(self):
            seen.append(self.event.data)

    event = Event("a", None)
    event.data = Payload(event)
    event.data = 1
    assert seen == [1]
    event.source = Payload(event)
    event.__init__("b", 2)
    assert seen == [1, 2]
    event.event_id = Payload(event)
    del event.event_id
    assert seen == [1, 2, 2]


def test_nothing_leaks():
    marker = object()
    import sys

    before = sys.getrefcount(marker)
    for _ in range(100):
        event = Event(marker, marker, marker, marker, marker)
        event.data = marker
        copy.copy(event)
        pickle.dumps(Event("a", 1))
        vars(event)
        event.extra = marker
        Extended(marker, marker, extra=marker)
        outcome(Event, marker)
        del event
    gc.collect()
    assert sys.getrefcount(marker) == before


# --- ids


def test_ids_are_unique_across_threads():
    ids = [[] for _ in range(8)]

    def make(own):
        own.extend(Event("a", 1).event_id for _ in range(2_000))

    threads = [threading.Thread(target=make, args=(own,)) for own in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = [identity for own in ids for identity in own]
    assert len(set(together)) == len(together)
    assert all(own == sorted(own) for own in ids)


def _send_ids(queue):
    queue.put([Event("a", 1).event_id for _ in range(100)])


def test_ids_are_unique_across_forks():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_send_ids, args=(queue,)) for _ in range(3)]
    for child in children:
        child.start()
    ids = [Event("a", 1).event_id for _ in range(100)]
    for _ in children:
        ids += queue.get(timeout=30)
    for child in children:
        child.join()
    assert len(set(ids)) == 400


def test_the_package_exports_them():
    assert ironbus.Event is Event
    assert ironbus.Delivery is Delivery
