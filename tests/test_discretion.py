"""No payload value and no exception message in any log line, error or repr of the bus.

Secrets are planted in payloads, keys, headers, idempotency keys and the messages of handlers' exceptions; then every
way to fail is gone, and all that was said is searched: the logs down to DEBUG with their tracebacks, stdout and stderr,
loops' exception handlers, `sys.unraisablehook`, `threading.excepthook`, warnings, and the texts and reprs of what the
bus returned or raised. What a program asks for by name (`letter.message`, `event.data`) is no leak.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import secrets
import sys
import threading
import traceback
import warnings

import pytest
from ironbus import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitOpenError,
    DeadLetters,
    Event,
    EventBus,
    IronbusError,
    Reject,
    RetryLater,
    RetryManager,
    RetryPolicy,
    _log,
)
from ironbus.recovery import DeadLetterQueue, ResilientEventProcessor
from recovering import Clock, advance, still

#: Not in any source line, which a traceback may quote.
PAYLOAD, KEY, HEADER, IDEMPOTENCY, MESSAGE = (secrets.token_hex(8) for _ in range(5))
ALL = {"payload": PAYLOAD, "key": KEY, "header": HEADER, "idempotency key": IDEMPOTENCY, "message": MESSAGE}
RETRY = RetryPolicy(max_attempts=2, initial_delay=5, jitter=False)


class Ears(logging.Handler):
    """Hears all that is said."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.said: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s %(threadName)s"))

    def emit(self, record):
        extra = {name: value for name, value in vars(record).items() if name not in ("args", "exc_info")}
        self.said += [self.format(record), repr(record.args), repr(extra)]

    def hear(self, *things):
        for thing in things:
            self.said += [str(thing), repr(thing)]
            if isinstance(thing, IronbusError):
                self.said += traceback.format_exception(thing)

    def of_loop(self, loop, context):
        # The error may be a handler's own; the bus's text is what comes with it.
        self.said.append(str({name: value for name, value in context.items() if name != "exception"}))

    def of_thread(self, args):
        self.said.append(f"{args.exc_type} in {args.thread}")

    def unraisable(self, args):
        self.said.append(f"{args.exc_type} {args.err_msg} {args.object!r}")

    def leaks(self):
        """Whatever tells a secret, and what kind it is of."""
        return [(what, line) for line in self.said for what, secret in ALL.items() if secret in line]


@pytest.fixture
def ears(monkeypatch):
    ears, root = Ears(), logging.getLogger()
    level = root.level
    root.addHandler(ears)
    root.setLevel(logging.DEBUG)
    monkeypatch.setattr(sys, "unraisablehook", ears.unraisable)
    monkeypatch.setattr(threading, "excepthook", ears.of_thread)
    yield ears
    root.removeHandler(ears)
    root.setLevel(level)


def listen(ears, capfd, main):
    """Runs it, and gives back what leaked."""

    async def limited():
        asyncio.get_running_loop().set_exception_handler(ears.of_loop)
        async with asyncio.timeout(60):
            await main

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(limited(), debug=True)
        gc.collect()
    ears.hear(*(warning.message for warning in caught))
    out, err = capfd.readouterr()
    ears.said += [out, err]
    assert len(ears.said) > 3
    return ears.leaks()


def secret_event(n=0):
    return Event("card.used", {"n": n, "card": PAYLOAD, "deep": [{"pin": PAYLOAD}]})


SECRETS = {"key": KEY, "headers": {"h": HEADER}}


async def publish(bus, count=1, **more):
    return [
        await bus.publish(secret_event(n), idempotency_key=f"{IDEMPOTENCY}{n}", **SECRETS, **more) for n in range(count)
    ]


def fail(event):
    raise ConnectionError(MESSAGE, event.data)


async def fail_later(event):
    await asyncio.sleep(0)
    try:
        fail(event)
    except ConnectionError as error:
        error.add_note(MESSAGE)
        raise RuntimeError(MESSAGE) from error


async def hang(event):
    await asyncio.Event().wait()


def reject(event):
    raise Reject(MESSAGE)


def later(event):
    raise RetryLater(3)


def cancelled(event):
    raise asyncio.CancelledError(MESSAGE)


def awaits(event):
    return fail_later(event)


def raises(event):
    raise LookupError(MESSAGE)


