"""``EventOrderingManager`` beside the same work in pure Python: a lock, a counter, a
dataclass, four deques and a dict of the events in flight.

Run: ``python benches/peer_ordering.py [events]``. The ratio is the median over
rounds in which both take turns, so that a busy machine hits both alike.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

from ironbus._core import debug_build
from ironbus.ordering import EventOrderingManager, EventPriority

BATCH = 10
ROUNDS = 15
EVENT = {"order_id": 1, "customer": "c17", "amount": 19.99, "items": ["a", "b", "c"]}
MUST, AIM = 8.0, 15.0


@dataclass
class PeerSequence:
    """The dataclass that v1.0 handed out."""

    event_id: str
    sequence_number: int
    timestamp: float
    priority: EventPriority = EventPriority.NORMAL


class PeerManager:
    """What one writes without ironbus, and without a fault of v1.0: a full level refuses, order is kept."""

    def __init__(self, max_queue_size: int = 10_000) -> None:
        self._lock = threading.Lock()
        self._max = max_queue_size
        self._last = 0
        self._levels: dict[EventPriority, deque[tuple[PeerSequence, Any]]] = {p: deque() for p in EventPriority}
        self._in_flight: dict[str, PeerSequence] = {}

    def assign_sequence(self, event_id: str, priority: EventPriority = EventPriority.NORMAL) -> PeerSequence:
        with self._lock:
            self._last += 1
            return PeerSequence(event_id, self._last, time.time(), priority)

    def queue_event(self, event: Any, sequence: PeerSequence) -> None:
        with self._lock:
            level = self._levels[sequence.priority]
            if len(level) >= self._max:
                raise OverflowError("the level is full")
            out_of_order = level and level[-1][0].sequence_number > sequence.sequence_number
            level.append((sequence, event))
            if out_of_order:
                self._levels[sequence.priority] = deque(sorted(level, key=lambda pair: pair[0].sequence_number))

    def get_next_events(self, batch_size: int = 10) -> list[tuple[PeerSequence, Any]]:
        batch: list[tuple[PeerSequence, Any]] = []
        with self._lock:
            for level in self._levels.values():
                while level and len(batch) < batch_size:
                    pair = level.popleft()
                    self._in_flight[pair[0].event_id] = pair[0]
                    batch.append(pair)
        return batch

    def mark_processed(self, event_id: str) -> None:
        with self._lock:
            self._in_flight.pop(event_id, None)


def cycle(manager: Any, ids: list[str], priorities: list[EventPriority], backlog: int) -> float:
    """CPU seconds for every id to be assigned, queued, fetched in batches and marked, ``backlog`` at a time."""
    assign, queue, take, mark = (
        manager.assign_sequence,
        manager.queue_event,
        manager.get_next_events,
        manager.mark_processed,
    )
    begin = time.thread_time()
    for start in range(0, len(ids), backlog):
        for event_id, priority in zip(ids[start : start + backlog], priorities[start : start + backlog], strict=True):
            queue(EVENT, assign(event_id, priority))
        while batch := take(BATCH):
            for sequence, _event in batch:
                mark(sequence.event_id)
    return time.thread_time() - begin


def main() -> int:
    """Prints both costs and the ratio; 1 when the ratio misses what it must be."""
    if debug_build:
        print("a debug build: build with --release first", file=sys.stderr)
        return 2
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    ids = [f"event-{i}" for i in range(events)]
    levels = list(EventPriority)
    normal, mixed = [EventPriority.NORMAL] * events, [levels[i % 4] for i in range(events)]
    missed = False
    for name, priorities, backlog in (
        (f"one level, {events} queued", normal, events),
        (f"four levels, {events} queued", mixed, events),
        (f"one level, {BATCH} queued", normal, BATCH),
        (f"four levels, {BATCH} queued", mixed, BATCH),
    ):
        ours: list[float] = []
        peers: list[float] = []
        for _ in range(ROUNDS):
            ours.append(cycle(EventOrderingManager(events), ids, priorities, backlog) / events)
            peers.append(cycle(PeerManager(events), ids, priorities, backlog) / events)
        ratio = median(peer / our for our, peer in zip(ours, peers, strict=True))
        missed |= ratio < MUST
        print(
            f"{name:26} ironbus {median(ours) * 1e9:6.0f} ns ({1 / median(ours):>11,.0f} ev/s)"
            f"   peer {median(peers) * 1e9:6.0f} ns   ratio {ratio:5.2f}   must {MUST:g}, aim {AIM:g}"
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
