"""The end of the interpreter under a bus that nobody stopped.

A thread that is still in native code when the interpreter is taken down is torn out
of it, and that ends the process with an abort. So the threads of buses end before:
those without work at once, those in Python code with SystemExit. A handler that is
blocked outside of Python stays blocked, and harms nobody.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from typing import TYPE_CHECKING

from ironbus import _core, _log

if TYPE_CHECKING:
    from ironbus.bus import EventBus

#: Seconds that the end of the process may be held up.
_PATIENCE = 0.5

_started: weakref.WeakSet[EventBus] = weakref.WeakSet()


def remember(bus: EventBus) -> None:
    """The bus was started, or has a journal that it may open before that."""
    _started.add(bus)


@atexit.register
def _leave() -> None:
    _log.leaving = True
    threads: list[threading.Thread] = []
    for bus in list(_started):
        if bus._running:  # not so in a child of the process that started it
            threads += bus._dismiss()
            loop, thread = bus.sync._loop, bus.sync._thread
            if loop is not None and thread is not None:
                loop.call_soon_threadsafe(loop.stop)
                threads.append(thread)
    _join(threads, 0.05)
    for thread in threads:
        if thread.is_alive() and thread.ident is not None:
            _core.end_thread(thread.ident)
    _join(threads, _PATIENCE)
    for bus in list(_started):
        bus._close_quietly()


def _join(threads: list[threading.Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        while thread.ident is None and time.monotonic() < deadline:
            time.sleep(0.001)  # somebody is about to start it
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
