"""Lifecycles: every way in which a bus begins, ends, or is in the wrong place, and what must not hang."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest
from ironbus import DeadLetters, EventBus
from ironbus.errors import Forked, NotStarted, Unsettled, WouldDeadlock, WrongLoop


def run(main, limit=60):
    """Runs a test's coroutine with a deadline, so that a hang is a failure with a place."""

    async def limited():
        async with asyncio.timeout(limit):
            return await main

    return asyncio.run(limited())


def program(text, *, interrupt=False, limit=15):
    """Runs a program in a process of its own; returns how it ended and after how many seconds."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        process.stdout.readline()  # it says when it is ready
        started = time.monotonic()
        if interrupt:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=limit)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err, time.monotonic() - started


def bus_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ironbus")]


# Where the bus is not started, or elsewhere -------------------------------------------


def test_without_a_loop():
    """Without a loop every call ends at once: kept, refused, or told what to do."""
    bus = EventBus()
    bus.subscribe("t", lambda event: None)
    receipt = bus.publish_sync("t", {})
    with pytest.raises(Unsettled):
        receipt.wait(0.01)
    with pytest.raises(NotStarted):
        bus.sync.drain()
    assert bus.sync.stop().drained
    with bus:
        assert receipt.wait(10).ok


def test_in_a_running_loop_nothing_blocks():
    """The blocking calls refuse where a loop runs, instead of stopping it."""

    async def main():
        bus = EventBus()

        async def handler(event):
            await asyncio.sleep(0)

        bus.subscribe("t", handler)
        async with bus:
            receipt = await bus.publish("t", {})
            with pytest.raises(WouldDeadlock):
                receipt.wait()
            for call in (bus.sync.start, bus.sync.stop, bus.sync.drain):
                with pytest.raises(WrongLoop):
                    call()
            assert (await receipt.settled()).ok

    run(main())


def test_stop_and_drain_from_another_loop():
    """Another thread's loop may drain and stop the bus."""

    async def main():
        bus = EventBus()
        bus.subscribe("t", lambda event: None)
        await bus.start()
        await bus.publish("t", {})

        async def elsewhere():
            await bus.drain(timeout=10)
            return await bus.stop()

        report = await asyncio.to_thread(asyncio.run, elsewhere())
        assert report.drained
        assert not bus.describe()["running"]

    run(main())


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_waiting_for_oneself_would_deadlock(kind):
    """drain(), and settled() or wait() of an event behind the handler's own, raise and name the circle."""

    async def main():
        bus = EventBus()
        raised = []

        async def handler(event):
            if event.data:
                return
            mine = await bus.publish("t", {"n": 1})
            for wait in (mine.settled(), mine.settled(cascade=True), bus.drain()):
                try:
                    await wait
                except WouldDeadlock as error:
                    raised.append(str(error))

        def sync_handler(event):
            if event.data:
                return
            mine = bus.publish_sync("t", {"n": 1})
            for wait in (mine.wait, lambda: mine.wait(cascade=True), bus.sync.drain):
                try:
                    wait()
                except WouldDeadlock as error:
                    raised.append(str(error))

        bus.subscribe("t", handler if kind == "async" else sync_handler, name="myself")
        async with bus:
            (await (await bus.publish("t", {})).settled()).raise_for_failures()
            await bus.drain(timeout=10)
        assert len(raised) == 3
        assert "myself waits for myself" in raised[0]

    run(main(), 20)


def test_waiting_for_each_other_would_deadlock():
    """Two handlers that wait for events behind each other: the second is told, and both end."""

    async def main():
        bus = EventBus()
        meeting, raised = asyncio.Barrier(2), []

        def make(me, other):
            async def handler(event):
                if event.data:
                    return
                await meeting.wait()
                receipt = await bus.publish(other, {"n": 1})
                try:
                    await receipt.settled()
                except WouldDeadlock as error:
                    raised.append(str(error))

            bus.subscribe(me, handler, name=me)

        make("a", "b")
        make("b", "a")
        async with bus:
            await bus.publish("a", {})
            await bus.publish("b", {})
            await bus.drain(timeout=10)
        [text] = raised
        assert "a waits for b" in text or "b waits for a" in text

    run(main(), 20)


