"""How far an input was fed into a journal: each event says in its headers where it came from.

Position and event are one row, so neither can be stored without the other. Lines
that made no event, because they were bad or duplicates, are looked at again.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

from ironbus.cli.lines import Item
from ironbus.errors import IronbusError
from ironbus.journal import Journal

INPUT, LINE = "feed-input", "feed-line"
LAST = (
    f"SELECT headers ->> '{LINE}', type, data FROM event"  # noqa: S608 - names of this module
    f" WHERE headers ->> '{INPUT}' = ? ORDER BY sequence DESC LIMIT 1"
)


class OtherInput(IronbusError):
    """The input is not the one that was fed before."""


@dataclass(frozen=True, slots=True)
class Position:
    """The last line of an input that is in the journal."""

    line: int
    type: str
    data: str  # JSON

    def check(self, item: Item | None) -> None:
        """Raise :class:`OtherInput` unless this event, of that line, is the one that was stored."""
        # As publish() has it: no data, and data that is empty, become an empty dictionary.
        if item is None or (item[0], item[1] or {}) != (self.type, json.loads(self.data)):
            raise OtherInput(
                f"line {self.line} is not the one that was fed from this input before; give the input another"
                " path, or feed into another journal"
            )


async def position(path: Path, name: str) -> Position | None:
    """Where an earlier feed of the input ``name`` into the journal has ended; ``None``: there was none."""
    if not await asyncio.to_thread(path.exists):
        return None
    found = (await Journal(path).query(LAST, [name], limit=1)).rows
    return Position(int(found[0][0]), found[0][1], found[0][2]) if found else None


def mark(item: Item, name: str, line: int) -> Item:
    """The event with its place in the input."""
    kind, data, options = item
    return kind, data, {**options, "headers": {INPUT: name, LINE: str(line)}}


__all__ = ["OtherInput", "Position", "mark", "position"]
