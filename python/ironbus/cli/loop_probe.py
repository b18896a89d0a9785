"""How late an event loop wakes up, measured from outside.

A child process writes the time into a pipe every millisecond; the loop notes
how old each reading is when it gets to it. Timers of the loop itself would not
do: they are rounded to the milliseconds that are to be measured.
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
import time

_CHILD = """
import os, struct, time
while True:
    os.write(1, struct.pack("d", time.monotonic()))
    time.sleep(0.001)
"""


class LoopProbe:
    """``async with LoopProbe() as probe``: ``probe.lags`` grows, in seconds, while the block runs."""

    def __init__(self) -> None:
        self.lags: list[float] = []

    async def __aenter__(self) -> LoopProbe:
        self._child = subprocess.Popen(  # noqa: ASYNC220, S603
            [sys.executable, "-I", "-S", "-c", _CHILD], stdout=subprocess.PIPE, bufsize=0
        )
        assert self._child.stdout is not None
        self._fd = self._child.stdout.fileno()
        self._first = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        await self._first.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        self._child.kill()
        self._child.communicate()

    def _read(self) -> None:
        readings = os.read(self._fd, 1 << 12)
        now = time.monotonic()
        self.lags.extend(now - sent for (sent,) in struct.iter_unpack("d", readings))
        self._first.set()


__all__ = ["LoopProbe"]
