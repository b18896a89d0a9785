"""Ordering by priority and sequence number: the ``ordering`` half of the ``pm.events`` API."""

from __future__ import annotations

from ironbus._core import EventOrderingManager, EventSequence
from ironbus.priority import EventPriority

__all__ = ["EventOrderingManager", "EventPriority", "EventSequence"]
