"""What a bus with a path asks of Python: which payloads and which names it can keep."""

from __future__ import annotations

import functools
import inspect
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

from ironbus._settings import check_choice, check_seconds, check_whole
from ironbus.errors import InvalidOption, PayloadNotEncodable

#: What an event survives once it is accepted; see :attr:`Receipt.durability`.
Durability = Literal["memory", "os", "fsync"]


def check_round_trip(data: Any, text: str) -> None:
    """Raise :class:`PayloadNotEncodable` unless the JSON gives the data back."""
    found = _difference(data, json.loads(text), "data")
    if found is not None:
        path, what = found
        raise PayloadNotEncodable(
            f"{path}: {what}; a bus with a path keeps JSON, and handlers are given what JSON gives back", path
        )


def _difference(data: Any, again: Any, path: str) -> tuple[str, str] | None:
    """Where the first difference is, and what it is."""
    if isinstance(data, tuple):
        return path, "a tuple comes back as a list; use a list"
    if isinstance(data, dict) and isinstance(again, dict):
        for key, value in data.items():
            if not isinstance(key, str):
                return path, f"a key of type {type(key).__name__} comes back as a string; use strings"
            place = f"{path}.{key}" if key.isidentifier() else f"{path}[{json.dumps(key)}]"
            if key not in again:
                return place, "the key comes back as another string"
            found = _difference(value, again[key], place)
            if found is not None:
                return found
        return None
    if isinstance(data, list) and isinstance(again, list):
        for index, (value, other) in enumerate(zip(data, again, strict=True)):
            found = _difference(value, other, f"{path}[{index}]")
            if found is not None:
                return found
        return None
    if data != again:
        return path, f"a {type(data).__name__} comes back as another value"
    return None


def check_path(path: object) -> Path | None:
    """Absolute, so that a later chdir() does not move it."""
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)) or isinstance(path, bytes) or not os.fspath(path):
        raise InvalidOption('path must be the path of a file, for example "orders.bus", or None', "path")
    return Path(path).absolute()


class JournalSettings(TypedDict):
    """What a bus with a path is told of its journal."""

    path: Path
    durability: str
    retention: float | None
    absent_ttl: float | None
    max_backlog: int | None


#: Seconds for which events are kept, and for which a subscription may be away.
RETENTION, ABSENT_TTL = 7 * 86_400.0, 30 * 86_400.0

#: Events that a subscription may be behind before publishers wait for it.
MAX_BACKLOG = 10_000_000


def journal_settings(
    path: object,
    durability: str | None,
    retention: float | None,
    absent_ttl: float | None,
    max_backlog: int | None,
) -> JournalSettings | None:
    """What was set, with defaults; None without a path, which all the others need."""
    checked = check_path(path)
    if durability is not None:
        check_choice(durability, ("os", "fsync"), "durability")
    for name, value in (("retention", retention), ("absent_ttl", absent_ttl)):
        if value is not None:
            check_seconds(value, name)
    if max_backlog is not None:
        check_whole(max_backlog, "max_backlog")
    if checked is None:
        given = (
            ("durability", durability is not None),
            ("retention", retention != RETENTION),
            ("absent_ttl", absent_ttl != ABSENT_TTL),
            ("max_backlog", max_backlog != MAX_BACKLOG),
        )
        for name, is_given in given:
            if is_given:
                raise InvalidOption(f'{name} needs a path, for example EventBus(path="orders.bus")', name)
        return None
    return {
        "path": checked,
        "durability": durability or "fsync",
        "retention": None if retention is None else float(retention),
        "absent_ttl": None if absent_ttl is None else float(absent_ttl),
        "max_backlog": max_backlog,
    }


def check_overflow(overflow: str | None, path: Path | None) -> None:
    """What there is no room for stays in the file, where there is one, and only there."""
    if path is None and overflow == "spill":
        text = "overflow=\"spill\" needs a path; without one it must be 'block', 'reject', 'drop_oldest' or 'drop_new'"
        raise InvalidOption(text, "overflow")
    if path is not None and overflow not in (None, "spill"):
        text = 'overflow must be "spill" in a bus with a path: what there is no room for stays in the file'
        raise InvalidOption(text, "overflow")


def check_name(name: str | None, handler: object) -> None:
    """A durable subscription is found again by its name, so that must be the same after a restart."""
    if name is None and not has_stable_name(handler):
        raise InvalidOption(
            "name: in a bus with a path a subscription is found again by its name, and this handler has none that"
            ' lasts; give it one, for example name="billing", or use a function of a module',
            "name",
        )


def has_stable_name(handler: object) -> bool:
    """Whether it is a function of a module: the others have no name, or share one."""
    if isinstance(handler, functools.partial) or not inspect.isfunction(handler):
        return False
    return handler.__qualname__.isidentifier()


def check_since(since: object) -> tuple[str, float] | None:
    """Where a new subscription begins, as the native half wants it."""
    if since is None:
        return None
    if since == "start":
        return "start", 0.0
    if isinstance(since, datetime):
        if since.tzinfo is None:
            raise InvalidOption("since must have a time zone, for example datetime.now(UTC)", "since")
        return "time", since.timestamp()
    if isinstance(since, float) and since >= 0:
        return "time", since
    if isinstance(since, int) and not isinstance(since, bool) and 0 < since < 2**53:
        return "sequence", float(since)
    text = (
        'since must be "start", the sequence of an event (an int), or a time (Unix seconds as a float, or a datetime)'
    )
    raise InvalidOption(text, "since")
