"""Events as an iterator, and waiting for one: for those who pull instead of handling."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ironbus.errors import Unsettled

if TYPE_CHECKING:
    from ironbus._core import Event, StreamSource


class Stream:
    """Events of some topics, from the moment of the call to :meth:`EventBus.stream`.

    An async context manager and async iterator, for one task at a time. Nobody waits
    for a stream: when its buffer is full, its oldest event goes, counted in
    :attr:`lagged`. It ends with :meth:`aclose`, or when the ``async with`` is left.
    """

    def __init__(self, source: StreamSource) -> None:
        self._source = source
        self._closed = False

    @property
    def lagged(self) -> int:
        """How many events were dropped because nobody came for them."""
        return self._source.lagged

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event[Any]:
        while not self._closed:
            event = self._source.take_now()
            if event is not None:
                return event
            await self._source.ready()
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the stream; whoever iterates comes to the end."""
        self._end()

    def _end(self) -> None:
        self._closed = True
        self._source.close()

    def __del__(self) -> None:
        # Set only if __init__ came that far.
        if not getattr(self, "_closed", True):
            self._end()


class SyncStream:
    """The same for programs without a loop: a context manager and iterator, for one thread at a time."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def lagged(self) -> int:
        """How many events were dropped because nobody came for them."""
        return self._stream.lagged

    def __iter__(self) -> Iterator[Event[Any]]:
        return self

    def __next__(self) -> Event[Any]:
        source = self._stream._source
        while not self._stream._closed:
            event = source.take_now()
            if event is not None:
                return event
            source.wait()
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the stream; whoever iterates comes to the end."""
        self._stream._end()


class Expectation:
    """One event that is still to come, from the moment of the call to :meth:`EventBus.expect`.

    Await it, or use it as an async context manager and await it inside or read
    :attr:`event` after it: leaving the ``async with`` waits for the event.
    """

    def __init__(self, stream: Stream, where: Callable[[Event[Any]], object] | None, timeout: float | None) -> None:
        self._stream = stream
        self._where = where
        self._timeout = timeout
        self._event: Event[Any] | None = None

    @property
    def event(self) -> Event[Any]:
        """The event, once it has come."""
        if self._event is None:
            raise Unsettled("the expected event has not come yet; await the expectation", "event")
        return self._event

    def __await__(self) -> Generator[Any, None, Event[Any]]:
        return self._wait().__await__()

    async def _wait(self) -> Event[Any]:
        if self._event is None:
            try:
                async with asyncio.timeout(self._timeout):
                    async for event in self._stream:
                        if self._where is None or self._where(event):
                            self._event = event
                            break
            except TimeoutError:
                raise Unsettled("no such event came within the timeout", "timeout") from None
            finally:
                await self._stream.aclose()
        return self.event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self
        else:
            await self._stream.aclose()

    def _wait_sync(self) -> Event[Any]:
        source = self._stream._source
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        try:
            while True:
                event = source.take_now()
                if event is not None:
                    if self._where is None or self._where(event):
                        self._event = event
                        return event
                    continue
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise Unsettled("no such event came within the timeout", "timeout")
                source.wait(left)
        finally:
            self._stream._end()


class SyncExpectation:
    """The same for programs without a loop: a context manager; :meth:`wait` waits."""

    def __init__(self, expectation: Expectation) -> None:
        self._expectation = expectation

    @property
    def event(self) -> Event[Any]:
        """The event, once it has come."""
        return self._expectation.event

    def wait(self) -> Event[Any]:
        """Wait for the event on this thread."""
        if self._expectation._event is None:
            return self._expectation._wait_sync()
        return self.event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        else:
            self._expectation._stream._end()


__all__ = ["Expectation", "Stream", "SyncExpectation", "SyncStream"]
