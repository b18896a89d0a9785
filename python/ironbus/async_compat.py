"""From synchronous code into asyncio and back: the ``async_compat`` half of the ``pm.events`` API.

One rule decides everywhere: inside a running loop, work is scheduled on it and the
caller gets something to await; elsewhere the caller waits for the result. Outside
a loop each thread has one loop of its own, made when it is first needed, used for
every later call, and closed when the thread ends (the main thread's: at exit).
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import functools
import inspect
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast, overload

T = TypeVar("T")
P = ParamSpec("P")

_log = logging.getLogger("ironbus.async_compat")

# How long the exit of the interpreter waits for background coroutines to take
# their cancellation, in seconds. The thread is a daemon: then it is left behind.
_EXIT_WAIT = 5.0

_exiting = False

# asyncio itself refers to a task only weakly. A task leaves this set when it is
# done; if nobody looks at its exception then, asyncio logs that as it always does.
_tasks: set[asyncio.Task[Any]] = set()

# Loops that came through a fork. To close one, even by dropping it, would take the
# parent's own descriptors out of the epoll set that both processes share.
_inherited: list[object] = []


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _as_coroutine(awaitable: Awaitable[T]) -> Coroutine[Any, Any, T]:
    """What loops make tasks of. A coroutine stays itself, so that its task shows its name."""
    if asyncio.iscoroutine(awaitable):
        return cast("Coroutine[Any, Any, T]", awaitable)
    if not inspect.isawaitable(awaitable):
        raise TypeError(f"an awaitable is needed, not {type(awaitable).__name__}")
    return _await(awaitable)


def _keep(task: asyncio.Task[T]) -> asyncio.Task[T]:
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


def _close(loop: asyncio.AbstractEventLoop, *, join_pool: bool) -> None:
    """Ends a loop that does not run: tasks cancelled, async generators finished, pool joined or only told to end.

    Joining takes a new thread, which a thread that is ending cannot make cleanly,
    nor can the exiting interpreter, which has joined the pool before.
    """
    if loop.is_closed():
        return
    try:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            # What they raise in spite of the cancellation, asyncio reports as never retrieved.
            loop.run_until_complete(asyncio.wait(tasks))
        loop.run_until_complete(loop.shutdown_asyncgens())
        if join_pool and not _exiting:
            loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


class EventLoopManager:
    """Owns one event loop: made by the first :meth:`get_loop`, ended by :meth:`cleanup`.

    For one thread at a time, as the loop itself is. Making a manager costs
    nothing; one that is dropped closes its loop.
    """

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._pid = 0

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that runs in this thread; else the manager's own, made anew if it was closed or forked."""
        return _running_loop() or self._own().get_loop()

    def cleanup(self) -> None:
        """Closes the manager's own loop: cancels its tasks, finishes its async generators, joins its executor.

        Repeating it does nothing, and a later :meth:`get_loop` makes a new loop.
        Raises ``RuntimeError``, and closes nothing, when called inside a running loop.
        """
        runner = self._take()
        if runner is None:
            return
        if _running_loop() is not None:
            self._runner = runner
            raise RuntimeError("cleanup() has to run the manager's loop once more: call it where no event loop runs")
        _close(runner.get_loop(), join_pool=True)

    def run(self, awaitable: Awaitable[T]) -> T:
        """Runs an awaitable to its end on the manager's own loop and gives the result.

        Ctrl-C cancels it and then raises, as in :func:`asyncio.run`. ``RuntimeError`` inside a running loop.
        """
        coroutine = _as_coroutine(awaitable)
        # A context for each call: a runner would go on using that of its first.
        return self._own().run(coroutine, context=contextvars.copy_context())

    def _own(self) -> asyncio.Runner:
        runner = self._take()
        if runner is None or runner.get_loop().is_closed():
            # With a factory the runner leaves the thread's current loop alone.
            runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
            self._pid = os.getpid()
        self._runner = runner
        return runner

    def _take(self) -> asyncio.Runner | None:
        runner, self._runner = self._runner, None
        if runner is not None and self._pid != os.getpid():
            _inherited.append(runner)
            return None
        return runner

    def __del__(self) -> None:
        # Without a runner too: the object may be half made.
        runner = self._take() if getattr(self, "_runner", None) is not None else None
        if runner is None:
            return
        loop = runner.get_loop()
        # Only a loop with something left to end is run once more, and not even
        # looked for is a running one otherwise: up to CPython 3.12 either leaks the
        # thread's state when the thread is ending. (uvloop does not show its generators.)
        unfinished = asyncio.all_tasks(loop) or getattr(loop, "_asyncgens", True)
        if unfinished and _running_loop() is None:
            _close(loop, join_pool=False)
        else:
            # Also when collected in the middle of another loop's work: it cannot be run then.
            loop.close()


