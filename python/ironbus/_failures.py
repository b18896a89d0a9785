"""What a dead letter keeps of an exception, and of a payload: text, whatever they are."""

from __future__ import annotations

import json
import traceback
from typing import Any


def describe(error: BaseException | str) -> tuple[str, str, str, str]:
    """The exception's type, its text, its traceback, and where it was raised. A text describes itself."""
    if isinstance(error, str):
        return "", writable(error), "", ""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    trace = "".join(traceback.format_list(frames))
    return name, writable(_text(error)), writable(trace), writable(place)


def encode(data: Any) -> tuple[str, bool]:
    """JSON, and whether it gives the data back; if not, the nearest text that there is."""
    try:
        return _json(data, allow_nan=False), True
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return _json(data, default=_text), False
    except (TypeError, ValueError, RecursionError):
        return writable(_text(data)), False


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


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # an object whose text fails still has a type
        return f"<{type(value).__qualname__}>"
