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
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

# What the native code looks up by name is imported here: a fork in the middle of a first import
# would leave the child without it for ever.
from ironbus import (  # noqa: F401
    _core,
    _durable,
    _event_log,
    _exit,
    _failures,
    _health,
    _interval,
    _log,
    _publish,
    _reports,
    _slot_task,
    _waiting,
)
from ironbus._core import BatchReceipt, Event, Receipt
from ironbus._durable import Durability
from ironbus._history import History
from ironbus._idempotency import Idempotency
from ironbus._kept_events import KeptEvents
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
from ironbus._sync_bus import SyncBus
from ironbus._watch import Watch
from ironbus._worker import Worker
from ironbus.dead_letters import BusDeadLetters, DeadLetters
from ironbus.errors import InvalidOption, NotStarted, StorageError, Unsettled, WouldDeadlock
from ironbus.health import Health, HealthThresholds
from ironbus.priority import EventPriority
from ironbus.report import (
    Ledger,
    Metrics,
    StopReport,
)
from ironbus.streams import Expectation, Stream

if TYPE_CHECKING:
    from ironbus._core import EventInput

logger = logging.getLogger("ironbus")

F = TypeVar("F", bound=Handler)

#: All that there are, for what must be done in a forked child.
_buses: weakref.WeakSet[EventBus] = weakref.WeakSet()

#: Seconds that stop() waits for handlers that it has cancelled.
_GRACE = 1.0


