"""What was published while a harness listened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ironbus._core import Event, topic_matches
from ironbus.errors import InvalidOption

if TYPE_CHECKING:
    from ironbus._core import Receipt, StreamSource

#: A type or a pattern; :class:`Event` or a subclass; None for everything.
Topic = str | type[Event[Any]] | None
Where = Callable[[Event[Any]], object]

#: Lines of a failure that tell what was there.
_SHOWN = 40


class Published:
    """The events that were accepted while the harness was there, also those of handlers, by sequence.

    ``topic``: a type, a pattern that contains ``*``, a subclass of :class:`ironbus.Event`, or None for
    everything. ``where`` is asked for each of those whether it counts. What fails raises an
    ``AssertionError`` that lists the events by sequence, type and key, never with their data.

    The events are copies of their own; ``data`` is shared by reference. What is published while the
    bus is stopped appears with its next start. Any thread.
    """

    def __init__(self, source: StreamSource, before: int) -> None:
        self._source = source
        self._before = before
        self._lock = threading.Lock()
        self._seen: list[tuple[int, Event[Any], Receipt]] = []

    def one(self, topic: Topic = None, *, where: Where | None = None) -> Event[Any]:
        """The only one of these."""
        __tracebackhide__ = True
        found = self.all(topic, where=where)
        if len(found) != 1:
            raise self._wrong("exactly one event", topic, where, found)
        return found[0]

    def all(self, topic: Topic = None, *, where: Where | None = None) -> list[Event[Any]]:
        """All of these, by sequence."""
        wanted = _check_topic(topic)
        events = [event for _, event, _ in self._events() if _is(event, wanted)]
        return events if where is None else [event for event in events if where(event)]

    def none(self, topic: Topic = None, *, where: Where | None = None) -> None:
        """There is none of these."""
        __tracebackhide__ = True
        if found := self.all(topic, where=where):
            raise self._wrong("no event", topic, where, found)

    def count(self, topic: Topic = None, *, where: Where | None = None) -> int:
        """How many of these there are."""
        return len(self.all(topic, where=where))

    def __iter__(self) -> Iterator[Event[Any]]:
        return iter(self.all())

    def __len__(self) -> int:
        return len(self._events())

    def __bool__(self) -> bool:
        return bool(self._events())

    def __repr__(self) -> str:
        return f"<Published: {len(self)} events>"

    def _events(self) -> list[tuple[int, Event[Any], Receipt]]:
        return self._all()[self._before :]

    def _all(self) -> list[tuple[int, Event[Any], Receipt]]:
        """Also those that had waited for the start of the bus."""
        with self._lock:
            while (taken := self._source.take_with_receipt()) is not None:
                event, receipt = taken
                self._seen.append((receipt.sequence or 0, event, receipt))
            # Higher priorities are taken first.
            self._seen.sort(key=lambda seen: seen[0])
            return list(self._seen)

    def _unsettled(self) -> list[Event[Any]]:
        """Those without an outcome for one of their subscriptions."""
        return [event for _, event, receipt in self._all() if not receipt._is_over(False)]

    def _wrong(self, wanted: str, topic: Topic, where: Where | None, found: list[Event[Any]]) -> AssertionError:
        kind = "" if topic is None else f" of {topic!r}" if isinstance(topic, str) else f" of {topic.__qualname__}"
        condition = "" if where is None else " that meets the condition"
        events = [event for _, event, _ in self._events()]
        there = f"what was published:\n{lines(events)}" if events else "nothing was published"
        return AssertionError(f"expected {wanted}{kind}{condition}, found {len(found)}; {there}")


def lines(events: list[Event[Any]]) -> str:
    """One line an event, without its data."""
    shown = [_line(event) for event in events[:_SHOWN]]
    if len(events) > _SHOWN:
        shown.append(f"  and {len(events) - _SHOWN} more")
    return "\n".join(shown)


def _line(event: Event[Any]) -> str:
    return f"  {event.sequence}  {event.type}" + ("" if event.key is None else f"  key={event.key!r}")


def _check_topic(topic: Topic) -> Topic:
    if topic is None or (isinstance(topic, type) and issubclass(topic, Event)):
        return topic
    if isinstance(topic, str) and topic:
        return topic
    raise InvalidOption(
        'topic must be a type such as "order.paid", a pattern such as "order.*", a subclass of Event, or None', "topic"
    )


def _is(event: Event[Any], topic: Topic) -> bool:
    if isinstance(topic, str):
        return topic_matches(topic, event.type)
    return topic is None or isinstance(event, topic)


__all__ = ["Published", "Topic", "Where", "lines"]
