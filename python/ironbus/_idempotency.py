"""The setting of what makes an event a duplicate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ironbus._subscriptions import check_choice, check_count
from ironbus.errors import InvalidOption


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What makes an event a duplicate, and for how long that is remembered.

    ``mode``: "key" (events with an equal ``idempotency_key``) or "content" (also
    events with equal type and data, by :func:`ironbus.content_key`). ``ttl``: seconds,
    an exact deadline for each key. ``max_keys``: beyond it the oldest keys go, counted.
    """

    mode: Literal["key", "content"] = "key"
    ttl: float = 3600
    max_keys: int = 1_000_000

    def __post_init__(self) -> None:
        check_choice(self.mode, ("key", "content"), "mode", required=True)
        if isinstance(self.ttl, bool) or not isinstance(self.ttl, (int, float)) or not 0 < self.ttl < 1e9:
            raise InvalidOption("ttl must be a positive number of seconds", "ttl")
        check_count(self.max_keys, "max_keys", required=True)


__all__ = ["Idempotency"]
