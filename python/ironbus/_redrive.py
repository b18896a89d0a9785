"""The course of a redrive, the same for loops and threads: what differs is how each waits."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ironbus.errors import Unsettled

if TYPE_CHECKING:
    from ironbus._core import LetterBox, LetterFilter, Receipt
    from ironbus._worker import Worker
    from ironbus.dead_letters import RedriveReport

T = TypeVar("T")

#: Seconds after which what is under way is held anew; a third of the time that it is held.
RENEWAL = 100.0

now = time.monotonic


class Waiting(Protocol):
    """How to call what may wait for a file, and how to wait for a receipt."""

    async def run(self, work: Callable[..., T], *args: Any) -> T: ...

    async def settled(self, receipt: Receipt, seconds: float) -> bool: ...


class OnLoop:
    """On a loop, which goes on meanwhile. Without a worker nothing waits for a file."""

    def __init__(self, worker: Worker | None) -> None:
        self._worker = worker

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """What the work returns or raises."""
        if self._worker is None:
            return work(*args)
        return await self._worker.run(lambda: work(*args))

    async def settled(self, receipt: Receipt, seconds: float) -> bool:
        """Whether it is, after so many seconds at most."""
        try:
            async with asyncio.timeout(seconds):
                await receipt.settled()
        except TimeoutError:
            return False
        return True


class Blocking:
    """In a thread without a loop, which it blocks. Nothing here suspends: see :func:`finish`."""

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """What the work returns or raises."""
        return work(*args)

    async def settled(self, receipt: Receipt, seconds: float) -> bool:
        """Whether it is, after so many seconds at most."""
        try:
            receipt.wait(seconds)
        except Unsettled:
            return False
        return True


def finish(course: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that does not suspend."""
    try:
        course.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    course.close()
    raise RuntimeError("a blocking redrive must not suspend")


async def redrive(
    io: Waiting, box: LetterBox, wanted: LetterFilter, limit: int | None, into: str | None, deadline: float | None
) -> RedriveReport:
    """Delivers what the native half chooses, and tells it in turn how each delivery ended."""
    from ironbus.dead_letters import RedriveReport

    plan = await io.run(box.redrive, wanted, limit, into, secrets.randbits(63))
    under_way: deque[tuple[str, Receipt]] = deque()
    while deadline is None or now() < deadline:
        step = await io.run(plan.step)
        if step is not None:
            under_way.append(step)
            continue
        if not under_way:
            break
        letter_id, receipt = under_way[0]
        left = RENEWAL if deadline is None else min(max(deadline - now(), 0), RENEWAL)
        if await io.settled(receipt, left):
            under_way.popleft()
            await io.run(plan.ended, letter_id, receipt)
        else:
            await io.run(plan.renew)
    for letter_id, receipt in [each for each in under_way if each[1]._is_over(False)]:
        under_way.remove((letter_id, receipt))
        await io.run(plan.ended, letter_id, receipt)
    delivered, succeeded, failed, skipped, stopped = plan.report()
    return RedriveReport(delivered, succeeded, failed, skipped, tuple(stopped), len(under_way))
