"""What a dead letter keeps of an exception, and of a payload: text, whatever they are."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from typing import Any


def describe(error: BaseException | str) -> tuple[str, str, str, str]:
    """The exception's type, its text, its traceback, and where it was raised. A text describes itself."""
    if isinstance(error, str):
        return "", writable(error), "", ""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return _name(error), writable(text(error)), writable("".join(_trace(error, set()))), writable(place)


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
        yield from traceback.format_tb(error.__traceback__)
    yield f"{_name(error)}\n"


def encode(data: Any) -> tuple[str, bool]:
    """JSON, and whether it gives the data back; if not, the nearest text that there is."""
    try:
        return _json(data, allow_nan=False), True
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return _json(data, default=text), False
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
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _json(data: Any, **options: Any) -> str:
    text = json.dumps(data, ensure_ascii=False, **options)
    # Lone surrogates have an escape in JSON.
    return text if text.isascii() or _is_writable(text) else json.dumps(data, **options)


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
