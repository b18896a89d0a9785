"""What a dead letter keeps of an exception, and of a payload: text, whatever they are."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from types import CodeType, TracebackType
from typing import Any

#: Handlers mostly fail in a few places, and to format a place takes longer than to write the letter: so many
#: are remembered, of so many frames at most.
KNOWN, DEPTH = 256, 32

_known: dict[tuple[tuple[str, CodeType, int], ...], tuple[str, str]] = {}


def describe(error: BaseException | str) -> tuple[str, str, str, str]:
    """The exception's type, its text, its traceback, and where it was raised. A text describes itself."""
    if isinstance(error, str):
        return "", writable(error), "", ""
    place = _frames(error.__traceback__)[1] if error.__traceback__ is not None else ""
    return _name(error), text(error), writable("".join(_trace(error, set()))), writable(place)


def _name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _trace(error: BaseException, seen: set[int]) -> Iterator[str]:
    """As Python prints it, with those that it came from, but without their texts: those are kept apart, or not."""
    seen.add(id(error))
    cause, context = error.__cause__, None if error.__suppress_context__ else error.__context__
    if cause is not None and id(cause) not in seen:
        yield from _trace(cause, seen)
        yield "\nThe above exception was the direct cause of the following exception:\n\n"
    elif context is not None and id(context) not in seen:
        yield from _trace(context, seen)
        yield "\nDuring handling of the above exception, another exception occurred:\n\n"
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):\n"
        yield _frames(error.__traceback__)[0]
    yield f"{_name(error)}\n"


def _frames(trace: TracebackType) -> tuple[str, str]:
    """The frames as Python prints them, and the place of the last one."""
    where: list[tuple[str, CodeType, int]] = []
    at: TracebackType | None = trace
    while at is not None:
        code = at.tb_frame.f_code
        where.append((code.co_filename, code, at.tb_lasti))
        at = at.tb_next
    key = tuple(where)
    known = _known.get(key)
    if known is None:
        frames = traceback.extract_tb(trace)
        last = frames[-1]
        known = "".join(frames.format()), f"{last.filename}:{last.lineno} in {last.name}"
        if len(_known) >= KNOWN:
            _known.clear()
        if len(key) <= DEPTH:
            _known[key] = known
    return known


def encode(data: Any) -> tuple[str, bool]:
    """JSON, and whether it gives the data back; if not, the nearest text that there is."""
    try:
        return _json(data, _WHOLE), True
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return _json(data, _NEAREST), False
    except (TypeError, ValueError, RecursionError):
        return writable(text(data)), False


def decode(text: str) -> Any:
    """What :func:`encode` made a text of; the text itself where that was no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def writable(text: str) -> str:
    """The text in UTF-8, which has no lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _json(data: Any, encoders: tuple[json.JSONEncoder, json.JSONEncoder]) -> str:
    readable, escaping = encoders
    text = readable.encode(data)
    # Lone surrogates have an escape in JSON.
    return text if text.isascii() or _is_writable(text) else escaping.encode(data)


def _is_writable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def text(value: object) -> str:
    """The text of anything, in UTF-8."""
    try:
        return writable(str(value))
    except Exception:  # an object whose text fails still has a type
        return f"<{type(value).__qualname__}>"


_WHOLE = json.JSONEncoder(ensure_ascii=False, allow_nan=False), json.JSONEncoder(allow_nan=False)
_NEAREST = json.JSONEncoder(ensure_ascii=False, default=text), json.JSONEncoder(default=text)