class EventBus(KeptEvents, _core.Bus):
    """An event bus inside the process.

    ``path``: a file, made where there is none (private, mode 0600), in which events are kept until every
    subscription is through with them: its journal, which one bus at a time owns. It is opened by ``start()``, or the
    first publish, and closed by ``stop()``. ``durability``: what an accepted event survives, "fsync" (default) a
    loss of power, "os" a kill of the process. ``retention``: seconds for which an event is kept at least, for replay
    (default: 7 days; not less than the ``ttl`` of the idempotency keys); it goes later if a subscription, a retry or
    a dead letter needs it. None: all are kept. ``absent_ttl``: seconds after which a subscription that nobody has
    is let go of, with what it had still to do (default: 30 days; None: never). ``max_backlog``: events that a
    subscription may be behind (default: 10,000,000; None: any number): beyond it, publishers wait until it has got
    on. One that is paused or absent keeps nobody waiting, and a handler of the bus does not wait.

    ``log_dir``: a folder for an event log (default: ``IRONBUS_LOG_DIR``, else none).
    ``max_queue_size``: events queued per subscription and priority, and events kept
    before the start. ``overflow``: what happens beyond it: "block" (publishers wait),
    "reject" (``QueueFull``), "drop_oldest" or "drop_new" (counted); with a path "spill" (they stay in the
    file). ``idempotency``: "key", "content" or an :class:`Idempotency`. ``context``: handlers run in a
    "fresh" context or in their "publisher"'s. ``workers``: threads for sync handlers
    at most. ``clock``: a callable that returns seconds and never goes back, for tests.
    ``random``: what spreads the delays of retries, a seed or a callable that returns numbers
    from 0.0 up to 1.0. ``dead_letters``: how deliveries that failed for good are kept, by default in memory; see
    :class:`ironbus.DeadLetters`. ``health``: from where on :meth:`health` gives a reason.

    Making a bus has no side effects, except for the event log's file.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        durability: Literal["os", "fsync"] | None = None,
        retention: float | None = _durable.RETENTION,
        absent_ttl: float | None = _durable.ABSENT_TTL,
        max_backlog: int | None = _durable.MAX_BACKLOG,
        max_queue_size: int = 100_000,
        overflow: Overflow | None = None,
        idempotency: Literal["key", "content"] | Idempotency = "key",
        context: Literal["fresh", "publisher"] = "fresh",
        workers: int | None = None,
        clock: Callable[[], float] | None = None,
        random: int | Callable[[], float] | None = None,
        dead_letters: DeadLetters | None = None,
        health: HealthThresholds | None = None,
    ) -> None:
        journal = _durable.journal_settings(path, durability, retention, absent_ttl, max_backlog)
        self._path = None if journal is None else journal["path"]
        check_count(max_queue_size, "max_queue_size", required=True)
        check_count(workers, "workers")
        check_choice(overflow, OVERFLOWS, "overflow")
        _durable.check_overflow(overflow, self._path)
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
        if health is not None and not isinstance(health, HealthThresholds):
            text = "health must be an ironbus.HealthThresholds, for example HealthThresholds(oldest_event=300)"
            raise InvalidOption(text, "health")
        letters = dead_letters or DeadLetters()
        thresholds = health or HealthThresholds()
        overflow = overflow or ("block" if self._path is None else "spill")
        self._settings: dict[str, Any] = {
            "journal": journal,
            "max_queue_size": max_queue_size,
            "overflow": overflow,
            "idempotency": idempotency,
            "context": context,
            "workers": workers or default_workers(),
            "dead_letters": letters,
            "health": thresholds,
        }
        if self._path is not None and letters.path is not None:
            text = "the dead letters of a bus with a path are in its file; leave their path out"
            raise InvalidOption(text, "dead_letters.path")
        store = letters._store(in_journal=self._path is not None)
        in_file = letters.path is not None or self._path is not None
        worker = Worker("ironbus-dead-letters")
        self._configure(
            max_queue_size=max_queue_size,
            overflow=overflow,
            by_content=idempotency.mode == "content",
            ttl=float(idempotency.ttl),
            max_keys=idempotency.max_keys,
            publisher_context=context == "publisher",
            workers=workers or default_workers(),
            clock=clock,
            random=draw,
            dead_letters=store,
            writer=worker.hand if in_file else None,
            window=float(thresholds.window),
            journal=journal,
        )
        self._dead_letters = BusDeadLetters(self._letter_box(), worker, in_file)
        self._letter_watch = Watch(worker if in_file else None)
        self._history = History(thresholds.window)
        self._clock = clock
        self._disk = Worker("ironbus-disk")
        self._journal_watch = Watch(self._disk)
        self._table = Table(self)
        self._lifecycle = threading.Lock()
        self._stopping: asyncio.Future[None] | None = None
        self._holds_interval = False
        self._sync: SyncBus | None = None
        self._log: _event_log.EventLog | None = None
        self._log_lane: _core.LaneHandle | None = None
        folder = log_dir if log_dir is not None else os.environ.get("IRONBUS_LOG_DIR") or None
        if folder is not None:
            self._log = _event_log.EventLog(folder)
            self._log_lane = self._make_lane(self._log.write, name="(event log)", **_event_log.LANE)
            self._log_lane.subscribe(["*"])
        _buses.add(self)
        if self._path is not None:
            _exit.remember(self)

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

    async def drop_subscription(self, name: str) -> None:
        """Let go of a subscription that is in the file and that nobody here has, with all that it had still to do.

        ``describe()["absent"]`` names them. Any loop. Raises :class:`ironbus.NotStarted`, and
        :class:`ironbus.errors.InvalidOption` for one that is subscribed here, or that there is not.
        """
        self._check_droppable(name)
        await self._disk.run(lambda: self._forget_subscription(name))

    def _check_droppable(self, name: object) -> None:
        if not isinstance(name, str) or not name:
            raise InvalidOption("name must be the name of a subscription, a non-empty string", "name")
        if self._path is None:
            raise InvalidOption("a bus without a path keeps no subscriptions; cancel() this one", "name")
        if not self._running:
            raise NotStarted("the bus does not have its file open; start() it before drop_subscription()")

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
        # The native methods, put in place below: see _publish.py.
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
            durability: Durability | None = None,
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
            durability: Durability | None = None,
        ) -> BatchReceipt: ...

    # Start and stop --------------------------------------------------------------

    async def start(self) -> None:
        """Start handling events on the running loop. Repeating it does nothing.

        Events that were published before reach the handlers that are subscribed by now.
        A stopped bus may be started again, on another loop too. Raises :class:`ironbus.StorageError` where a
        file of dead letters cannot be used.
        """
        if not self._running:
            if self._path is not None:
                await self._disk.run(self._open_journal)
            await self._dead_letters._open()
            self._letter_watch.forget()
            self._journal_watch.forget()
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
            await self._put_down()
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
                await self._put_down()
            finally:
                self._close()
                self._let_go()
                self._stopping = None
                stopping.set_result(None)
        left = self.audit().pending - (1 if own is not None else 0)
        seconds = time.monotonic() - started
        return StopReport(drained=drained and left <= 0, left=max(left, 0), interrupted=interrupted, seconds=seconds)

    async def _put_down(self) -> None:
        """Write what there is to write, and close the journal."""
        if self._path is not None:
            await self._disk.run(self._close_quietly)
            await self._disk.close()

    def _close_quietly(self) -> None:
        """Publishers have been told what could not be written; a stop is a stop all the same."""
        try:
            self._close_journal()
        except StorageError as error:
            logger.error("the journal was closed after an error: %s", error)

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
        return _reports.ledger(self._report())

    def metrics(self) -> Metrics:
        """Counters, rates, depths, ages and latencies of this moment, in the units that the class names. Any thread."""
        self._look()
        report = self._report(latencies=True)
        return _reports.metrics(report, self._history.look(report), self._settings["health"])

    def health(self) -> Health:
        """Whether the bus is well at this moment, and if not why not. Any thread, any loop, started or not.

        It looks at counters and waits for nothing. What is new "lately" is what has changed since a call of this
        or of :meth:`metrics` at least a window ago, so that nothing goes by unseen between two calls.
        """
        running = self._look()
        report = self._report() | {
            "dead_letters_unreadable": self._letter_watch.unreadable(running),
            "journal_unreadable": self._journal_watch.unreadable(running),
        }
        breakers = {name: lane.breaker.name for name, lane in self._table.lanes().items() if lane.breaker is not None}
        return _health.health(report, self._settings["health"], self._history.look(report), breakers)

    def _look(self) -> bool:
        running = self._running
        self._letter_watch.look(running, self._dead_letters._box.open)
        if self._path is not None:
            self._journal_watch.look(running, self._look_at_journal)
        return running

    def describe(self) -> dict[str, Any]:
        """The settings, limits, subscriptions, and whose handlers are stuck, as plain values for people and tools."""
        lanes = self._report()["lanes"]
        return {
            "running": self._running,
            **_reports.settings(self._settings),
            "log_file": self.get_log_file(),
            "absent": self._absent(),
            "subscriptions": self._table.describe(),
            "stuck": [lane["name"] for lane in lanes if _health.stuck(lane, self._settings["health"]) is not None],
        }

    def __repr__(self) -> str:
        state = "running" if self._running else "not running"
        return f"<{type(self).__name__} {state}, {sum(self.get_subscribers().values())} subscriptions>"


_publish.install(EventBus)


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
