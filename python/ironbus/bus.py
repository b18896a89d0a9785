"""The event bus: publish, subscribe, start and stop.

This module gives the native bus its names, defaults and checks. Nothing here runs
per event.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

# What the native code looks up by name is imported here: a fork in the middle of a first import
# would leave the child without it for ever.
from ironbus import _core, _exit, _failures, _interval, _log, _slot_task, _waiting  # noqa: F401
from ironbus._core import BatchReceipt, Event, Receipt
from ironbus._event_log import EventLog
from ironbus._retry import check_random
from ironbus._subscriptions import (
    CONTEXTS,
    OVERFLOWS,
    Handler,
    Overflow,
    SubscribeOptions,
    Subscription,
    Table,
    check_choice,
    check_count,
    check_handler,
    check_options,
    check_topics,
    default_workers,
)
from ironbus._worker import Worker
from ironbus.dead_letters import BusDeadLetters, DeadLetters, SyncDeadLetters
from ironbus.errors import InvalidOption, NotStarted, Unsettled, WouldDeadlock, WrongLoop
from ironbus.priority import EventPriority
from ironbus.report import (
    LaneLedger,
    Latency,
    Ledger,
    Metrics,
    StopReport,
    SubscriptionStatistics,
)
from ironbus.streams import Expectation, Stream, SyncExpectation, SyncStream

if TYPE_CHECKING:
    from ironbus._core import EventInput

logger = logging.getLogger("ironbus")

F = TypeVar("F", bound=Handler)

#: All that there are, for what must be done in a forked child.
_buses: weakref.WeakSet[EventBus] = weakref.WeakSet()

#: Seconds that stop() waits for handlers that it has cancelled.
_GRACE = 1.0


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What makes an event a duplicate, and for how long that is remembered.

    ``mode``: "key" (events with an equal ``idempotency_key``) or "content" (also
    events with equal type and data, by :func:`ironbus.content_key`). ``ttl``: seconds,
    an exact deadline for each key. ``max_keys``: beyond it the oldest keys go, counted.
    """

    mode: Literal["key", "content"] = "key"
    ttl: float = 3600
    max_keys: int = 1_000_000

    def __post_init__(self) -> None:
        check_choice(self.mode, ("key", "content"), "mode", required=True)
        if isinstance(self.ttl, bool) or not isinstance(self.ttl, (int, float)) or not 0 < self.ttl < 1e9:
            raise InvalidOption("ttl must be a positive number of seconds", "ttl")
        check_count(self.max_keys, "max_keys", required=True)


