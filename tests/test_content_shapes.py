"""Dictionaries that look alike are remembered by their keys; no content key may show it.

Each test makes the same dictionary several times: met once it is worked out, met again it is written
from memory. What is compared is always the formula over the standard library.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import json
import sys
from collections import OrderedDict, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ironbus import EventBus, content_key, errors

AGAIN = 4  # once to look, once to remember, and the rest from memory


def formula(data):
    text = json.dumps(data, sort_keys=True, allow_nan=False)
    return hashlib.sha256(f"order:{text}".encode()).digest()


def same(data):
    expected = formula(data)
    for _ in range(AGAIN):
        assert content_key("order", data) == expected


def copy_of(text):
    """An equal `str` that is another object, and not interned."""
    copy = "".join(list(text)) if len(text) > 1 else (text + "  ")[: len(text)]
    assert copy == text
    return copy


class Text(str):
    """Equal to the `str`, and not exactly one."""

    __slots__ = ()


class Collides(str):
    __slots__ = ()

    def __hash__(self):
        return hash("amount")

    def __eq__(self, other):
        return self is other


def fresh(name):
    """An interned key of nobody else's."""
    return sys.intern(f"shape {name} {next(fresh.count)}")


fresh.count = itertools.count()


def test_a_shape_is_remembered_by_its_keys():
    """Without this, the tests below could pass because nothing is."""
    keys = [fresh("kept"), fresh("kept")]
    if sys.getrefcount(keys[0]) > 2**30:
        pytest.skip("interned strings are immortal here")
    before = [sys.getrefcount(key) for key in keys]
    for _ in range(AGAIN):
        content_key("order", dict.fromkeys(keys, 1))
    assert [sys.getrefcount(key) for key in keys] == [count + 1 for count in before]

    loose = [copy_of(key) for key in keys]
    before = [sys.getrefcount(key) for key in loose]
    for _ in range(AGAIN):
        content_key("order", dict.fromkeys(loose, 1))
    assert [sys.getrefcount(key) for key in loose] == before, "keys of one dictionary only are not worth it"


def test_changes_between_two_looks():
    data = {"order_id": 1, "customer": "c1", "amount": 19.99}
    same(data)
    data["customer"] = ["c1", {"amount": None}]
    same(data)
    data["added"] = True
    same(data)
    del data["order_id"]
    same(data)
    data["order_id"] = 1
    same(data)
    del data["added"]
    same(data)
    data.clear()
    same(data)
    data["amount"] = 2
    same(data)


def test_a_value_of_another_type_at_each_look():
    values = [1, -(2**70), 1.5, "a", "é", None, True, False, [], [1], (), (2,), {}, {"amount": 1}, "x" * 100]
    for first, second in itertools.product(values, repeat=2):
        data = {"amount": first, "customer": second}
        assert content_key("order", data) == formula(data)


def test_every_order_of_the_same_keys():
    keys = ["order_id", "customer", "amount", "items"]
    for _ in range(AGAIN):
        for order in itertools.permutations(keys):
            data = {key: index for index, key in enumerate(order)}
            assert content_key("order", data) == formula(data)


def test_some_of_the_same_keys():
    keys = ["order_id", "customer", "amount", "items", "order"]
    for count in range(len(keys) + 1):
        for some in itertools.combinations(keys, count):
            same(dict.fromkeys(some, count))


def test_equal_keys_that_are_other_objects():
    plain = {"order_id": 1, "customer": 2, "amount": 3}
    same(plain)
    same({copy_of(key): value for key, value in plain.items()})
    for position in range(3):
        same({copy_of(key) if at == position else key: value for at, (key, value) in enumerate(plain.items())})
    same(json.loads(json.dumps(plain)))
    same(plain)


def test_keys_that_are_not_exactly_str():
    plain = {"order_id": 1, "customer": 2, "amount": 3}
    same(plain)
    for position in range(3):
        same({Text(key) if at == position else key: value for at, (key, value) in enumerate(plain.items())})
    same({1: "order_id", 2: "customer", 3: "amount"})
    same({None: 1})
    same({True: 1})
    same({1.5: 1})
    mixed = {"order_id": 1, 2: 3}
    for _ in range(AGAIN):
        with pytest.raises(errors.PayloadNotEncodable):
            content_key("order", mixed)
    same(plain)


def test_keys_with_the_same_hash():
    first, second = Collides("order_id"), Collides("customer")
    assert hash(first) == hash(second) == hash("amount")
    for keys in itertools.permutations([first, second, "amount"]):
        same({key: index for index, key in enumerate(keys)})
    # Equal texts under keys that are not equal: all are written, in the order in which they came.
    same({Collides("amount"): 1, "amount": 2})


@pytest.mark.parametrize(
    "key",
    ["", '"', "\\", "\x00", "\n", "\x1f", "\x7f", "\x80", "é", "\uffff", "\U0001f600", 'a"b', "a\\b", "/", "a b", "~"],
)
def test_keys_that_need_an_escape_or_do_not(key):
    key = sys.intern(key)
    same({key: 1})
    same({"amount": 0, key: 1, "z": 2})
    same({"z": 0, key: {key: 1}, "amount": 2})


