"""The harness: the user's own bus under a test's control, for the time of a block.

It watches publishes and calls, puts fakes and planned failures in handlers' places, and moves the
bus's clock. What it has changed it puts back when the block is left, however that happens.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from ironbus import _core
from ironbus._settings import check_choice, check_number, check_seconds
from ironbus._subscriptions import Subscription, check_handler
from ironbus.errors import InvalidOption, NotStarted, Unsettled, WouldDeadlock
from ironbus.testing._calls import Call, Calls, Plan, PlannedFailure, Role
from ironbus.testing._names import find
from ironbus.testing._published import Published
from ironbus.testing._texts import conservation, failures, unsettled

if TYPE_CHECKING:
    from ironbus._subscriptions import Handler, Lane, Observer
    from ironbus.bus import EventBus

T = TypeVar("T")

#: In so many pieces a wait for handlers that may hang is cut, so that a machine that stood still
#: meanwhile uses up one of them.
_PIECES = 10
#: Seconds after which a wait looks for what nobody tells it, such as a pause.
_GLANCE = 0.05


class _Failure:
    """A delivery that failed for good."""

    def __init__(self, subscription: str, event_type: str, sequence: int, attempt: int, error: BaseException) -> None:
        self.subscription, self.event_type, self.sequence = subscription, event_type, sequence
        self.attempt, self.error = attempt, error


class _Harness:
    """What both kinds of harness share. See :func:`harness`."""

    def __init__(
        self, bus: EventBus, clock: Literal["virtual"] | None, durable: bool, seed: int, patience: float
    ) -> None:
        #: The bus under test.
        self.bus = bus
        self._virtual = clock == "virtual"
        self._durable = durable
        self._seed = seed
        self._patience = patience
        self._native = _core.Harness(bus)
        self._undo = ExitStack()
        self._calls = Calls(lambda: self.elapsed)
        self._roles: dict[str, Role] = {}
        self._subscriptions: list[Subscription] = []
        self._failures: list[_Failure] = []
        self._hanging: set[Call] = set()
        self._looked = 0
        self._published: Published | None = None
        self._outer: Observer | None = None
        self._starts = False
        self._began = 0

    # What a test asks and orders -------------------------------------------------

    @property
    def published(self) -> Published:
        """What was published since the block was entered."""
        if self._published is None:
            raise NotStarted("the harness has not been entered; use `async with harness(bus) as t:`")
        return self._published

    @property
    def elapsed(self) -> float:
        """Seconds that have passed on the bus's clock since the block was entered."""
        return (self._native.now() - self._began) / 1e9

    def calls(self, subscription: str | Subscription | Handler) -> list[Call]:
        """The calls of a subscription's handler so far, in their order: each attempt, and planned failures.

        ``subscription``: its name, or the end of it after a dot (``"bill"`` for ``"shop.bill"``), or
        itself, or the handler. Raises :class:`ironbus.errors.InvalidOption` for one that there is not.
        """
        return list(self._role(subscription).made)

    def replace(self, subscription: str | Subscription | Handler, fake: Handler | None) -> None:
        """Have a fake, sync or async, called in place of a subscription's handler; None: the handler itself again.

        It runs where the handler would: for an async handler that is the loop.
        """
        self._role(subscription).fake = None if fake is None else check_handler(fake)

    def fail(
        self,
        subscription: str | Subscription | Handler,
        *,
        times: int | None = None,
        every: int | None = None,
        p: float | None = None,
        seed: int | None = None,
        exc: type[BaseException] | BaseException = PlannedFailure,
    ) -> None:
        """Have calls of a subscription fail with ``exc`` before its handler is called.

        The next ``times`` calls (default: one), or of all from now on ``every`` so manieth, or each
        with the probability ``p``, reproducibly by ``seed``. A new plan takes the place of the last;
        ``times=0`` plans none. :meth:`calls` has these calls, and ``settle`` does not raise for them.
        """
        role = self._role(subscription)
        role.plan = Plan(times, every, p, seed, exc)

    def assert_conserved(self) -> None:
        """The ledger balances, and each published event has its outcome for each subscription.

        Raises an ``AssertionError`` that shows the ledger. Events that still wait for an attempt or
        for their time have no outcome: ``settle``, and ``advance``, first.
        """
        __tracebackhide__ = True
        ledger, open_events = self.bus.audit(), self.published._unsettled()
        if not ledger.balanced or open_events:
            raise AssertionError(conservation(ledger, open_events, self.bus.metrics()))

    # Coming and going ------------------------------------------------------------

    def _role(self, subscription: str | Subscription | Handler) -> Role:
        name = find(subscription, self.bus._table.lanes(), self._roles)
        return self._roles.setdefault(name, Role(name, self._calls))

    def _install(self) -> None:
        """Everything but the start."""
        bus, native, undo = self.bus, self._native, self._undo
        for breaker in {lane.breaker for lane in bus._table.lanes().values() if lane.breaker is not None}:
            undo.callback(breaker._restore, breaker._save())
        if self._virtual and native.stop_clock():
            undo.callback(native.run_clock)
        self._began = native.now()
        outer = native.watch_failures(None)
        undo.callback(native.watch_failures, outer)
        native.watch_failures(self._told(outer))
        undo.callback(native.replace_random, native.replace_random(_core.Random(self._seed).random))
        if not self._durable:
            if bus._log_lane is not None:
                undo.callback(native.replace_handler, bus._log_lane, native.replace_handler(bus._log_lane, _ignore))
            if native.keep_letters_in_memory():
                undo.callback(native.use_letters_file)
        if not bus._dead_letters._in_file:
            undo.callback(self._purge_letters, {letter.id for letter in bus._dead_letters})
        self._outer = bus._table.observer
        undo.callback(setattr, bus._table, "observer", self._outer)
        undo.callback(self._cancel_own)
        bus._table.observer = self
        for lane in bus._table.lanes().values():
            self._put_in(lane)
        source = bus._open_stream(["*"], "(harness)", sys.maxsize, True)
        undo.callback(source.close)
        self._published = Published(source, bus._kept())
        undo.callback(self._forget_keys)

    def _put_in(self, lane: Lane) -> None:
        role = self._roles.setdefault(lane.name, Role(lane.name, self._calls))
        before = self._native.replace_handler(lane.handle, None)
        self._native.replace_handler(lane.handle, role.played_by(before or lane.handler))
        self._undo.callback(self._native.replace_handler, lane.handle, before)

    def made(self, lane: Lane) -> None:
        """For the table: a lane has been made, and nothing has reached it yet."""
        if self._outer is not None:
            self._outer.made(lane)
        self._put_in(lane)

    def subscribed(self, subscription: Subscription) -> None:
        """For the table: somebody has subscribed."""
        if self._outer is not None:
            self._outer.subscribed(subscription)
        self._subscriptions.append(subscription)

    def _told(self, outer: Callable[..., object] | None) -> Callable[..., object]:
        def told(
            name: str, event_type: str, sequence: int, attempt: int, error: BaseException, again: float | None
        ) -> None:
            if outer is not None:
                outer(name, event_type, sequence, attempt, error, again)
            if again is None and not any(error is planned for planned in self._calls.planned):
                self._failures.append(_Failure(name, event_type, sequence, attempt, error))

        return told

    def _cancel_own(self) -> None:
        for subscription in self._subscriptions:
            subscription.cancel()

    def _forget_keys(self) -> None:
        for event in self.published:
            self._native.forget_key(event)

    def _purge_letters(self, known: set[str]) -> None:
        letters = self.bus._dead_letters
        for new in [letter.id for letter in letters if letter.id not in known]:
            letters._box.purge(letters._of(new))

    async def _written(self) -> None:
        """Dead letters that are on their way to be kept get there before they are kept elsewhere."""
        if not self._durable:
            await self.bus._dead_letters._worker.flush()

    def _leave(self) -> None:
        """Everything but the stop."""
        if self._starts:
            # What is left would be the next test's.
            self._native.discard()
        self._undo.close()

    def _check_caller(self, what: str) -> None:
        if self.bus._own() is not None:
            raise WouldDeadlock(f"{what}() inside a handler of the same bus would wait for that handler itself")

    # Waiting ---------------------------------------------------------------------

    async def _settle(self, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                while await self._rests_later():
                    pass
        except TimeoutError:
            raise Unsettled(unsettled(timeout or 0.0, self.bus.metrics()), "timeout") from None
        new, self._failures = self._failures, []
        if new:
            raise BaseExceptionGroup(failures(new), [failure.error for failure in new])

    async def _rests_later(self) -> bool:
        """Waits until nothing runs or could run; whether something waits for a time that comes by itself."""
        bus = self.bus
        while (future := self._native.still_future(0)) is not None:
            self._check_running()
            await asyncio.wait([future], timeout=_GLANCE)
        due = bus._next_due()
        if due is None or self._native.is_driven() or not bus._quiet():
            return False
        await asyncio.sleep(min(max(due - self._native.now() / 1e9, 0.0), _GLANCE))
        return True

    def _check_running(self) -> None:
        if not self.bus._running:
            raise NotStarted("the bus has events and is not started; start() it before settle()")

    def _check_advance(self, seconds: float) -> int:
        check_seconds(seconds, "seconds")
        if not self._virtual:
            text = 'advance() needs a clock that it can move: enter the harness with clock="virtual"'
            raise InvalidOption(text, "clock")
        return self._native.now() + round(seconds * 1e9)

    async def _advance(self, end: int) -> None:
        await self._calm()
        before = self._native.now()
        while self._native.step_clock(end):
            now = self._native.now()
            # Those whose time is over with this step will go on.
            over = {call for call in self._hanging if before < (call._deadline or 0) <= now}
            self._hanging -= over
            before = now
            await self._calm()

    async def _calm(self) -> None:
        """Until nothing runs or could run, but for handlers that wait for something else than the bus."""
        while self.bus._running:
            self._hanging &= self._calls.running
            future = self._native.still_future(len(self._hanging))
            if future is not None:
                if not await self._something_happens(future, _PIECES):
                    self._hanging |= self._calls.running
                    self._looked = self._calls.steps
                    return
            elif not self._hanging or self._looked == self._calls.steps:
                return
            else:
                # What has happened since may be what they wait for.
                self._looked = self._calls.steps
                future = self._native.still_future(0)
                if future is not None:
                    await self._something_happens(future, 1)

    async def _something_happens(self, future: asyncio.Future[None], pieces: int) -> bool:
        steps = self._calls.steps
        for _ in range(pieces):
            await asyncio.wait([future], timeout=self._patience / _PIECES)
            if future.done() or self._calls.steps != steps:
                return True
        return False


class Harness(_Harness):
    """A bus under a test's control, on an event loop. See :func:`harness`."""

    async def settle(self, *, timeout: float | None = 5) -> None:
        """Wait until nothing is queued, running or due now, the events of handlers included.

        With the virtual clock, what waits for a later time (a retry, a delayed event, an open
        breaker) is left waiting: :meth:`advance` is for that. Without it, that is waited for, too.
        Paused subscriptions are not waited for, nor tasks of yours that may publish later.

        Raises a (Base)ExceptionGroup of what handlers raised whose deliveries have failed for good
        since the last call, but for planned failures; :class:`ironbus.errors.Unsettled` after
        ``timeout`` real seconds, with what is left to do; :class:`ironbus.errors.WouldDeadlock` inside a handler.
        """
        self._check_caller("settle")
        await self._on_loop(self._settle(timeout))

    async def advance(self, seconds: float) -> None:
        """Let so many seconds pass on the bus's virtual clock, from one thing that is due to the next.

        Retries, delayed events, breakers, timeouts of async handlers and expiries come in the order of their
        times, and what each of them starts is over before the clock goes on. It is the bus's time
        only: ``asyncio.sleep`` in a handler takes its real time. A handler that waits for something
        longer than the harness's ``patience``, in real seconds, is left waiting while time passes.
        Raises no failures: :meth:`settle` does.
        """
        self._check_caller("advance")
        await self._on_loop(self._advance(self._check_advance(seconds)))

    async def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        """Where the bus's timers are."""
        home = self.bus._loop
        if home is None or not self.bus._running or home is asyncio.get_running_loop():
            return await work
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, home))

    async def _enter(self) -> Self:
        self._starts = not self.bus._running
        await self._written()
        try:
            self._install()
            await self.bus.start()
        except BaseException:
            self._undo.close()
            raise
        return self

    async def _exit(self) -> None:
        try:
            if self._starts:
                await self.bus.stop(timeout=0)
            await self._written()
        finally:
            self._leave()