class _OfThread(threading.local):
    """Dropped with its thread, in that thread; the manager closes its loop then."""

    def __init__(self) -> None:
        self.manager = EventLoopManager()


_of_thread = _OfThread()


class _Background:
    """One daemon thread with a loop, for coroutines that nobody waits for; started by the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def submit(self, awaitable: Awaitable[Any]) -> None:
        coroutine = _as_coroutine(awaitable)
        name = getattr(awaitable, "__qualname__", type(awaitable).__qualname__)
        try:
            with self._lock:
                loop = self._started()
                # In the context of the caller, which the task copies.
                loop.call_soon_threadsafe(self._begin, loop, coroutine, name, context=contextvars.copy_context())
        except BaseException:
            coroutine.close()
            raise

    def stop(self, timeout: float) -> None:
        """Cancels what runs, closes the loop and joins the thread; the next ``submit`` starts anew."""
        with self._lock:
            loop, self._loop = self._loop, None
            thread, self._thread = self._thread, None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is not None:
            return self._loop
        if _exiting:
            raise RuntimeError("the interpreter is exiting: no background coroutine can be started any more")
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._serve, args=(loop,), name="ironbus-background", daemon=True)
        try:
            thread.start()
        except BaseException:
            loop.close()
            raise
        self._loop, self._thread = loop, thread
        return loop

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            try:
                loop.run_forever()
            except (KeyboardInterrupt, SystemExit):
                # asyncio lets these through to whoever runs the loop. They are one
                # coroutine's, and its done-callback logs them; the others go on.
                continue
            break
        _close(loop, join_pool=True)

    @staticmethod
    def _begin(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        def report(task: asyncio.Task[Any]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                # Not the message, and so not the traceback: either may hold payload.
                _log.error("background coroutine %s failed with %s", name, type(error).__qualname__)

        _keep(loop.create_task(coroutine)).add_done_callback(report)


_background = _Background()


def _forget_parent() -> None:
    """In a forked child: the thread is not here, and the lock may have been held by another."""
    global _background
    _inherited.append(_background)
    _inherited.extend(_tasks)
    _tasks.clear()
    _background = _Background()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


@atexit.register
def _at_exit() -> None:
    global _exiting
    _exiting = True
    _background.stop(_EXIT_WAIT)
    if _running_loop() is None:
        _of_thread.manager.cleanup()


def _call(func: Callable[[], T]) -> T:
    try:
        return func()
    except StopIteration as error:
        # A future refuses it, and would then never be done.
        raise RuntimeError("the function raised StopIteration") from error


def _is_async(func: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: also for partials, bound methods and objects with ``async __call__``."""
    while isinstance(func, functools.partial):
        func = func.func
    if inspect.iscoroutinefunction(func):
        return True
    return not inspect.isclass(func) and inspect.iscoroutinefunction(getattr(type(func), "__call__", None))  # noqa: B004