def test_a_key_without_utf_8():
    key = sys.intern("\ud800")
    same({"amount": 1, key: 2})


@pytest.mark.parametrize("length", [1, 7, 8, 9, 38, 39, 40, 41, 42, 100, 300])
def test_long_keys(length):
    same({sys.intern("k" * length): 1, "amount": 2})
    same({sys.intern("k" * length): 1, sys.intern("k" * (length - 1) + "l"): 2})


@pytest.mark.parametrize("count", [1, 2, 30, 31, 32, 33, 34, 64, 255, 256, 257, 1000])
def test_many_keys(count):
    keys = [sys.intern(f"key {number:04}") for number in range(count)]
    data = {key: number for number, key in enumerate(keys)}
    same(data)
    same(dict(reversed(data.items())))
    same(data | {"one more": 1})


def test_more_shapes_than_there_is_room_for():
    shapes = [[fresh("many") for _ in range(1 + number % 5)] for number in range(300)]
    for _ in range(AGAIN):
        for keys in shapes:
            data = dict.fromkeys(keys, len(keys))
            assert content_key("order", data) == formula(data)
    # By turns, so that two of one place push each other out.
    for first, second in itertools.pairwise(shapes):
        for keys in (first, second) * AGAIN:
            data = dict.fromkeys(keys, 0)
            assert content_key("order", data) == formula(data)


def test_keys_that_are_gone():
    """An address may come again with another key; what is remembered keeps its own."""
    for number in range(2_000):
        keys = [sys.intern(f"g{number % 7}{number}"), sys.intern(f"h{number}")]
        data = dict.fromkeys(keys, 1)
        for _ in range(AGAIN):
            assert content_key("order", data) == formula(data)
        del keys, data
    gc.collect()


def test_shapes_within_shapes():
    line = {"sku": "a", "count": 2}
    same({"items": [line, line], "sku": {"sku": {"sku": line}}, "count": line})
    same({"sku": {"count": 1, "sku": {"count": 1, "sku": 2}}, "count": [{"sku": 1, "count": {}}]})
    same([{"sku": number, "count": [{"sku": number}]} for number in range(50)])


def test_subclasses_of_dict():
    class Renamed(dict):
        def items(self):
            return [(f"{key}!", value) for key, value in super().items()]

    plain = {"order_id": 1, "customer": 2}
    same(plain)
    for kind in (dict, OrderedDict, Renamed, lambda items: defaultdict(int, items)):
        made = kind(plain)
        same(made)
        same({"order_id": made, "customer": [made]})
        same(plain)
    assert content_key("order", Renamed(plain)) != content_key("order", plain)
    moved = OrderedDict(plain)
    moved.move_to_end("order_id")
    same(moved)


def test_attributes_of_an_object():
    """Such a dictionary shares its keys with those of other instances."""

    class Order:
        def __init__(self, number):
            self.order_id, self.customer = number, "c1"

    orders = [Order(number) for number in range(5)]
    orders[2].extra = 1
    del orders[3].order_id
    for order in orders * AGAIN:
        assert content_key("order", vars(order)) == formula(vars(order))


def test_a_refused_dictionary_leaves_nothing_behind():
    keys = [fresh("refused"), fresh("refused")]
    bad = dict.fromkeys(keys, object())
    for _ in range(AGAIN):
        with pytest.raises(errors.PayloadNotEncodable):
            content_key("order", bad)
    same(dict.fromkeys(keys, 1))
    for _ in range(AGAIN):
        with pytest.raises(errors.PayloadNotEncodable):
            content_key("order", {keys[0]: 1, keys[1]: {keys[0]: object()}})
    same({keys[0]: 1, keys[1]: {keys[0]: 2}})


INTERNED = ["a", "b", "ab", "amount", "é", 'q"', "k" * 45]
keys = st.sampled_from(INTERNED) | st.sampled_from(INTERNED).map(copy_of) | st.sampled_from(INTERNED).map(Text)
dictionaries = st.recursive(
    st.integers(0, 3) | st.sampled_from(["x", 1.5, None]),
    lambda inner: st.lists(st.tuples(keys, inner), max_size=5).map(dict) | st.lists(inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.lists(dictionaries, min_size=1, max_size=12))
def test_any_row_of_dictionaries(row):
    for data in row * 2:
        assert content_key("order", data) == formula(data)


def test_a_payload_that_changes_is_another_event():
    seen = []

    async def handler(event):
        seen.append(dict(event.data))

    async def publish():
        async with EventBus(idempotency="content") as bus:
            bus.subscribe("order", handler)
            payload = {"order_id": 1, "customer": "c1"}
            for customer in ("c1", "c2", "c2", "c1"):
                payload["customer"] = customer
                await bus.publish("order", payload)
                await bus.drain()
            await bus.publish("order", {"customer": "c1", "order_id": 1})
            await bus.drain()

    asyncio.run(publish())
    assert seen == [{"order_id": 1, "customer": "c1"}, {"order_id": 1, "customer": "c2"}]
