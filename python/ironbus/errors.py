"""Everything that ironbus raises, in one tree under :class:`IronbusError`.

Each text names the field and the fix. None ever holds a payload value or the
message of a handler's exception, so all of them may be logged.
"""

from __future__ import annotations


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
    """No room, and the caller or the policy does not wait. Nothing was accepted; publish again later."""


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


__all__ = [
    "Forked",
    "InvalidData",
    "InvalidEvent",
    "InvalidHandler",
    "InvalidHeaders",
    "InvalidKey",
    "InvalidOption",
    "InvalidPattern",
    "InvalidPriority",
    "InvalidSubscription",
    "InvalidType",
    "IronbusError",
    "NotStarted",
    "PayloadCycle",
    "PayloadNotEncodable",
    "PayloadNotFinite",
    "PayloadTooDeep",
    "QueueFull",
    "Unsettled",
    "WouldDeadlock",
    "WrongLoop",
]
