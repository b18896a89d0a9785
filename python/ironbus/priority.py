"""The four levels of urgency."""

from __future__ import annotations

import enum


class EventPriority(enum.IntEnum):
    """How urgent an event is; a lower number goes first."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


__all__ = ["EventPriority"]
