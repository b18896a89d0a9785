"""The interpreter's switch interval while buses run.

A sync handler that computes keeps the interpreter for a whole switch interval, 5 ms
by default, before an event loop in another thread gets it back. While any bus runs,
the interval is at most half a millisecond, so that the loop's wake-ups stay within
one; the last bus that stops restores what was set before.
"""

from __future__ import annotations

import os
import sys
import threading

INTERVAL = 0.0005

_lock = threading.Lock()
_users = 0
_before: float | None = None


def hold() -> None:
    """One more bus runs."""
    global _users, _before
    with _lock:
        _users += 1
        current = sys.getswitchinterval()
        if _users == 1 and current > INTERVAL:
            _before = current
            sys.setswitchinterval(INTERVAL)


def release() -> None:
    """One bus less runs."""
    global _users, _before
    with _lock:
        _users -= 1
        if _users == 0 and _before is not None:
            # Somebody else's setting, made meanwhile, stays.
            if abs(sys.getswitchinterval() - INTERVAL) < 1e-6:
                sys.setswitchinterval(_before)
            _before = None


def _renew_lock() -> None:
    """In a forked child: whoever held it is not here."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
