"""``ResilientEventProcessor``: the parts together, as the ``pm.events`` API has them."""

from __future__ import annotations

import asyncio
import logging

import pytest
from ironbus import CircuitOpenError, InvalidHandler, InvalidOption, Reject, RetryLater, StorageError
from ironbus.recovery import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitState,
    DeadLetterQueue,
    ResilientEventProcessor,
    RetryManager,
    RetryPolicy,
)

SECRET = "4111-1111-1111-1111"


class World:
    """A clock, a sleep that moves it, and a handler that fails until it is told otherwise."""

    def __init__(self):
        self.now, self.slept, self.calls, self.errors = 0.0, [], [], []

    def clock(self):
        return self.now

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    async def handler(self, event_type, event_data):
        self.calls.append((event_type, event_data))
        if self.errors:
            error = self.errors.pop(0)
            if error is not None:
                raise error

    def fail(self, times, error=ConnectionError):
        self.errors = [error(SECRET) for _ in range(times)]

    def processor(self, policy=None, config=None, **options):
        policy = policy or RetryPolicy(jitter=False)
        return ResilientEventProcessor("orders", policy, config, clock=self.clock, sleep=self.sleep, **options)


@pytest.fixture
def world():
    return World()


def run(coroutine):
    return asyncio.run(coroutine)


def test_names_and_defaults_are_those_of_v1():
    processor = ResilientEventProcessor("orders")
    assert processor.name == "orders"
    assert isinstance(processor.circuit_breaker, CircuitBreaker)
    assert processor.circuit_breaker.config == CircuitBreakerConfig()
    assert isinstance(processor.retry_manager, RetryManager)
    assert processor.retry_manager.policy == RetryPolicy()
    assert isinstance(processor.dlq, DeadLetterQueue)
    assert ResilientEventProcessor("orders", None, None, False).dlq is None
    policy, config = RetryPolicy(1), CircuitBreakerConfig(1)
    processor = ResilientEventProcessor(name="orders", retry_policy=policy, circuit_config=config, enable_dlq=True)
    assert processor.retry_manager.policy is policy
    assert processor.circuit_breaker.config is config
    assert processor.get_metrics() == {
        "processed": 0,
        "failed": 0,
        "retried": 0,
        "dlq_added": 0,
        "circuit_state": "closed",
    }


def test_success_after_retries(world):
    processor = world.processor()
    world.fail(2)
    assert run(processor.process_event(world.handler, "order.paid", {"id": 7}, "e-7")) is True
    assert world.calls == [("order.paid", {"id": 7})] * 3
    assert world.slept == [1.0, 2.0]
    assert processor.get_metrics() == {
        "processed": 1,
        "failed": 0,
        "retried": 2,
        "dlq_added": 0,
        "circuit_state": CircuitState.CLOSED,
    }
    assert processor.dlq.get_failed_events_sync() == []


def test_failure_ends_in_the_dead_letters(world):
    processor = world.processor()
    world.fail(3)
    assert run(processor.process_event(world.handler, "order.paid", {"id": 7}, "e-7")) is False
    (event,) = processor.dlq.get_failed_events_sync()
    assert (event.event_id, event.event_type, event.event_data, event.error, event.attempts) == (
        "e-7",
        "order.paid",
        {"id": 7},
        SECRET,
        1,
    )
    metrics = processor.get_metrics()
    assert (metrics["failed"], metrics["retried"], metrics["dlq_added"]) == (1, 2, 1)


def test_handlers_of_every_kind(world):
    seen = []

    def one(data):
        seen.append(data)

    def two(event_type, event_data):
        seen.append((event_type, event_data))

    async def one_async(data):
        seen.append(data)

    def optional(data, other=None):
        seen.append((data, other))

    async def main():
        processor = world.processor()
        for handler in (one, two, one_async, optional, lambda *args: seen.append(args), seen.append):
            assert await processor.process_event(handler, "a", 1)

    run(main())
    assert seen == [1, ("a", 1), 1, ("a", 1), ("a", 1), 1]


@pytest.mark.parametrize("handler", [5, None, lambda: None, lambda a, b, c: None])
def test_what_is_no_handler_is_refused(world, handler):
    processor = world.processor()
    with pytest.raises(InvalidHandler, match="handler"):
        run(processor.process_event(handler, "a", 1))
    with pytest.raises(InvalidHandler, match="handler"):
        run(processor.reprocess_dlq(handler))
    assert processor.get_metrics()["failed"] == 0


