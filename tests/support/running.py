"""How tests of buses run their coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], limit: float = 60) -> T:
    """On a loop of its own, and not for ever."""

    async def limited() -> T:
        async with asyncio.timeout(limit):
            return await main

    with asyncio.Runner() as runner:
        return runner.run(limited())
