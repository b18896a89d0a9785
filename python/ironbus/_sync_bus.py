"""The bus for programs without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ironbus._core import BatchReceipt, Event, Receipt
from ironbus._durable import Durability
from ironbus._kept_events import SyncKeptEvents
from ironbus.dead_letters import SyncDeadLetters
from ironbus.errors import Unsettled, WouldDeadlock, WrongLoop
from ironbus.priority import EventPriority
from ironbus.report import StopReport
from ironbus.streams import SyncExpectation, SyncStream

if TYPE_CHECKING:
    from ironbus._core import EventInput
    from ironbus.bus import EventBus


class SyncBus(SyncKeptEvents):
    """A bus for programs without an event loop: ``bus.sync``, or ``with bus:``.

    Async handlers run on a loop of its own, in a background thread. Its methods block
    the calling thread, which must not run an event loop.
    """

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the bus. Repeating it does nothing."""
        self._check("start()", "await bus.start()")
        with self._bus._lifecycle:
            if self._bus._running:
                return
            self._end_thread()
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_run_loop, args=(loop,), name="ironbus-loop", daemon=True)
            thread.start()
            self._loop, self._thread = loop, thread
            try:
                asyncio.run_coroutine_threadsafe(self._bus.start(), loop).result()
            except BaseException:
                self._end_thread()
                raise

    def stop(self, timeout: float = 10.0) -> StopReport:
        """See :meth:`EventBus.stop`."""
        self._check("stop()", "await bus.stop()")
        if self._bus._own() is not None:
            raise WouldDeadlock("sync.stop() inside a handler of the same bus would wait for that handler itself")
        with self._bus._lifecycle:
            home = self._bus._loop
            if not self._bus._running or home is None:
                self._bus._close_quietly()
                report = StopReport(drained=True, left=0, interrupted=0, seconds=0.0)
            else:
                report = asyncio.run_coroutine_threadsafe(self._bus.stop(timeout), home).result()
            self._end_thread()
            return report

    def _end_thread(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop = self._thread = None

    def publish(
        self,
        event: str | Event[Any],
        data: Any = None,
        *,
        priority: EventPriority | int | None = None,
        key: str | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | None = None,
        expires_in: float | None = None,
        durability: Durability | None = None,
    ) -> Receipt:
        """See :meth:`EventBus.publish`; waits for room on this thread."""
        return self._bus.publish_sync(
            event,
            data,
            priority=priority,
            key=key,
            idempotency_key=idempotency_key,
            headers=headers,
            delay=delay,
            expires_in=expires_in,
            durability=durability,
        )

    def publish_many(
        self,
        events: Iterable[EventInput],
        /,
        *,
        priority: EventPriority | int | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float | None = None,
        expires_in: float | None = None,
        durability: Durability | None = None,
    ) -> BatchReceipt:
        """See :meth:`EventBus.publish_many`; waits for room on this thread."""
        return self._bus._publish_many_sync(
            events,
            priority=priority,
            key=key,
            headers=headers,
            delay=delay,
            expires_in=expires_in,
            durability=durability,
        )

    def drop_subscription(self, name: str) -> None:
        """See :meth:`EventBus.drop_subscription`."""
        self._check("drop_subscription()", "await bus.drop_subscription()")
        self._bus._check_droppable(name)
        self._bus._forget_subscription(name)

    def drain(self, *, timeout: float | None = None) -> None:
        """See :meth:`EventBus.drain`."""
        self._check("drain()", "await bus.drain()")
        self._bus._check_drain()
        if not self._bus._wait_quiet(timeout):
            raise Unsettled("the bus is not idle yet; it goes on, and drain() may be called again", "timeout")

    @property
    def dead_letters(self) -> SyncDeadLetters:
        """See :attr:`EventBus.dead_letters`; its methods block the calling thread."""
        return self._bus._dead_letters._blocking()

    def stream(self, *topics: str, max_queue_size: int | None = None) -> SyncStream:
        """See :meth:`EventBus.stream`."""
        self._check("stream()", "bus.stream()")
        return SyncStream(self._bus.stream(*topics, max_queue_size=max_queue_size))

    def expect(
        self, topic: str, *, where: Callable[[Event[Any]], object] | None = None, timeout: float | None = None
    ) -> SyncExpectation:
        """See :meth:`EventBus.expect`."""
        self._check("expect()", "bus.expect()")
        return SyncExpectation(self._bus.expect(topic, where=where, timeout=timeout))

    def _check(self, what: str, instead: str) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise WrongLoop(f"sync.{what} would block the event loop of this thread; use {instead}")


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        asyncio.set_event_loop(None)
        loop.close()


__all__ = ["SyncBus"]
