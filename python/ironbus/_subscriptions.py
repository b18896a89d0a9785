"""Subscriptions: options and their checks, handles, and the table of who listens to what."""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

from ironbus import _durable
from ironbus._breaker import CircuitBreaker, CircuitBreakerConfig
from ironbus._retry import RetryPolicy
from ironbus.errors import InvalidHandler, InvalidOption, InvalidPattern
from ironbus.report import SubscriptionStatistics

if TYPE_CHECKING:
    from ironbus._core import Event, LaneHandle
    from ironbus.bus import EventBus

Handler = Callable[["Event[Any]"], "Awaitable[object] | object"]
Overflow = Literal["block", "reject", "drop_oldest", "drop_new", "spill"]
OVERFLOWS = ("block", "reject", "drop_oldest", "drop_new", "spill")
CONTEXTS = ("fresh", "publisher")
HOLDS = ("level", "key", "nothing")
LETTERS: dict[object, str] = {True: "failed", False: "none", "expired": "failed and expired"}


class SubscribeOptions(TypedDict, total=False):
    """What a subscription may be told beside its topics and its handler.

    ``name``: for reports and errors; must be free. ``where``: asked first, on the
    handler's executor, whether the event is wanted. ``timeout``: seconds that one run
    may take. ``concurrency``: runs at once; events with an equal ``order_by`` (by
    default the event's key) never overlap and keep their order, unless ``ordered`` is
    false. ``overflow`` and ``max_queue_size``: what happens when so many events of one
    priority are queued. ``context``: "fresh", or "publisher" for the context variables
    of the publisher.

    Around each run, from the outside in: ``breaker`` (while it is open the subscription pauses; nothing
    is lost and no attempt used up), ``timeout``, the handler, ``retry``, ``dead_letter``. ``breaker``: a
    :class:`CircuitBreakerConfig`, or a :class:`CircuitBreaker` that others may share. ``retry``: a
    :class:`RetryPolicy`; by default a handler is called once. ``retry_holds``: what waits while an event
    waits for its next attempt: its "level" (priority), only later events of its "key", or "nothing".
    ``dead_letter``: whether deliveries that failed for good are kept (default: yes); "expired": those
    too whose time had passed.

    In a bus with a ``path``, ``name`` is what the subscription is found by after a restart, when it goes on where it
    was: needed unless the handler is a function of a module, whose qualified name it is then. ``since``: where a new
    one begins, by default with what comes: "start" (the oldest event that is kept), the sequence of an event (an
    int), or a time (Unix seconds as a float, or a ``datetime``). ``overflow`` is "spill" there: what there is no
    room for stays in the file until there is.
    """

    name: str | None
    where: Callable[[Event[Any]], object] | None
    timeout: float | None
    concurrency: int
    order_by: Callable[[Event[Any]], object] | None
    ordered: bool
    overflow: Overflow | None
    max_queue_size: int | None
    context: Literal["fresh", "publisher"] | None
    retry: RetryPolicy | None
    retry_holds: Literal["level", "key", "nothing"] | None
    breaker: CircuitBreaker | CircuitBreakerConfig | None
    dead_letter: bool | Literal["expired"] | None
    since: Literal["start"] | int | float | datetime | None


@dataclass(eq=False)
class Lane:
    """One queue and its handler, as Python sees it."""

    handle: LaneHandle
    handler: Handler
    name: str
    plain: bool
    breaker: CircuitBreaker | None = None
    subscriptions: list[Subscription] = field(default_factory=list)


class Subscription:
    """What :meth:`EventBus.subscribe` returns. Usable from any thread."""

    def __init__(self, table: Table, lane: Lane, topics: tuple[str, ...], number: int) -> None:
        self._table = table
        self._lane = lane
        self._topics = topics
        self._number = number
        self._active = True

    @property
    def name(self) -> str:
        """Its name in reports; plain subscriptions of one handler share it."""
        return self._lane.name

    @property
    def topics(self) -> tuple[str, ...]:
        """The types and patterns that it listens to."""
        return self._topics

    @property
    def active(self) -> bool:
        """Whether it still listens."""
        return self._active

    @property
    def breaker(self) -> CircuitBreaker | None:
        """Its circuit breaker, if it has one: the shared one, or one of its own with its name."""
        return self._lane.breaker

    def pause(self) -> None:
        """Start no more handlers. Events are still queued; handlers that run go on."""
        self._lane.handle.pause(True)

    def resume(self) -> None:
        """Start handlers again."""
        self._lane.handle.pause(False)

    def cancel(self) -> None:
        """Listen no more. What is still queued is dropped, counted; a handler that runs goes on.

        Where plain subscriptions share a queue, that happens with the last of them.
        Repeating it does nothing.
        """
        self._table.cancel(self)

    def statistics(self) -> SubscriptionStatistics:
        """Depths, counts and latencies of this moment."""
        return self._table.statistics(self)

    def __repr__(self) -> str:
        state = "" if self._active else ", cancelled"
        return f"<Subscription {self.name!r} to {', '.join(map(repr, self._topics))}{state}>"


