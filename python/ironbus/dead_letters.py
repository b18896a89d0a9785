"""The dead letters of a bus: deliveries that failed for good, kept until somebody sees to them.

``bus.dead_letters`` is for event loops, ``bus.sync.dead_letters`` for threads without one.
What is in a file is read and written off the loop.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ironbus import _failures, _redrive, _settings
from ironbus._core import DeadLetterStore, Event, LetterBox, LetterFilter
from ironbus._jsonl import Target, write_lines
from ironbus._redrive import Blocking, OnLoop, now
from ironbus.errors import InvalidOption, InvalidPattern, WrongLoop

if TYPE_CHECKING:
    from ironbus._worker import Worker

#: Letters that are read together.
PAGE = 64


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """How a bus keeps its dead letters.

    ``path``: a file, made if it is not there (private, mode 0600), that several processes may use at once. Without
    one they are in memory, and lost with the process. ``max_entries``: how many; what happens beyond it is
    ``when_full``: "park" (the subscription whose event cannot be kept starts nothing more until there is room;
    nothing is lost) or "drop_oldest" (counted). ``max_age``: seconds after its last failure after which
    a letter is let go (None: never). ``details``: whether messages and tracebacks of exceptions are kept, up to
    16 KiB each; payloads always are. ``durability``: what a letter in a file survives, "os" a kill of the
    process, "fsync" a loss of power too.

    Raises :class:`ironbus.InvalidOption`.
    """

    path: str | os.PathLike[str] | None = None
    max_entries: int = 100_000
    max_age: float | None = None
    when_full: Literal["park", "drop_oldest"] = "park"
    details: bool = True
    durability: Literal["os", "fsync"] = "os"

    def __post_init__(self) -> None:
        if self.path is not None and not isinstance(self.path, (str, os.PathLike)):
            raise InvalidOption('path must be the path of a file, for example "orders.dead", or None', "path")
        _settings.check_whole(self.max_entries, "max_entries")
        if self.max_age is not None:
            _settings.check_seconds(self.max_age, "max_age")
        _settings.check_choice(self.when_full, ("park", "drop_oldest"), "when_full")
        _settings.check_bool(self.details, "details")
        _settings.check_choice(self.durability, ("os", "fsync"), "durability")

    def _store(self, in_journal: bool = False) -> DeadLetterStore:
        return DeadLetterStore(
            # Absolute, so that a later chdir() does not move it.
            None if self.path is None else Path(self.path).absolute(),
            max_entries=self.max_entries,
            max_age=self.max_age,
            drop_oldest=self.when_full == "drop_oldest",
            messages=self.details,
            tracebacks=self.details,
            fsync=self.durability == "fsync",
            in_journal=in_journal,
        )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery that failed for good.

    ``event`` has the payload as it was, where this process has it or could read it from JSON; else its text.
    ``fingerprint`` is the same for failures of one cause: the same subscription, type of exception and place. Times
    are Unix seconds. What may hold values is not in its ``repr``.
    """

    id: str
    event: Event[Any] = field(repr=False)
    subscription: str
    handler: str
    exception_type: str
    message: str = field(repr=False)
    traceback: str = field(repr=False)
    attempts: int
    first_failure: float
    last_failure: float
    fingerprint: str
    in_process_only: bool  # its payload has no JSON, so only the process that has it can deliver it again

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for ``json.dumps``."""
        event = self.event
        text, whole = _failures.encode(event.data)
        return {
            "id": self.id,
            "type": event.type,
            "data": event.data if whole and not self.in_process_only else text,
            "event_id": str(event.event_id),
            "timestamp": event.timestamp,
            "source": str(event.source),
            "sequence": event.sequence,
            "priority": event.priority.name,
            "key": event.key,
            "headers": dict(event.headers),
            "idempotency_key": event.idempotency_key,
            "correlation_id": event.correlation_id,
            "causation_id": event.causation_id,
            "subscription": self.subscription,
            "handler": self.handler,
            "exception_type": self.exception_type,
            "message": self.message,
            "traceback": self.traceback,
            "attempts": self.attempts,
            "first_failure": self.first_failure,
            "last_failure": self.last_failure,
            "fingerprint": self.fingerprint,
            "in_process_only": self.in_process_only,
        }


@dataclass(frozen=True, slots=True)
class RedriveReport:
    """What a redrive has done.

    ``skipped`` counts letters that stay as they are, by reason: "same_cause" (one of the same fingerprint had
    just failed again), "held" (another redrive has it), "no_subscription", "payload_elsewhere" (in another process),
    "not_handled" (the subscription let go of it, or its filter did not want it). ``stopped``: the fingerprints that
    came back. ``pending``: what was still on its way at the timeout; it goes on.
    """

    delivered: int
    succeeded: int
    failed: int
    skipped: Mapping[str, int]
    stopped: tuple[str, ...]
    pending: int


class _View:
    """Some letters of a bus: all, or what a filter lets through."""

    def __init__(self, box: LetterBox, worker: Worker, in_file: bool, wanted: Mapping[str, Any] | None = None) -> None:
        self._box = box
        self._worker = worker
        self._in_file = in_file
        self._wanted = dict(wanted or {})
        self._filter = LetterFilter(**self._wanted)

    def _narrower(self, **given: Any) -> Mapping[str, Any]:
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if name in self._wanted:
                label = "type" if name == "topic" else name
                raise InvalidOption(f"{label} was given before; begin with bus.dead_letters to change it", label)
        return {**self._wanted, **given}

    def _of(self, letter_id: str | None) -> LetterFilter:
        if letter_id is None:
            return self._filter
        check_id(letter_id)
        return LetterFilter(**self._narrower(id=letter_id))

    def _page(self, after: int) -> tuple[list[DeadLetter], int]:
        return self._box.page(self._filter, after, PAGE)

    def _pages(self) -> Iterator[list[DeadLetter]]:
        page, position = self._page(0)
        while page:
            yield page
            page, position = self._page(position)

    def _export(self, target: Target) -> int:
        lines = (letter.to_dict() for page in self._pages() for letter in page)
        return write_lines(target, lines)

    def __iter__(self) -> Iterator[DeadLetter]:
        self._check_blocking("iterating", "async for")
        for page in self._pages():
            yield from page

    def __len__(self) -> int:
        self._check_blocking("len()", "await count()")
        return self._box.count(self._filter)

    def _check_blocking(self, what: str, instead: str) -> None:
        if not self._in_file:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise WrongLoop(f"{what} would read a file on the event loop of this thread; use {instead}")


class BusDeadLetters(_View):
    """The dead letters of a bus, oldest first: ``bus.dead_letters``.

    Iterate with ``async for``, or with ``for`` and ``len`` where no loop runs or nothing is in a file. Any loop, any
    thread. Files raise :class:`ironbus.StorageError`.
    """

    def filter(
        self,
        *,
        type: str | None = None,
        subscription: str | None = None,
        handler: str | None = None,
        exception_type: str | None = None,
        fingerprint: str | None = None,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
    ) -> BusDeadLetters:
        """Those of a ``type`` or pattern, a ``subscription``, a ``fingerprint``, that failed last within a time.

        ``handler`` and ``exception_type``: names as the letters have them. ``since`` (included) and ``until``: Unix
        seconds, or a ``datetime`` with a time zone. All that is given must fit.
        Raises :class:`ironbus.InvalidOption`.
        """
        wanted = check_filter(type, subscription, handler, exception_type, fingerprint, since, until)
        return BusDeadLetters(self._box, self._worker, self._in_file, self._narrower(**wanted))

    async def _open(self) -> None:
        """At the start of the bus: a file that cannot be used is better known before than after a failure."""
        if self._in_file:
            await self._worker.run(self._box.open)

    async def _close(self, seconds: float) -> None:
        """At the stop of the bus: write what there is to write, and let go of the file. Waits so long at most."""
        if self._in_file:
            try:
                async with asyncio.timeout(seconds):
                    await self._worker.run(self._box.close)
                    await self._worker.close()
            except TimeoutError:
                return

    def _blocking(self) -> SyncDeadLetters:
        return SyncDeadLetters(self._box, self._worker, self._in_file)

    def _io(self) -> OnLoop:
        return OnLoop(self._worker if self._in_file else None)

    def __aiter__(self) -> AsyncIterator[DeadLetter]:
        return self._walk()

    async def _walk(self) -> AsyncIterator[DeadLetter]:
        io, position = self._io(), 0
        while True:
            page, position = await io.run(self._page, position)
            if not page:
                return
            for letter in page:
                yield letter

    async def count(self) -> int:
        """How many there are."""
        return await self._io().run(self._box.count, self._filter)

    async def get(self, id: str) -> DeadLetter | None:
        """The letter of this id, or None."""
        check_id(id)
        return await self._io().run(self._box.get, self._filter, id)

    async def purge(self, id: str | None = None) -> int:
        """Let go of one, or of all; how many there were."""
        return await self._io().run(self._box.purge, self._of(id))

    async def export(self, file: Target) -> int:
        """Write all as JSON Lines to a path (replaced as a whole, private) or a text file; how many there were."""
        return await self._worker.run(lambda: self._export(file))

    async def redrive(
        self, id: str | None = None, *, limit: int | None = None, into: str | None = None, timeout: float | None = None
    ) -> RedriveReport:
        """Deliver one, or all, again: each to the subscription in which it failed, behind what is queued there.

        Idempotency keys do not count. A letter leaves only after its handler succeeded; if it fails again it stays,
        with its attempts. Of each fingerprint one is tried first, and the others are left alone if that comes
        back. ``limit``: how many at most. ``into``: the name of another subscription, for all. ``timeout``: seconds
        after which no more are begun. What is under way when this is cancelled goes on. A crash loses
        nothing; what was under way then is held for five minutes.

        Raises :class:`ironbus.NotStarted`, and in a handler that would wait for itself
        :class:`ironbus.WouldDeadlock`.
        """
        check_redrive(limit, into, timeout)
        deadline = None if timeout is None else now() + timeout
        return await _redrive.redrive(self._io(), self._box, self._of(id), limit, into, deadline)


class SyncDeadLetters(_View):
    """The dead letters of a bus for threads without an event loop: ``bus.sync.dead_letters``."""

    def filter(
        self,
        *,
        type: str | None = None,
        subscription: str | None = None,
        handler: str | None = None,
        exception_type: str | None = None,
        fingerprint: str | None = None,
        since: float | datetime | None = None,
        until: float | datetime | None = None,
    ) -> SyncDeadLetters:
        """See :meth:`BusDeadLetters.filter`."""
        wanted = check_filter(type, subscription, handler, exception_type, fingerprint, since, until)
        return SyncDeadLetters(self._box, self._worker, self._in_file, self._narrower(**wanted))

    def count(self) -> int:
        """See :meth:`BusDeadLetters.count`."""
        self._check_blocking("sync.dead_letters.count()", "await bus.dead_letters.count()")
        return self._box.count(self._filter)

    def get(self, id: str) -> DeadLetter | None:
        """See :meth:`BusDeadLetters.get`."""
        self._check_blocking("sync.dead_letters.get()", "await bus.dead_letters.get()")
        check_id(id)
        return self._box.get(self._filter, id)

    def purge(self, id: str | None = None) -> int:
        """See :meth:`BusDeadLetters.purge`."""
        self._check_blocking("sync.dead_letters.purge()", "await bus.dead_letters.purge()")
        return self._box.purge(self._of(id))

    def export(self, file: Target) -> int:
        """See :meth:`BusDeadLetters.export`."""
        self._check_blocking("sync.dead_letters.export()", "await bus.dead_letters.export()")
        return self._export(file)

    def redrive(
        self, id: str | None = None, *, limit: int | None = None, into: str | None = None, timeout: float | None = None
    ) -> RedriveReport:
        """See :meth:`BusDeadLetters.redrive`."""
        check_redrive(limit, into, timeout)
        deadline = None if timeout is None else now() + timeout
        return _redrive.finish(_redrive.redrive(Blocking(), self._box, self._of(id), limit, into, deadline))


def check_id(letter_id: object) -> None:
    """A letter's id is a string."""
    if not isinstance(letter_id, str) or not letter_id:
        raise InvalidOption("id must be the id of a dead letter, a non-empty string", "id")


