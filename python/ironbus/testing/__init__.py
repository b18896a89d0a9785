"""For tests of programs that use ironbus: their own bus under control, with a clock that a test moves.

pytest is not needed; with it, the fixtures ``event_bus`` and ``override_event_bus`` are there by themselves.
"""

from ironbus.testing._calls import Call, PlannedFailure
from ironbus.testing._harness import Harness, SyncHarness, harness
from ironbus.testing._override import override_event_bus
from ironbus.testing._published import Published

__all__ = [
    "Call",
    "Harness",
    "PlannedFailure",
    "Published",
    "SyncHarness",
    "harness",
    "override_event_bus",
]
