"""The bridge between sync and async code keeps its contract, and leaks neither loops, threads nor tasks."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from ironbus import async_compat
from ironbus.async_compat import (
    AsyncCompatibilityBridge as Bridge,
)
from ironbus.async_compat import (
    EventLoopManager,
    get_event_loop_safe,
    run_async_from_sync,
)

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(params=["asyncio", "uvloop", "debug"], autouse=True)
def flavour(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every test runs on asyncio's loop, on uvloop's, and in asyncio's debug mode."""
    make = asyncio.new_event_loop
    if request.param == "uvloop":
        make = pytest.importorskip("uvloop").new_event_loop
    elif request.param == "debug":
        monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")

    def new_event_loop() -> asyncio.AbstractEventLoop:
        loop = make()
        loop.set_debug(request.param == "debug")
        loop.slow_callback_duration = 60.0
        return loop

    monkeypatch.setattr(asyncio, "new_event_loop", new_event_loop)
    async_compat._of_thread.manager.cleanup()
    yield request.param
    async_compat._background.stop(10)
    async_compat._of_thread.manager.cleanup()
    assert not async_compat._tasks


def run(main: Any) -> Any:
    """A loop of the test's own flavour around ``main``."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(main)


def in_thread(func: Callable[[], Any]) -> Any:
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(func()))
    thread.start()
    thread.join()
    return outcome[0]


class Native:
    """An awaitable that is no coroutine, as native ones are."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, None, object]:
        yield from asyncio.sleep(0).__await__()
        return self.value


async def answer(value: object = 42) -> object:
    await asyncio.sleep(0)
    return value


async def fail() -> None:
    await asyncio.sleep(0)
    raise LookupError("secret payload")


# --- run_async_from_sync ---


def test_outside_a_loop_it_gives_the_result() -> None:
    assert run_async_from_sync(answer()) == 42
    assert run_async_from_sync(Native("n")) == "n"
    with pytest.raises(LookupError):
        run_async_from_sync(fail())


def test_inside_a_loop_it_gives_the_task() -> None:
    async def main() -> None:
        for awaitable in (answer(), Native(42)):
            task = run_async_from_sync(awaitable)
            assert isinstance(task, asyncio.Task)
            assert task.get_loop() is asyncio.get_running_loop()
            assert await task == 42
        with pytest.raises(LookupError):
            await run_async_from_sync(fail())

    run(main())


def test_nested_use_gives_a_task_of_the_loop_that_runs() -> None:
    async def outer() -> object:
        task = run_async_from_sync(answer("inner"))
        assert isinstance(task, asyncio.Task)
        return await task

    assert run_async_from_sync(outer()) == "inner"


@pytest.mark.parametrize("wrong", [1, None, answer, object()])
def test_what_is_no_awaitable_is_refused_everywhere(wrong: Any) -> None:
    def everywhere() -> None:
        for call in (run_async_from_sync, Bridge.create_task_safe):
            with pytest.raises(TypeError, match="awaitable is needed"):
                call(wrong)

    async def main() -> None:
        everywhere()
        with pytest.raises(TypeError, match="awaitable is needed"):
            await Bridge.run_async_safe(wrong)

    everywhere()
    run(main())


def test_a_thread_uses_one_loop_again_and_again() -> None:
    async def loop() -> object:
        return asyncio.get_running_loop()

    loops = {run_async_from_sync(loop()) for _ in range(100)}
    assert loops == {get_event_loop_safe()}
    assert in_thread(lambda: run_async_from_sync(loop())) not in loops


def test_a_closed_loop_is_replaced() -> None:
    first = get_event_loop_safe()
    first.close()
    assert run_async_from_sync(answer()) == 42
    assert get_event_loop_safe() is not first


def test_the_threads_current_loop_is_left_alone() -> None:
    # Somebody else's set_event_loop() must survive our calls.
    theirs = asyncio.new_event_loop()
    asyncio.set_event_loop(theirs)
    try:
        run_async_from_sync(answer())
        assert asyncio.get_event_loop() is theirs
        assert not theirs.is_closed()
    finally:
        asyncio.set_event_loop(None)
        theirs.close()


