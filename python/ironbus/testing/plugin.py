"""The pytest plugin, found by its entry point: the fixtures ``event_bus`` and ``override_event_bus``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ironbus.bus import EventBus
from ironbus.testing._lazy_bus import LazyBus
from ironbus.testing._override import override_event_bus as _override


@pytest.fixture
def event_bus() -> Iterator[EventBus]:
    """A bus of the test's own.

    It starts where it is used first: on the loop of the test, whichever plugin runs that, or without
    a loop on one of its own. It is stopped after the test, at once; what it has queued is dropped with it.
    """
    bus = LazyBus()
    try:
        yield bus
    finally:
        bus._end()


@pytest.fixture
def override_event_bus() -> Iterator[Callable[[EventBus], EventBus]]:
    """A function: until the end of the test, the bus of the process is the one that it is given.

    That is what ``get_event_bus()``, ``publish_event`` and ``publish_event_sync`` use.
    """
    with ExitStack() as stack:
        yield lambda bus: stack.enter_context(_override(bus))
