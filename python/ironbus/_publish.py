"""The face of the native methods ``publish`` and ``publish_many``: signatures, defaults and docstrings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ironbus import _core
from ironbus._core import BatchReceipt, Event, Receipt
from ironbus._durable import Durability
from ironbus.priority import EventPriority

if TYPE_CHECKING:
    from ironbus._core import EventInput
    from ironbus.bus import EventBus


async def publish(
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
    durability: Durability | None = None,
) -> Receipt:
    """Publish an event, or a type and its data (falsy data becomes ``{}``).

    ``priority``: default ``NORMAL``. ``key``: what ``order_by`` orders by unless told
    otherwise. ``idempotency_key``: a second event with this key is a duplicate.
    ``headers``: strings by name. ``delay``: seconds before it is delivered; it is accepted now,
    and then goes before what came meanwhile. ``expires_in``: seconds from now after which it is
    not delivered any more, with the outcome "expired". Waits for room where a subscription blocks; works
    before ``start()``, when the event waits. In a bus with a path it returns when the event is as durable as
    ``durability`` says (default: as the bus), and the payload must be what JSON gives back. Any loop; nothing
    happens before it is awaited. Cancelling it while it waits for room retracts the event; later it retracts nothing.
    Raises :class:`ironbus.errors.InvalidEvent`, :class:`ironbus.errors.QueueFull`, and in a bus with a path
    :class:`ironbus.StorageError`, of which :class:`ironbus.DurabilityUnknown` says that it may be stored.
    """
    raise AssertionError("a native method stands in place of its template")  # pragma: no cover


async def publish_many(
    self: EventBus,
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
    """Publish events in order: each an :class:`Event`, ``(type, data)`` or ``(type, data, options)``.

    ``options`` is a dict of what :meth:`publish` takes by name; the arguments are the
    defaults of all. All are valid or none is accepted: an error names the place in the
    batch. If the bus refuses one later, the error's ``receipt`` tells what was accepted
    before; in a bus with a path all are stored or none. Waits for room, and gives the loop a turn now and then,
    like ``publish``.
    """
    raise AssertionError("a native method stands in place of its template")  # pragma: no cover


def install(bus_class: type[EventBus]) -> None:
    """Give a class the two methods."""
    templates = publish, publish_many
    for template in templates:
        template.__module__ = bus_class.__module__
        template.__qualname__ = f"{bus_class.__qualname__}.{template.__name__}"
    for name, method in zip(("publish", "publish_many"), _core.async_methods(*templates), strict=True):
        type.__setattr__(bus_class, name, method)


__all__ = ["install"]