class SyncHarness(_Harness):
    """A bus under a test's control, for programs without an event loop. See :func:`harness`."""

    def settle(self, *, timeout: float | None = 5) -> None:
        """See :meth:`Harness.settle`; blocks this thread."""
        self.bus.sync._check("settle()", "async with harness(bus)")
        self._check_caller("settle")
        self._run(self._settle(timeout))

    def advance(self, seconds: float) -> None:
        """See :meth:`Harness.advance`; blocks this thread."""
        self.bus.sync._check("advance()", "async with harness(bus)")
        self._check_caller("advance")
        self._run(self._advance(self._check_advance(seconds)))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        home = self.bus._loop
        if home is None or not self.bus._running:
            return asyncio.run(work)
        future = asyncio.run_coroutine_threadsafe(work, home)
        try:
            future.result()
        finally:
            future.cancel()  # Ctrl-C ends the wait

    def _run_written(self) -> None:
        if not self._durable:
            self._run(self._written())

    def _enter(self) -> Self:
        self.bus.sync._check("start()", "async with harness(bus)")
        self._starts = not self.bus._running
        self._run_written()
        try:
            self._install()
            self.bus.sync.start()
        except BaseException:
            self._undo.close()
            raise
        return self

    def _exit(self) -> None:
        try:
            if self._starts:
                self.bus.sync.stop(timeout=0)
            self._run_written()
        finally:
            self._leave()