def test_an_open_breaker_uses_no_retries_and_waits_for_nothing(world):
    """A fault of v1.0: refused calls went through all the attempts, with their pauses."""
    processor = world.processor(config=CircuitBreakerConfig(failure_threshold=2, timeout=5))
    world.fail(100)
    assert run(processor.process_event(world.handler, "a", 1, "e-1")) is False
    # Two calls opened it, and the third attempt was refused.
    assert (len(world.calls), world.slept) == (2, [1.0, 2.0])
    assert processor.get_metrics()["circuit_state"] == "open"
    assert run(processor.process_event(world.handler, "a", 2, "e-2")) is False
    assert (len(world.calls), len(world.slept)) == (2, 2)
    assert processor.get_metrics()["retried"] == 2
    assert [event.event_id for event in processor.dlq.get_failed_events_sync()] == ["e-1", "e-2"]
    world.errors = []
    world.now += 5
    assert run(processor.process_event(world.handler, "a", 3)) is True
    assert processor.get_metrics()["circuit_state"] == "half_open"


def test_reject_is_not_retried_and_retry_later_is_no_failure(world):
    processor = world.processor(config=CircuitBreakerConfig(failure_threshold=1))
    world.fail(1, Reject)
    assert run(processor.process_event(world.handler, "a", 1)) is False
    world.errors = [RetryLater(100), RetryLater(100), RetryLater(100), RetryLater(100), None]
    assert run(processor.process_event(world.handler, "a", 2)) is True
    assert world.slept == [100.0] * 4
    assert processor.get_metrics()["circuit_state"] == "closed"


def test_cancellation_is_no_failure(world):
    processor = world.processor()

    async def hang(data):
        await asyncio.get_running_loop().create_future()

    async def main():
        call = asyncio.create_task(processor.process_event(hang, "a", 1))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(main())
    assert processor.get_metrics()["failed"] == 0
    assert processor.dlq.get_failed_events_sync() == []


def test_an_event_that_cannot_be_kept_is_said(world, tmp_path):
    """Neither swallowed nor reported as safely in the queue."""
    (tmp_path / "file").write_text("")
    processor = world.processor(dlq=DeadLetterQueue(tmp_path / "file"))
    world.fail(3)
    with pytest.raises(StorageError):
        run(processor.process_event(world.handler, "a", 1))
    assert (processor.get_metrics()["failed"], processor.get_metrics()["dlq_added"]) == (1, 0)


# Reprocessing ----------------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
def filled(request, world, tmp_path):
    queue = DeadLetterQueue(None if request.param == "memory" else tmp_path, clock=world.clock)
    for n in range(5):
        queue.add_failed_event_sync("a", n, "boom", f"e-{n}")
    return world.processor(dlq=queue, config=CircuitBreakerConfig(failure_threshold=100, failure_rate=None))


def left(processor):
    return [event.event_data for event in processor.dlq.get_failed_events_sync()]


def test_what_succeeds_leaves_the_queue(world, filled):
    seen = []

    async def look(data):
        seen.append((data, left(filled)))

    assert run(filled.reprocess_dlq(look)) == {"processed": 5, "failed": 0}
    # It left only after its handler.
    assert seen == [(n, list(range(n, 5))) for n in range(5)]
    assert left(filled) == []
    assert run(filled.reprocess_dlq(look)) == {"processed": 0, "failed": 0}
    assert filled.get_metrics()["processed"] == 5


def test_what_fails_stays_and_is_tried_once(world, filled):
    world.now = 60.0
    world.errors = [None, ConnectionError("new"), None, Reject("no"), RetryLater(5)]
    assert run(filled.reprocess_dlq(world.handler)) == {"processed": 2, "failed": 3}
    assert (len(world.calls), world.slept) == (5, [])
    events = filled.dlq.get_failed_events_sync()
    assert [(event.event_data, event.attempts, event.last_failure) for event in events] == [
        (1, 2, 60.0),
        (3, 2, 60.0),
        (4, 2, 60.0),
    ]
    assert [event.error for event in events][:2] == ["new", "no"]
    assert {event.first_failure for event in events} == {0.0}
    assert run(filled.reprocess_dlq(world.handler)) == {"processed": 3, "failed": 0}


def test_entries_without_an_id_are_not_reprocessed_for_ever(world):
    """A fault of v1.0."""
    processor = world.processor()
    world.fail(3)
    run(processor.process_event(world.handler, "a", 1))
    assert run(processor.reprocess_dlq(world.handler)) == {"processed": 1, "failed": 0}
    assert run(processor.reprocess_dlq(world.handler)) == {"processed": 0, "failed": 0}


@pytest.mark.parametrize(("most", "processed"), [(0, 0), (2, 2), (5, 5), (100, 5)])
def test_max_events_bounds_a_call(world, filled, most, processed):
    assert run(filled.reprocess_dlq(world.handler, max_events=most)) == {"processed": processed, "failed": 0}
    assert len(world.calls) == processed
    assert left(filled) == list(range(processed, 5))


@pytest.mark.parametrize("most", [-1, 1.5, True, "all"])
def test_a_bad_bound_is_refused(filled, most):
    with pytest.raises(InvalidOption, match="max_events"):
        run(filled.reprocess_dlq(print, most))


