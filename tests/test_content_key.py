"""``content_key`` is a formula over the standard library; here it is compared with it.

``sha256(f"{type}:{json.dumps(data, sort_keys=True, allow_nan=False)}".encode())``:
the same result for everything that ``json.dumps`` takes, and a refusal of the same
category for everything that it refuses, with the path of the field and never a value.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import math
import struct
import sys
import threading
from collections import OrderedDict, UserDict, defaultdict, namedtuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ironbus import content_key, errors

SECRET = "hunter2"
REFUSED = (errors.PayloadNotEncodable, errors.PayloadNotFinite, errors.PayloadCycle, errors.PayloadTooDeep)


def formula(type_, data):
    text = json.dumps(data, sort_keys=True, allow_nan=False)
    return hashlib.sha256(f"{type_}:{text}".encode()).digest()


def same(data, type_="order.paid"):
    """Both agree: on the key, or on refusing."""
    try:
        expected = formula(type_, data)
    except (TypeError, ValueError, RecursionError) as error:
        category = next(c for c in (RecursionError, TypeError, ValueError) if isinstance(error, c))
        with pytest.raises(category) as caught:
            content_key(type_, data)
        assert isinstance(caught.value, REFUSED), caught.value
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        return caught.value
    assert content_key(type_, data) == expected
    return None


class Text(str):
    def __str__(self):
        return "not me"

    __repr__ = __str__


class Whole(int):
    def __repr__(self):
        return "not me"


class Real(float):
    def __repr__(self):
        return "not me"


class Mapping(dict):
    pass


class Renamed(dict):
    def items(self):
        return [(f"{key}!", value) for key, value in super().items()]


class Sequence(list):
    def __iter__(self):
        return iter(())


class Elements(list):
    pass


class Broken(list):
    def __iter__(self):
        raise ValueError(SECRET)


class Colour(enum.IntEnum):
    RED = 1


class Shade(enum.StrEnum):
    DARK = "dark"


class Mixed(str, enum.Enum):  # noqa: UP042 - formats itself as "Mixed.A"
    A = "a"


Point = namedtuple("Point", "x y")

texts = st.text() | st.text(st.characters(codec="ascii")) | st.text(st.characters())
integers = st.integers() | st.integers(-(2**70), 2**70)
numbers = integers | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | texts


def containers(inner, keys=texts):
    lists = st.lists(inner, max_size=6)
    return lists | lists.map(tuple) | st.dictionaries(keys, inner, max_size=6)


json_values = st.recursive(scalars, containers, max_leaves=30)

rare_scalars = (
    scalars
    | st.floats()
    | texts.map(Text)
    | integers.map(Whole)
    | st.floats().map(Real)
    | st.sampled_from([Colour.RED, Shade.DARK, Mixed.A, b"x", 1j, object(), {1}, ..., len, Point(1, "a")])
)
rare_keys = texts | texts.map(Text) | st.integers() | st.none() | st.booleans() | st.floats() | st.binary(max_size=2)


def rare_containers(inner):
    plain = containers(inner) | containers(inner, rare_keys) | containers(inner, st.integers())
    return plain | plain.map(
        lambda made: (Elements if isinstance(made, (list, tuple)) else Mapping)(made),
    )


rare_values = st.recursive(rare_scalars, rare_containers, max_leaves=20)


@settings(max_examples=600)
@given(json_values, st.text(st.characters(codec="utf-8")))
@example({"b": 1, "a": [1.5, None, True, False, "x"], "": {}}, "order.paid")
@example({"\U0001f600": 1, "\uffff": 2, "\ue000": 3, "é": 4, "z": 5}, "")
@example(['\x00\x1f\x7f\x80\xff "\\/\b\f\n\r\t \u2028\ud7ff\ue000\U0010ffff' * 3], "é😀")
def test_json_values_have_the_key_of_the_formula(data, type_):
    assert content_key(type_, data) == formula(type_, data)


@settings(max_examples=1500)
@given(rare_values)
def test_everything_else_has_it_too_or_is_refused_alike(data):
    same(data)


@given(st.lists(st.text(min_size=0, max_size=3, alphabet="aA_\x00é\uffff\U0001f600"), unique=True))
def test_keys_are_sorted_by_code_point(keys):
    same({key: index for index, key in enumerate(keys)})


@settings(max_examples=3000)
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(5e-324)
@example(2.0**-44)
@example(9007199254740993.0)
def test_floats_are_written_as_their_repr(number):
    same(number)


def test_floats_at_every_power():
    for exponent in range(-324, 309):
        for digits in ("1", "9.999", "1.2345678901234567"):
            number = float(f"{digits}e{exponent}")
            for near in (number, -number, math.nextafter(number, 0), math.nextafter(number, math.inf)):
                if math.isfinite(near):
                    same(near)
    for exponent in range(-1074, 1024):
        same([2.0**exponent, math.nextafter(2.0**exponent, 0)])


@given(st.integers(0, 2**64 - 1))
def test_any_bits_of_a_float(bits):
    same(struct.unpack("<d", struct.pack("<Q", bits))[0])


@pytest.mark.parametrize("power", [31, 32, 53, 62, 63, 64, 65, 127, 4000])
def test_integers_around_the_limits_of_machines(power):
    for near in (-1, 0, 1):
        same([2**power + near, -(2**power) + near])
        same({2**power + near: None})


def test_integers_with_too_many_digits():
    error = same({"big": [10 ** (sys.get_int_max_str_digits() + 1)]})
    assert isinstance(error, errors.PayloadNotEncodable)
    assert error.field == "data.big[0]"
    same({10 ** (sys.get_int_max_str_digits() + 1): 1})


@pytest.mark.parametrize("depth", [1, 2, 126, 127, 128, 129, 130, 500, 900, 1100, 2000])
@pytest.mark.parametrize("kind", ["list", "dict", "tuple"])
def test_depth(kind, depth):
    wrap = {"list": lambda inner: [inner], "dict": lambda inner: {"k": inner}, "tuple": lambda inner: (inner,)}[kind]
    data = "leaf"
    for _ in range(depth):
        data = wrap(data)
    error = same(data)
    if error is not None:
        assert isinstance(error, errors.PayloadTooDeep)
        assert error.field.startswith("data.k.k" if kind == "dict" else "data[0][0]")
        assert len(error.field) == 200


def test_more_kinds():
    for data in (
        (),
        [],
        {},
        Mapping(),
        Sequence(),
        Sequence([1, {2}]),
        Elements([1, 2]),
        Renamed(a=1),
        OrderedDict(b=1, a=2),
        defaultdict(list, a=[1]),
        UserDict(a=1),
        Point(1, 2),
        {Text("a"): Text("b"), "c": Shade.DARK, Shade.DARK: Colour.RED},
        {1: "a", 2: "b"},
        {Colour.RED: 1},
        {True: 1, False: 2},
        {None: 1},
        {1.5: 1, -0.0: 2},
        {1: 1, 2.5: 2, False: 3},
        {"1": 1, 1: 2},
        {None: 1, "a": 2},
        {(1, 2): 3},
        {math.nan: 1},
        {b"k": 1},
        "\ud800",
        ["\udfff\ud800"],
        {"\ud83d\ude00": 1, "\ud83d": 2, "\U0001f600": 3},
        {"\udc80": 1},
        object(),
        {1, 2},
        b"bytes",
        bytearray(b"x"),
        1j,
        range(3),
        iter([]),
    ):
        same(data)


def test_types():
    for type_ in ("a", "", "with space:and colon", "é😀", "a" * 10_000):
        assert content_key(type_, {}) == formula(type_, {})
    assert content_key(Shade.DARK, 1) == formula("dark", 1)
    assert content_key(Mixed.A, 1) == formula("a", 1), "the text counts, not how it is formatted"
    for type_ in (1, None, b"a", ["a"], "a\ud800"):
        with pytest.raises(errors.InvalidType) as caught:
            content_key(type_, {})
        assert caught.value.field == "type"
    assert content_key(type="a", data=1) == formula("a", 1)


def test_a_value_in_many_places_is_no_cycle():
    shared = {"a": [1]}
    same([shared, shared, {"again": shared}])


def cycles():
    in_list = [1, 2]
    in_list.append({"deeper": in_list})
    yield in_list, "data[2].deeper"
    in_dict = {"a": 1}
    in_dict["self"] = [0, in_dict]
    yield in_dict, "data.self[1]"
    in_tuple = ([],)
    in_tuple[0].append(in_tuple)
    yield in_tuple, "data[0][0]"
    in_mapping = Mapping(a=1)
    in_mapping["b"] = in_mapping
    yield in_mapping, "data.b"


@pytest.mark.parametrize(("data", "path"), list(cycles()), ids=["list", "dict", "tuple", "subclass"])
def test_cycles(data, path):
    error = same(data)
    assert isinstance(error, errors.PayloadCycle)
    assert error.field == path


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, Real("nan")])
def test_not_finite(number):
    error = same({"items": [{"price": 1.0}, {}, {"price": number}]})
    assert isinstance(error, errors.PayloadNotFinite)
    assert error.field == "data.items[2].price"
    assert "data.items[2].price" in str(error)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({1}, "data"),
        ([b"x"], "data[0]"),
        ({"a": {"b": ({"c": object()},)}}, "data.a.b[0].c"),
        ({"a b": {"1": {1: {None: {True: {1.5: 1j}}}}}}, 'data["a b"]["1"][1][None][True][float]'),
        ({"k": {("tuple", "key"): 1}}, "data.k"),
        ({"k": {1: 1, "a": 2}}, "data.k"),
        ({"a" * 100: {1}}, "data." + "a" * 39 + "…"),
        ({"z": {1}, "a": [0, {2}]}, "data.a[1]"),
        ({'quote"\n': {1}}, 'data["quote\\"\\n"]'),
        ({"\ud800": {1}}, 'data["\ufffd\ufffd\ufffd"]'),
        (Mapping(a=Elements([1, {2}])), "data.a[1]"),
    ],
)
def test_paths(data, path):
    error = same(data)
    assert isinstance(error, errors.PayloadNotEncodable)
    assert error.field == path
    assert str(error).startswith(path)


def test_a_path_has_an_end():
    data = {1}
    for _ in range(50):
        data = {"long_name": data}
    error = same(data)
    assert len(error.field) == 200
    assert error.field.startswith("data.long_name.long_name")
    assert error.field.endswith("…")


def test_the_type_at_fault_is_named():
    class Unheard:
        pass

    assert "Unheard" in str(same([Unheard()]))
    assert "tuple" in str(same({("a",): 1}))


class Secretive:
    def __repr__(self):
        return SECRET

    __str__ = __repr__


class Leaky(dict):
    def items(self):
        raise RuntimeError(SECRET)


class Teller(dict):
    def items(self):
        raise ValueError(SECRET)


@pytest.mark.parametrize(
    "data",
    [
        {"password": SECRET, "bad": Secretive()},
        {"password": SECRET, "bad": math.nan},
        [SECRET, {SECRET}],
        {"a": SECRET.encode()},
        {"a": Teller(a=SECRET)},
        {"a": Broken([SECRET])},
        {(SECRET,): 1},
        {"a": {SECRET.encode(): 1}},
    ],
)
def test_no_value_in_any_text(data):
    error = same(data)
    assert SECRET not in str(error)
    assert SECRET not in repr(error)
    assert SECRET not in error.field


def test_an_error_of_a_subclass_is_not_passed_on():
    with pytest.raises(errors.PayloadNotEncodable) as caught:
        content_key("a", {"x": [Leaky(a=1)]})
    assert caught.value.field == "data.x[0]"
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("wrong", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_nobodys_fault_passes_through(wrong):
    class Interrupted(dict):
        def items(self):
            raise wrong

    with pytest.raises(wrong):
        content_key("a", Interrupted(a=1))


def test_the_fallback_may_come_back():
    class Nested(dict):
        def items(self):
            inner = content_key("inner", {"plain": [1, 2, {"deep": "x" * 100}]})
            return [("inner", inner.hex()), ("list", Sequence([1]))]

    data = [Nested(a=1)] * 3
    assert content_key("outer", data) == formula("outer", data)


def test_large_payloads():
    data = {f"key{n}": [n, n / 7, str(n) * 5, {"n": n}] for n in range(20_000)}
    assert content_key("big", data) == formula("big", data)
    assert content_key("small", 1) == formula("small", 1)


@pytest.mark.parametrize("rare", [False, True])
def test_another_thread_changes_the_dict(rare):
    data = {"fixed": {"list": list(range(20))}, "rare": Whole(1) if rare else 1}
    stop = threading.Event()
    before = sys.getswitchinterval()

    def change():
        n = 0
        while not stop.is_set():
            n += 1
            data[f"k{n % 50}"] = {"n": [n] * (n % 5)}
            data.pop(f"k{(n * 7) % 50}", None)
            data["fixed"]["list"] = [n] * (n % 30)
            data["fixed"].pop("x", None) or data["fixed"].update(x=object() if n % 97 == 0 else n)

    threads = [threading.Thread(target=change) for _ in range(2)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(2_000):
            with contextlib.suppress(errors.PayloadNotEncodable):
                assert len(content_key("a", data)) == 32
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)


def test_no_reference_is_taken_or_lost():
    value, key = object(), "a key that is nobody else's"
    data = {key: [1.5, "text of the payload"], "bad": None}
    objects = [key, data[key], data[key][0], data[key][1]]
    before = [sys.getrefcount(each) for each in objects]
    for bad in (None, value, math.nan, "\ud800", 2**80):
        data["bad"] = bad
        for _ in range(100):
            same(data)
    data["bad"] = bad = None
    assert [sys.getrefcount(each) for each in objects] == before
    assert sys.getrefcount(value) == 2