class AsyncCompatibilityBridge:
    """Calls across the border between synchronous and asynchronous code. Any thread may use it."""

    @classmethod
    def get_or_create_loop(cls) -> asyncio.AbstractEventLoop:
        """The loop that runs in this thread; else the thread's own, which ironbus closes when the thread ends."""
        return _of_thread.manager.get_loop()

    @classmethod
    async def run_async_safe(cls, awaitable: Awaitable[T]) -> T:
        """Awaits it and returns its result; what it raises propagates. ``TypeError`` if it is no awaitable."""
        return await _as_coroutine(awaitable)

    @classmethod
    def run_sync_safe(cls, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T] | T:
        """Calls ``func`` without blocking a loop.

        Inside a running loop: a future of the result, computed in a thread of the
        loop's default pool, in a copy of the caller's context. Elsewhere: the
        result. What ``func`` raises propagates either way.
        """
        loop = _running_loop()
        if loop is None:
            return func(*args, **kwargs)
        context = contextvars.copy_context()
        call = functools.partial(func, *args, **kwargs)
        return loop.run_in_executor(None, lambda: context.run(_call, call))

    @classmethod
    @overload
    def ensure_async(cls, func: Callable[P, Coroutine[Any, Any, Any]]) -> Callable[P, Any]: ...
    @classmethod
    @overload
    def ensure_async(cls, func: Callable[P, T]) -> Callable[P, T]: ...
    @classmethod
    def ensure_async(cls, func: Callable[..., Any]) -> Callable[..., Any]:
        """Makes a coroutine function callable from both contexts.

        Called inside a running loop it gives its coroutine, to be awaited; elsewhere
        it runs on the thread's own loop and gives the result. Partials, bound methods
        and objects with an ``async def __call__`` count. It still is a coroutine
        function to :func:`asyncio.iscoroutinefunction`, so event buses and
        frameworks await it. A sync function comes back unchanged, as does one that was made so before.
        """
        if not _is_async(func) or hasattr(func, "__ironbus_both_contexts__"):
            return func

        @functools.wraps(func, updated=())
        def call(*args: Any, **kwargs: Any) -> Any:
            coroutine = func(*args, **kwargs)
            return coroutine if _running_loop() is not None else _of_thread.manager.run(coroutine)

        marked: Any = call
        marked.__ironbus_both_contexts__ = True
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(marked)
        else:
            marked._is_coroutine = vars(asyncio.coroutines)["_is_coroutine"]
        return call

    @classmethod
    def create_task_safe(cls, coro: Awaitable[T]) -> asyncio.Task[T] | None:
        """Starts a coroutine, or any awaitable, without waiting for it.

        Inside a running loop: its task there, kept alive until it is done.
        Elsewhere: ``None``, and it runs in the background, on one daemon thread
        that all such calls of the process share. A failure there is logged with the
        coroutine's name and the exception's type; what still runs at exit is
        cancelled. Raises ``TypeError`` if it is no awaitable, and ``RuntimeError``
        while the interpreter exits.
        """
        loop = _running_loop()
        if loop is not None:
            return _keep(loop.create_task(_as_coroutine(coro)))
        _background.submit(coro)
        return None


def run_async_from_sync(coro: Awaitable[T]) -> T | asyncio.Task[T]:
    """Runs a coroutine, or any awaitable, from synchronous code, on any thread.

    Inside a running loop: the :class:`asyncio.Task` it scheduled there, kept alive
    until it is done. Elsewhere it blocks until the coroutine is done, on the
    thread's own loop, and gives its result; what it raises propagates, Ctrl-C
    cancels it first. ``TypeError`` if it is no awaitable.
    """
    loop = _running_loop()
    if loop is not None:
        return _keep(loop.create_task(_as_coroutine(coro)))
    return _of_thread.manager.run(coro)


def get_event_loop_safe() -> asyncio.AbstractEventLoop:
    """The loop that runs in this thread; else the thread's own, which ironbus closes when the thread ends."""
    return AsyncCompatibilityBridge.get_or_create_loop()


__all__ = [
    "AsyncCompatibilityBridge",
    "EventLoopManager",
    "get_event_loop_safe",
    "run_async_from_sync",
]
