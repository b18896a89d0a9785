"""The dead letter queue of the ``pm.events`` API. The engine keeps the entries."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from ironbus import _failures, _settings
from ironbus._core import DeadLetterStore
from ironbus._worker import Worker
from ironbus.errors import InvalidEvent, InvalidOption, InvalidType, StorageError

T = TypeVar("T")

logger = logging.getLogger("ironbus")

# The file in the folder, and that of v1.0.
FILE = "dead_letters.db"
LEGACY = "dead_letters.json"
# Seconds after which an entry is free again whose reprocessing has not ended.
LEASE = 300.0


@dataclass
class FailedEvent:
    """A dead letter. The times are Unix seconds.

    ``event_data`` is what JSON gives back; data without a JSON form is the object itself for the queue
    that it was given to, and its text for all others. ``attempts``: how often it was added.
    """

    event_type: str
    event_data: Any
    error: str
    attempts: int
    first_failure: float
    last_failure: float
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Letter:
    """An entry on its way into the queue: as the engine takes it, and as people see it."""

    stored: tuple[str, str, str, bool, str, str, tuple[str, str, str, str], float]
    event: FailedEvent


@dataclass(frozen=True, slots=True)
class Claimed:
    """An entry that nobody else is given for a while."""

    position: int
    holder: int
    event: FailedEvent
    here: bool  # its data is there, and not only a text of it

    @property
    def event_id(self) -> str:
        """What it is found by."""
        return str(self.event.event_id)


class DeadLetterQueue:
    """Keeps events that failed for good until somebody removes them.

    ``storage_path``: a folder, made if it is not there; it gets the private file ``dead_letters.db``,
    which several processes may use at once. Without one the entries are in memory, and lost with the process.
    Nothing is opened before the first call. A ``dead_letters.json`` that v1.0 left in the folder is taken over,
    once, and stays as it is; if it cannot be read, each call raises :class:`ironbus.StorageError` until it is
    repaired or moved away.

    ``durability``: what an added entry survives, "os" a kill of the process, "fsync" a loss of power too.
    At ``max_entries`` adding raises :class:`ironbus.DeadLetterQueueFull`, or with ``when_full="drop_oldest"``
    lets the oldest go. Entries that failed last over ``max_age`` seconds ago are let go (None: never). Messages and
    tracebacks of exceptions are kept, up to 16 KiB each; ``messages=False`` and ``tracebacks=False`` keep none.
    ``clock``: a function that returns Unix seconds, in place of the machine's clock.

    The async methods may be called on any loop, and do the file's work on a thread; the ``_sync`` ones from any
    thread. Cancelling a call does not undo it. They raise :class:`ironbus.StorageError`.
    """

    def __init__(
        self,
        storage_path: str | os.PathLike[str] | None = None,
        *,
        durability: Literal["os", "fsync"] = "os",
        max_entries: int = 100_000,
        max_age: float | None = None,
        when_full: Literal["refuse", "drop_oldest"] = "refuse",
        messages: bool = True,
        tracebacks: bool = True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if storage_path is not None and not isinstance(storage_path, (str, os.PathLike)):
            raise InvalidOption('storage_path must be the path of a folder, for example "dlq", or None', "storage_path")
        _settings.check_choice(durability, ("os", "fsync"), "durability")
        _settings.check_whole(max_entries, "max_entries")
        if max_age is not None:
            _settings.check_seconds(max_age, "max_age")
        _settings.check_choice(when_full, ("refuse", "drop_oldest"), "when_full")
        _settings.check_bool(messages, "messages")
        _settings.check_bool(tracebacks, "tracebacks")
        _settings.check_callable(clock, "clock", "a function that returns Unix seconds, for example time.time")
        # Absolute, so that a later chdir() does not move it.
        self.storage_path = None if storage_path is None else Path(storage_path).absolute()
        self._clock = clock or time.time
        self._store = DeadLetterStore(
            None if self.storage_path is None else self.storage_path / FILE,
            max_entries=max_entries,
            max_age=max_age,
            drop_oldest=when_full == "drop_oldest",
            messages=messages,
            tracebacks=tracebacks,
            fsync=durability == "fsync",
        )
        self._worker = Worker("ironbus-dead-letters")
        self._max_entries = max_entries
        self._lock = threading.Lock()
        self._ready_in: int | None = None
        # Data without a JSON form, which only this object can give back.
        self._objects: dict[str, Any] = {}

    async def add_failed_event(
        self,
        event_type: str,
        event_data: Any,
        error: BaseException | str,
        event_id: str | None = None,
        *,
        subscription: str = "",
        handler: str = "",
    ) -> FailedEvent:
        """Keep an event that failed, with its error. Under an id that is there, its ``attempts`` rise by one.

        An event without an id gets one, a UUID. It is kept when this returns.
        Raises :class:`ironbus.InvalidEvent`, a ``ValueError``, and :class:`ironbus.DeadLetterQueueFull`.
        """
        letter = self._letter(event_type, event_data, error, event_id, subscription, handler)
        return await self._later(self._add, letter)

    async def get_failed_events(self, max_age_hours: float | None = None) -> list[FailedEvent]:
        """The entries, oldest first; with ``max_age_hours`` those that failed last within so many hours."""
        return await self._later(self._entries, *self._since(max_age_hours))

    async def remove_event(self, event_id: str) -> bool:
        """Let go of an entry. False: there is none with this id."""
        check_id(event_id)
        return await self._later(self._remove, event_id)

    def add_failed_event_sync(
        self,
        event_type: str,
        event_data: Any,
        error: BaseException | str,
        event_id: str | None = None,
        *,
        subscription: str = "",
        handler: str = "",
    ) -> FailedEvent:
        """:meth:`add_failed_event` without a loop."""
        return self._now(self._add, self._letter(event_type, event_data, error, event_id, subscription, handler))

    def get_failed_events_sync(self, max_age_hours: float | None = None) -> list[FailedEvent]:
        """:meth:`get_failed_events` without a loop."""
        return self._now(self._entries, *self._since(max_age_hours))

    def remove_event_sync(self, event_id: str) -> bool:
        """:meth:`remove_event` without a loop."""
        check_id(event_id)
        return self._now(self._remove, event_id)

    def close(self) -> None:
        """Let go of the file. A later call opens it again. Any thread."""
        with self._lock:
            self._ready_in = None
            self._store.close()
        self._worker.leave()

    # For who redrives, an entry at a time ----------------------------------------------

    async def _claim(self, after: int) -> Claimed | None:
        """The next entry behind a position that nobody holds."""
        now, holder = self._clock(), secrets.randbits(63)
        claimed = await self._later(self._store.claim, after, holder, now + LEASE, now)
        return None if claimed is None else Claimed(claimed[0], holder, *self._event(claimed[1]))

    async def _succeeded(self, claimed: Claimed) -> None:
        await self._later(self._store.succeeded, claimed.event_id, claimed.holder)
        self._forget(claimed.event_id)

    async def _failed(self, claimed: Claimed, error: BaseException, subscription: str) -> None:
        failure, now = _failures.describe(error), self._clock()
        await self._later(self._store.failed, claimed.event_id, claimed.holder, subscription, failure, now)

    async def _release(self, claimed: Claimed) -> None:
        await self._later(self._store.release, claimed.event_id, claimed.holder)

    # The work itself ------------------------------------------------------------------

    def _letter(
        self, event_type: str, event_data: Any, error: BaseException | str, event_id: str | None, *names: str
    ) -> Letter:
        """Everything that is the caller's is looked at here, in the caller's thread."""
        if not isinstance(event_type, str) or not event_type or not event_type.isprintable():
            raise InvalidType("event_type must be a printable, non-empty string", "event_type")
        if event_id is None:
            event_id = str(uuid.uuid4())
        check_id(event_id)
        if not isinstance(error, (BaseException, str)):
            raise InvalidEvent("error must be an exception or a string", "error")
        subscription, handler = map(_failures.writable, names)
        text, whole = _failures.encode(event_data)
        failure, now = _failures.describe(error), self._clock()
        stored = (event_id, event_type, text, not whole, subscription, handler, failure, now)
        return Letter(stored, FailedEvent(event_type, event_data, failure[1] or failure[0], 0, now, now, event_id))

    def _since(self, max_age_hours: float | None) -> tuple[float | None, float]:
        now = self._clock()
        if max_age_hours is None:
            return None, now
        _settings.check_number(max_age_hours, "max_age_hours", 0, math.inf)
        return now - max_age_hours * 3600, now

    def _add(self, letter: Letter) -> FailedEvent:
        letter.event.attempts = self._store.add(*letter.stored)
        self._remember(letter)
        return letter.event

    def _entries(self, since: float | None, now: float) -> list[FailedEvent]:
        return [self._event(entry)[0] for entry in self._store.entries(since, now)]

    def _remove(self, event_id: str) -> bool:
        removed = self._store.remove(event_id)
        self._forget(event_id)
        return removed

    def _now(self, work: Callable[..., T], *args: Any) -> T:
        self._ready()
        return work(*args)

    async def _later(self, work: Callable[..., T], *args: Any) -> T:
        if self.storage_path is None:
            return work(*args)
        return await self._worker.run(lambda: self._now(work, *args))

    def _ready(self) -> None:
        """Before the first use in each process: the folder, and what v1.0 left in it."""
        if self.storage_path is None or self._ready_in == os.getpid():
            return
        with self._lock:
            if self._ready_in == os.getpid():
                return
            try:
                self.storage_path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                text = f"{self.storage_path}: cannot be the folder of a dead letter queue ({error.strerror})"
                raise StorageError(text, "storage_path") from None
            self._take_over(self.storage_path / LEGACY)
            self._ready_in = os.getpid()

    def _take_over(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error.strerror}); {FIX}", "storage_path") from None
        entries = read_legacy(path, content, self._clock())
        # By content: if an older program still writes to it, what is new will be taken over as well.
        name = f"{LEGACY}:{hashlib.sha256(content).hexdigest()}"
        if self._store.take_over(name, entries):
            logger.info("%d dead letters taken over from %s, which is not needed any more", len(entries), path)

    def _remember(self, letter: Letter) -> None:
        event_id, _, _, in_process_only, *_ = letter.stored
        with self._lock:
            self._objects.pop(event_id, None)
            if in_process_only:
                self._objects[event_id] = letter.event.event_data
            if len(self._objects) > self._max_entries:
                del self._objects[next(iter(self._objects))]

    def _forget(self, event_id: str) -> None:
        with self._lock:
            self._objects.pop(event_id, None)

    def _event(self, entry: tuple[str, str, str, bool, str, int, float, float]) -> tuple[FailedEvent, bool]:
        """The entry, and whether its data is there, and not only a text of it."""
        event_id, event_type, text, in_process_only, error, attempts, first_failure, last_failure = entry
        absent = object()
        data = self._objects.get(event_id, absent) if in_process_only else absent
        here = not in_process_only or data is not absent
        if data is absent:
            data = _failures.decode(text)
        return FailedEvent(event_type, data, error, attempts, first_failure, last_failure, event_id), here


def check_id(event_id: object) -> None:
    """An id is a string of some length, and of characters that a file can hold."""
    if not isinstance(event_id, str) or not event_id or _failures.writable(event_id) != event_id:
        raise InvalidEvent("event_id must be a non-empty string, or None for a new one", "event_id")


# What v1.0 left ------------------------------------------------------------------------

FIX = "repair it, or move it away to go on without what is in it"

LegacyEntry = tuple[str, str, str, str, int, float, float]


def read_legacy(path: Path, content: bytes, now: float) -> list[LegacyEntry]:
    """The entries of a v1.0 file: a list of objects, or an object of them by id. All or none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise StorageError(f"{path}: is not JSON; {FIX}", "storage_path") from None
    if isinstance(found, dict):
        found = [
            {**entry, "event_id": entry.get("event_id") or key} if isinstance(entry, dict) else entry
            for key, entry in found.items()
        ]
    if not isinstance(found, list):
        raise StorageError(f"{path}: is not a list of dead letters; {FIX}", "storage_path")
    ids: set[str] = set()
    return [_legacy_entry(path, number, entry, ids, now) for number, entry in enumerate(found, 1)]


