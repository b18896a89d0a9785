"""The tasks in which async handlers run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Task = asyncio.Task[None]
else:
    _Task = asyncio.Task


class SlotTask(_Task):
    """A task that tells its slot when it is cancelled, so that the slot need not ask after each event."""

    def cancel(self, msg: Any | None = None) -> bool:
        slot: Any = self.get_coro()
        slot._note_cancel()
        return super().cancel(msg)