def test_waiting_for_the_cascade_that_one_is_part_of():
    """A handler that waits for a child's whole cascade waits for itself, which is part of it: it is told."""

    async def main():
        bus = EventBus()
        raised = []

        async def parent(event):
            child = await bus.publish("child", {})
            try:
                await child.settled(cascade=True)
            except WouldDeadlock as error:
                raised.append(error)
            assert (await child.settled()).ok

        bus.subscribe("parent", parent)
        bus.subscribe("child", lambda event: None)
        async with bus:
            async with asyncio.timeout(5):
                receipt = await bus.publish("parent", {})
                (await receipt.settled()).raise_for_failures()
        assert len(raised) == 1

    run(main(), 20)


def test_waiting_for_another_lane_is_fine():
    """A handler may wait for what another lane does with its event."""

    async def main():
        bus = EventBus()

        async def asks(event):
            receipt = await bus.publish("answer", {})
            (await receipt.settled()).raise_for_failures()

        bus.subscribe("ask", asks)
        bus.subscribe("answer", lambda event: None)
        async with bus:
            for _ in range(20):
                (await (await bus.publish("ask", {})).settled()).raise_for_failures()

    run(main())


# Loops that end -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["idle", "suspended", "queued", "sync"])
def test_a_loop_that_ends_without_stop(kind):
    """asyncio.run ends though nobody stopped the bus; a new start goes on, and nothing is lost."""
    bus = EventBus()
    seen, hang = [], [True]

    async def handler(event):
        seen.append(event.sequence)
        if hang[0] and kind in ("suspended", "queued"):
            await asyncio.sleep(1000)

    def sync_handler(event):
        seen.append(event.sequence)

    bus.subscribe("t", sync_handler if kind == "sync" else handler, name="lane")

    async def first():
        await bus.start()
        for _ in range(3 if kind == "queued" else 1):
            await bus.publish("t", {})
        while not seen:
            await asyncio.sleep(0)

    started = time.monotonic()
    run(first(), 20)
    assert time.monotonic() - started < 5
    assert not bus.describe()["running"]
    hang[0] = False

    async def second():
        async with bus:
            await bus.publish("t", {})
            await bus.drain(timeout=10)
        assert bus.audit().balanced
        assert bus.audit().pending == 0

    run(second(), 20)
    assert set(seen) == set(range(1, 5 if kind == "queued" else 3))
    gc.collect()


def test_a_closed_loop_gives_back_what_was_suspended():
    """A loop that is closed under a waiting handler: the event is delivered again after the next start."""
    bus = EventBus()
    seen, hang = [], [True]

    async def handler(event):
        seen.append((event.sequence, event.delivery.attempt))
        if hang[0]:
            await asyncio.sleep(1000)

    bus.subscribe("t", handler)

    async def first():
        await bus.start()
        await bus.publish("t", {})
        await bus.publish("t", {})
        while not seen:
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    loop.close()
    hang[0] = False

    async def second():
        async with bus:
            await bus.drain(timeout=10)

    run(second(), 20)
    assert seen == [(1, 1), (1, 1), (2, 1)]
    gc.collect()


# Stopping -------------------------------------------------------------------------------


def test_stop_cancels_what_waits_and_refunds():
    """A suspended handler is cancelled by stop, its event goes back, and its attempt does not count."""

    async def main():
        bus = EventBus()
        seen, begun, cancelled = [], asyncio.Event(), []

        async def handler(event):
            seen.append((event.sequence, event.delivery.attempt))
            if not cancelled:
                begun.set()
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    cancelled.append(event.sequence)
                    raise

        bus.subscribe("t", handler)
        await bus.start()
        receipts = [await bus.publish("t", {}) for _ in range(3)]
        await begun.wait()
        report = await bus.stop(timeout=0)
        assert (report.drained, report.left, report.interrupted) == (False, 3, 1)
        assert cancelled == [1]
        assert bus.audit().balanced
        async with bus:
            for receipt in receipts:
                assert (await receipt.settled()).ok
        assert seen == [(1, 1), (1, 1), (2, 1), (3, 1)]

    run(main())


def test_a_cancelled_subscription_whose_handler_is_recalled():
    """Cancelled while its handler waits, and then stopped: the event is dropped, and its publisher told."""

    async def main():
        bus = EventBus()
        begun = asyncio.Event()

        async def handler(event):
            begun.set()
            await asyncio.sleep(1000)

        subscription = bus.subscribe("t", handler, name="lane")
        await bus.start()
        receipt = await bus.publish("t", {})
        await begun.wait()
        subscription.cancel()
        await bus.stop(timeout=0)
        settlement = await asyncio.wait_for(receipt.settled(), 5)
        assert settlement.outcomes == {"lane": "dropped"}

    run(main(), 20)