def _legacy_entry(path: Path, number: int, entry: Any, ids: set[str], now: float) -> LegacyEntry:
    try:
        event_type = entry["event_type"]
        if not isinstance(event_type, str):
            raise TypeError
        first = _time(entry.get("first_failure"), now)
        last = _time(entry.get("last_failure"), first)
        attempts = entry.get("attempts", 1)
        attempts = max(int(attempts), 1)
        data = json.dumps(entry.get("event_data"))
        error = entry.get("error")
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        text = f"{path}: entry {number} is not a dead letter of v1.0; {FIX}"
        raise StorageError(text, "storage_path") from None
    event_id = entry.get("event_id")
    if not isinstance(event_id, str) or not event_id or event_id in ids:
        # The same each time that the file is read, so that an entry is not taken over twice.
        event_id = _made_up(entry, ids)
    ids.add(event_id)
    writable = _failures.writable
    return (
        writable(event_id),
        writable(event_type),
        data,
        "" if error is None else writable(str(error)),
        attempts,
        first,
        last,
    )


def _made_up(entry: Any, ids: set[str]) -> str:
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:32]
    number, event_id = 1, f"v1-{digest}"
    while event_id in ids:
        number += 1
        event_id = f"v1-{digest}-{number}"
    return event_id


def _time(value: Any, default: float) -> float:
    """Unix seconds of what v1.0 wrote: a number, or a date in ISO 8601, local where it names no zone."""
    if value is None:
        return default
    seconds = datetime.fromisoformat(value).timestamp() if isinstance(value, str) else float(value)
    if not math.isfinite(seconds):
        raise ValueError
    return seconds


__all__ = ["DeadLetterQueue", "FailedEvent"]
