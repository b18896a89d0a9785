"""Ordering by priority and sequence number: the ``ordering`` half of the ``pm.events`` API."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from ironbus._core import Event, EventOrderingManager, EventSequence, IdempotencyManager
from ironbus._subscriptions import check_count, check_handler, check_topics, is_async, qualified_name
from ironbus.bus import EventBus, Idempotency
from ironbus.errors import InvalidOption, InvalidPriority
from ironbus.priority import EventPriority
from ironbus.report import StopReport

# The dict has ``type``, ``data`` and ``id``.
ProcessedHandler = Callable[[dict[str, Any]], Awaitable[object] | object]


class OrderedEventProcessor:
    """Has events handled by priority, then in the order of their acceptance, each content once.

    A thin layer on an :class:`ironbus.EventBus` of its own. ``idempotency_ttl``:
    seconds for which an event with equal type and data is a duplicate. ``max_batch_size``
    and ``process_interval`` are checked, and otherwise without effect: events are handled
    as they come, and neither order nor speed depends on a batch.

    Each handler handles one event at a time, the most urgent first; events of one priority
    in the order of their acceptance. (So that none starves, an event that has waited for
    long goes before more urgent ones now and then, as on every bus.) Handlers do not wait for each
    other: a slow one holds up itself alone. One that fails is logged, to the log
    ``ironbus``, without the event's data, and the next event goes on.

    Raises :class:`ironbus.errors.InvalidOption`, a ``ValueError``.
    """

    def __init__(self, idempotency_ttl: float = 3600, max_batch_size: int = 10, process_interval: float = 0.1) -> None:
        if not _is_number(idempotency_ttl) or not 0 < idempotency_ttl < 1e9:
            raise InvalidOption("idempotency_ttl must be a positive number of seconds", "idempotency_ttl")
        check_count(0 if max_batch_size is None else max_batch_size, "max_batch_size")
        if not _is_number(process_interval) or not 0 <= process_interval < math.inf:
            raise InvalidOption("process_interval must be a number of seconds, not negative", "process_interval")
        self._bus = EventBus(idempotency=Idempotency("content", ttl=idempotency_ttl))
        self._lock = threading.Lock()
        # Until the first start, when they are subscribed by priority.
        self._registered: list[tuple[EventPriority, str, _Adapter]] | None = []

    def register_handler(
        self, event_type: str, handler: ProcessedHandler, priority: EventPriority = EventPriority.NORMAL
    ) -> None:
        """Have ``handler`` called with every event of a type, as a dict of ``type``, ``data`` and ``id``.

        An async handler runs on the loop of :meth:`start_processing`, any other on a
        thread. A handler that is registered for several types still handles one event at
        a time; registered twice for one type, it gets each event twice.

        ``priority`` is that of the handler among the handlers of one event: those that are
        free are called in this order, if they were registered before the first start, and
        later ones after them. It is not the priority of events, and no handler waits for
        another to end.

        Any thread. Raises :class:`ironbus.errors.InvalidSubscription` and
        :class:`ironbus.errors.InvalidPriority`, both ``ValueError``.
        """
        (event_type,) = check_topics([event_type])
        check_handler(handler)
        try:
            level = EventPriority(priority)
        except ValueError:
            text = "priority must be EventPriority.CRITICAL, HIGH, NORMAL or LOW (0 to 3)"
            raise InvalidPriority(text, "priority") from None
        adapter = _AsyncAdapter(handler) if is_async(handler) else _Adapter(handler)
        with self._lock:
            if self._registered is None:
                self._bus.subscribe(event_type, adapter)
            else:
                self._registered.append((level, event_type, adapter))

    async def process_event(
        self, event_type: str, event_data: Any, event_id: str, priority: EventPriority = EventPriority.NORMAL
    ) -> bool:
        """Accept an event; False for a duplicate: one of equal type and data, whatever its id.

        Returns once the event is accepted, not when it is handled, and waits for room
        while a handler has too many before it. Only an accepted event makes later ones
        duplicates. Works before :meth:`start_processing`, when the event waits. An event for
        which there is no handler is accepted, and settled at once.

        Any loop. Raises :class:`ironbus.errors.InvalidEvent`, a ``ValueError``, and
        :class:`ironbus.errors.QueueFull`.
        """
        event = Event(event_type, event_data, event_id=event_id)
        receipt = await self._bus.publish(event, priority=priority)
        return not receipt.duplicate

    async def start_processing(self) -> None:
        """Start handling events on the running loop, and return. Repeating it does nothing."""
        with self._lock:
            registered, self._registered = self._registered, None
            for _, event_type, adapter in sorted(registered or (), key=lambda entry: entry[0]):
                self._bus.subscribe(event_type, adapter)
        await self._bus.start()

    async def stop_processing(self) -> StopReport:
        """Handle what is queued, for up to 10 s, and stop. What is left waits for the next start.

        Callable in a handler too. Repeating it does nothing.
        """
        return await self._bus.stop()


class _Adapter:
    """From the bus's events to dicts. Equal for equal handlers, so that these share one queue."""

    def __init__(self, handler: ProcessedHandler) -> None:
        self.handler: Callable[[dict[str, Any]], Any] = handler
        # The bus names the subscription by these.
        self.__module__, _, self.__qualname__ = qualified_name(handler).rpartition(".")

    def __call__(self, event: Event[Any]) -> object:
        return self.handler({"type": event.type, "data": event.data, "id": event.event_id})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Adapter) and self.handler == other.handler

    def __hash__(self) -> int:
        return hash(self.handler)


class _AsyncAdapter(_Adapter):
    """The same for async handlers: the bus decides by the adapter where it is called."""

    async def __call__(self, event: Event[Any]) -> object:
        return await self.handler({"type": event.type, "data": event.data, "id": event.event_id})


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_processor: OrderedEventProcessor | None = None
_processor_process: int | None = None
_processor_lock = threading.Lock()


def get_ordered_processor() -> OrderedEventProcessor:
    """The processor of this process, made at the first call. Any thread."""
    global _processor, _processor_process
    with _processor_lock:
        # A forked child gets its own: the parent's is not running here.
        if _processor is None or _processor_process != os.getpid():
            _processor, _processor_process = OrderedEventProcessor(), os.getpid()
        return _processor


__all__ = [
    "EventOrderingManager",
    "EventPriority",
    "EventSequence",
    "IdempotencyManager",
    "OrderedEventProcessor",
    "get_ordered_processor",
]