def test_the_context_of_each_call_is_seen_and_not_changed() -> None:
    async def see() -> str:
        seen = variable.get()
        variable.set("changed inside")
        return seen

    def calls() -> None:
        for value in ("one", "two"):
            variable.set(value)
            assert run_async_from_sync(see()) == value
            assert variable.get() == value

    contextvars.copy_context().run(calls)


def test_a_forgotten_task_is_kept_until_it_is_done_and_its_error_is_reported() -> None:
    reported: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))
        gate = asyncio.Event()
        done = asyncio.Event()

        async def waits() -> None:
            await gate.wait()
            done.set()
            raise LookupError

        run_async_from_sync(waits())
        await asyncio.sleep(0)
        gc.collect()
        gate.set()
        await done.wait()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()

    run(main())
    assert reported == ["Task exception was never retrieved"]


def test_ctrl_c_cancels_and_raises_and_the_loop_goes_on() -> None:
    steps: list[str] = []

    async def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            steps.append("cancelled")
            raise

    with pytest.raises(KeyboardInterrupt):
        run_async_from_sync(interrupted())
    assert steps == ["cancelled"]
    assert run_async_from_sync(answer()) == 42
    assert not asyncio.all_tasks(get_event_loop_safe())


# --- leaks ---


def test_a_threads_loop_is_closed_when_the_thread_ends() -> None:
    ended: list[str] = []

    async def numbers() -> Any:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            ended.append("generator")

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("task")

    kept = numbers()

    def work() -> asyncio.AbstractEventLoop:
        async def main() -> None:
            asyncio.get_running_loop().create_task(forever())
            await anext(kept)
            await asyncio.to_thread(int)

        run_async_from_sync(main())
        return get_event_loop_safe()

    loop = in_thread(work)
    assert loop.is_closed()
    assert sorted(ended) == ["generator", "task"]


def test_neither_threads_nor_calls_leave_loops_or_threads_behind() -> None:
    loops: list[weakref.ref[Any]] = []

    def work() -> None:
        for _ in range(3):
            run_async_from_sync(answer())
        loops.append(weakref.ref(get_event_loop_safe()))

    before = set(threading.enumerate())
    for _ in range(20):
        in_thread(work)
    gc.collect()
    assert len(loops) == 20
    assert [ref() for ref in loops if ref() is not None] == []
    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_no_descriptor_is_left_open() -> None:
    def work() -> None:
        run_async_from_sync(answer())

    in_thread(work)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        in_thread(work)
    assert len(os.listdir("/proc/self/fd")) == before


def test_ended_threads_leave_no_memory_behind(flavour: str) -> None:
    if flavour == "uvloop":
        pytest.skip("uvloop is always run once more, which costs two objects up to CPython 3.12")

    def work() -> None:
        run_async_from_sync(answer())

    def grown(threads: int) -> int:
        for _ in range(threads):
            in_thread(work)
        gc.collect()
        return sys.getallocatedblocks()

    grown(20)
    before = grown(20)
    assert grown(100) - before < 100


