"""Brings what a bus knows of the number of its dead letters up to date, for who asks how it is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ironbus.errors import StorageError

if TYPE_CHECKING:
    from ironbus._core import LetterBox
    from ironbus._worker import Worker

#: Seconds within which a file is looked at once.
_PAUSE = 1.0


class LetterWatch:
    """Other processes change a file, and age takes letters out of any queue, without a word to the bus. Any thread."""

    def __init__(self, box: LetterBox, worker: Worker, in_file: bool) -> None:
        self._box, self._worker, self._in_file = box, worker, in_file
        self._next = 0.0
        #: Whether the file could not be read when it was last looked at.
        self.unreadable = False

    def look(self, running: bool) -> None:
        """At what is in memory, now; at a file, by its thread, so that the next who asks knows."""
        if not self._in_file:
            self._box.open()
            return
        now = time.monotonic()
        # A bus that is not started does not hold its file.
        if running and now >= self._next:
            self._next = now + _PAUSE
            self._worker.hand(self._read)

    def _read(self) -> None:
        try:
            self._box.open()
        except StorageError:
            self.unreadable = True
        else:
            self.unreadable = False


__all__ = ["LetterWatch"]