WAYS = {
    "fails": (fail, {}),
    "fails on the loop": (fail_later, {}),
    "fails again": (fail, {"retry": RETRY}),
    "opens its breaker": (fail_later, {"breaker": CircuitBreakerConfig(failure_threshold=1), "retry": RETRY}),
    "takes too long": (hang, {"timeout": 0.02}),
    "rejects": (reject, {"retry": RETRY}),
    "wants it later": (later, {"retry": RETRY}),
    "is cancelled": (cancelled, {"retry": RETRY}),
    "returns an awaitable that fails": (awaits, {}),
    "has a filter that fails": (fail, {"where": raises}),
    "has an order that fails": (fail, {"order_by": raises, "concurrency": 2}),
    "gives up": (fail, {"retry": RetryPolicy(max_attempts=3, give_up_on=ConnectionError)}),
}


async def goes(ears, path, way, **settings):
    """One way to fail, from its publish to the end of its letter."""
    handler, options = WAYS[way]
    # A handler that hangs takes its time; for all others time passes at once.
    clock = None if handler is hang else Clock()
    bus = EventBus(dead_letters=DeadLetters(path=path, **settings), clock=clock)
    subscription = bus.subscribe("card.*", handler, name="s", **options)
    await bus.start()
    receipts = await publish(bus, 3, expires_in=40)
    ears.hear(*receipts, await bus.publish(secret_event(), idempotency_key=f"{IDEMPOTENCY}0", **SECRETS))
    if clock is not None:
        await still(bus)
    ears.hear(bus.metrics(), bus.health(), bus.describe(), subscription.statistics(), subscription)
    if clock is not None:
        await advance(bus, clock, 60)
    ears.hear(bus, bus.audit(), bus.metrics(), bus.health())
    for receipt in receipts:
        if way != "opens its breaker" and not settings:
            settlement = await receipt.settled()
            ears.hear(settlement)
            try:
                settlement.raise_for_failures()
            except BaseExceptionGroup as group:
                # The errors in it are the handler's own.
                ears.hear(group.message)
            except IronbusError as error:
                ears.hear(error)
    ears.hear(*[letter async for letter in bus.dead_letters])
    if way != "opens its breaker":
        ears.hear(await bus.dead_letters.redrive(timeout=5) if not options else None)
    ears.hear(await bus.stop(timeout=0))
    ears.hear(bus.audit())


@pytest.mark.parametrize("kept", ["memory", "file", "full"])
@pytest.mark.parametrize("way", WAYS)
def test_whatever_fails(ears, capfd, tmp_path, way, kept):
    path = None if kept == "memory" else tmp_path / "x.dead"
    full = {"max_entries": 1} if kept == "full" else {}
    assert listen(ears, capfd, goes(ears, path, way, **full)) == []


def test_the_search_finds_what_the_log_tells(ears, capfd, monkeypatch):
    """The negative control: a line of the log that quotes the handler's message."""
    monkeypatch.setattr(_log, "place", lambda error: f" with {error}")
    found = {what for what, _ in listen(ears, capfd, goes(ears, None, "fails"))}
    assert found == {"message", "payload"}


def test_publishers_that_are_refused(ears, capfd):
    """What a publish raises, in and out of loops, and what it says of events that are in the way."""

    async def main():
        bus = EventBus(idempotency="content")
        bus.subscribe("card.*", hang, name="s", max_queue_size=1, overflow="reject")
        cycle = [PAYLOAD]
        cycle.append(cycle)
        deep = PAYLOAD
        for _ in range(2000):
            deep = [deep]
        bad = [
            {"a": [PAYLOAD, object()]},
            {"a": [PAYLOAD, {1, 2}]},
            {"a": [PAYLOAD, float("nan")]},
            {"a": PAYLOAD.encode()},
            cycle,
            deep,
            {(1, 2): PAYLOAD},
            {"a": PAYLOAD + "\ud800"},
        ]
        await bus.start()
        for data in bad:
            for attempt in (
                lambda data=data: bus.publish("card.used", data, **SECRETS),
                lambda data=data: bus.publish_many([secret_event(), ("card.used", data)]),
            ):
                try:
                    ears.hear(await attempt())
                except (IronbusError, TypeError, ValueError) as error:
                    ears.hear(error)
        options = [
            {"key": [KEY]},
            {"key": KEY.encode()},
            {"idempotency_key": [IDEMPOTENCY]},
            {"idempotency_key": IDEMPOTENCY * 10_000},
            {"headers": {"h": [HEADER]}},
            {"headers": {HEADER: 7}},
            {"headers": [HEADER]},
            {"delay": PAYLOAD},
            {"expires_in": PAYLOAD},
            {"priority": PAYLOAD},
        ]
        for option in options:
            try:
                await bus.publish(secret_event(), **option)
            except IronbusError as error:
                if HEADER not in str(option.get("headers", {})) or not isinstance(option["headers"], dict):
                    ears.hear(error)
        for data in range(5):
            try:
                ears.hear(await bus.publish("card.used", {"n": data, "card": PAYLOAD}, **SECRETS))
                ears.hear(bus.publish_sync("card.used", {"m": data, "card": PAYLOAD}, **SECRETS))
            except IronbusError as error:
                ears.hear(error)
        ears.hear(bus.metrics(), bus.health(), await bus.stop(timeout=0))

    assert listen(ears, capfd, main()) == []


