"""Which subscription a test means."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ironbus._subscriptions import Subscription, qualified_name
from ironbus.errors import InvalidOption

if TYPE_CHECKING:
    from ironbus._subscriptions import Handler, Lane


def find(meant: str | Subscription | Handler, lanes: Mapping[str, Lane], known: Collection[str]) -> str:
    """The name of the subscription that is meant; ``known`` are those that there were.

    A name, or what follows a dot in one and only one name; the subscription itself; its handler.
    """
    names = sorted({*lanes, *known})
    if isinstance(meant, Subscription):
        found = [meant.name] if meant.name in names else []
    elif isinstance(meant, str):
        found = [meant] if meant in names else [name for name in names if name.endswith(f".{meant}")]
    else:
        found = [lane.name for lane in lanes.values() if lane.handler == meant]
    if len(found) == 1:
        return found[0]
    called = repr(meant) if isinstance(meant, (str, Subscription)) else qualified_name(meant)
    if found:
        text = f"several subscriptions are meant by {called}: {', '.join(found)}; name one in full"
    else:
        text = f"there is no subscription {called}; there are {', '.join(names) or 'none'}"
    raise InvalidOption(text, "subscription")


__all__ = ["find"]