def test_while_the_breaker_is_open_nothing_is_called(world, filled):
    filled.circuit_breaker.config = CircuitBreakerConfig(failure_threshold=2, timeout=5)
    world.fail(100)
    assert run(filled.reprocess_dlq(world.handler)) == {"processed": 0, "failed": 2}
    assert run(filled.reprocess_dlq(world.handler)) == {"processed": 0, "failed": 0}
    assert len(world.calls) == 2
    # The entry that was looked at is as it was, and free.
    assert [event.attempts for event in filled.dlq.get_failed_events_sync()] == [2, 2, 1, 1, 1]
    world.errors = []
    world.now += 5
    assert run(filled.reprocess_dlq(world.handler)) == {"processed": 5, "failed": 0}


def test_a_breaker_of_the_handler_is_the_handlers_business(world, filled):
    def refused(data):
        raise CircuitOpenError("another", 5)

    assert run(filled.reprocess_dlq(refused)) == {"processed": 0, "failed": 5}


def test_a_cancelled_call_keeps_the_entry(world, filled):
    async def main():
        inside = asyncio.Event()

        async def hang(data):
            inside.set()
            await asyncio.get_running_loop().create_future()

        call = asyncio.create_task(filled.reprocess_dlq(hang))
        await inside.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(main())
    assert [event.attempts for event in filled.dlq.get_failed_events_sync()] == [1] * 5
    assert run(filled.reprocess_dlq(world.handler)) == {"processed": 5, "failed": 0}


def test_two_calls_at_once_share_the_entries(world, filled):
    """Nobody's handler is called for an entry that another is working on."""

    async def main():
        gate, entered = asyncio.Event(), asyncio.Event()

        async def slow(data):
            entered.set()
            await gate.wait()

        first = asyncio.create_task(filled.reprocess_dlq(slow, 1))
        await entered.wait()
        assert await filled.reprocess_dlq(world.handler) == {"processed": 4, "failed": 0}
        gate.set()
        assert await first == {"processed": 1, "failed": 0}

    run(main())
    assert [data for _, data in world.calls] == [1, 2, 3, 4]
    assert left(filled) == []


def test_an_entry_whose_reprocessing_died_comes_back(world, tmp_path):
    processor = world.processor(dlq=DeadLetterQueue(tmp_path, clock=world.clock))
    run(processor.dlq.add_failed_event("a", 1, "boom"))
    assert run(processor.dlq._claim(0)) is not None  # and never released
    assert run(processor.reprocess_dlq(world.handler)) == {"processed": 0, "failed": 0}
    assert left(processor) == [1]
    world.now += 301
    assert run(processor.reprocess_dlq(world.handler)) == {"processed": 1, "failed": 0}


def test_data_without_a_json_form_is_reprocessed_only_where_it_is(world, tmp_path):
    payload = object()
    processor = world.processor(dlq=DeadLetterQueue(tmp_path, clock=world.clock))
    elsewhere = world.processor(dlq=DeadLetterQueue(tmp_path, clock=world.clock))
    run(processor.dlq.add_failed_event("a", payload, "boom"))
    run(processor.dlq.add_failed_event("a", 2, "boom"))
    assert run(elsewhere.reprocess_dlq(world.handler)) == {"processed": 1, "failed": 0}
    assert run(processor.reprocess_dlq(world.handler)) == {"processed": 1, "failed": 0}
    assert [data for _, data in world.calls] == [2, payload]


def test_without_dead_letters_there_is_nothing_to_reprocess(world):
    processor = world.processor(enable_dlq=False)
    world.fail(3)
    assert run(processor.process_event(world.handler, "a", 1)) is False
    assert processor.get_metrics()["failed"] == 1
    assert processor.get_metrics()["dlq_added"] == 0
    assert run(processor.reprocess_dlq(world.handler)) == {"processed": 0, "failed": 0}


# Settings, discretion --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"enable_dlq": 1}, "enable_dlq"),
        ({"dlq": "folder"}, "dlq"),
        ({"dlq": DeadLetterQueue(), "enable_dlq": False}, "dlq"),
        ({"retry_policy": 5}, "policy"),
        ({"circuit_config": 5}, "config"),
    ],
)
def test_bad_settings_are_refused_by_name(options, field):
    with pytest.raises(InvalidOption, match=field) as caught:
        ResilientEventProcessor("orders", **options)
    assert caught.value.field == field


@pytest.mark.parametrize("enable_dlq", [True, False])
def test_no_log_line_quotes_payload_or_message(world, caplog, enable_dlq):
    processor = world.processor(config=CircuitBreakerConfig(2), enable_dlq=enable_dlq)
    world.fail(3)
    with caplog.at_level(logging.DEBUG):
        run(processor.process_event(world.handler, "order.paid", {"card": SECRET}, "e-7"))
        run(processor.reprocess_dlq(world.handler))
    records = [record for record in caplog.records if record.name == "ironbus"]
    assert "event of type 'order.paid' failed" in caplog.text
    assert "CircuitOpenError" in caplog.text
    assert SECRET not in caplog.text
    assert all(SECRET not in repr(record.__dict__) for record in records)
