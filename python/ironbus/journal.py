"""What a journal keeps, read beside the bus that owns it: events, replay, SQL, a copy.

A bus with a path has these as methods. :class:`Journal` is the same for a program that has only the file: any process
may read it at any time, whoever owns it, and disturbs nobody.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from ironbus import _log, _settings
from ironbus._core import Event, EventFilter, JournalFile, backup_journal, query_journal
from ironbus._subscriptions import check_handler, check_topics, is_async, qualified_name
from ironbus._worker import Worker
from ironbus.errors import InvalidHandler, InvalidOption, WrongLoop

T = TypeVar("T")

#: Events that are read together, and in memory at once.
PAGE = 64

Moment = int | float | datetime
"""A place in a journal: a sequence number (an int), or a time: Unix seconds as a float, or a datetime with a zone."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events of a journal are meant; the values are looked at here."""

    since: Moment | None = None
    until: Moment | None = None
    types: tuple[str, ...] = ()
    key: str | None = None
    limit: int | None = None

    @staticmethod
    def of(
        since: object, until: object, types: str | Iterable[str] | None, key: object, limit: object = None
    ) -> Selection:
        """Raises :class:`ironbus.InvalidOption` and :class:`ironbus.InvalidPattern`."""
        if key is not None and not isinstance(key, str):
            raise InvalidOption("key must be a string, as it was given to publish()", "key")
        topics = () if types is None else check_topics((types,) if isinstance(types, str) else tuple(types))
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise InvalidOption("limit must be a whole number of at least 0", "limit")
        return Selection(_moment(since, "since"), _moment(until, "until"), topics, key, limit)

    def bounds(self, file: JournalFile) -> tuple[int, int]:
        """Behind which number the events begin, and with which they end; what is accepted later is not meant."""
        after, through = 0, file.last()
        if self.since is not None:
            after = _before(self.since, file)
        if self.until is not None:
            through = min(through, _before(self.until, file))
        return after, through

    def native(self) -> EventFilter:
        """For the reader."""
        return EventFilter(list(self.types), self.key)


def _moment(value: object, name: str) -> Moment | None:
    if value is None or (value == "start" and name == "since"):
        return None
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.timestamp()
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    if isinstance(value, float):
        _settings.check_number(value, name, 0, float("inf"))
        return value
    text = "a sequence number (an int), Unix seconds (a float), or a datetime with a time zone"
    raise InvalidOption(f"{name} must be {text}", name)


def _before(moment: Moment, file: JournalFile) -> int:
    if isinstance(moment, int):
        return max(moment - 1, 0)
    assert isinstance(moment, float)
    return file.position_at(moment)


