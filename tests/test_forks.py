"""Forks of a program whose threads are busy with a bus: the child can start it, and is stuck nowhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, signal, sys, threading, warnings
from ironbus import EventBus, RetryPolicy

warnings.simplefilter("ignore", DeprecationWarning)  # threads beside a fork are what this is about
bus = EventBus(max_queue_size=50, workers=4)
bus.subscribe("a", lambda event: None, name="narrow", max_queue_size=5)
bus.subscribe("a", lambda event: None, name="wide", concurrency=4, ordered=False)
bus.subscribe("a", lambda event: None, name="retried", where=lambda event: event.sequence, retry=RetryPolicy())

@bus.on("a", name="async")
async def handler(event):
    pass

def publish():
    while True:
        bus.publish_sync("a", 1)

def child():
    assert not bus._running
    bus.sync.start()
    before = bus.audit()
    assert before.balanced and before.pending == before.waiting == 0, before
    assert bus.publish_sync("a", 1).wait(10).ok
    bus.sync.stop()
    after = bus.audit()
    assert after.balanced and after.accepted == before.accepted + 1, after

bus.sync.start()
for _ in range(4):
    threading.Thread(target=publish, daemon=True).start()
for number in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            child()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        print(f"child {number} ended with {status}", file=sys.stderr, flush=True)
        os._exit(1)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("forks", [1, 2, 3, 4, 40])
def test_a_child_of_a_busy_process_can_start_the_bus(forks: int) -> None:
    """Whatever the threads of the parent are in the middle of, also at their first steps. What was queued or
    running stays with the parent."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(forks)], capture_output=True, text=True, timeout=110, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