class Observer(Protocol):
    """Who wants to know of subscriptions: a harness of :mod:`ironbus.testing`."""

    def made(self, lane: Lane) -> None:
        """A lane has been made, and nothing has reached it yet."""

    def subscribed(self, subscription: Subscription) -> None:
        """Somebody has subscribed."""


class Table:
    """Who listens to what. Called under the bus's lock of subscriptions."""

    def __init__(self, bus: EventBus) -> None:
        # The bus owns the table; the other direction must not keep it alive.
        self._bus = weakref.ref(bus)
        self._lock = threading.RLock()
        self._lanes: dict[str, Lane] = {}
        self._plain: dict[Any, Lane] = {}
        self._plain_unhashable: list[Lane] = []
        self._counts: dict[str, int] = {}
        self._topics: dict[str, list[Subscription]] = {}
        self.observer: Observer | None = None

    def renew_lock(self) -> None:
        """In a forked child: whoever held it is not here."""
        self._lock = threading.RLock()

    def subscribe(self, topics: tuple[str, ...], handler: Handler, options: SubscribeOptions) -> Subscription:
        """Begin a subscription, in the handler's shared lane if there is no option."""
        bus = self._bus()
        if bus is None:
            raise ReferenceError("the bus of this subscription is gone")
        given = {name: value for name, value in options.items() if value is not None}
        with self._lock:
            lane = self._plain_lane(handler) if not given else None
            if lane is None:
                lane = self._make(bus, handler, options, plain=not given)
            number = lane.handle.subscribe(list(topics))
            subscription = Subscription(self, lane, topics, number)
            lane.subscriptions.append(subscription)
            for topic in topics:
                self._topics.setdefault(topic, []).append(subscription)
            if self.observer is not None:
                self.observer.subscribed(subscription)
            return subscription

    def _plain_lane(self, handler: Handler) -> Lane | None:
        try:
            return self._plain.get(handler)
        except TypeError:  # a handler without a hash is still one that may be equal
            return next((lane for lane in self._plain_unhashable if lane.handler == handler), None)

    def _make(self, bus: EventBus, handler: Handler, options: SubscribeOptions, *, plain: bool) -> Lane:
        name = options.get("name")
        base = name or qualified_name(handler)
        if name is not None and name in self._lanes:
            other = self._lanes[name]
            if not _redefined(other.handler, handler):
                text = f"the name {name!r} is taken by another subscription; choose another, or cancel() that one"
                raise InvalidOption(text, "name")
            for subscription in list(other.subscriptions):
                self.cancel(subscription)
        since: tuple[str, float] | None = None
        if bus._path is not None:
            since = self._check_durable(bus, name, base, handler, options)
        else:
            _durable.check_overflow(options.get("overflow"), None)
        unique = base
        number = self._counts.get(base, 1)
        while unique in self._lanes:
            number += 1
            unique = f"{base}#{number}"
        self._counts[base] = number
        breaker = options.get("breaker")
        if isinstance(breaker, CircuitBreakerConfig):
            breaker = CircuitBreaker(unique, breaker, clock=bus._clock)
        handle = bus._make_lane(handler, name=unique, breaker=breaker, since=since, **lane_options(options, handler))
        lane = Lane(handle, handler, unique, plain, breaker)
        self._lanes[unique] = lane
        if self.observer is not None:
            self.observer.made(lane)
        if plain:
            try:
                self._plain[handler] = lane
            except TypeError:
                self._plain_unhashable.append(lane)
        return lane

    def _check_durable(
        self, bus: EventBus, name: str | None, base: str, handler: Handler, options: SubscribeOptions
    ) -> tuple[str, float]:
        _durable.check_name(name, handler)
        _durable.check_overflow(options.get("overflow"), bus._path)
        other = self._lanes.get(base)
        if other is not None:
            if not _redefined(other.handler, handler):
                text = f"the name {base!r} is taken by another subscription; give this one a name of its own"
                raise InvalidOption(text, "name")
            for subscription in list(other.subscriptions):
                self.cancel(subscription)
        return _durable.check_since(options.get("since")) or ("now", 0.0)

    def unsubscribe(self, topic: str, handler: Handler) -> bool:
        """Take back the latest subscription of the handler to the topic; false: there is none."""
        with self._lock:
            for subscription in reversed(self._topics.get(topic, [])):
                if subscription._lane.handler == handler:
                    break
            else:
                return False
            rest = tuple(other for other in subscription._topics if other != topic)
            if rest:
                lane = subscription._lane
                number = lane.handle.subscribe(list(rest))
                lane.handle.unsubscribe(subscription._number, False)
                subscription._number = number
                subscription._topics = rest
                self._forget(topic, subscription)
            else:
                self.cancel(subscription)
            return True

    def cancel(self, subscription: Subscription) -> None:
        """See :meth:`Subscription.cancel`."""
        with self._lock:
            if not subscription._active:
                return
            subscription._active = False
            lane = subscription._lane
            lane.subscriptions.remove(subscription)
            for topic in subscription._topics:
                self._forget(topic, subscription)
            last = not lane.subscriptions
            if last:
                del self._lanes[lane.name]
                if lane.plain:
                    try:
                        self._plain.pop(lane.handler, None)
                    except TypeError:
                        self._plain_unhashable.remove(lane)
            lane.handle.unsubscribe(subscription._number, last)

    def _forget(self, topic: str, subscription: Subscription) -> None:
        listeners = self._topics[topic]
        listeners.remove(subscription)
        if not listeners:
            del self._topics[topic]

    def statistics(self, subscription: Subscription) -> SubscriptionStatistics:
        """See :meth:`Subscription.statistics`."""
        bus = self._bus()
        if bus is None or not subscription._active:
            raise InvalidOption("the subscription is cancelled and has no statistics any more", "subscription")
        return bus.metrics().subscriptions[subscription.name]

    def lanes(self) -> dict[str, Lane]:
        """Name to lane."""
        with self._lock:
            return dict(self._lanes)

    def counts(self) -> dict[str, int]:
        """Topic to number of subscriptions."""
        with self._lock:
            return {topic: len(listeners) for topic, listeners in self._topics.items()}

    def describe(self) -> list[dict[str, Any]]:
        """One entry for each lane."""
        with self._lock:
            return [
                {
                    "name": lane.name,
                    "topics": [topic for subscription in lane.subscriptions for topic in subscription._topics],
                    "concurrency": lane.handle.concurrency,
                    "async": is_async(lane.handler),
                }
                for lane in self._lanes.values()
            ]