def test_streams_expectations_and_leftovers(ears, capfd):
    async def main():
        bus = EventBus()
        async with bus:
            stream, expectation = bus.stream("card.*"), bus.expect("card.*", where=raises, timeout=0.05)
            ears.hear(stream, expectation)
            await publish(bus, 2)
            for waits in (expectation, bus.expect("card.none", timeout=0.01)):
                try:
                    await waits
                except (IronbusError, TimeoutError) as error:
                    ears.hear(error)
                except LookupError:
                    pass  # the predicate's own
            event = await anext(aiter(stream))
            # Its own repr is that of a dataclass, as `pm.events` has it; the bus never prints it.
            ears.hear(event.delivery)
            await stream.aclose()
            del event
            bus.publish("card.used", {"card": PAYLOAD}, **SECRETS).close()
            bus.publish("card.used", {"card": PAYLOAD}, **SECRETS)
        bus.subscribe("card.*", hang, name="s")
        await bus.start()
        receipt = (await publish(bus, 1, priority=0, delay=None))[0]
        bus.subscribe("card.*", fail, name="t")
        await bus.publish(secret_event(), **SECRETS)
        ears.hear(receipt, await bus.stop(timeout=0.01))
        try:
            receipt.wait(0.01)
        except IronbusError as error:
            ears.hear(error)

    assert listen(ears, capfd, main()) == []


def test_plain_calls(ears, capfd, tmp_path):
    """The classes without a bus: retries, breakers, dead letters."""

    async def call(*args, **kwargs):
        raise ConnectionError(MESSAGE, args, kwargs)

    async def main():
        breaker = CircuitBreaker("b", CircuitBreakerConfig(failure_threshold=1))
        breaker.add_listener(raises) if hasattr(breaker, "add_listener") else None
        manager = RetryManager(RetryPolicy(max_attempts=2, initial_delay=0.001))
        for attempt in (
            lambda: manager.execute_with_retry(call, PAYLOAD),
            lambda: breaker.call(call, PAYLOAD),
            lambda: breaker.call(call, PAYLOAD),
        ):
            try:
                await attempt()
            except ConnectionError:
                pass  # the function's own
            except CircuitOpenError as error:
                ears.hear(error)
        ears.hear(breaker, manager)
        for folder in (None, tmp_path):
            queue = DeadLetterQueue(folder, max_entries=1)
            processor = ResilientEventProcessor("p", RetryPolicy(max_attempts=1), dlq=queue)
            for n in range(2):
                try:
                    await processor.process_event(call, "card.used", {"card": PAYLOAD}, event_id=f"e{n}")
                except IronbusError as error:
                    ears.hear(error)
            await processor.reprocess_dlq(call)
            ears.hear(processor, queue, processor.get_metrics())
            queue.close()

    assert listen(ears, capfd, main()) == []


def test_the_command_line(tmp_path):
    """`feed` with a handler that fails, whose letters and lines are all there is to tell."""
    pytest.importorskip("typer", reason="needs the extra cli")
    from command_line import command_line

    (tmp_path / "mine.py").write_text(
        "import os\n"
        "async def handle(event):\n"
        "    raise ConnectionError(os.environ['IRONBUS_TEST_MESSAGE'], event.data)\n"
    )
    events = [{"type": "card.used", "data": {"card": PAYLOAD, "n": n}} for n in range(4)]
    lines = [json.dumps(event) for event in events]
    lines += [lines[0][:-1], json.dumps(PAYLOAD), json.dumps({"type": 1, "data": PAYLOAD})]
    cli = command_line(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IRONBUS_TEST_MESSAGE", MESSAGE)
        for more in ([], ["--json"]):
            run = cli("feed", "-", "--handler", "mine:handle", *more, stdin="\n".join(lines).encode())
            assert run.code == 1
            said = run.out + run.err
            assert not [what for what, secret in ALL.items() if secret in said]
