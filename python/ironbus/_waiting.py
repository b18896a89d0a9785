"""Waits of publishers for what becomes of their events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ironbus._core import Receipt


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of one event.

    ``outcomes`` maps the name of each subscription that the event went to to
    ``"done"``, ``"dead"`` (its handler failed for good), ``"dropped"`` (by an
    overflow policy, or because the subscription was cancelled), ``"expired"`` or
    ``"filtered"``. ``failures`` holds the exceptions of the dead ones.
    """

    receipt: Receipt
    outcomes: Mapping[str, str]
    failures: tuple[BaseException, ...]

    def __repr__(self) -> str:
        # It ends up in logs; what the exceptions say may quote payloads.
        failures = ", ".join(type(failure).__qualname__ for failure in self.failures)
        return f"Settlement(receipt={self.receipt!r}, outcomes={self.outcomes!r}, failures=[{failures}])"

    @property
    def ok(self) -> bool:
        """Whether no handler failed."""
        return not self.failures

    def raise_for_failures(self) -> None:
        """Raise a (Base)ExceptionGroup of what the handlers raised; nothing if none did."""
        if self.failures:
            count = len(self.failures)
            raise BaseExceptionGroup(f"{count} handler{'s' if count > 1 else ''} failed", list(self.failures))


async def settled(receipt: Receipt, cascade: bool) -> Settlement:
    """See :meth:`ironbus.Receipt.settled`."""
    guard = receipt._guard(cascade)
    try:
        while (future := receipt._settlement_future(cascade)) is not None:
            await future
    finally:
        del guard
    return receipt._settlement()
