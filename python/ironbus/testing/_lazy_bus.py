"""The bus of the fixture: it starts by itself where it is used first, because a fixture that is not
async has no loop to start it on."""

from __future__ import annotations

import asyncio
from typing import Any

from ironbus import _core
from ironbus._core import BatchReceipt
from ironbus.bus import EventBus, Receipt


class LazyBus(EventBus):
    """An :class:`ironbus.EventBus` that starts with its first publish or drain: on the running loop, or
    without one as ``with bus:`` does."""

    _bound = False

    def _bind(self) -> None:
        # Once: a test that stops the bus wants it stopped.
        if self._bound or self._running:
            return
        self._bound = True
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.sync.start()
            return
        try:
            self.start().send(None)
        except StopIteration:
            return
        raise RuntimeError("start() has come to wait for something")

    async def publish(self, *args: Any, **kwargs: Any) -> Receipt:
        self._bind()
        return await super().publish(*args, **kwargs)

    async def publish_many(self, *args: Any, **kwargs: Any) -> BatchReceipt:
        self._bind()
        return await super().publish_many(*args, **kwargs)

    def publish_sync(self, *args: Any, **kwargs: Any) -> Receipt:
        self._bind()
        return super().publish_sync(*args, **kwargs)

    def _publish_many_sync(self, *args: Any, **kwargs: Any) -> BatchReceipt:
        self._bind()
        return super()._publish_many_sync(*args, **kwargs)

    def _check_drain(self) -> None:
        self._bind()
        super()._check_drain()

    def _end(self) -> None:
        """Stop from a thread that runs no loop now; the loop of the bus may be closed."""
        home = self._loop
        if home is None:
            return
        if home is self.sync._loop:
            self.sync.stop(timeout=0)
        elif home.is_closed():
            _core.Harness(self).abandon()
            self._let_go()
        elif home.is_running():
            asyncio.run_coroutine_threadsafe(self.stop(timeout=0), home).result()
        else:
            home.run_until_complete(self.stop(timeout=0))


__all__ = ["LazyBus"]
