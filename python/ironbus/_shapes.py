"""The dataclasses that native classes stand in for.

The native class takes its fields, ``__init__``, ``__eq__`` and ``__repr__`` from
here, so it is a dataclass to every caller just as the running Python makes one.
Annotations are real objects, not strings: they must mean the same in the native
class's module.
"""

from dataclasses import dataclass

from ironbus.priority import EventPriority


@dataclass
class EventSequence:
    """An event's place in the order: its level, and its number within the manager.

    ``timestamp`` is when the number was given, in Unix seconds. A plain value
    with mutable fields; a manager reads them when the event is queued.
    """

    event_id: str
    sequence_number: int
    timestamp: float
    priority: EventPriority = EventPriority.NORMAL


__all__ = ["EventSequence"]