class harness:
    """Put a bus under a test's control for the time of a block: ``async with harness(bus) as t:``.

    ``with harness(bus) as t:`` does the same for programs without an event loop. It is the bus itself,
    with its subscriptions and settings. A bus that is not started is started, and stopped at the end
    of the block, at once: what is still queued then is dropped. When the block is left, handlers,
    breakers, dead letters in memory, the keys of what was published, and subscriptions made in the block are as if it
    had not been. Counters and sequence numbers go on, and so does the clock: it never goes back.
    Harnesses may be nested.

    ``clock="virtual"``: the bus's clock stands still, and :meth:`Harness.advance` moves it.
    ``durable=False``: nothing is read from or written to disk; the event log gets nothing, and dead letters are in
    memory. A bus with a path has its events there, and cannot do without. ``seed`` is what delays of retries are
    spread by. ``patience``: see :meth:`Harness.advance`.
    Raises :class:`ironbus.errors.InvalidOption`.
    """

    def __init__(
        self,
        bus: EventBus,
        *,
        clock: Literal["virtual"] | None = None,
        durable: bool = True,
        seed: int = 0,
        patience: float = 0.1,
    ) -> None:
        if not isinstance(bus, _core.Bus):
            raise InvalidOption("bus must be an EventBus", "bus")
        if clock is not None:
            check_choice(clock, ("virtual",), "clock")
        if not isinstance(durable, bool):
            raise InvalidOption("durable must be True or False", "durable")
        if not durable and bus._path is not None:
            text = (
                "durable=False cannot keep the events of a bus with a path off its file; give it a path in a tmp_path"
            )
            raise InvalidOption(text, "durable")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise InvalidOption("seed must be a whole number", "seed")
        check_number(patience, "patience", 0.001, 3600)
        self._options = (bus, clock, durable, seed % 2**64, patience)
        self._entered: list[Harness | SyncHarness] = []

    async def __aenter__(self) -> Harness:
        entered = await Harness(*self._options)._enter()
        self._entered.append(entered)
        return entered

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        left = self._entered.pop()
        assert isinstance(left, Harness)
        await left._exit()

    def __enter__(self) -> SyncHarness:
        entered = SyncHarness(*self._options)._enter()
        self._entered.append(entered)
        return entered

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        left = self._entered.pop()
        assert isinstance(left, SyncHarness)
        left._exit()


def _ignore(event: object) -> None:
    """In place of the event log."""


__all__ = ["Harness", "SyncHarness", "harness"]
