"""A thread that does blocking work, mostly for event loops, one piece after the other.

Half the price of an executor's, and a loop is woken once for all that was done meanwhile. The
thread begins with the first piece of work and ends when it is told to, when there has been no work for
a while, or with the interpreter, which must not take it down in the middle of native code.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds without work after which the thread ends.
IDLE = 1.0
# Pieces of work after which loops are woken in between.
BATCH = 64

_workers: weakref.WeakSet[Worker] = weakref.WeakSet()

# Work, and the future that waits for it with its loop, unless nobody waits.
_Job = tuple[Callable[[], Any], "asyncio.Future[Any] | None", asyncio.AbstractEventLoop | None]
_Done = tuple["asyncio.Future[Any]", Any, BaseException | None]


class Worker:
    """See the module. Any loop, any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._leaving = False
        self._begin()
        _workers.add(self)

    def _begin(self) -> None:
        self._process = os.getpid()
        # None ends the thread.
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """What the work returns or raises. Cancelled, the wait ends, and the work is done all the same."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put((work, future, loop))
        return await future

    def hand(self, work: Callable[[], object]) -> None:
        """Have the work done. It tells whom it concerns, and what it raises, by itself."""
        self._put((work, None, None))

    async def flush(self) -> None:
        """Returns when the work that it has is done."""
        if self._is_at_work():
            await self.run(_nothing)

    async def close(self) -> None:
        """Returns when the work that it has is done, and its thread has ended. With later work another one begins."""
        thread = self._thread
        if thread is not None and self._is_at_work() and await self.run(self._retire):
            thread.join()  # it has nothing left to do

    def leave(self) -> None:
        """Have the thread end after the work that it has. With later work another one begins."""
        if self._is_at_work():
            self.hand(self._retire)

    def _is_at_work(self) -> bool:
        return self._thread is not None and self._process == os.getpid()

    def _retire(self) -> bool:
        with self._lock:
            if not self._jobs.empty():  # somebody goes on with it
                return False
            self._thread = None
            return True

    def _put(self, job: _Job) -> None:
        if self._process != os.getpid():
            self._begin()  # the thread did not survive the fork
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                thread.start()
                self._thread = thread
            self._jobs.put(job)

    def end(self) -> None:
        """Have the thread end after the work that it has, and wait for it."""
        if self._is_at_work() and (thread := self._thread) is not None:
            self._leaving = True
            self._jobs.put(None)
            thread.join()

    def _serve(self) -> None:
        try:
            while self._work():
                pass
        except BaseException:
            # Work that nobody waits for has failed: the next piece gets another thread.
            with self._lock:
                self._thread = None
            raise

    def _work(self) -> bool:
        """Does what there is. False: there was nothing for a while, and the thread ends."""
        try:
            job = self._jobs.get(timeout=0 if self._leaving else IDLE)
        except queue.Empty:
            job = None
        if job is None:
            with self._lock:
                if self._jobs.empty():
                    self._thread = None
                    return False
            return True
        done: dict[asyncio.AbstractEventLoop, list[_Done]] = {}
        me, serves, count = threading.current_thread(), True, 0
        while job is not None:
            work, future, loop = job
            if future is None or loop is None:
                work()
            else:
                done.setdefault(loop, []).append(_do(future, work))
            count += 1
            # One that has retired leaves the rest to another thread.
            serves = self._thread is me
            job = self._next() if serves and count < BATCH else None
        for waiting, results in done.items():
            try:
                waiting.call_soon_threadsafe(_resolve, results)
            except RuntimeError:  # it is closed, and nobody waits there any more
                continue
        # A thread that waits for work keeps nothing of the last alive: all of it was local here.
        return serves

    def _next(self) -> _Job | None:
        try:
            return self._jobs.get_nowait()
        except queue.Empty:
            return None


@atexit.register
def _leave() -> None:
    for worker in list(_workers):
        worker.end()


def _nothing() -> None:
    """Done when all is done that came before."""


def _do(future: asyncio.Future[Any], work: Callable[[], Any]) -> _Done:
    try:
        return future, work(), None
    except BaseException as error:
        return future, None, error


def _resolve(results: list[_Done]) -> None:
    for future, result, error in results:
        if future.done():  # it was cancelled
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
