"""The texts of a dead letter. They may hold values, and go nowhere but into its queue."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

#: Characters of a payload that has no JSON.
_SHOWN = 16 * 1024


def describe(error: BaseException) -> tuple[str, str, str, str]:
    """The exception's type with its module, its text, its traceback, and where it was raised."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return name, _safely(str, error), "".join(traceback.format_exception(error)), place


def show(data: object) -> str:
    """A payload that has no JSON, as text."""
    return _safely(repr, data)[:_SHOWN]


def _safely(form: Callable[[Any], str], value: object) -> str:
    """The letter of an object whose own code fails says so, and is kept all the same."""
    try:
        return form(value)
    except Exception as error:
        return f"<{type(value).__qualname__}: its text cannot be made, {type(error).__qualname__}>"
