"""Another bus for code that asks for the bus of the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from ironbus import bus as _module
from ironbus.bus import EventBus
from ironbus.errors import InvalidOption

B = TypeVar("B", bound=EventBus)


@contextmanager
def override_event_bus(bus: B) -> Iterator[B]:
    """Have ``get_event_bus()``, ``publish_event`` and ``publish_event_sync`` use this bus inside the block.

    It changes the whole process, not this task or thread alone. May be nested. Raises
    :class:`ironbus.errors.InvalidOption`.
    """
    if not isinstance(bus, EventBus):
        raise InvalidOption("bus must be an EventBus", "bus")
    with _module._bus_lock:
        before = _module._bus, _module._bus_process
        _module._bus, _module._bus_process = bus, os.getpid()
    try:
        yield bus
    finally:
        with _module._bus_lock:
            _module._bus, _module._bus_process = before


__all__ = ["override_event_bus"]