class JournalEvents:
    """Events of a journal in the order of their sequence numbers, of all priorities.

    Iterate with ``for`` (no loop may run in the thread: :class:`ironbus.WrongLoop`) or ``async for`` (any loop; the
    file is read on a thread), as often as you like: each time from the beginning, up to what was accepted when the
    iteration began. A page of events is in memory at once. Events have their ``sequence``, ``priority``, ``key`` and so
    on; their ``delivery`` is None. ``through``: up to which number the last iteration is; all events up to there that
    are meant were given, so the next reader may begin behind it. ``damaged`` counts places where events were damaged
    or missing, in all iterations: they are logged and left out. Raises :class:`ironbus.StorageError`.
    """

    def __init__(self, path: Path, worker: Worker, selection: Selection) -> None:
        self._path = path
        self._worker = worker
        self._selection = selection
        self.damaged = 0
        self.through: int | None = None

    def __iter__(self) -> Iterator[Event[Any]]:
        check_no_loop("iterating", "async for")
        for page in self._pages():
            for event in page:
                self.through = event.sequence
                yield event

    def __aiter__(self) -> AsyncIterator[Event[Any]]:
        return self._walk()

    async def _walk(self) -> AsyncIterator[Event[Any]]:
        pages = self._pages()
        try:
            while (page := await self._worker.run(partial(next, pages, None))) is not None:
                for event in page:
                    self.through = event.sequence
                    yield event
        finally:
            # After the page that is being read, if this was cancelled meanwhile.
            self._worker.hand(pages.close)
            self._worker.leave()

    def _pages(self) -> Generator[list[Event[Any]], None, None]:
        """Pages of events, some of them empty; in one thread at a time."""
        file = JournalFile(self._path)
        try:
            position, end = self._selection.bounds(file)
            self.through = position
            wanted, left = self._selection.native(), self._selection.limit
            while position < end and left != 0:
                most = PAGE if left is None else min(PAGE, left)
                page, position, damage = file.page(wanted, position, end, most)
                left = None if left is None else left - len(page)
                for fault in damage:
                    self.damaged += 1
                    _log.journal_damaged(str(self._path), fault)
                yield page
                self.through = position
        finally:
            file.close()


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay has done. ``last``: the sequence number of the last event that was handed over."""

    replayed: int = 0
    failed: int = 0
    last: int | None = None
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The answer to a question in SQL; ``cut``: there were more rows than the limit."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    cut: bool

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class Journal:
    """Reads the file of a journal. Nothing is opened before the first use, and nothing stays open.

    The async methods may be called on any loop, and do the file's work on a thread; the ``_sync`` ones block their
    thread. Any thread. All raise :class:`ironbus.StorageError` where the file cannot be read, and change nothing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise InvalidOption('path must be the path of a journal, for example "orders.bus"', "path")
        # Absolute, so that a later chdir() does not move it.
        self.path = Path(path).absolute()
        self._worker = Worker("ironbus-journal-reader")

    def events(
        self,
        *,
        since: Moment | Literal["start"] | None = None,
        until: Moment | None = None,
        types: str | Iterable[str] | None = None,
        key: str | None = None,
        limit: int | None = None,
    ) -> JournalEvents:
        """The events that are kept, in order.

        ``since`` (included) and ``until`` (not): a sequence number (an int), or a time of the acceptance: Unix seconds
        (a float) or a datetime with a time zone. ``types``: types or patterns, one of which must fit. ``key``: the
        event's key. ``limit``: how many at most. Raises :class:`ironbus.InvalidOption`.
        """
        return JournalEvents(self.path, self._worker, Selection.of(since, until, types, key, limit))

    async def replay(
        self,
        handler: Callable[[Event[Any]], object],
        *,
        since: Moment | Literal["start"] | None = None,
        until: Moment | None = None,
        types: str | Iterable[str] | None = None,
        key: str | None = None,
        limit: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> ReplayReport:
        """Call a handler with kept events, one after the other, in order; no subscription is touched.

        See :meth:`events` for what is meant. An async handler is awaited here, a sync one is called on a thread. What
        a handler raises ends the replay and is raised, with a note that says where to go on; with
        ``on_error="skip"`` it is logged and counted. Raises :class:`ironbus.InvalidHandler`.
        """
        call = _Calls(handler, on_error)
        events = self.events(since=since, until=until, types=types, key=key, limit=limit)
        if call.is_async:
            async for event in events:
                await call.later(event)
        else:
            stop = threading.Event()
            work = asyncio.ensure_future(asyncio.to_thread(call.all_of, events, stop))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                stop.set()
                work.add_done_callback(_look)
                raise
        return call.report(events)

    def replay_sync(
        self,
        handler: Callable[[Event[Any]], object],
        *,
        since: Moment | Literal["start"] | None = None,
        until: Moment | None = None,
        types: str | Iterable[str] | None = None,
        key: str | None = None,
        limit: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> ReplayReport:
        """:meth:`replay` in this thread, for sync handlers."""
        check_no_loop("replay_sync()", "await replay()")
        call = _Calls(handler, on_error)
        if call.is_async:
            raise InvalidOption("handler is async; use await replay()", "handler")
        events = self.events(since=since, until=until, types=types, key=key, limit=limit)
        call.all_of(events, threading.Event())
        return call.report(events)

    async def query(self, sql: str, parameters: Sequence[Any] = (), *, limit: int = 10_000) -> QueryResult:
        """Ask the journal in SQL, read-only, up to ``limit`` rows. ``parameters`` are for the question marks."""
        return await self._run(lambda: self._query(sql, parameters, limit))

    def query_sync(self, sql: str, parameters: Sequence[Any] = (), *, limit: int = 10_000) -> QueryResult:
        """:meth:`query` in this thread."""
        check_no_loop("query_sync()", "await query()")
        return self._query(sql, parameters, limit)

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await self._worker.run(work)
        finally:
            self._worker.leave()

    def _query(self, sql: str, parameters: Sequence[Any], limit: int) -> QueryResult:
        if not isinstance(sql, str):
            raise InvalidOption("sql must be a string", "sql")
        if isinstance(parameters, (str, bytes)) or not isinstance(parameters, Sequence):
            raise InvalidOption("parameters must be a list or a tuple", "parameters")
        _settings.check_whole(limit, "limit")
        columns, rows, cut = query_journal(self.path, sql, list(parameters), limit)
        return QueryResult(tuple(columns), rows, cut)

    async def backup(self, destination: str | os.PathLike[str]) -> None:
        """Copy the journal, as it is at one moment, to a new private file. Nothing is overwritten."""
        target = _target(destination)
        await self._run(lambda: backup_journal(self.path, target))

    def backup_sync(self, destination: str | os.PathLike[str]) -> None:
        """:meth:`backup` in this thread."""
        check_no_loop("backup_sync()", "await backup()")
        backup_journal(self.path, _target(destination))


class _Calls:
    """A handler that is called with one event after the other, and what came of it."""

    def __init__(self, handler: Callable[[Event[Any]], object], on_error: str) -> None:
        _settings.check_choice(on_error, ("raise", "skip"), "on_error")
        self._handler = check_handler(handler)
        self._skip = on_error == "skip"
        self._so_far = ReplayReport()
        self.is_async = is_async(handler)

    async def later(self, event: Event[Any]) -> None:
        """For an async handler."""
        try:
            result: Any = self._handler(event)
            await result
        except Exception as error:
            self._failed(event, error)
        else:
            self._count(event, replayed=1)

    def all_of(self, events: JournalEvents, stop: threading.Event) -> None:
        """For a sync handler."""
        for event in events:
            if stop.is_set():
                return
            try:
                result = self._handler(event)
            except Exception as error:
                self._failed(event, error)
                continue
            if inspect.isawaitable(result):
                if inspect.iscoroutine(result):
                    result.close()  # or it would warn that nobody has awaited it
                text = f"handler {qualified_name(self._handler)} returned something to await; make it an async function"
                raise InvalidHandler(text, "handler")
            self._count(event, replayed=1)

    def report(self, events: JournalEvents) -> ReplayReport:
        """What was done."""
        return replace(self._so_far, damaged=events.damaged)

    def _failed(self, event: Event[Any], error: Exception) -> None:
        sequence = event.sequence or 0
        if not self._skip:
            error.add_note(f"the replay stopped at event {sequence}; go on with since={sequence}")
            raise error
        _log.handler_failed(qualified_name(self._handler), event.type, sequence, 1, error, None)
        self._count(event, failed=1)

    def _count(self, event: Event[Any], replayed: int = 0, failed: int = 0) -> None:
        so_far = self._so_far
        self._so_far = ReplayReport(so_far.replayed + replayed, so_far.failed + failed, event.sequence)


def _look(work: asyncio.Future[None]) -> None:
    """Nobody waits for it any more; without a look at its exception that would be complained about."""
    if not work.cancelled():
        work.exception()


def _target(destination: object) -> Path:
    if not isinstance(destination, (str, os.PathLike)):
        raise InvalidOption("destination must be the path of a file that is not there yet", "destination")
    return Path(destination).absolute()


def check_no_loop(what: str, instead: str) -> None:
    """What reads a file in this thread must not keep an event loop waiting."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise WrongLoop(f"{what} would read a file on the event loop of this thread; use {instead}")


__all__ = ["Journal", "JournalEvents", "QueryResult", "ReplayReport"]
