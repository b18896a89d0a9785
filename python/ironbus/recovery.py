"""Retries, circuit breakers and dead letters: the ``recovery`` half of the ``pm.events`` API."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any

from ironbus import _settings
from ironbus._breaker import CircuitBreaker, CircuitBreakerConfig, CircuitState
from ironbus._dead_letters import DeadLetterQueue, FailedEvent
from ironbus._log import place
from ironbus._retry import RetryManager, RetryPolicy
from ironbus._subscriptions import qualified_name
from ironbus.errors import CircuitOpenError, InvalidHandler, InvalidOption

logger = logging.getLogger("ironbus")


class ResilientEventProcessor:
    """Calls handlers with events: through a circuit breaker, again where they fail, and then to the dead letters.

    ``name``: the breaker's, and that of the dead letters' subscription. ``enable_dlq=False``: a failed event is
    only counted. Without ``dlq=`` the dead letters are in memory: give it ``DeadLetterQueue("a/folder")`` to keep them.
    ``clock``, ``sleep`` and ``random``: see :class:`CircuitBreaker` and :class:`RetryManager`.

    A handler, sync or async, that takes two arguments gets the event's type and data; one that takes one
    gets the data. A sync handler runs on, and holds up, the loop.

    Any loop, any number of events at once. The parts are ``circuit_breaker``, ``retry_manager`` and ``dlq``.
    Raises :class:`ironbus.InvalidOption`, a ``ValueError``.
    """

    def __init__(
        self,
        name: str,
        retry_policy: RetryPolicy | None = None,
        circuit_config: CircuitBreakerConfig | None = None,
        enable_dlq: bool = True,
        *,
        dlq: DeadLetterQueue | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], object] | None = None,
        random: int | Callable[[], float] | None = None,
    ) -> None:
        _settings.check_bool(enable_dlq, "enable_dlq")
        if dlq is not None and not isinstance(dlq, DeadLetterQueue):
            raise InvalidOption('dlq must be a DeadLetterQueue, for example DeadLetterQueue("dlq")', "dlq")
        if dlq is not None and not enable_dlq:
            raise InvalidOption("dlq has no use with enable_dlq=False; leave one of them out", "dlq")
        self.name = name
        self.circuit_breaker = CircuitBreaker(name, circuit_config, clock=clock)
        self.retry_manager = RetryManager(retry_policy, sleep=sleep, random=random)
        self.dlq = (dlq or DeadLetterQueue()) if enable_dlq else None
        self._lock = threading.Lock()
        self._counts = {"processed": 0, "failed": 0, "retried": 0, "dlq_added": 0}

    async def process_event(
        self, handler: Callable[..., object], event_type: str, event_data: Any, event_id: str | None = None
    ) -> bool:
        """Have an event handled. False: it failed for good, and is in the dead letter queue, if there is one.

        While the breaker is open nothing is called and nothing waited for: the event goes to the dead letters.
        Cancellation, and all that is no ``Exception``, is raised, and the event is not kept.
        Raises :class:`ironbus.InvalidHandler`, and what :meth:`DeadLetterQueue.add_failed_event` raises, in
        particular where the event cannot be kept.
        """
        arguments = _arguments(handler, event_type, event_data)
        try:
            await self.retry_manager._execute(
                self.circuit_breaker.call, (handler, *arguments), {}, self._retried, patient=False
            )
        except Exception as error:
            failed = error
        else:
            self._count("processed")
            return True
        try:
            self._count("failed")
            await self._bury(handler, event_type, event_data, event_id, failed)
        finally:
            del failed  # its traceback refers to this frame
        return False

    async def reprocess_dlq(self, handler: Callable[..., object], max_events: int = 100) -> dict[str, int]:
        """Call the handler with up to ``max_events`` dead letters, oldest first, each once.

        Returns how many it ``processed``, and how many ``failed``. An entry leaves the queue only after its handler
        succeeded; one that fails stays, with one attempt more. While the breaker refuses calls, nothing is called.
        Left out are entries whose data has no JSON form and was given to another queue object, and those that
        another process works on: for up to five minutes, should it die.
        """
        if not isinstance(max_events, int) or isinstance(max_events, bool) or max_events < 0:
            raise InvalidOption("max_events must be a whole number of at least 0", "max_events")
        _arguments(handler, "", None)
        result = {"processed": 0, "failed": 0}
        if self.dlq is None:
            return result
        position = 0
        while sum(result.values()) < max_events:
            claimed = await self.dlq._claim(position)
            if claimed is None:
                break
            position, event = claimed.position, claimed.event
            begun = False

            async def deliver(event: FailedEvent = event) -> None:
                nonlocal begun
                begun = True
                returned = handler(*_arguments(handler, event.event_type, event.event_data))
                if inspect.isawaitable(returned):
                    await returned

            try:
                if not claimed.here:
                    await self.dlq._release(claimed)
                    continue
                await self.circuit_breaker.call(deliver)
            except Exception as error:
                if not begun and isinstance(error, CircuitOpenError):
                    await self.dlq._release(claimed)
                    break
                await self.dlq._failed(claimed, error, self.name)
                result["failed"] += 1
                self._count("failed")
            except BaseException:
                await self.dlq._release(claimed)
                raise
            else:
                await self.dlq._succeeded(claimed)
                result["processed"] += 1
                self._count("processed")
        return result

    def get_metrics(self) -> dict[str, Any]:
        """``processed``, ``failed``, ``retried``, ``dlq_added`` and ``circuit_state``. Any thread."""
        with self._lock:
            return {**self._counts, "circuit_state": self.circuit_breaker.state}

    async def _bury(
        self, handler: Callable[..., object], event_type: str, event_data: Any, event_id: str | None, error: Exception
    ) -> None:
        names = {"subscription": self.name, "handler": qualified_name(handler)}
        kind = type(error).__qualname__
        extra = {"subscription": self.name, "event_type": event_type}
        if self.dlq is None:
            logger.error("%s: an event of type %r failed: %s%s", self.name, event_type, kind, place(error), extra=extra)
            return
        await self.dlq.add_failed_event(event_type, event_data, error, event_id, **names)
        self._count("dlq_added")
        text = "%s: an event of type %r failed and is a dead letter now: %s%s"
        logger.warning(text, self.name, event_type, kind, place(error), extra=extra)

    def _retried(self, attempt: int, error: Exception, delay: float) -> None:
        self._count("retried")

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1


def _arguments(handler: Callable[..., object], event_type: str, event_data: Any) -> tuple[Any, ...]:
    """What a handler is called with, by the number of its arguments."""
    if not callable(handler):
        text = "handler must be a function, or another callable, that takes an event's type and data, or its data"
        raise InvalidHandler(text, "handler")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # a builtin that does not tell
        return event_type, event_data
    for arguments in ((event_type, event_data), (event_data,)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return arguments
    name = qualified_name(handler)
    raise InvalidHandler(f"handler {name} must take an event's type and its data, or its data alone", "handler")


__all__ = [
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitState",
    "DeadLetterQueue",
    "FailedEvent",
    "ResilientEventProcessor",
    "RetryManager",
    "RetryPolicy",
]