def script(text: str, *options: str) -> subprocess.CompletedProcess[str]:
    head = """
        import asyncio, os, sys, threading
        from ironbus.async_compat import *
        async def answer(value=42):
            await asyncio.sleep(0)
            return value
    """
    code = textwrap.dedent(head) + textwrap.dedent(text)
    # Not worded like conftest's: CPython drops an option that it has already, and with it its place.
    warnings = ("-W", "error", "-W", "ignore:ironbus is a debug build")
    command = [sys.executable, "-X", "dev", *warnings, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_interpreter_exits_without_a_complaint() -> None:
    # Open at exit: a loop with a pool, a suspended generator, a background coroutine, a thread's loop.
    result = script("""
        async def numbers():
            try:
                yield 1
            finally:
                await asyncio.sleep(0)
                print("generator")
        kept = numbers()
        async def main():
            await anext(kept)
            await asyncio.to_thread(int)
        run_async_from_sync(main())
        started = threading.Event()
        async def background():
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                print("cancelled")
        AsyncCompatibilityBridge.create_task_safe(background())
        started.wait()
        thread = threading.Thread(target=lambda: run_async_from_sync(answer()))
        thread.start()
        thread.join()
    """)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(result.stdout.split()) == ["cancelled", "generator"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_loops_of_its_own_and_leaves_the_parents_alone() -> None:
    result = script("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)   # fork beside the background thread
        done = threading.Event()
        async def tell(event):
            event.set()
        assert run_async_from_sync(answer()) == 42
        AsyncCompatibilityBridge.create_task_safe(tell(done))
        done.wait()
        pid = os.fork()
        again = threading.Event()
        assert run_async_from_sync(answer(1)) == 1
        AsyncCompatibilityBridge.create_task_safe(tell(again))
        again.wait()
        if pid == 0:
            sys.stdout.flush()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        # The child used its loops; the parent's must still wake across threads.
        async def woken():
            loop, event = asyncio.get_running_loop(), asyncio.Event()
            threading.Thread(target=lambda: loop.call_soon_threadsafe(event.set)).start()
            await event.wait()
            return "woken"
        print(run_async_from_sync(woken()))
    """)
    assert (result.returncode, result.stdout, result.stderr) == (0, "woken\n", "")


# --- the bridge ---


def test_get_or_create_loop() -> None:
    async def main() -> None:
        assert Bridge.get_or_create_loop() is asyncio.get_running_loop() is get_event_loop_safe()

    run(main())
    own = Bridge.get_or_create_loop()
    assert own is get_event_loop_safe()
    assert own.run_until_complete(answer()) == 42


def test_run_async_safe() -> None:
    async def main() -> None:
        assert await Bridge.run_async_safe(answer()) == 42
        assert await Bridge.run_async_safe(Native(1)) == 1
        future = asyncio.get_running_loop().create_future()
        future.set_result(2)
        assert await Bridge.run_async_safe(future) == 2
        with pytest.raises(LookupError):
            await Bridge.run_async_safe(fail())

    run(main())


def test_run_sync_safe_outside_a_loop_is_a_call() -> None:
    assert Bridge.run_sync_safe(divmod, 7, 2) == (3, 1)
    assert Bridge.run_sync_safe(threading.get_ident) == threading.get_ident()


def test_run_sync_safe_inside_a_loop_is_a_pool_threads_future() -> None:
    def work(value: int, *, more: int) -> tuple[int, int, str]:
        return threading.get_ident(), value + more, variable.get()

    def stop() -> None:
        raise StopIteration

    async def main() -> None:
        variable.set("the caller's")
        future = Bridge.run_sync_safe(work, 1, more=2)
        assert isinstance(future, asyncio.Future)
        ident, total, seen = await future
        assert ident != threading.get_ident()
        assert (total, seen) == (3, "the caller's")
        with pytest.raises(ZeroDivisionError):
            await Bridge.run_sync_safe(divmod, 1, 0)  # type: ignore[misc]
        with pytest.raises(RuntimeError, match="StopIteration"):
            await Bridge.run_sync_safe(stop)  # type: ignore[func-returns-value,misc]

    run(main())


class Handler:
    factor = 2

    async def method(self, value: int) -> int:
        return value * self.factor

    async def __call__(self, value: int) -> int:
        return value * self.factor


async def double(value: int, factor: int = 2) -> int:
    """Doubles."""
    return value * factor


ASYNC = [
    double,
    functools.partial(double, factor=2),
    functools.partial(functools.partial(double), factor=2),
    Handler().method,
    Handler(),
    functools.partial(Handler()),
]


@pytest.mark.parametrize("func", ASYNC, ids=["function", "partial", "partial²", "method", "object", "partial object"])
def test_ensure_async_works_in_both_contexts(func: Callable[[int], Any]) -> None:
    both = Bridge.ensure_async(func)
    assert both(21) == 42

    async def main() -> None:
        pending = both(21)
        assert inspect.isawaitable(pending)
        assert await pending == 42

    run(main())
    # The bus and every framework must go on taking it for async.
    is_async = inspect.iscoroutinefunction if sys.version_info >= (3, 12) else asyncio.iscoroutinefunction
    assert is_async(both)
    assert Bridge.ensure_async(both) is both
    assert both.__wrapped__ is func  # type: ignore[attr-defined]


def test_ensure_async_keeps_name_and_docstring() -> None:
    both = Bridge.ensure_async(double)
    assert (both.__name__, both.__doc__, inspect.signature(both)) == ("double", "Doubles.", inspect.signature(double))


@pytest.mark.parametrize("func", [len, Handler, Handler.factor.__add__, functools.partial(len), lambda: None])
def test_ensure_async_gives_sync_functions_back(func: Callable[..., Any]) -> None:
    assert Bridge.ensure_async(func) is func


def test_create_task_safe_inside_a_loop() -> None:
    async def main() -> None:
        task = Bridge.create_task_safe(answer())
        assert isinstance(task, asyncio.Task)
        assert await task == 42

    run(main())


def test_create_task_safe_outside_a_loop_runs_in_one_background_thread() -> None:
    seen: list[tuple[str, bool, str]] = []
    done = threading.Semaphore(0)

    async def work(awaitable: Any) -> None:
        value = await awaitable
        thread = threading.current_thread()
        seen.append((thread.name, thread.daemon, f"{value} {variable.get()}"))
        done.release()

    def calls() -> None:
        for value in ("a", "b"):
            variable.set(value)
            assert Bridge.create_task_safe(work(Native(value))) is None

    contextvars.copy_context().run(calls)
    for _ in range(2):
        assert done.acquire(timeout=30)
    assert sorted(seen) == [("ironbus-background", True, "a a"), ("ironbus-background", True, "b b")]
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("ironbus-background") == 1
    loop = async_compat._background._loop
    assert loop is not None
    async_compat._background.stop(30)
    assert loop.is_closed()
    assert "ironbus-background" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("error", [LookupError, SystemExit, KeyboardInterrupt])
def test_a_background_failure_is_logged_without_its_message(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()

    async def broken() -> None:
        raise error("secret payload")

    async def after() -> None:
        done.set()

    with caplog.at_level(logging.ERROR):
        Bridge.create_task_safe(broken())
        Bridge.create_task_safe(after())
        assert done.wait(30), "one failure ended the background loop"
        async_compat._background.stop(30)
    ours = [record.getMessage() for record in caplog.records if record.name == "ironbus.async_compat"]
    assert ours == [f"background coroutine {broken.__qualname__} failed with {error.__qualname__}"]
    assert "secret" not in caplog.text


def test_many_threads_start_one_background_thread() -> None:
    done = threading.Semaphore(0)
    barrier = threading.Barrier(8)

    async def work() -> None:
        done.release()

    def start() -> None:
        barrier.wait()
        for _ in range(50):
            Bridge.create_task_safe(work())

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(400):
        assert done.acquire(timeout=30)
    assert [thread.name for thread in threading.enumerate()].count("ironbus-background") == 1


# --- EventLoopManager ---


def test_a_manager_owns_one_loop_until_cleanup() -> None:
    manager = EventLoopManager()
    manager.cleanup()
    loop = manager.get_loop()
    assert manager.get_loop() is loop
    assert loop.run_until_complete(answer()) == manager.run(answer()) == 42
    assert loop is not get_event_loop_safe()
    manager.cleanup()
    manager.cleanup()
    assert loop.is_closed()
    again = manager.get_loop()
    assert again is not loop
    manager.cleanup()
    assert again.is_closed()


def test_a_manager_inside_a_loop_gives_that_loop_and_does_not_close_its_own() -> None:
    manager = EventLoopManager()
    own = manager.get_loop()

    async def main() -> None:
        assert manager.get_loop() is asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="no event loop runs"):
            manager.cleanup()

    run(main())
    assert manager.get_loop() is own
    manager.cleanup()
    assert own.is_closed()


def test_a_dropped_manager_closes_its_loop() -> None:
    manager = EventLoopManager()
    loop = manager.get_loop()
    del manager
    gc.collect()
    assert loop.is_closed()

    async def main() -> None:
        dropped = EventLoopManager()
        dropped._own()
        inner = dropped._own().get_loop()
        del dropped
        gc.collect()
        assert inner.is_closed()

    run(main())


def test_a_loop_that_is_closed_leaves_no_error_unreported() -> None:
    reported: list[str] = []
    manager = EventLoopManager()
    loop = manager.get_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["message"]))

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError

    loop.create_task(stubborn())
    loop.run_until_complete(asyncio.sleep(0))
    manager.cleanup()
    gc.collect()
    assert reported == ["Task exception was never retrieved"]
