"""Everything that ironbus raises, in one tree under :class:`IronbusError`.

Each text names the field and the fix. None ever holds a payload value or the
message of a handler's exception, so all of them may be logged.
"""

from __future__ import annotations

import math


class IronbusError(Exception):
    """The root of all errors of ironbus. ``field`` is the path of the field at fault, or ``""``."""

    field: str

    def __init__(self, text: str = "", field: str = "") -> None:
        super().__init__(text)
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (str(self), self.field))


class InvalidEvent(IronbusError, ValueError):
    """An event was refused before it was accepted; nothing of it is left anywhere."""


class InvalidType(InvalidEvent, TypeError):
    """The event's type is not a non-empty printable string."""


class InvalidPriority(InvalidEvent):
    """The priority is not one of :class:`ironbus.EventPriority`."""


class InvalidKey(InvalidEvent, TypeError):
    """The key, or the idempotency key, is not a non-empty string."""


class InvalidHeaders(InvalidEvent, TypeError):
    """The headers are not a mapping of strings to strings."""


class InvalidTiming(InvalidEvent, TypeError):
    """``delay`` or ``expires_in`` is not a number of seconds, or the event could never be delivered."""


class InvalidData(InvalidEvent):
    """The payload was refused. The subclasses say why."""


class PayloadNotEncodable(InvalidData, TypeError):
    """Something in the payload has no JSON form; ``field`` is its path."""


class PayloadNotFinite(InvalidData):
    """A float in the payload is NaN or infinite, which JSON cannot hold."""


class PayloadCycle(InvalidData):
    """The payload contains itself."""


class PayloadTooDeep(InvalidData, RecursionError):
    """The payload is nested deeper than the interpreter can walk."""


class InvalidSubscription(IronbusError, ValueError):
    """A subscription was refused; nothing was changed."""


class InvalidPattern(InvalidSubscription, TypeError):
    """The type or pattern that was subscribed to is not a non-empty printable string."""


class InvalidHandler(InvalidSubscription, TypeError):
    """The handler cannot be called with one event."""


class InvalidOption(InvalidSubscription, TypeError):
    """An option is unknown, out of range, or does not go with another."""


class QueueFull(IronbusError):
    """No room, and the caller or the policy does not wait. Nothing was accepted; publish again later.

    Raised by a bus to a handler that publishes, and not caught there, it means: run the handler
    again later. It uses up no attempt.
    """

    _by_bus = False


class DeadLetterQueueFull(QueueFull):
    """The dead letter queue is at its limit and lets nothing go. Redrive or remove some entries."""


class StorageError(IronbusError):
    """A file cannot be used, or not as it is. It is left as it was; the text names it and the fix."""


class JournalInUse(StorageError):
    """Another bus has the journal; the text says which process, as far as that is known. One bus owns a journal."""


class JournalReadOnly(StorageError):
    """A flush of the journal has failed before, and nothing is written until the bus is stopped and started again.

    Nothing of the event is left, and its idempotency key is free.
    """


class DurabilityUnknown(StorageError):
    """The flush of the journal failed, so the event may or may not be there after the next start.

    Its idempotency key stays claimed: stop and start the bus, and publish again with the same
    key, which tells: a duplicate was stored.
    """


class HandlerKilledProcess(IronbusError):
    """In a dead letter: the process ended while the handler ran, as often as the event may be tried."""


class InvalidTransaction(IronbusError, RuntimeError):
    """``delivery.transaction()`` was called, or used, where there is none: on a bus without a path, outside of the
    handler, before its block or after the end of its delivery. The text says which."""


class TransactionFailed(IronbusError):
    """What a handler left in transactions could not be written: a statement failed, or an event is too large.

    Nothing of it happened, and the delivery has failed; this is the failure, which ``retry`` and dead letters
    have like one of the handler's own. It names the statement by its place, and quotes no parameter.
    """


class WouldDeadlock(IronbusError, RuntimeError):
    """The wait would close a cycle of waits and could never end."""


class NotStarted(IronbusError, RuntimeError):
    """The call needs a started bus."""


class WrongLoop(IronbusError, RuntimeError):
    """The bus runs on another event loop, or on none."""


class Forked(IronbusError, RuntimeError):
    """The bus was started in the parent of this process; call ``start()`` here first."""


class Unsettled(IronbusError, TimeoutError):
    """The deadline passed before the wait was over. The events go on unharmed."""


class CircuitOpenError(IronbusError):
    """A circuit breaker did not let the call through; nothing was called.

    ``name`` is the breaker's. ``retry_after``: seconds until it lets probes through; None
    while its probes are under way, which decide.
    """

    name: str
    retry_after: float | None

    def __init__(self, name: str, retry_after: float | None = None) -> None:
        if retry_after is None:
            text = f"circuit breaker {name!r} is HALF_OPEN and its probes are under way; call again when they are over"
        else:
            text = f"circuit breaker {name!r} is OPEN; call again in {round(retry_after, 3):g} s"
        super().__init__(text)
        self.name = name
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.name, self.retry_after))


class Reject(IronbusError):
    """For you to raise: this event, or call, will never succeed, so no attempt follows.

    It counts as neither a success nor a failure for a circuit breaker. ``reason`` is the
    text, in your words; ironbus writes it to no log.
    """

    reason: str

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.reason,))


class RetryLater(IronbusError):
    """For you to raise: nothing is wrong, but try again after so many ``seconds``, and not before.

    It uses up no attempt, and counts as neither a success nor a failure for a circuit
    breaker. So whoever raises it each time is called for ever.

    Raises :class:`InvalidOption` if ``seconds`` is not a finite number of 0 or more.
    """

    seconds: float

    def __init__(self, seconds: float) -> None:
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds < math.inf:
            raise InvalidOption("seconds must be a number of 0 or more, for example RetryLater(30)", "seconds")
        super().__init__(f"not now, but in {round(seconds, 3):g} s")
        self.seconds = float(seconds)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.seconds,))


__all__ = [
    "CircuitOpenError",
    "DeadLetterQueueFull",
    "DurabilityUnknown",
    "Forked",
    "HandlerKilledProcess",
    "InvalidData",
    "InvalidEvent",
    "InvalidHandler",
    "InvalidHeaders",
    "InvalidKey",
    "InvalidOption",
    "InvalidPattern",
    "InvalidPriority",
    "InvalidSubscription",
    "InvalidTiming",
    "InvalidTransaction",
    "InvalidType",
    "IronbusError",
    "JournalInUse",
    "JournalReadOnly",
    "NotStarted",
    "PayloadCycle",
    "PayloadNotEncodable",
    "PayloadNotFinite",
    "PayloadTooDeep",
    "QueueFull",
    "Reject",
    "RetryLater",
    "StorageError",
    "TransactionFailed",
    "Unsettled",
    "WouldDeadlock",
    "WrongLoop",
]