@pytest.mark.parametrize("kind", ["async", "suspending", "sync"])
def test_stop_under_load(kind):
    """A stop while everybody publishes accounts for every event; the rest comes in order after the start."""

    async def main():
        bus = EventBus()
        seen, publishing = [], True

        async def handler(event):
            if kind == "suspending":
                await asyncio.sleep(0)
            seen.append(event.sequence)

        def sync_handler(event):
            seen.append(event.sequence)

        bus.subscribe("t", sync_handler if kind == "sync" else handler)
        await bus.start()

        async def publisher():
            while publishing:
                await bus.publish("t", {})
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(publisher()) for _ in range(4)]
        for _ in range(3):
            while len(seen) < 50:
                await asyncio.sleep(0)
            await bus.stop(timeout=0)
            audit = bus.audit()
            assert audit.balanced
            await bus.start()
        publishing = False
        await asyncio.gather(*tasks)
        await bus.drain(timeout=20)
        await bus.stop()
        assert seen == list(range(1, bus.audit().accepted + 1))

    run(main())


def test_stop_from_a_handler():
    """A handler may stop its own bus; it goes on, and its event is settled."""

    async def main():
        bus = EventBus()
        reports = []

        async def handler(event):
            reports.append(await bus.stop(timeout=1))

        bus.subscribe("t", handler)
        await bus.start()
        receipt = await bus.publish("t", {})
        assert (await receipt.settled()).ok
        assert reports[0].left == 0
        assert bus.audit().balanced

    run(main(), 20)


def test_a_stop_that_is_cancelled_twice_is_a_stop():
    """Whoever cancels a stop, even again, gets a stopped bus that can be started."""

    async def main():
        bus = EventBus()
        begun, seen = asyncio.Event(), []

        async def stubborn(event):
            seen.append(event.sequence)
            begun.set()
            while len(seen) < 2:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    seen.append("cancelled")
                    await asyncio.sleep(0.05)

        bus.subscribe("t", stubborn)
        await bus.start()
        await bus.publish("t", {})
        await begun.wait()
        task = asyncio.create_task(bus.stop())
        for _ in range(2):
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        assert not bus.describe()["running"]
        async with bus:
            assert bus.describe()["running"]
            await bus.drain(timeout=10)

    run(main(), 30)


def test_nothing_is_left_after_stop(tmp_path):
    """No thread, no task, no open loop, and the switch interval as it was before."""
    interval = sys.getswitchinterval()
    before = set(threading.enumerate())

    async def main():
        bus = EventBus(dead_letters=DeadLetters(path=tmp_path / "x.dead"))

        async def handler(event):
            await asyncio.sleep(0)

        def fail(event):
            raise ValueError

        bus.subscribe("t", handler, concurrency=20, ordered=False)
        bus.subscribe("t", lambda event: None)
        bus.subscribe("u", fail)
        for _ in range(3):
            async with bus:
                assert sys.getswitchinterval() < 0.001
                await bus.publish_many([("t", {})] * 100)
                await bus.publish("u", {})
                await bus.drain(timeout=10)
                assert await bus.dead_letters.purge() == 1
            assert asyncio.all_tasks() == {asyncio.current_task()}
            # Of buses before it that nobody has stopped, threads may still be on their way out.
            assert set(bus_threads()) <= before
            assert sys.getswitchinterval() == pytest.approx(interval)

    async def bare():
        await main()

    asyncio.run(bare())
    bus = EventBus()
    bus.subscribe("t", lambda event: None)
    with bus:
        bus.sync.publish("t", {}).wait(10)
    assert set(threading.enumerate()) <= before
    assert sys.getswitchinterval() == pytest.approx(interval)


