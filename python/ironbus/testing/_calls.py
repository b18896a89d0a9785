"""The calls of handlers under a harness: recorded, answered by fakes, failed as planned."""

from __future__ import annotations

import inspect
import random
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ironbus._settings import check_number, check_whole
from ironbus.errors import InvalidOption

if TYPE_CHECKING:
    from ironbus._core import Event
    from ironbus._subscriptions import Handler


class PlannedFailure(Exception):
    """What a handler fails with for :meth:`Harness.fail`, unless another exception was given."""


@dataclass(eq=False)
class Call:
    """One call of a handler: each attempt is one.

    ``at``: when it was made, in seconds of the bus's clock since the block was entered. ``planned``:
    it failed before the handler was called, by :meth:`Harness.fail`. ``error``: what it raised.
    ``outcome``: "running", "done" or "failed".
    """

    subscription: str
    event: Event[Any] = field(repr=False)
    sequence: int
    attempt: int
    at: float
    planned: bool = False
    error: BaseException | None = field(default=None, repr=False)
    outcome: Literal["running", "done", "failed"] = "running"

    @property
    def _deadline(self) -> int | None:
        """When its time is over, in nanoseconds of the bus's clock."""
        delivery = self.event.delivery
        return None if delivery is None or delivery.deadline is None else round(delivery.deadline * 1e9)


class Plan:
    """Which calls fail."""

    def __init__(
        self,
        times: int | None,
        every: int | None,
        p: float | None,
        seed: int | None,
        exc: type[BaseException] | BaseException,
    ) -> None:
        if sum(way is not None for way in (times, every, p)) > 1:
            raise InvalidOption("give one of times=, every= and p=", "times")
        if times != 0:
            check_whole(1 if times is None else times, "times")
        check_whole(1 if every is None else every, "every")
        if p is not None:
            check_number(p, "p", 0, 1)
        if (seed is not None) != (p is not None):
            raise InvalidOption("p= and seed= go together: the same seed fails the same calls", "seed")
        if isinstance(seed, bool) or not isinstance(seed, (int, type(None))):
            raise InvalidOption("seed must be a whole number", "seed")
        if not isinstance(exc, BaseException) and not (isinstance(exc, type) and issubclass(exc, BaseException)):
            raise InvalidOption("exc must be an exception, for example ConnectionError", "exc")
        self._times = 1 if times is None and every is None and p is None else times
        self._every = every
        self._p = p
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._exc = exc
        self._lock = threading.Lock()
        self._asked = 0
        try:
            self._make()
        except TypeError:
            text = f"exc: {getattr(exc, '__name__', exc)} cannot be made without arguments; give one that is made"
            raise InvalidOption(text, "exc") from None

    def _make(self) -> BaseException:
        return self._exc() if isinstance(self._exc, type) else self._exc

    def failure(self) -> BaseException | None:
        """What the next call fails with; None: it does not."""
        with self._lock:
            self._asked += 1
            if self._times is not None:
                fails = self._asked <= self._times
            elif self._every is not None:
                fails = self._asked % self._every == 0
            else:
                fails = self._random.random() < (self._p or 0.0)
        return self._make() if fails else None


class Calls:
    """What a harness knows of all calls. ``elapsed`` tells the time of each."""

    def __init__(self, elapsed: Callable[[], float]) -> None:
        self.elapsed = elapsed
        self.running: set[Call] = set()
        self.planned: list[BaseException] = []
        #: Rises with each beginning and each end.
        self.steps = 0

    def begin(self, call: Call) -> None:
        """The call is made."""
        self.running.add(call)
        self.steps += 1

    def end(self, call: Call, error: BaseException | None) -> None:
        """The call is over."""
        call.error = error
        call.outcome = "done" if error is None else "failed"
        self.running.discard(call)
        self.steps += 1


class Role:
    """One subscription's part: its calls, its fake and its planned failures. It outlives the handler."""

    def __init__(self, name: str, calls: Calls) -> None:
        self.name = name
        self.made: list[Call] = []
        self.fake: Handler | None = None
        self.plan: Plan | None = None
        self._calls = calls

    def played_by(self, handler: Handler) -> Callable[[Event[Any]], object]:
        """What is called in the handler's place."""

        def stand_in(event: Event[Any]) -> object:
            return self._call(handler, event)

        return stand_in

    def _call(self, handler: Handler, event: Event[Any]) -> object:
        delivery = event.delivery
        attempt = 1 if delivery is None else delivery.attempt
        call = Call(self.name, event, event.sequence or 0, attempt, self._calls.elapsed())
        self.made.append(call)
        self._calls.begin(call)
        try:
            failure = None if self.plan is None else self.plan.failure()
            if failure is not None:
                call.planned = True
                self._calls.planned.append(failure)
                raise failure
            result = (self.fake or handler)(event)
        except BaseException as error:
            self._calls.end(call, error)
            raise
        if inspect.isawaitable(result):
            return self._await(call, result)
        self._calls.end(call, None)
        return result

    async def _await(self, call: Call, result: Awaitable[object]) -> object:
        try:
            value = await result
        except BaseException as error:
            self._calls.end(call, error)
            raise
        self._calls.end(call, None)
        return value


__all__ = ["Call", "Calls", "Plan", "PlannedFailure", "Role"]
