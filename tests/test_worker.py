"""The thread that does blocking work, for loops and for nobody: its end, and what comes while it ends."""

from __future__ import annotations

import asyncio
import threading

import pytest
from ironbus._worker import Worker


def run(main, limit=60):
    async def limited():
        async with asyncio.timeout(limit):
            return await main

    return asyncio.run(limited())


def threads(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_its_thread_begins_with_work_and_ends_with_close():
    async def main():
        worker = Worker("w1")
        await worker.close()
        await worker.flush()
        assert threads("w1") == []
        for _ in range(2):
            assert await worker.run(lambda: 7) == 7
            assert len(threads("w1")) == 1
            await worker.close()
            assert threads("w1") == []

    run(main())


@pytest.mark.parametrize("end", ["close", "leave", "flush"])
def test_what_it_has_to_do_is_done_first(end):
    async def main():
        worker, gate, done = Worker("w2"), threading.Event(), []

        def work(n):
            gate.wait(10)
            done.append(n)

        for n in range(100):
            worker.hand(lambda n=n: work(n))
        (thread,) = threads("w2")
        if end == "leave":
            worker.leave()
            gate.set()
            await asyncio.to_thread(thread.join, 10)
        else:
            waiting = asyncio.create_task(getattr(worker, end)())
            await asyncio.sleep(0)
            gate.set()
            await waiting
        assert done == list(range(100))
        assert thread.is_alive() == (end == "flush")
        await worker.close()

    run(main())


def test_work_that_comes_while_it_ends_is_done():
    """From many threads, among many ends: each piece once."""

    async def main():
        worker, done, lock = Worker("w3"), [], threading.Lock()

        def note(who, n):
            with lock:
                done.append((who, n))

        def hand(who):
            for n in range(300):
                worker.hand(lambda n=n: note(who, n))

        handing = [asyncio.create_task(asyncio.to_thread(hand, who)) for who in range(3)]
        while not all(task.done() for task in handing):
            await worker.close()
            await asyncio.sleep(0)
        await worker.flush()
        await worker.close()
        while threads("w3"):
            await asyncio.sleep(0)
        assert len(done) == 900
        for who in range(3):
            assert sorted(n for whose, n in done if whose == who) == list(range(300))

    run(main())