def check_topics(topics: Iterable[object]) -> tuple[str, ...]:
    """Printable strings, at least one."""
    checked: list[str] = []
    for topic in topics:
        if not isinstance(topic, str) or not topic or not topic.isprintable():
            raise InvalidPattern(
                "a topic must be a printable, non-empty string:"
                ' a type such as "order.paid", or a pattern such as "order.*"',
                "event_type",
            )
        checked.append(str.__str__(topic))
    if not checked:
        raise InvalidPattern('name at least one topic, for example "order.*"', "event_type")
    return tuple(dict.fromkeys(checked))


def check_handler(handler: object) -> Handler:
    """A callable that takes one event."""
    if not callable(handler):
        raise InvalidHandler(
            f"handler must be a function or another callable that takes one event, not {type(handler).__name__}",
            "handler",
        )
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # a builtin that does not tell
        return handler
    try:
        signature.bind(object())
    except TypeError:
        name = qualified_name(handler)
        raise InvalidHandler(f"handler {name} must take exactly one argument, the event", "handler") from None
    return handler


def check_options(options: dict[str, Any]) -> SubscribeOptions:
    """Known names and sensible values."""
    for option in options:
        if option not in SubscribeOptions.__annotations__:
            known = ", ".join(sorted(SubscribeOptions.__annotations__))
            raise InvalidOption(f"unknown option {option!r}; there are {known}", option)
    name = options.get("name")
    if name is not None and (not isinstance(name, str) or not name or not name.isprintable()):
        raise InvalidOption("name must be a printable, non-empty string", "name")
    for callback in ("where", "order_by"):
        if options.get(callback) is not None and not callable(options[callback]):
            raise InvalidOption(f"{callback} must be a callable that takes one event", callback)
        if options.get(callback) is not None and is_async(options[callback]):
            raise InvalidOption(f"{callback} must be a plain function; it cannot be async", callback)
    timeout = options.get("timeout")
    if timeout is not None and not (_is_number(timeout) and 0 < timeout < math.inf):
        raise InvalidOption("timeout must be a positive number of seconds", "timeout")
    check_count(options.get("concurrency", 1), "concurrency")
    check_count(options.get("max_queue_size"), "max_queue_size")
    check_choice(options.get("overflow"), OVERFLOWS, "overflow")
    check_choice(options.get("context"), CONTEXTS, "context")
    check_choice(options.get("retry_holds"), HOLDS, "retry_holds")
    retry, breaker, dead_letter = options.get("retry"), options.get("breaker"), options.get("dead_letter")
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise InvalidOption("retry must be a RetryPolicy, for example RetryPolicy(max_attempts=5)", "retry")
    if breaker is not None and not isinstance(breaker, (CircuitBreaker, CircuitBreakerConfig)):
        text = "breaker must be a CircuitBreakerConfig, or a CircuitBreaker that several may share"
        raise InvalidOption(text, "breaker")
    if dead_letter is not None and not isinstance(dead_letter, bool) and dead_letter != "expired":
        text = 'dead_letter must be True, False or "expired" (to keep what expired, too)'
        raise InvalidOption(text, "dead_letter")
    _durable.check_since(options.get("since"))
    ordered = options.get("ordered", True)
    if not isinstance(ordered, bool):
        raise InvalidOption("ordered must be True or False", "ordered")
    if options.get("order_by") is not None and not ordered:
        raise InvalidOption("order_by has no meaning with ordered=False; leave one of them out", "order_by")
    if options.get("retry_holds") == "key" and not ordered:
        text = 'retry_holds="key" has no meaning with ordered=False; leave one of them out, or hold "nothing"'
        raise InvalidOption(text, "retry_holds")
    return options  # type: ignore[return-value] # checked above, name by name


