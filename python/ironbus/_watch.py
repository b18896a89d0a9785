"""Brings what a bus knows of its files up to date, for who asks how it is: nobody who asks waits for a disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ironbus.errors import StorageError

if TYPE_CHECKING:
    from ironbus._worker import Worker

#: Seconds within which a file is looked at once.
PAUSE = 1.0


class Watch:
    """Other processes change a file, and age takes from it, without a word to the bus. Any thread."""

    def __init__(self, worker: Worker | None) -> None:
        self._worker = worker  # None: what is looked at is in memory
        self._next = 0.0
        self._unreadable = False

    def look(self, running: bool, read: Callable[[], object]) -> None:
        """Have the thread of the file read it, so that the next who asks knows; what is in memory, now."""
        if self._worker is None:
            read()
            return
        now = time.monotonic()
        if not running:
            # A bus that is not started does not hold its file, and the next start opens it anew.
            self.forget()
        elif now >= self._next:
            self._next = now + PAUSE
            self._worker.hand(lambda: self._read(read))

    def _read(self, read: Callable[[], object]) -> None:
        try:
            read()
        except StorageError:
            self._unreadable = True
        else:
            self._unreadable = False

    def forget(self) -> None:
        """The file has been opened, or closed."""
        self._next = 0.0
        self._unreadable = False

    def unreadable(self, running: bool) -> bool:
        """Whether the file could not be read when it was last looked at, since the bus was started."""
        return running and self._unreadable


__all__ = ["PAUSE", "Watch"]
