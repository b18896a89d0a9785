"""The dead letters in a file, as operators work with them: to look at, to sum up, to deliver again, to let go of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ironbus import DeadLetter, DeadLetters, EventBus, RedriveReport, _core
from ironbus._core import LetterFile, LetterFilter
from ironbus.dead_letters import check_filter, check_id

NAME = "ironbus dlq redrive"
TOPIC = "ironbus.cli.redrive"  # of nothing: what the subscription gets are dead letters
PAGE = 64  # letters that are read together
TICK = 0.1  # seconds between two looks at the progress

# What a list says of a letter: nothing that the publisher or the exception said.
BRIEF = (
    "id",
    "type",
    "subscription",
    "handler",
    "exception_type",
    "attempts",
    "first_failure",
    "last_failure",
    "fingerprint",
    "event_id",
    "sequence",
    "priority",
    "in_process_only",
)
# What the publisher said.
PAYLOAD = ("data", "headers")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant: all, or those that everything fits which is given."""

    id: str | None = None
    type: str | None = None
    subscription: str | None = None
    handler: str | None = None
    exception_type: str | None = None
    fingerprint: str | None = None
    since: float | None = None
    until: float | None = None

    @property
    def filters(self) -> dict[str, Any]:
        """What is given beside the id, as ``bus.dead_letters.filter`` takes it."""
        names = ("type", "subscription", "handler", "exception_type", "fingerprint", "since", "until")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def is_all(self) -> bool:
        """Whether nothing is given."""
        return self.id is None and not self.filters

    def native(self) -> LetterFilter:
        """For the reader; raises ``InvalidOption``."""
        if self.id is not None:
            check_id(self.id)
        wanted = {"subscription": None, "handler": None, "exception_type": None, "fingerprint": None}
        return LetterFilter(
            id=self.id, **check_filter(**{"type": None, **wanted, "since": None, "until": None, **self.filters})
        )


class Letters:
    """What a file has of a selection, oldest first. ``damaged`` counts what could not be read on the way."""

    def __init__(self, path: Path, selection: Selection) -> None:
        self._filter = selection.native()
        self._file = LetterFile(path)
        self.damaged = 0

    def __iter__(self) -> Iterator[DeadLetter]:
        position = 0
        while True:
            page, position, damaged = self._file.page(self._filter, position, PAGE)
            self.damaged += damaged
            if not page:
                return
            yield from page

    def count(self) -> int:
        """How many there are, damaged ones included."""
        return self._file.count(self._filter)

    def close(self) -> None:
        """Lets go of the file, so that who writes to it next leaves nothing beside it. The next call opens it again."""
        self._file.close()


def brief(letter: DeadLetter) -> dict[str, Any]:
    """A letter without what the publisher or the exception said."""
    whole = letter.to_dict()
    return {name: whole[name] for name in BRIEF}


def details(letter: DeadLetter, payload: bool) -> dict[str, Any]:
    """All of a letter; what the publisher said only where it is wanted."""
    return {name: value for name, value in letter.to_dict().items() if payload or name not in PAYLOAD}


class By(StrEnum):
    """What letters are summed up by."""

    fingerprint = "fingerprint"
    subscription = "subscription"
    handler = "handler"
    type = "type"
    exception = "exception"

    def of(self, letter: DeadLetter) -> str:
        """The group of a letter."""
        match self:
            case By.fingerprint:
                return letter.fingerprint
            case By.subscription:
                return letter.subscription
            case By.handler:
                return letter.handler
            case By.type:
                return letter.event.type
            case By.exception:
                return letter.exception_type


@dataclass(slots=True)
class Group:
    """Letters that have something in common."""

    name: str
    entries: int = 0
    subscriptions: set[str] = field(default_factory=set)
    handlers: set[str] = field(default_factory=set)
    exception_types: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    first_failure: float = float("inf")
    last_failure: float = float("-inf")

    def take(self, letter: DeadLetter) -> None:
        """One more."""
        self.entries += 1
        self.subscriptions.add(letter.subscription)
        self.handlers.add(letter.handler)
        self.exception_types.add(letter.exception_type)
        self.types.add(letter.event.type)
        self.first_failure = min(self.first_failure, letter.first_failure)
        self.last_failure = max(self.last_failure, letter.last_failure)

    def to_dict(self, by: By) -> dict[str, Any]:
        """As plain values."""
        return {
            by.value: self.name,
            "entries": self.entries,
            "subscriptions": sorted(self.subscriptions),
            "handlers": sorted(self.handlers),
            "exception_types": sorted(self.exception_types),
            "types": sorted(self.types),
            "first_failure": self.first_failure,
            "last_failure": self.last_failure,
        }


def groups(letters: Letters, by: By) -> list[Group]:
    """All letters summed up, the largest group first."""
    found: dict[str, Group] = {}
    for letter in letters:
        name = by.of(letter)
        found.setdefault(name, Group(name)).take(letter)
    return sorted(found.values(), key=lambda group: (-group.entries, group.name))


async def redrive(
    file: Path,
    handler: Callable[..., Any],
    selection: Selection,
    *,
    limit: int | None,
    timeout: float | None,
    keep_details: bool,
    progress: Callable[[int], None],
) -> tuple[RedriveReport, int]:
    """Delivers letters of a file to a handler, as any bus does; and how many of those meant are left.

    ``progress`` gets how many are done. Of a journal it needs the ownership; a subscription of its own is in it
    meanwhile.
    """
    bus, journal = _bus(file, keep_details)
    lane = bus.subscribe(TOPIC, handler, name=NAME)
    if journal:
        # What is left of a redrive that was killed is not this one's.
        await asyncio.to_thread(_core.forget_subscription, file, NAME)
    try:
        async with bus:
            letters = bus.dead_letters.filter(**selection.filters) if selection.filters else bus.dead_letters
            work = asyncio.ensure_future(letters.redrive(selection.id, limit=limit, into=NAME, timeout=timeout))
            while not work.done():
                ledger = lane.statistics().ledger
                progress(ledger.done + ledger.dead)
                await asyncio.wait([work], timeout=TICK)
            report = await work
            if selection.id is None:
                return report, await letters.count()
            return report, int(await letters.get(selection.id) is not None)
    finally:
        if journal:
            _core.forget_subscription(file, NAME)


def purge(file: Path, selection: Selection) -> int:
    """Lets go of letters of a file; how many there were. Of a journal it needs the ownership."""
    bus, journal = _bus(file, keep_details=True)
    letters = bus.sync.dead_letters
    if selection.filters:
        letters = letters.filter(**selection.filters)
    if not journal:
        return letters.purge(selection.id)
    with bus:
        return letters.purge(selection.id)


def _bus(file: Path, keep_details: bool) -> tuple[EventBus, bool]:
    """One that has the letters of a file, and whether that is a journal."""
    if LetterFile(file).is_journal:
        return EventBus(path=file, dead_letters=DeadLetters(details=keep_details)), True
    return EventBus(dead_letters=DeadLetters(path=file, details=keep_details)), False


__all__ = ["By", "Group", "Letters", "Selection", "brief", "details", "groups", "purge", "redrive"]
