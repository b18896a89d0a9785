"""Circuit breakers for plain calls. When a call is let through, the engine decides."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from ironbus import _core, _settings
from ironbus._retry import refuse_async
from ironbus.errors import InvalidHandler, InvalidOption

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

#: The breakers whose ``with`` blocks the current task or thread is in, each with its permit.
_entered: ContextVar[tuple[tuple[CircuitBreaker, int], ...]] = ContextVar("ironbus.breakers", default=())


class CircuitState(StrEnum):
    """Whether a circuit breaker lets calls through. A member is equal to its text."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass
class CircuitBreakerConfig:
    """When a circuit breaker changes its state.

    It opens after ``failure_threshold`` failures in a row; also when, of the last ``window_size``
    calls, a share of ``failure_rate`` failed (None: never because of that). After ``timeout``
    seconds it is half open: it lets up to ``half_open_max_calls`` calls at once through as probes.
    ``success_threshold`` successes of probes close it, one failure opens it again.

    Raises :class:`ironbus.InvalidOption`, a ``ValueError``.
    """

    failure_threshold: int = 5
    success_threshold: int = 2
    timeout: float = 60.0
    window_size: int = 10
    failure_rate: float | None = field(default=0.5, kw_only=True)
    half_open_max_calls: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        """Asked again when the settings are read: fields can be set."""
        _settings.check_whole(self.failure_threshold, "failure_threshold")
        _settings.check_whole(self.success_threshold, "success_threshold")
        _settings.check_seconds(self.timeout, "timeout")
        _settings.check_whole(self.window_size, "window_size")
        _settings.check_whole(self.half_open_max_calls, "half_open_max_calls")
        rate = self.failure_rate
        if rate is not None:
            _settings.check_number(rate, "failure_rate", 0, 1)
            if rate == 0:
                text = "failure_rate must be above 0, for example 0.5, or None for no rate"
                raise InvalidOption(text, "failure_rate")


class CircuitBreaker(_core.Breaker):
    """Makes no calls to what has failed again and again, until it is time to look whether it is back.

    ``config`` is read now; set ``breaker.config`` to change it later. ``clock``: a function that
    returns monotonic seconds, in place of the machine's clock.

    A call that raises an ``Exception`` has failed. Cancellation, :class:`ironbus.Reject` and
    :class:`ironbus.RetryLater` count as neither success nor failure, and so does each call that
    began before the last change of state. While calls are refused, :class:`ironbus.CircuitOpenError` is raised.

    Any loop, any thread, any number of calls at once; but no call inside a call, which a probe would refuse.
    Changes of state are logged, to the log ``ironbus``.
    Raises :class:`ironbus.InvalidOption`, a ``ValueError``.
    """

    def __init__(
        self, name: str, config: CircuitBreakerConfig | None = None, *, clock: Callable[[], float] | None = None
    ) -> None:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise InvalidOption("name must be a printable, non-empty string", "name")
        _settings.check_callable(clock, "clock", "a function that returns seconds, for example time.monotonic")
        self._config = _config(config)
        self._configure(name, self._config, clock)
        self.name = name

    @property
    def config(self) -> CircuitBreakerConfig:
        """Its settings. Set it to change them; what has been counted stays."""
        return self._config

    @config.setter
    def config(self, config: CircuitBreakerConfig) -> None:
        self._reconfigure(_config(config))
        self._config = config

    @property
    def state(self) -> CircuitState:
        """The state after the last call: an open breaker becomes half open with the first call after its timeout.

        Set it to open or close the breaker yourself.
        """
        state: CircuitState = self._snapshot()["state"]
        return state

    @state.setter
    def state(self, state: CircuitState) -> None:
        self._force(state)

    @property
    def failure_count(self) -> int:
        """Failures in a row."""
        count: int = self._snapshot()["failure_count"]
        return count

    @property
    def success_count(self) -> int:
        """Successes of probes since the breaker is half open; 0 in the other states."""
        count: int = self._snapshot()["success_count"]
        return count

    def get_state(self) -> dict[str, Any]:
        """``name``, ``state``, ``failure_count``, ``success_count``, ``last_failure`` and ``last_state_change``.

        The times are Unix seconds (seconds of the ``clock``, if one was given); ``last_failure`` is
        None before the first failure, and before the first change ``last_state_change`` is when the breaker was made.
        """
        return {"name": self.name, **self._snapshot()}

    @overload
    async def call(self, func: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def call(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def call(self, func: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        """What ``func(*args, **kwargs)``, sync or async, returns or raises.

        Raises :class:`ironbus.CircuitOpenError`, and calls nothing, while calls are refused.
        """
        permit = self._acquire()
        try:
            result: Any = func(*args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
        except BaseException as error:
            self._report(permit, error)
            raise
        self._report(permit, None)
        return result

    def call_sync(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same without a loop, for sync functions.

        Raises :class:`ironbus.InvalidHandler` for an async ``func``.
        """
        refuse_async(func, "await breaker.call(func, ...)")
        permit = self._acquire()
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            self._report(permit, error)
            raise
        self._report(permit, None)
        return result

    def __call__(self, func: F) -> F:
        """As a decorator: each call of the function, sync or async, goes through the breaker."""
        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            text = "a generator does its work after the call; use `with breaker:` around that work instead"
            raise InvalidHandler(text, "func")

        @functools.wraps(func)
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self.call(func, *args, **kwargs)

        @functools.wraps(func)
        def call_sync(*args: Any, **kwargs: Any) -> Any:
            return self.call_sync(func, *args, **kwargs)

        return call if inspect.iscoroutinefunction(func) else call_sync  # type: ignore[return-value]

    def __enter__(self) -> Self:
        _entered.set((*_entered.get(), (self, self._acquire())))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        entered = _entered.get()
        for at in reversed(range(len(entered))):
            breaker, permit = entered[at]
            if breaker is self:
                _entered.set(entered[:at] + entered[at + 1 :])
                self._report(permit, error)
                return
        raise RuntimeError(f"circuit breaker {self.name!r} must be left in the task or thread that entered it")

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.__exit__(kind, error, traceback)

    def add_listener(self, listener: Callable[[CircuitState, CircuitState], object]) -> None:
        """Call ``listener(old, new)`` at each change of state from now on.

        It is called by the thread that made the change, and holds that up; the changes come one
        after the other, in their order. One that raises is logged. The same listener may be added twice.
        """
        if not callable(listener):
            raise InvalidOption("listener must be a function that takes the old and the new state", "listener")
        self._add_listener(listener)

    def remove_listener(self, listener: Callable[[CircuitState, CircuitState], object]) -> bool:
        """Call it no more. False: it, or an equal one, was not there."""
        return self._remove_listener(listener)

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.name!r} {self.state.upper()}>"


def _config(config: CircuitBreakerConfig | None) -> CircuitBreakerConfig:
    if config is None:
        return CircuitBreakerConfig()
    if not isinstance(config, CircuitBreakerConfig):
        text = "config must be a CircuitBreakerConfig, for example CircuitBreakerConfig(failure_threshold=3)"
        raise InvalidOption(text, "config")
    return config


__all__ = ["CircuitBreaker", "CircuitBreakerConfig", "CircuitState"]
