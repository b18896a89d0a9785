"""Checks of numbers and classes that people set. The texts name the field and the fix."""

from __future__ import annotations

import math
from typing import TypeGuard

from ironbus.errors import InvalidOption

# The longest time that may be set, in seconds: some thirty years.
LONGEST = 1e9


def check_whole(value: object, name: str) -> None:
    """A whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**63:
        raise InvalidOption(f"{name} must be a whole number of at least 1", name)


def check_seconds(value: object, name: str) -> None:
    """A number of seconds of at least 0."""
    if not _is_number(value) or not 0 <= value <= LONGEST:
        raise InvalidOption(f"{name} must be a number of seconds from 0 to 1e9", name)


def check_number(value: object, name: str, low: float, high: float) -> None:
    """A finite number within bounds, both included."""
    if not _is_number(value) or not low <= value <= high:
        most = "" if high == math.inf else f" and at most {high:g}"
        raise InvalidOption(f"{name} must be a finite number of at least {low:g}{most}", name)


def check_bool(value: object, name: str) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise InvalidOption(f"{name} must be True or False", name)


def check_choice(value: object, choices: tuple[str, ...], name: str) -> None:
    """One of the choices."""
    if value not in choices:
        raise InvalidOption(f"{name} must be one of {', '.join(map(repr, choices))}", name)


def check_callable(value: object, name: str, fix: str) -> None:
    """A callable, or None."""
    if value is not None and not callable(value):
        raise InvalidOption(f"{name} must be {fix}", name)


def check_exceptions(value: object, name: str) -> tuple[type[Exception], ...]:
    """Classes of exceptions: one, or several."""
    classes = (value,) if isinstance(value, type) else value
    if isinstance(classes, (tuple, list, set, frozenset)) and all(
        isinstance(each, type) and issubclass(each, Exception) for each in classes
    ):
        return tuple(classes)
    text = f"{name} must be a subclass of Exception, or a tuple of them, for example (ConnectionError, TimeoutError)"
    raise InvalidOption(text, name)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