class EventBus(_core.Bus):
    """An event bus inside the process.

    ``log_dir``: a folder for an event log (default: ``IRONBUS_LOG_DIR``, else none).
    ``max_queue_size``: events queued per subscription and priority, and events kept
    before the start. ``overflow``: what happens beyond it: "block" (publishers wait),
    "reject" (``QueueFull``), "drop_oldest" or "drop_new" (counted). ``idempotency``:
    "key", "content" or an :class:`Idempotency`. ``context``: handlers run in a
    "fresh" context or in their "publisher"'s. ``workers``: threads for sync handlers
    at most. ``clock``: a callable that returns seconds and never goes back, for tests.
    ``random``: what spreads the delays of retries, a seed or a callable that returns numbers
    from 0.0 up to 1.0. ``dead_letters``: how deliveries that failed for good are kept, by default in memory; see
    :class:`ironbus.DeadLetters`.

    Making a bus has no side effects, except for the event log's file.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        max_queue_size: int = 100_000,
        overflow: Overflow | None = None,
        idempotency: Literal["key", "content"] | Idempotency = "key",
        context: Literal["fresh", "publisher"] = "fresh",
        workers: int | None = None,
        clock: Callable[[], float] | None = None,
        random: int | Callable[[], float] | None = None,
        dead_letters: DeadLetters | None = None,
    ) -> None:
        check_count(max_queue_size, "max_queue_size", required=True)
        check_count(workers, "workers")
        check_choice(overflow, OVERFLOWS, "overflow")
        check_choice(context, CONTEXTS, "context", required=True)
        if clock is not None and not callable(clock):
            raise InvalidOption("clock must be a callable that returns seconds", "clock")
        draw = check_random(random)
        if not isinstance(idempotency, Idempotency):
            check_choice(idempotency, ("key", "content"), "idempotency", required=True)
            idempotency = Idempotency(idempotency)
        if dead_letters is not None and not isinstance(dead_letters, DeadLetters):
            text = 'dead_letters must be an ironbus.DeadLetters, for example DeadLetters(path="orders.dead")'
            raise InvalidOption(text, "dead_letters")
        letters = dead_letters or DeadLetters()
        self._settings: dict[str, Any] = {
            "max_queue_size": max_queue_size,
            "overflow": overflow or "block",
            "idempotency": idempotency,
            "context": context,
            "workers": workers or default_workers(),
            "dead_letters": letters,
        }
        store, in_file = letters._store(), letters.path is not None
        worker = Worker("ironbus-dead-letters")
        self._configure(
            max_queue_size=max_queue_size,
            overflow=overflow or "block",
            by_content=idempotency.mode == "content",
            ttl=float(idempotency.ttl),
            max_keys=idempotency.max_keys,
            publisher_context=context == "publisher",
            workers=workers or default_workers(),
            clock=clock,
            random=draw,
            dead_letters=store,
            writer=worker.hand if in_file else None,
            window=60.0,
        )
        self._dead_letters = BusDeadLetters(self._letter_box(), worker, in_file)
        self._clock = clock
        self._table = Table(self)
        self._lifecycle = threading.Lock()
        self._stopping: asyncio.Future[None] | None = None
        self._holds_interval = False
        self._sync: SyncBus | None = None
        self._log: EventLog | None = None
        self._log_lane: _core.LaneHandle | None = None
        folder = log_dir if log_dir is not None else os.environ.get("IRONBUS_LOG_DIR") or None
        if folder is not None:
            self._log = EventLog(folder)
            self._log_lane = self._make_lane(self._log.write, name="(event log)", **_LOG_LANE)
            self._log_lane.subscribe(["*"])
        _buses.add(self)

    # Subscribing -----------------------------------------------------------------

    def subscribe(self, event_type: str, handler: Handler, **options: Unpack[SubscribeOptions]) -> Subscription:
        """Have ``handler`` called with every event of a type, or of a pattern that contains ``*``.

        An async handler runs on the bus's loop, any other on one of its threads. Plain
        subscriptions (without options) of an equal handler share one queue: it never
        overlaps itself and sees all its events in publish order. Any option gives the
        subscription a queue of its own; see :class:`SubscribeOptions`. Callable from any
        thread, before or after ``start()``. Raises :class:`ironbus.errors.InvalidSubscription`.
        """
        return self._table.subscribe(check_topics([event_type]), check_handler(handler), check_options(dict(options)))

    def on(self, *topics: str, **options: Unpack[SubscribeOptions]) -> Callable[[F], F]:
        """:meth:`subscribe` as a decorator; the function is returned unchanged.

        An event that several of the topics match is handled once.
        """
        checked, checked_options = check_topics(topics), check_options(dict(options))

        def decorate(handler: F) -> F:
            self._table.subscribe(checked, check_handler(handler), checked_options)
            return handler

        return decorate

    def unsubscribe(self, event_type: str, handler: Handler) -> None:
        """Take back one subscription of the handler to the topic. Unknown pairs are only logged."""
        if not self._table.unsubscribe(event_type, handler):
            logger.warning("unsubscribe: this handler is not subscribed to %r", event_type)

    def get_subscribers(self) -> dict[str, int]:
        """Each type or pattern with the number of its subscriptions."""
        return self._table.counts()

    def stream(self, *topics: str, max_queue_size: int | None = None) -> Stream:
        """The events of some topics from now on, as an async iterator. See :class:`Stream`."""
        check_count(max_queue_size, "max_queue_size")
        names = check_topics(topics)
        return Stream(self._open_stream(list(names), f"stream({', '.join(names)})", max_queue_size))

    def expect(
        self, topic: str, *, where: Callable[[Event[Any]], object] | None = None, timeout: float | None = None
    ) -> Expectation:
        """One event that comes after this call. See :class:`Expectation`.

        Raises :class:`ironbus.errors.Unsettled` when none came within ``timeout`` seconds.
        """
        return Expectation(self.stream(topic), where, timeout)

    # Publishing ------------------------------------------------------------------

    if TYPE_CHECKING:
        # The native methods, put in place below: see _publish and _publish_many.
        async def publish(
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
        ) -> Receipt: ...

        async def publish_many(
            self,
            events: Iterable[EventInput],
            /,
            *,
            priority: EventPriority | int | None = None,
            key: str | None = None,
            headers: Mapping[str, str] | None = None,
            delay: float | None = None,
            expires_in: float | None = None,
        ) -> BatchReceipt: ...

    # Start and stop --------------------------------------------------------------

    async def start(self) -> None:
        """Start handling events on the running loop. Repeating it does nothing.

        Events that were published before reach the handlers that are subscribed by now.
        A stopped bus may be started again, on another loop too. Raises :class:`ironbus.StorageError` where a
        file of dead letters cannot be used.
        """
        if not self._running:
            await self._dead_letters._open()
        if self._open():
            self._stopping = None
            _exit.remember(self)
            # A start whose loop was closed without a stop holds it already.
            if not self._holds_interval:
                self._holds_interval = True
                _interval.hold()

    async def stop(self, timeout: float = 10.0) -> StopReport:
        """Stop: handle what is queued for up to ``timeout`` seconds, then let go.

        What is left stays queued, in order, for the next start; handlers that still wait
        for something are cancelled and their events go back with the attempt refunded. A
        sync handler cannot be stopped: it goes on, and its event is settled when it ends.
        Callable from any loop and from a handler, which goes on. Repeating it does nothing.
        """
        home = self._loop
        if home is None or not self._running:
            self._let_go()
            return StopReport(drained=True, left=0, interrupted=0, seconds=0.0)
        own = self._own()
        if home is not asyncio.get_running_loop():
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._stop(timeout, own), home))
        return await self._stop(timeout, own)

    async def _stop(self, timeout: float, own: tuple[int, int] | None) -> StopReport:
        started = time.monotonic()
        if self._stopping is not None:  # another task stops the bus already
            if own is None:
                await asyncio.wait([self._stopping], timeout=timeout)
            # A handler goes on at once: that other stop waits for it.
            left = max(self.audit().pending - (1 if own is not None else 0), 0)
            return StopReport(drained=left == 0, left=left, interrupted=0, seconds=time.monotonic() - started)
        stopping = self._stopping = asyncio.get_running_loop().create_future()
        lane, slot = own if own is not None else (None, None)
        try:
            # What a handler left that ends the program is not handled before the next start.
            drained = await self._idle(0 if self._ending else timeout, lane)
        finally:
            # Also when the wait itself is cancelled, even twice: half a stop would be neither.
            try:
                tasks, threads, interrupted = self._halt(slot or None)
                if tasks:
                    await asyncio.wait(tasks, timeout=_GRACE)
                await self._join(threads)
                await self._dead_letters._close(_GRACE)
            finally:
                self._close()
                self._let_go()
                self._stopping = None
                stopping.set_result(None)
        left = self.audit().pending - (1 if own is not None else 0)
        seconds = time.monotonic() - started
        return StopReport(drained=drained and left <= 0, left=max(left, 0), interrupted=interrupted, seconds=seconds)

    def _let_go(self) -> None:
        if self._holds_interval:
            self._holds_interval = False
            _interval.release()
        if self._log is not None:
            self._log.close()

    async def _idle(self, timeout: float | None, excused: int | None) -> bool:
        if timeout is not None and timeout <= 0:
            # Not a turn of the loop, in which handlers would go on.
            return self._quiet_future(excused) is None
        try:
            async with asyncio.timeout(timeout):
                while (future := self._quiet_future(excused)) is not None:
                    await future
        except TimeoutError:
            return False
        return True

    async def _join(self, threads: list[threading.Thread]) -> None:
        deadline = time.monotonic() + _GRACE
        me = threading.current_thread()
        for thread in threads:
            while thread is not me and thread.is_alive() and time.monotonic() < deadline:
                # They are on their way out, unless a handler holds one; the loop goes on meanwhile.
                thread.join(0.0005)
                await asyncio.sleep(0)

    async def drain(self, *, timeout: float | None = None) -> None:
        """Wait until nothing is queued, running or waiting, cascades included.

        Raises :class:`ironbus.errors.WouldDeadlock` inside a handler of this bus,
        :class:`ironbus.errors.NotStarted` when there is something to do and nobody to do
        it, and :class:`ironbus.errors.Unsettled` after ``timeout`` seconds. Any loop.
        """
        self._check_drain()
        if not await self._idle(timeout, None):
            raise Unsettled("the bus is not idle yet; it goes on, and drain() may be called again", "timeout")

    def _check_drain(self) -> None:
        if self._own() is not None:
            raise WouldDeadlock("drain() inside a handler of the same bus would wait for that handler itself")
        if not self._running and self._quiet():
            raise NotStarted("the bus has events and is not started; start() it before drain()")

    def _quiet(self) -> bool:
        return self._kept() > 0 or self.audit().pending > 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def sync(self) -> SyncBus:
        """The bus for programs without an event loop. See :class:`SyncBus`."""
        if self._sync is None:
            self._sync = SyncBus(self)
        return self._sync

    def __enter__(self) -> Self:
        self.sync.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.sync.stop()

    # Looking ---------------------------------------------------------------------

    @property
    def dead_letters(self) -> BusDeadLetters:
        """The deliveries that failed for good: to look at, deliver again, export and purge. Any thread."""
        return self._dead_letters

    def get_log_file(self) -> str | None:
        """The path of the event log, or None if there is none."""
        return None if self._log is None else str(self._log.path)

    def audit(self) -> Ledger:
        """Where everything is that was ever offered, counted at one moment. Any thread."""
        return _ledger(self._report())

    def metrics(self) -> Metrics:
        """Counters, rates, depths, ages and latencies of this moment. Any thread."""
        report = self._report()
        uptime = report["uptime"]
        ledger = _ledger(report)
        return Metrics(
            uptime=uptime,
            publish_rate=ledger.accepted / uptime if uptime else 0.0,
            idempotency_keys=report["keys"],
            idempotency_evicted=report["evicted"],
            ledger=ledger,
            subscriptions={lane["name"]: _statistics(lane, uptime) for lane in report["lanes"] if not lane["passive"]},
        )

    def describe(self) -> dict[str, Any]:
        """The settings, limits and subscriptions, as plain values for people and tools."""
        idempotency: Idempotency = self._settings["idempotency"]
        letters: DeadLetters = self._settings["dead_letters"]
        return {
            "running": self._running,
            "durability": "memory",
            "max_queue_size": self._settings["max_queue_size"],
            "overflow": self._settings["overflow"],
            "context": self._settings["context"],
            "workers": self._settings["workers"],
            "idempotency": {"mode": idempotency.mode, "ttl": idempotency.ttl, "max_keys": idempotency.max_keys},
            "dead_letters": {
                "path": None if letters.path is None else os.fspath(letters.path),
                "max_entries": letters.max_entries,
                "max_age": letters.max_age,
                "when_full": letters.when_full,
                "details": letters.details,
                "durability": letters.durability,
            },
            "log_file": self.get_log_file(),
            "subscriptions": self._table.describe(),
        }

    def __repr__(self) -> str:
        state = "running" if self._running else "not running"
        return f"<{type(self).__name__} {state}, {sum(self.get_subscribers().values())} subscriptions>"


async def _publish(
    self: EventBus,
    event: str | Event[Any],
    data: Any = None,
    *,
    priority: EventPriority | int | None = None,
    key: str | None = None,
    idempotency_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    delay: float | None = None,
    expires_in: float | None = None,
) -> Receipt:
    """Publish an event, or a type and its data (falsy data becomes ``{}``).

    ``priority``: default ``NORMAL``. ``key``: what ``order_by`` orders by unless told
    otherwise. ``idempotency_key``: a second event with this key is a duplicate.
    ``headers``: strings by name. ``delay``: seconds before it is delivered; it is accepted now,
    and then goes before what came meanwhile. ``expires_in``: seconds from now after which it is
    not delivered any more, with the outcome "expired". Waits for room where a subscription blocks; works
    before ``start()``, when the event waits. Any loop; nothing happens before it is
    awaited. Cancelling it while it waits retracts the event; later it retracts nothing.
    Raises :class:`ironbus.errors.InvalidEvent`, :class:`ironbus.errors.QueueFull`.
    """
    raise NotImplementedError  # pragma: no cover - the template of a native method


async def _publish_many(
    self: EventBus,
    events: Iterable[EventInput],
    /,
    *,
    priority: EventPriority | int | None = None,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    delay: float | None = None,
    expires_in: float | None = None,
) -> BatchReceipt:
    """Publish events in order: each an :class:`Event`, ``(type, data)`` or ``(type, data, options)``.

    ``options`` is a dict of what :meth:`publish` takes by name; the arguments are the
    defaults of all. All are valid or none is accepted: an error names the place in the
    batch. If the bus refuses one later, the error's ``receipt`` tells what was accepted
    before. Waits for room, and gives the loop a turn now and then, like ``publish``.
    """
    raise NotImplementedError  # pragma: no cover - the template of a native method


for _template, _name in ((_publish, "publish"), (_publish_many, "publish_many")):
    _template.__name__ = _name
    _template.__qualname__ = f"EventBus.{_name}"
_methods = _core.async_methods(_publish, _publish_many)
type.__setattr__(EventBus, "publish", _methods[0])
type.__setattr__(EventBus, "publish_many", _methods[1])
del _methods, _template, _name

_LOG_LANE: dict[str, Any] = {
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


class SyncBus:
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
    ) -> BatchReceipt:
        """See :meth:`EventBus.publish_many`; waits for room on this thread."""
        return self._bus._publish_many_sync(
            events, priority=priority, key=key, headers=headers, delay=delay, expires_in=expires_in
        )

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


def _ledger(report: dict[str, Any]) -> Ledger:
    return Ledger(
        offered=report["offered"],
        accepted=report["accepted"],
        duplicate=report["duplicate"],
        rejected=report["rejected"],
        waiting=report["waiting"],
        cancelled=report["cancelled"],
        unknown=0,
        subscriptions={lane["name"]: _lane_ledger(lane) for lane in report["lanes"] if not lane["passive"]},
    )


def _lane_ledger(lane: dict[str, Any]) -> LaneLedger:
    names = ("routed", "done", "dead", "dropped", "expired", "filtered", "pending")
    return LaneLedger(*(lane[name] for name in names))


def _statistics(lane: dict[str, Any], uptime: float) -> SubscriptionStatistics:
    ledger = _lane_ledger(lane)
    settled = ledger.done + ledger.dead + ledger.dropped + ledger.expired + ledger.filtered
    return SubscriptionStatistics(
        name=lane["name"],
        state=lane["state"],
        depth={level.name: lane["depth"][level] for level in EventPriority},
        running=lane["running"],
        oldest_age=lane["oldest_age"],
        rate=settled / uptime if uptime else 0.0,
        ledger=ledger,
        wait=Latency(*lane["wait"]),
        work=Latency(*lane["work"]),
        held=lane["held"],
        delayed=lane["delayed"],
        retries=lane["retries"],
        breaker=lane["breaker"],
    )


def _renew_locks() -> None:
    """In a forked child: another thread may have held a lock, and is not here to let go of it."""
    global _bus_lock
    _bus_lock = threading.Lock()
    for bus in list(_buses):
        bus._lifecycle = threading.Lock()
        bus._table.renew_lock()
        if bus._log is not None:
            bus._log.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)

_bus: EventBus | None = None
_bus_process: int | None = None
_bus_lock = threading.Lock()


def get_event_bus() -> EventBus:
    """The bus of this process, made at the first call. Any thread."""
    global _bus, _bus_process
    with _bus_lock:
        # A forked child gets its own: the parent's is not running here.
        if _bus is None or _bus_process != os.getpid():
            _bus, _bus_process = EventBus(), os.getpid()
        return _bus


async def publish_event(event_type: str, data: Any) -> Receipt:
    """Publish to :func:`get_event_bus`."""
    return await get_event_bus().publish(event_type, data)


def publish_event_sync(event_type: str, data: Any) -> Receipt:
    """Publish to :func:`get_event_bus`, from anywhere."""
    return get_event_bus().publish_sync(event_type, data)


__all__ = [
    "BatchReceipt",
    "Event",
    "EventBus",
    "Idempotency",
    "Receipt",
    "Subscription",
    "SyncBus",
    "get_event_bus",
    "publish_event",
    "publish_event_sync",
]
