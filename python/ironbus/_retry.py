"""Retries of plain calls. Whether and when there is another attempt, the engine decides."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from ironbus import _settings
from ironbus._core import Random, Retries
from ironbus.errors import InvalidHandler, InvalidOption

T = TypeVar("T")

# Is told: the number of the attempt, its error, and the seconds until the next one.
OnRetry = Callable[[int, Exception, float], object]


@dataclass
class RetryPolicy:
    """How often something is tried, and how long the pauses are.

    ``max_attempts``: all attempts, the first included. After the n-th failure comes a pause of
    ``initial_delay * exponential_base ** (n - 1)`` seconds, at most ``max_delay``. ``jitter``
    spreads the pauses, and never beyond ``max_delay``: :class:`RetryManager` takes between a half
    and one and a half of each, a subscription anything up to it. A subscription reads the policy once.

    ``retry_on``: classes of exceptions after which it is tried again, by default all.
    ``give_up_on``: classes after which it is not; they come first.

    Raises :class:`ironbus.InvalidOption`, a ``ValueError``.
    """

    max_attempts: int = 3
    initial_delay: float = 1.0
    max_delay: float = 60.0
    exponential_base: float = 2.0
    jitter: bool = True
    retry_on: type[Exception] | tuple[type[Exception], ...] = field(default=(Exception,), kw_only=True)
    give_up_on: type[Exception] | tuple[type[Exception], ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        """Asked again when the policy is read: fields can be set."""
        _settings.check_whole(self.max_attempts, "max_attempts")
        _settings.check_seconds(self.initial_delay, "initial_delay")
        _settings.check_seconds(self.max_delay, "max_delay")
        _settings.check_number(self.exponential_base, "exponential_base", 1, math.inf)
        _settings.check_bool(self.jitter, "jitter")
        self.retry_on = _settings.check_exceptions(self.retry_on, "retry_on")
        self.give_up_on = _settings.check_exceptions(self.give_up_on, "give_up_on")


class RetryManager:
    """Calls again what fails, by a :class:`RetryPolicy`.

    ``sleep`` waits the seconds that it is given, by default ``asyncio.sleep`` or ``time.sleep``.
    ``random``: a seed, which makes the delays reproducible, or a function that returns numbers from 0 up to 1.

    Any loop, any thread, any number of calls at once. The policy is read at the first failure of each call.
    Raises :class:`ironbus.InvalidOption`, a ``ValueError``.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        sleep: Callable[[float], object] | None = None,
        random: int | Callable[[], float] | None = None,
    ) -> None:
        if policy is not None and not isinstance(policy, RetryPolicy):
            raise InvalidOption("policy must be a RetryPolicy, for example RetryPolicy(max_attempts=5)", "policy")
        _settings.check_callable(sleep, "sleep", "a function that takes seconds, for example asyncio.sleep")
        self._random = check_random(random) or Random().random
        self.policy = RetryPolicy() if policy is None else policy
        self._sleep = sleep

    @overload
    async def execute_with_retry(
        self, func: Callable[..., Awaitable[T]], *args: Any, on_retry: OnRetry | None = None, **kwargs: Any
    ) -> T: ...
    @overload
    async def execute_with_retry(
        self, func: Callable[..., T], *args: Any, on_retry: OnRetry | None = None, **kwargs: Any
    ) -> T: ...
    async def execute_with_retry(
        self, func: Callable[..., Any], *args: Any, on_retry: OnRetry | None = None, **kwargs: Any
    ) -> Any:
        """What ``func(*args, **kwargs)``, sync or async, returns, at the first attempt that succeeds.

        Before each pause ``on_retry(attempt, error, delay)`` is called, and awaited if it is async:
        the number of the attempt that failed, its exception and the seconds of the pause. The last
        exception is raised as it is. Cancellation, and all that is no ``Exception``, is never retried.

        A :class:`ironbus.Reject` is raised at once, a :class:`ironbus.RetryLater` waits as long as it
        says, and a :class:`ironbus.CircuitOpenError` until the breaker lets calls through again; the
        latter two use up no attempt. Where that is longer than ``max_delay``, the CircuitOpenError is raised at once.
        """
        return await self._execute(func, args, kwargs, on_retry, patient=True)

    async def _execute(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        on_retry: OnRetry | None,
        *,
        patient: bool,
    ) -> Any:
        retries: Retries | None = None
        while True:
            try:
                result = func(*args, **kwargs)
                return await result if inspect.isawaitable(result) else result
            except Exception as error:
                retries = retries or Retries(self.policy, self._random)
                attempt, delay = retries.attempt, retries.fail(error, patient)
                if delay is None:
                    raise
                failed = error
            # Outside of the except clause, so that later errors are not chained to this one.
            try:
                if on_retry is not None:
                    told = on_retry(attempt, failed, delay)
                    if inspect.isawaitable(told):
                        await told
            finally:
                del failed  # its traceback refers to this frame
            slept = (self._sleep or asyncio.sleep)(delay)
            if inspect.isawaitable(slept):
                await slept

    def execute_with_retry_sync(
        self, func: Callable[..., T], *args: Any, on_retry: OnRetry | None = None, **kwargs: Any
    ) -> T:
        """The same for sync functions in threads without a loop: the pauses block the thread.

        Raises :class:`ironbus.InvalidHandler` for an async ``func``.
        """
        refuse_async(func, "await execute_with_retry(...)")
        retries: Retries | None = None
        while True:
            try:
                return func(*args, **kwargs)
            except Exception as error:
                retries = retries or Retries(self.policy, self._random)
                attempt, delay = retries.attempt, retries.fail(error, True)
                if delay is None:
                    raise
                failed = error
            try:
                if on_retry is not None:
                    on_retry(attempt, failed, delay)
            finally:
                del failed
            (self._sleep or time.sleep)(delay)


def check_random(random: int | Callable[[], float] | None) -> Callable[[], float] | None:
    """A function that draws a number; None: it is left to the machine."""
    if random is None or callable(random):
        return random
    if isinstance(random, int) and not isinstance(random, bool):
        return Random(random % 2**64).random
    raise InvalidOption("random must be a whole number, the seed, or a function, for example 7", "random")


def refuse_async(func: Callable[..., Any], instead: str) -> None:
    """For calls that do not await: the result of an async function is not what it returns."""
    if inspect.iscoroutinefunction(func):
        raise InvalidHandler(f"func must not be async here; {instead}", "func")


__all__ = ["RetryManager", "RetryPolicy"]
