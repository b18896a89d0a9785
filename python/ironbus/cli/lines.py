"""From a file of JSON Lines to events: reading, splitting, checking. Knows nothing of the bus.

A bad line is told by its number and its fault, never by its content.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from ironbus import EventPriority

Item: TypeAlias = tuple[str, Any, dict[str, Any]]
"""What ``publish_many`` takes: type, data, options."""

CHUNK = 1 << 18  # bytes read at once
MAX_LINE = 1 << 24  # bytes; a longer line is bad, or one file without line ends would fill the memory
AHEAD = 4  # chunks that are read before they are wanted
GZIP_MAGIC = b"\x1f\x8b"


class BadLine(ValueError):
    """A line that is no event; the text says why and holds nothing of the line."""


class Unreadable(Exception):
    """The file could be read up to a point only."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a line holds what. A line must have its type and data, and its key if one is named."""

    type: str = "type"
    data: str = "data"
    key: str | None = None
    priority: str | None = None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse(line: bytes, fields: Fields) -> Item:
    """The event of one line; raises :class:`BadLine`."""
    try:
        record = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BadLine("not JSON") from None
    if not isinstance(record, dict):
        raise BadLine("not a JSON object")
    for needed in (fields.type, fields.data):
        if needed not in record:
            raise BadLine(f'no field "{needed}"')
    kind = record[fields.type]
    if not isinstance(kind, str):
        raise BadLine(f'the field "{fields.type}" is not a string')
    options: dict[str, Any] = {}
    if fields.key is not None:
        options["key"] = _key(record, fields.key)
    if fields.priority is not None and fields.priority in record:
        options["priority"] = _priority(record[fields.priority], fields.priority)
    return kind, record[fields.data], options


def _key(record: dict[str, Any], field: str) -> str:
    match record.get(field):
        case str(key) if key:
            return key
        case int(number) if not isinstance(number, bool):
            return str(number)
    raise BadLine(f'the field "{field}" is not a non-empty string or an integer')


def _priority(value: object, field: str) -> EventPriority:
    try:
        if isinstance(value, str):
            return EventPriority[value.upper()]
        if isinstance(value, int) and not isinstance(value, bool):
            return EventPriority(value)
    except (KeyError, ValueError):
        pass
    names = ", ".join(priority.name for priority in EventPriority)
    raise BadLine(f'the field "{field}" is not one of {names}, or 0 to 3')


async def numbered_lines(raw: io.RawIOBase) -> AsyncIterator[list[tuple[int, bytes | None]]]:
    """Non-empty lines with their numbers from 1, in batches as they arrive; ``None`` is a line that is too long."""
    number, tail, too_long = 0, b"", False
    async for chunk in _chunks(raw):
        *complete, tail = (tail + chunk).split(b"\n")
        batch: list[tuple[int, bytes | None]] = []
        for line in complete:
            number += 1
            if too_long or len(line) > MAX_LINE:
                batch.append((number, None))
                too_long = False
            elif line and not line.isspace():
                batch.append((number, line))
        if len(tail) > MAX_LINE:
            tail, too_long = b"", True
        if batch:
            yield batch
    if too_long or (tail and not tail.isspace()):
        yield [(number + 1, None if too_long else tail)]


async def _chunks(raw: io.RawIOBase) -> AsyncIterator[bytes]:
    """What a thread reads. It is a daemon: a pipe that never ends must not keep the process from ending."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
    room = threading.Semaphore(AHEAD)

    def hand_over(what: bytes | Exception | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(arrived.put_nowait, what)

    threading.Thread(target=_read, args=(raw, room, hand_over), name="ironbus-feed", daemon=True).start()
    while (chunk := await arrived.get()) is not None:
        if isinstance(chunk, Exception):
            raise Unreadable(f"the input cannot be read to its end ({type(chunk).__name__})") from chunk
        yield chunk
        room.release()


def _read(raw: io.RawIOBase, room: threading.Semaphore, hand_over: Callable[[bytes | Exception | None], None]) -> None:
    try:
        for chunk in _decompressed(raw):
            room.acquire()
            hand_over(chunk)
        hand_over(None)
    except (OSError, EOFError, zlib.error) as error:
        hand_over(error)


def _decompressed(raw: io.RawIOBase) -> Iterator[bytes]:
    buffered = io.BufferedReader(raw, CHUNK)
    try:
        packed = buffered.peek(2).startswith(GZIP_MAGIC)
        stream = gzip.GzipFile(fileobj=buffered) if packed else buffered
        while chunk := stream.read1(CHUNK):
            yield chunk
    finally:
        buffered.detach()  # or it would close the file, whose position the caller may still ask for


__all__ = ["BadLine", "Fields", "Item", "Unreadable", "numbered_lines", "parse"]