@pytest.mark.parametrize("state", ["never started", "stopped", "stopped with leftovers"])
def test_a_dropped_bus_is_collected(state):
    """Handlers that refer to the bus do not keep it alive once it is dropped and not running."""

    class Owner:
        def __init__(self):
            self.bus = EventBus()
            self.bus.subscribe("t", self.handler)
            self.bus.subscribe("s", lambda event: self.bus)

        async def handler(self, event):
            if event.data:
                await asyncio.sleep(1000)

    async def main(owner):
        async with owner.bus:
            await owner.bus.publish("t", {})
            await owner.bus.publish("s", {})
            await owner.bus.drain(timeout=10)
            if state == "stopped with leftovers":
                for _ in range(3):
                    await owner.bus.publish("t", {"n": 1})
                await owner.bus.stop(timeout=0)

    owner = Owner()
    if state != "never started":
        run(main(owner))
    references = [weakref.ref(owner), weakref.ref(owner.bus)]
    del owner
    gc.collect()
    assert [reference() for reference in references] == [None, None]


# Processes ------------------------------------------------------------------------------


def in_child(body):
    """Forks; runs `body` in the child; returns the child's exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_fork_of_a_bus_that_is_not_started():
    """A bus that was never started is safe to fork: parent and child use it independently."""
    bus = EventBus()
    seen = []
    bus.subscribe("t", lambda event: seen.append(event.sequence))

    def use():
        with bus:
            assert bus.publish_sync("t", {}).wait(10).ok

    assert in_child(use) == 0
    assert seen == []
    use()


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_fork_of_a_started_bus(kind):
    """In a child of a started bus every call raises Forked, until it is started there."""
    bus = EventBus()
    handled = threading.Event()

    async def handler(event):
        handled.set()

    def sync_handler(event):
        handled.set()

    bus.subscribe("t", handler if kind == "async" else sync_handler)
    with bus:
        assert bus.publish_sync("t", {}).wait(10).ok

        def child():
            handled.clear()
            with pytest.raises(Forked):
                bus.publish_sync("t", {})
            with pytest.raises(Forked):
                bus.publish("t", {}).send(None)
            bus.sync.start()
            assert bus.publish_sync("t", {}).wait(10).ok
            assert handled.is_set()
            bus.sync.stop()

        assert in_child(child) == 0
        assert bus.publish_sync("t", {}).wait(10).ok


EXIT = """
import asyncio, threading, time
from ironbus import EventBus
bus = EventBus(workers=4)
begun = threading.Event()
def busy(event):
    begun.set()
    while True:
        sum(range(100))
def sleeps(event):
    begun.set()
    time.sleep(1000)
def idle(event):
    begun.set()
async def waits(event):
    begun.set()
    await asyncio.sleep(1000)
bus.subscribe("t", {handler}, concurrency=3, ordered=False)
bus.sync.start()
for _ in range(5):
    bus.publish_sync("t", {{}})
begun.wait()
print("ready", flush=True)
"""


@pytest.mark.parametrize("handler", ["busy", "sleeps", "idle", "waits"])
def test_exit_with_a_started_bus(handler):
    """The interpreter ends quickly and cleanly with a started bus, whatever its handlers are doing."""
    code, _, err, seconds = program(EXIT.format(handler=handler))
    assert (code, err) == (0, "")
    assert seconds < 5


INTERRUPT = """
import signal, threading
from ironbus import DeadLetters, EventBus
signal.signal(signal.SIGINT, signal.default_int_handler)
bus = EventBus(max_queue_size=1)
begun, go_on = threading.Event(), threading.Event()
def handler(event):
    begun.set()
    go_on.wait()
bus.subscribe("t", handler)
bus.sync.start()
receipt = bus.publish_sync("t", {})
begun.wait()
bus.publish_sync("t", {})
try:
    print("ready", flush=True)
    CALL
except KeyboardInterrupt:
    audit = bus.audit()
    assert audit.waiting == 0 and audit.balanced, audit
    go_on.set()
    bus.sync.drain(timeout=5)
    bus.sync.stop()
    print("interrupted")
"""


@pytest.mark.parametrize("call", ['bus.publish_sync("t", {})', "receipt.wait()", "bus.sync.drain()"])
def test_ctrl_c_while_a_thread_waits(call):
    """Ctrl-C ends a blocking call at once, leaves the ledger in balance and the bus in use."""
    code, out, err, seconds = program(INTERRUPT.replace("CALL", call), interrupt=True)
    assert (code, out, err) == (0, "interrupted\n", "")
    assert seconds < 5


def test_an_endless_timeout_is_no_accident():
    """Infinity is a timeout like any other."""
    bus = EventBus()
    bus.subscribe("t", lambda event: None)
    with bus:
        bus.publish_sync("t", {}).wait(float("inf"))
        bus.sync.drain(timeout=float("inf"))