def check_redrive(limit: object, into: object, timeout: object) -> None:
    """A whole number, a name, seconds; or None each."""
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit < 2**63):
        raise InvalidOption("limit must be a whole number of at least 0", "limit")
    if into is not None and (not isinstance(into, str) or not into):
        raise InvalidOption("into must be the name of a subscription", "into")
    if timeout is not None:
        _settings.check_seconds(timeout, "timeout")


def check_filter(
    type: object,
    subscription: object,
    handler: object,
    exception_type: object,
    fingerprint: object,
    since: object,
    until: object,
) -> dict[str, Any]:
    """The filter as the native half wants it."""
    if type is not None and (not isinstance(type, str) or not type):
        raise InvalidPattern('type must be a type such as "order.paid", or a pattern such as "order.*"', "type")
    texts = {
        "subscription": subscription,
        "handler": handler,
        "exception_type": exception_type,
        "fingerprint": fingerprint,
    }
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise InvalidOption(f"{name} must be a string, as dead letters have it", name)
    return {
        "topic": type,
        **texts,
        "since": _moment(since, "since"),
        "until": _moment(until, "until"),
    }


def _moment(value: object, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.timestamp()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise InvalidOption(f"{name} must be Unix seconds, or a datetime with a time zone", name)


__all__ = ["BusDeadLetters", "DeadLetter", "DeadLetters", "RedriveReport", "SyncDeadLetters"]
