"""The five fields of ``Event`` as a real dataclass, from which the native class takes what makes it one.

Equality, ``repr`` and all that :mod:`dataclasses` looks for are therefore those of
the running Python version, by construction.
"""

# No ``from __future__ import annotations`` here: as strings, the annotations would have
# to be resolved in whichever module ``Event`` says it comes from.
from dataclasses import dataclass
from typing import Any


@dataclass
class Event:
    """The template; never instantiated."""

    type: str
    data: Any
    timestamp: float = None  # type: ignore[assignment]  # None stands for "now", as in the pm.events API
    event_id: str = None  # type: ignore[assignment]  # None stands for "a new one"
    source: str = "pm_system"


TAKEN = (
    "__annotations__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__match_args__",
    "__eq__",
    "__hash__",
    "__repr__",
)