def check_count(value: object, name: str, *, required: bool = False) -> None:
    """A positive whole number that a machine word holds, or None."""
    if value is None and not required:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidOption(f"{name} must be a whole number of at least 1", name)
    if value > sys.maxsize:
        raise InvalidOption(f"{name} must be at most {sys.maxsize}", name)


def check_choice(value: object, choices: tuple[str, ...], name: str, *, required: bool = False) -> None:
    """One of the choices, or None."""
    if value is None and not required:
        return
    if value not in choices:
        raise InvalidOption(f"{name} must be one of {', '.join(map(repr, choices))}", name)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def lane_options(options: SubscribeOptions, handler: Handler) -> dict[str, Any]:
    """The options as the native half wants them."""
    concurrency = options.get("concurrency") or 1
    order_by = options.get("order_by")
    order = "lane"
    holds = options.get("retry_holds") or "level"
    dead_letter = options.get("dead_letter")
    if concurrency > 1 or holds == "key":
        order = "nothing" if not options.get("ordered", True) else "computed" if order_by is not None else "key"
    return {
        "is_async": is_async(handler),
        "filter": options.get("where"),
        "order_by": order_by,
        "timeout": options.get("timeout"),
        "concurrency": concurrency,
        "order": order,
        "overflow": options.get("overflow"),
        "bound": options.get("max_queue_size"),
        "publisher_context": None if options.get("context") is None else options.get("context") == "publisher",
        "retry": options.get("retry"),
        "retry_holds": holds,
        "dead_letters": LETTERS[True if dead_letter is None else dead_letter],
    }


def is_async(handler: object) -> bool:
    """Whether calling it gives something to await: decided once, at subscribe."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if inspect.iscoroutinefunction(handler):
        return True
    return inspect.iscoroutinefunction(getattr(type(handler), "__call__", None))  # noqa: B004 - asks what kind it is


def qualified_name(handler: object) -> str:
    """What reports call a handler that has no name of its own."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    name = getattr(handler, "__qualname__", None) or type(handler).__qualname__
    module = getattr(handler, "__module__", None) or type(handler).__module__
    return f"{module}.{name}"


def _redefined(old: object, new: object) -> bool:
    """Whether this is the same function again, from a notebook cell or a reload."""
    if old is new or "<locals>" in qualified_name(new):
        return False
    return inspect.isfunction(old) and inspect.isfunction(new) and qualified_name(old) == qualified_name(new)


def default_workers() -> int:
    """Threads for sync handlers: as many as ``concurrent.futures`` would use."""
    return min(32, (os.cpu_count() or 1) + 4)
