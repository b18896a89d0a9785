"""``OrderedEventProcessor``: the interface of the ``pm.events`` API, without the faults of its first version.

Handlers that have to be slow wait for an event that the test sets; nothing here sleeps.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import ironbus.ordering
import pytest
from ironbus import EventPriority, IronbusError
from ironbus.ordering import OrderedEventProcessor, get_ordered_processor

CRITICAL, HIGH, NORMAL, LOW = EventPriority

Body = Callable[[OrderedEventProcessor], Awaitable[None]]


def run(body: Body, **options: Any) -> None:
    """Runs the body with a processor, which is stopped in the end."""

    async def main() -> None:
        processor = OrderedEventProcessor(**options)
        try:
            async with asyncio.timeout(20):
                await body(processor)
        finally:
            await processor.stop_processing()

    asyncio.run(main())


async def handled(processor: OrderedEventProcessor) -> None:
    """All that was accepted is handled: stopping drains, and what was stopped can be started again."""
    assert (await processor.stop_processing()).drained
    await processor.start_processing()


def kinds(seen: list[dict[str, Any]]) -> list[tuple[Callable[..., Any], str]]:
    """A handler of every kind that v1.0's callers use, or would have liked to."""

    async def coroutine(event: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        seen.append(event)

    class Handlers:
        async def method(self, event: dict[str, Any]) -> None:
            seen.append(event)

        def sync_method(self, event: dict[str, Any]) -> None:
            seen.append(event)

        async def __call__(self, event: dict[str, Any]) -> None:
            seen.append(event)

    handlers = Handlers()
    return [
        (coroutine, "async"),
        (lambda event: seen.append(event), "sync"),
        (lambda event: coroutine(event), "sync that returns an awaitable"),
        (handlers.method, "async method"),
        (handlers.sync_method, "sync method"),
        (handlers, "object with async __call__"),
        (functools.partial(coroutine), "async partial"),
        (seen.append, "builtin"),
    ]


@pytest.mark.parametrize("index", range(8), ids=[kind for _, kind in kinds([])])
def test_handlers_of_every_kind_get_type_data_and_id(index: int) -> None:
    """v1.0 failed on everything but coroutine functions."""
    seen: list[dict[str, Any]] = []
    data = {"x": [1]}

    async def body(processor: OrderedEventProcessor) -> None:
        processor.register_handler("order", kinds(seen)[index][0])
        await processor.start_processing()
        assert await processor.process_event("order", data, "id-1") is True
        await handled(processor)

    run(body)
    assert seen == [{"type": "order", "data": {"x": [1]}, "id": "id-1"}]
    assert type(seen[0]) is dict
    assert seen[0]["data"] is data


@pytest.mark.parametrize("data", [None, 0, "", [], {}, False])
def test_falsy_data_arrives_as_it_is(data: Any) -> None:
    """Only ``publish(type, data)`` of the bus replaces it."""
    seen: list[Any] = []

    async def body(processor: OrderedEventProcessor) -> None:
        processor.register_handler("order", seen.append)
        await processor.start_processing()
        await processor.process_event("order", data, "1")
        await handled(processor)

    run(body)
    assert [type(event["data"]) for event in seen] == [type(data)]


def test_each_handler_gets_a_dict_of_its_own() -> None:
    """A handler that changes its dict disturbs no other."""
    seen: list[set[str]] = []

    async def spoil(event: dict[str, Any]) -> None:
        event.clear()

    async def look(event: dict[str, Any]) -> None:
        seen.append(set(event))

    async def body(processor: OrderedEventProcessor) -> None:
        processor.register_handler("order", spoil)
        processor.register_handler("order", look)
        await processor.start_processing()
        await processor.process_event("order", {}, "1")
        await handled(processor)

    run(body)
    assert seen == [{"type", "data", "id"}]


# Duplicates ------------------------------------------------------------------------


def test_duplicates_go_by_content() -> None:
    """Equal type and data is a duplicate whatever the id; an equal id with other data is not."""
    seen: list[str] = []

    async def body(processor: OrderedEventProcessor) -> None:
        processor.register_handler("order", lambda event: seen.append(f"{event['id']}:{event['data']['n']}"))
        await processor.start_processing()
        process = processor.process_event
        assert await process("order", {"n": 1, "m": 2}, "a") is True
        assert await process("order", {"m": 2, "n": 1}, "b") is False
        assert await process("order", {"n": 2}, "a") is True
        assert await process("other", {"n": 1, "m": 2}, "a") is True
        await handled(processor)
        assert await process("order", {"n": 1, "m": 2}, "c") is False

    run(body)
    assert seen == ["a:1", "a:2"]


def test_of_many_at_once_one_is_accepted() -> None:
    """Checking and marking are one step."""
    seen: list[Any] = []

    async def body(processor: OrderedEventProcessor) -> None:
        processor.register_handler("order", seen.append)
        await processor.start_processing()
        accepted = await asyncio.gather(*(processor.process_event("order", {"n": 1}, str(n)) for n in range(50)))
        assert accepted.count(True) == 1
        await handled(processor)

    run(body)
    assert len(seen) == 1


def test_what_was_refused_is_not_a_duplicate_later() -> None:
    """A key is marked when its event is accepted, not before."""

    async def body(processor: OrderedEventProcessor) -> None:
        await processor.start_processing()
        with pytest.raises(ValueError, match="priority"):
            await processor.process_event("order", {"n": 1}, "a", priority=7)  # type: ignore[arg-type]
        assert await processor.process_event("order", {"n": 1}, "a") is True

    run(body)


def test_what_was_cancelled_before_it_was_accepted_is_not_a_duplicate_later() -> None:
    """Nothing happens before a call is awaited."""

    async def body(processor: OrderedEventProcessor) -> None:
        await processor.start_processing()
        task = asyncio.ensure_future(processor.process_event("order", {"n": 1}, "a"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await processor.process_event("order", {"n": 1}, "a") is True

    run(body)


def test_a_type_without_handlers_is_accepted_and_settled_at_once() -> None:
    """Nobody waits for what nobody wants."""

    async def body(processor: OrderedEventProcessor) -> None:
        await processor.start_processing()
        assert await processor.process_event("order", {"n": 1}, "a") is True
        assert await processor.process_event("order", {"n": 1}, "a") is False
        report = await processor.stop_processing()
        assert (report.drained, report.left) == (True, 0)

    run(body)


# Order -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False])
def test_events_go_by_priority_then_in_the_order_of_acceptance(is_async: bool) -> None:
    """Accepted before the start, so that all of them wait when the first is chosen."""
    seen: list[str] = []

    def note(event: dict[str, Any]) -> None:
        seen.append(event["id"])

    async def note_async(event: dict[str, Any]) -> None:
        note(event)
        await asyncio.sleep(0)

    async def body(processor: OrderedEventProcessor) -> None:
        processor.register_handler("order", note_async if is_async else note)
        priorities = (LOW, NORMAL, CRITICAL, HIGH, LOW, NORMAL, CRITICAL, HIGH)
        for number, priority in enumerate(priorities, start=1):
            await processor.process_event("order", {"n": number}, f"{priority.name}{number}", priority)
        await processor.start_processing()
        await handled(processor)

    run(body)
    assert seen == ["CRITICAL3", "CRITICAL7", "HIGH4", "HIGH8", "NORMAL2", "NORMAL6", "LOW1", "LOW5"]


@pytest.mark.parametrize("batch", [1, 10])
def test_a_backlog_is_handled_without_pauses(batch: int) -> None:
    """v1.0 slept ``process_interval`` after each batch: an hour here, where the test has 20 s."""
    seen: list[str] = []

    async def body(processor: OrderedEventProcessor) -> None:
        processor.register_handler("order", lambda event: seen.append(event["id"]))
        await processor.start_processing()
        for n in range(1000):
            await processor.process_event("order", {"n": n}, str(n))
        await handled(processor)

    run(body, max_batch_size=batch, process_interval=3600)
    assert seen == [str(n) for n in range(1000)]


@pytest.mark.parametrize("is_async", [True, False])
def test_a_handler_never_overlaps_itself_on_all_of_its_types(is_async: bool) -> None:
    """It is registered for two types and equal by ``==``, as bound methods are."""

    class Ledger:
        def __init__(self) -> None:
            self.inside = 0
            self.most = 0
            self.ids: list[int] = []

        def enter(self, event: dict[str, Any]) -> None:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.ids.append(int(event["id"]))

        async def handle_async(self, event: dict[str, Any]) -> None:
            self.enter(event)
            await asyncio.sleep(0)
            self.inside -= 1

        def handle(self, event: dict[str, Any]) -> None:
            self.enter(event)
            threading.Event().wait(0.0001)  # gives other threads a chance to break the rule
            self.inside -= 1

    ledger = Ledger()

    async def body(processor: OrderedEventProcessor) -> None:
        for event_type in ("a", "b"):
            processor.register_handler(event_type, ledger.handle_async if is_async else ledger.handle)
        await processor.start_processing()
        for n in range(100):
            await processor.process_event("ab"[n % 2], {"n": n}, str(n))
        await handled(processor)

    run(body)
    assert ledger.most == 1
    assert ledger.ids == list(range(100))


def test_handlers_do_not_wait_for_each_other() -> None:
    """In v1.0 one slow handler stopped every event behind it, for all handlers."""
    seen: list[str] = []

    async def body(processor: OrderedEventProcessor) -> None:
        release, done = asyncio.Event(), asyncio.Event()

        async def slow(event: dict[str, Any]) -> None:
            await release.wait()
            seen.append("slow " + event["id"])

        async def quick(event: dict[str, Any]) -> None:
            seen.append("quick " + event["id"])
            if event["id"] == "2":
                done.set()

        processor.register_handler("order", slow, CRITICAL)
        processor.register_handler("order", quick)
        await processor.start_processing()
        for n in range(3):
            await processor.process_event("order", {"n": n}, str(n))
        await done.wait()
        assert seen == ["quick 0", "quick 1", "quick 2"]
        release.set()
        await handled(processor)

    run(body)
    assert seen[3:] == ["slow 0", "slow 1", "slow 2"]


def test_handlers_of_one_event_are_called_by_their_priority() -> None:
    """Those that were registered before the first start; equal ones in the order of registration."""
    seen: list[str] = []

    def handler(name: str) -> Callable[[dict[str, Any]], Awaitable[None]]:
        async def handle(event: dict[str, Any]) -> None:
            seen.append(name)

        return handle

    async def body(processor: OrderedEventProcessor) -> None:
        for name, priority in (("d", LOW), ("b", NORMAL), ("c", NORMAL), ("a", CRITICAL)):
            processor.register_handler("order", handler(name), priority)
        await processor.start_processing()
        processor.register_handler("order", handler("e"), CRITICAL)
        await processor.process_event("order", {"n": 1}, "1", LOW)
        await handled(processor)

    run(body)
    assert seen == ["a", "b", "c", "d", "e"]


def test_the_priority_of_a_handler_is_not_that_of_its_events() -> None:
    """An urgent handler still sees urgent events first."""
    seen: list[str] = []

    async def handle(event: dict[str, Any]) -> None:
        seen.append(event["id"])

    async def body(processor: OrderedEventProcessor) -> None:
        processor.register_handler("a", handle, LOW)
        processor.register_handler("b", handle, CRITICAL)
        await processor.process_event("b", {"n": 1}, "b", LOW)
        await processor.process_event("a", {"n": 1}, "a", HIGH)
        await processor.start_processing()
        await handled(processor)

    run(body)
    assert seen == ["a", "b"]


# Failures, start and stop ------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False])
def test_a_failure_is_logged_and_the_next_event_goes_on(is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Neither swallowed nor in the way; and the log has no payload."""
    seen: list[str] = []

    def sync(event: dict[str, Any]) -> None:
        if event["data"]["n"] == 1:
            raise RuntimeError("secret message")
        seen.append(event["id"])

    async def coroutine(event: dict[str, Any]) -> None:
        sync(event)

    async def body(processor: OrderedEventProcessor) -> None:
        processor.register_handler("order", coroutine if is_async else sync)
        await processor.start_processing()
        for n in range(3):
            assert await processor.process_event("order", {"n": n, "card": "secret"}, str(n)) is True
        await handled(processor)

    with caplog.at_level(logging.WARNING, logger="ironbus"):
        run(body)
    assert seen == ["0", "2"]
    (record,) = caplog.records
    text = record.getMessage()
    assert "RuntimeError" in text
    assert f"test_a_failure_is_logged_and_the_next_event_goes_on.<locals>.{'coroutine' if is_async else 'sync'}" in text
    assert "secret" not in text


def test_an_event_counts_as_handled_only_after_it_was() -> None:
    """v1.0 marked it before: a stop in between lost it. Here it comes again after the next start."""
    seen: list[str] = []

    async def body(processor: OrderedEventProcessor) -> None:
        entered, never = asyncio.Event(), asyncio.Event()
        attempts = 0

        async def handle(event: dict[str, Any]) -> None:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                entered.set()
                await never.wait()
            seen.append(event["id"])

        processor.register_handler("order", handle)
        await processor.start_processing()
        await processor.process_event("order", {"n": 1}, "1")
        await processor.process_event("order", {"n": 2}, "2")
        await entered.wait()
        report = await processor._bus.stop(timeout=0)
        assert (report.drained, report.left, report.interrupted) == (False, 2, 1)
        assert seen == []
        await processor.start_processing()
        await handled(processor)

    run(body)
    assert seen == ["1", "2"]


def test_stop_handles_what_is_queued() -> None:
    """v1.0 abandoned it."""
    seen: list[str] = []

    async def handle(event: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        seen.append(event["id"])

    async def body(processor: OrderedEventProcessor) -> None:
        processor.register_handler("order", handle)
        await processor.start_processing()
        for n in range(100):
            await processor.process_event("order", {"n": n}, str(n))
        await processor.stop_processing()
        assert len(seen) == 100

    run(body)


def test_start_and_stop_may_be_repeated() -> None:
    """And come in any order; handlers stay registered, and once each."""
    seen: list[str] = []

    async def body(processor: OrderedEventProcessor) -> None:
        await processor.stop_processing()
        processor.register_handler("order", lambda event: seen.append(event["id"]))
        await processor.start_processing()
        await processor.start_processing()
        await processor.stop_processing()
        await processor.stop_processing()
        await processor.process_event("order", {"n": 1}, "1")
        assert seen == []
        await processor.start_processing()
        await handled(processor)

    run(body)
    assert seen == ["1"]


def test_a_processor_may_be_started_on_one_loop_after_another() -> None:
    """Programs call ``asyncio.run`` more than once."""
    processor, seen = OrderedEventProcessor(), list[str]()

    async def handle(event: dict[str, Any]) -> None:
        seen.append(event["id"])

    processor.register_handler("order", handle)

    async def session(number: int) -> None:
        await processor.start_processing()
        await processor.process_event("order", {"n": number}, str(number))
        await processor.stop_processing()

    asyncio.run(session(1))
    asyncio.run(session(2))
    assert seen == ["1", "2"]


def test_stop_may_be_called_in_a_handler() -> None:
    """It would wait for itself otherwise."""
    seen: list[str] = []

    async def body(processor: OrderedEventProcessor) -> None:
        stopped = asyncio.Event()

        async def handle(event: dict[str, Any]) -> None:
            await processor.stop_processing()
            seen.append(event["id"])
            stopped.set()

        processor.register_handler("order", handle)
        await processor.start_processing()
        await processor.process_event("order", {"n": 1}, "1")
        await stopped.wait()

    run(body)
    assert seen == ["1"]


def test_a_handler_may_process_further_events() -> None:
    """Without a deadlock, and stopping waits for these too."""
    seen: list[int] = []

    async def body(processor: OrderedEventProcessor) -> None:
        async def handle(event: dict[str, Any]) -> None:
            n = event["data"]["n"]
            seen.append(n)
            if n < 5:
                assert await processor.process_event("order", {"n": n + 1}, str(n + 1))

        processor.register_handler("order", handle)
        await processor.start_processing()
        await processor.process_event("order", {"n": 0}, "0")
        await handled(processor)

    run(body)
    assert seen == [0, 1, 2, 3, 4, 5]


# Arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("idempotency_ttl", value) for value in (0, -1, float("nan"), float("inf"), "1", None, True)),
        *(("max_batch_size", value) for value in (0, -1, 1.5, "1", None, True)),
        *(("process_interval", value) for value in (-1, float("nan"), float("inf"), "1", None, True)),
    ],
)
def test_options_are_checked(option: str, value: object) -> None:
    """Also those that have no effect: a mistake there is a mistake of the caller's."""
    with pytest.raises(ValueError, match=option) as caught:
        OrderedEventProcessor(**{option: value})  # type: ignore[arg-type]
    assert isinstance(caught.value, IronbusError)
    assert caught.value.field == option


def test_the_parameters_are_those_of_the_api() -> None:
    """By position too."""
    OrderedEventProcessor(60, 5, 0)
    OrderedEventProcessor(idempotency_ttl=0.5, max_batch_size=1, process_interval=0.0)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("", print), "event_type"),
        ((1, print), "event_type"),
        (("order", 1), "handler"),
        (("order", lambda: None), "handler"),
        (("order", print, 4), "priority"),
        (("order", print, "HIGH"), "priority"),
    ],
)
def test_registrations_are_checked_at_once(arguments: tuple[Any, ...], field: str) -> None:
    """Not at the start, and nothing stays registered."""
    processor = OrderedEventProcessor()
    with pytest.raises(IronbusError) as caught:
        processor.register_handler(*arguments)
    assert isinstance(caught.value, ValueError)
    assert caught.value.field == field
    assert processor._registered == []


def test_there_is_one_processor_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """And another one in a fork, where the parent's is not running."""
    monkeypatch.setattr(ironbus.ordering, "_processor", None)
    processor = get_ordered_processor()
    assert isinstance(processor, OrderedEventProcessor)
    assert get_ordered_processor() is processor
    monkeypatch.setattr(ironbus.ordering, "_processor_process", -1)
    assert get_ordered_processor() is not processor
