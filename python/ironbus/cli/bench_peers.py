"""What the bus is measured against: the floors, the peers, and the same work in plain Python.

Each function does one round over the payloads and returns its seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

from ironbus.cli.bench_kit import Payload, expect


def asyncio_queue(payloads: Sequence[Payload]) -> float:
    """``asyncio.Queue`` and one worker that awaits a handler: the least that can be called a queue of events."""

    async def run() -> float:
        queue: asyncio.Queue[Payload] = asyncio.Queue()
        seen = 0

        async def handler(_: Payload) -> None:
            nonlocal seen
            seen += 1

        async def worker() -> None:
            for _ in range(len(payloads)):
                await handler(await queue.get())

        start = time.perf_counter()
        task = asyncio.create_task(worker())
        for payload in payloads:
            await queue.put(payload)
        await task
        seconds = time.perf_counter() - start
        expect(seen, len(payloads))
        return seconds

    return asyncio.run(run())


def pyee_emit(payloads: Sequence[Payload]) -> float:
    """pyee's synchronous ``emit``: a call, without queue, order or ledger."""
    from pyee import EventEmitter

    emitter, seen = EventEmitter(), 0

    def handler(_: Payload) -> None:
        nonlocal seen
        seen += 1

    emitter.on("order", handler)
    start = time.perf_counter()
    for payload in payloads:
        emitter.emit("order", payload)
    seconds = time.perf_counter() - start
    expect(seen, len(payloads))
    return seconds


def blinker_send(payloads: Sequence[Payload]) -> float:
    """blinker's ``send``: a call on the sender's thread."""
    from blinker import Signal

    signal, seen = Signal(), 0

    def handler(_: object, data: Payload) -> None:
        nonlocal seen
        seen += 1

    signal.connect(handler, weak=False)
    start = time.perf_counter()
    for payload in payloads:
        signal.send("sender", data=payload)
    seconds = time.perf_counter() - start
    expect(seen, len(payloads))
    return seconds


def digest_in_python(payloads: Sequence[Payload]) -> float:
    """The duplicate check of :class:`ironbus.ordering.IdempotencyManager` with the standard library."""
    seen: dict[str, float] = {}

    def is_duplicate(kind: str, data: Payload) -> bool:
        content = f"{kind}:{json.dumps(data, sort_keys=True, allow_nan=False)}"
        key = hashlib.sha256(content.encode()).hexdigest()
        if key in seen:
            return True
        seen[key] = time.time()
        return False

    start = time.perf_counter()
    for payload in payloads:
        is_duplicate("order", payload)
    seconds = time.perf_counter() - start
    expect(len(seen), len(payloads))
    return seconds


class Ticket(NamedTuple):
    """What :class:`ironbus.ordering.EventSequence` is, as plain Python has it cheapest."""

    event_id: str
    sequence_number: int
    timestamp: float
    priority: int


class OrderingInPython:
    """:class:`ironbus.ordering.EventOrderingManager` with deques and a lock."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.last = 0
        self.levels: list[deque[tuple[Ticket, Payload]]] = [deque() for _ in range(4)]
        self.processing: dict[str, Ticket] = {}

    def assign_sequence(self, event_id: str, priority: int = 2) -> Ticket:
        """The next number for an event."""
        with self.lock:
            self.last += 1
            return Ticket(event_id, self.last, time.time(), priority)

    def queue_event(self, event: Payload, sequence: Ticket) -> None:
        """Puts the event into its level."""
        with self.lock:
            self.levels[sequence.priority].append((sequence, event))

    def get_next_events(self, batch_size: int = 10) -> list[tuple[Ticket, Payload]]:
        """The next events, higher levels first."""
        batch: list[tuple[Ticket, Payload]] = []
        with self.lock:
            for level in self.levels:
                while level and len(batch) < batch_size:
                    sequence, event = level.popleft()
                    self.processing[sequence.event_id] = sequence
                    batch.append((sequence, event))
        return batch

    def mark_processed(self, event_id: str) -> None:
        """The event is done with."""
        with self.lock:
            self.processing.pop(event_id, None)


__all__ = [
    "OrderingInPython",
    "asyncio_queue",
    "blinker_send",
    "digest_in_python",
    "pyee_emit",
]
