"""The four levels of urgency."""

from __future__ import annotations

from enum import IntEnum


class EventPriority(IntEnum):
    """How urgent an event is; lower values go first. Equal to, and ordered like, its number.

    Of every 16 starts one may go to a lower level whose next event has waited
    for over a second, so that no level starves.
    """

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


__all__ = ["EventPriority"]
