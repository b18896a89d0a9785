"""What a bus with a path keeps, as methods of the bus. The work is in :mod:`ironbus.journal`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ironbus.errors import InvalidOption
from ironbus.journal import Journal, JournalEvents, Moment, QueryResult, ReplayReport

if TYPE_CHECKING:
    from ironbus._core import Event
    from ironbus.bus import EventBus


class KeptEvents:
    """The part of a bus that reads its own journal, beside everything else that it does. Started or not, any thread."""

    _path: Path | None
    _reading: Journal | None = None

    @property
    def _journal(self) -> Journal:
        """Raises :class:`ironbus.InvalidOption` for a bus that keeps none."""
        if self._reading is None:
            if self._path is None:
                text = 'path: this bus keeps no events; give it a file, for example EventBus(path="orders.bus")'
                raise InvalidOption(text, "path")
            self._reading = Journal(self._path)
        return self._reading

    def events(
        self,
        *,
        since: Moment | Literal["start"] | None = None,
        until: Moment | None = None,
        types: str | Iterable[str] | None = None,
        key: str | None = None,
        limit: int | None = None,
    ) -> JournalEvents:
        """The events that the journal keeps, in order; iterate with ``for`` or ``async for``.

        See :meth:`ironbus.journal.Journal.events`.
        """
        return self._journal.events(since=since, until=until, types=types, key=key, limit=limit)

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
        """Call a handler with kept events, one after the other; no subscription is touched.

        See :meth:`ironbus.journal.Journal.replay`.
        """
        return await self._journal.replay(
            handler, since=since, until=until, types=types, key=key, limit=limit, on_error=on_error
        )

    async def query(self, sql: str, parameters: Sequence[Any] = (), *, limit: int = 10_000) -> QueryResult:
        """Ask the journal in SQL, read-only. See :meth:`ironbus.journal.Journal.query`."""
        return await self._journal.query(sql, parameters, limit=limit)

    async def backup(self, destination: str | os.PathLike[str]) -> None:
        """Copy the journal, as it is at one moment, to a new private file."""
        await self._journal.backup(destination)


class SyncKeptEvents:
    """The same for threads without an event loop: ``bus.sync``."""

    _bus: EventBus

    def replay(
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
        """See :meth:`ironbus.journal.Journal.replay_sync`."""
        return self._bus._journal.replay_sync(
            handler, since=since, until=until, types=types, key=key, limit=limit, on_error=on_error
        )

    def query(self, sql: str, parameters: Sequence[Any] = (), *, limit: int = 10_000) -> QueryResult:
        """See :meth:`EventBus.query`."""
        return self._bus._journal.query_sync(sql, parameters, limit=limit)

    def backup(self, destination: str | os.PathLike[str]) -> None:
        """See :meth:`EventBus.backup`."""
        self._bus._journal.backup_sync(destination)
