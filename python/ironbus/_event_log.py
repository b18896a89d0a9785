"""The event log: one JSON object per event, in a private file per day."""

from __future__ import annotations

import datetime
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ironbus.errors import InvalidOption

if TYPE_CHECKING:
    from ironbus._core import Event

#: Its subscription's options.
LANE: dict[str, Any] = {
    "is_async": False,
    "filter": None,
    "order_by": None,
    "timeout": None,
    "concurrency": 1,
    "order": "lane",
    "overflow": None,
    "bound": None,
    "publisher_context": False,
    "retry": None,
    "retry_holds": "level",
    "breaker": None,
    "dead_letters": "none",
}

_DATABASES = {".bus", ".db", ".sqlite"}


class EventLog:
    """Appends events to ``<folder>/events_YYYYMMDD.log``. Used from one thread at a time, any thread."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        path = Path(folder)
        if path.suffix in _DATABASES or path.is_file():
            raise InvalidOption(
                "log_dir must be a folder for event logs, and this names a file; did you mean path=?", "log_dir"
            )
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = path
        self._lock = threading.Lock()
        self._day = ""
        self._path = path
        self._file: TextIO | None = None
        with self._lock:
            self._open(_today())
            self._close()

    @property
    def path(self) -> Path:
        """The file that is written to now."""
        return self._path

    def write(self, event: Event[Any]) -> None:
        """Append one event. What has no JSON form goes through ``str``."""
        line = json.dumps(
            {
                "timestamp": event.timestamp,
                "event_id": event.event_id,
                "type": event.type,
                "data": event.data,
                "source": event.source,
                "sequence": event.sequence,
            },
            default=str,
        )
        with self._lock:
            day = _today()
            if self._file is None or day != self._day:
                self._close()
                self._open(day)
            assert self._file is not None
            self._file.write(line + "\n")
            self._file.flush()

    def renew_lock(self) -> None:
        """In a forked child: whoever held it is not here."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the file; the next write opens it again."""
        with self._lock:
            self._close()

    def _open(self, day: str) -> None:
        self._day = day
        self._path = self._folder / f"events_{day}.log"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = open(descriptor, "a", encoding="utf-8")  # noqa: SIM115 - closed by _close

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).astimezone().strftime("%Y%m%d")
