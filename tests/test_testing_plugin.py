"""The pytest plugin: its fixtures in sessions of their own, with and without somebody who runs async tests."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

#: What the plugins for async tests do, in short: a loop for each test, made and closed around it.
RUNNER = """
import asyncio, inspect, pytest

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    with asyncio.Runner() as runner:
        runner.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
"""

#: The same, but the loop is still there when the fixtures end, as where it is a fixture itself.
FIXTURE_RUNNER = """
import asyncio, inspect, pytest

@pytest.fixture(autouse=True)
def _runner():
    with asyncio.Runner() as runner:
        yield runner

@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    runner = pyfuncitem.funcargs["_runner"]
    runner.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True
"""

STRICT = """
[pytest]
filterwarnings =
    error
    ignore:ironbus is a debug build:RuntimeWarning
"""


@pytest.fixture
def session(pytester):
    """Runs a module's tests in a process of its own; anything left behind would be a warning, and an error."""

    def run(source, runner=RUNNER, **outcomes):
        pytester.makeini(STRICT)
        pytester.makeconftest(runner)
        pytester.makepyfile(source)
        result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", timeout=60)
        result.assert_outcomes(**outcomes)
        return result

    return run


@pytest.mark.parametrize("runner", [RUNNER, FIXTURE_RUNNER], ids=["loop of the call", "loop of a fixture"])
def test_a_bus_for_each_test_on_its_loop(session, runner):
    """It starts with the first use, wherever that is, and ends with the test; handlers that hang end as well."""
    session(
        """
        import asyncio, threading
        import pytest
        from ironbus import EventBus, NotStarted

        buses = []

        @pytest.fixture
        def billed(event_bus):
            billed = []
            @event_bus.on("order.*")
            async def bill(event):
                billed.append((event.data["id"], asyncio.get_running_loop()))
            return billed

        def test_it_is_a_bus_that_is_not_started(event_bus):
            assert isinstance(event_bus, EventBus) and not event_bus._running

        @pytest.mark.parametrize("number", range(2))
        async def test_on_the_loop_of_the_test(event_bus, billed, number):
            receipt = await event_bus.publish("order.paid", {"id": number})
            await event_bus.drain()
            assert receipt.sequence == 1
            assert billed == [(number, asyncio.get_running_loop())]
            await event_bus.publish_many([("order.paid", {"id": 2})])
            await event_bus.drain()
            buses.append(event_bus)

        async def test_sync_publish_on_a_loop(event_bus, billed):
            event_bus.publish_sync("order.paid", {"id": 1})
            await event_bus.drain()
            assert billed == [(1, asyncio.get_running_loop())]

        async def test_drain_starts_it_as_well(event_bus):
            await event_bus.drain()
            assert event_bus._running

        def test_without_a_loop(event_bus, billed):
            event_bus.sync.publish_many([("order.paid", {"id": 1})])
            event_bus.publish_sync("order.paid", {"id": 2})
            event_bus.sync.drain()
            assert [number for number, _ in billed] == [1, 2]

        async def test_a_test_that_stops_it_means_it(event_bus, billed):
            await event_bus.publish("order.paid", {"id": 1})
            await event_bus.stop()
            await event_bus.publish("order.paid", {"id": 2})
            assert not event_bus._running and len(billed) == 1
            with pytest.raises(NotStarted):
                await event_bus.drain()

        async def test_what_hangs_ends_with_the_test(event_bus):
            begun = asyncio.Event()
            async def hang(event):
                begun.set()
                await asyncio.Event().wait()
            event_bus.subscribe("hang", hang)
            await event_bus.publish_many([("hang", {})] * 3)
            await begun.wait()
            buses.append(event_bus)

        def test_all_are_stopped():
            assert len(buses) == 3
            assert not any(bus._running for bus in buses)
            assert not [thread for thread in threading.enumerate() if thread.name == "ironbus-loop"]
        """,
        runner,
        passed=9,
    )


def test_a_harness_for_the_bus_of_the_fixture(session):
    """The harness starts it where the test is."""
    session(
        """
        from ironbus import RetryPolicy
        from ironbus.testing import harness

        async def test_with_virtual_time(event_bus):
            event_bus.subscribe("a", lambda event: None, name="a", retry=RetryPolicy(initial_delay=60, jitter=False))
            async with harness(event_bus, clock="virtual") as t:
                t.fail("a", times=2)
                await event_bus.publish("a", {})
                await t.advance(180)
                assert [call.outcome for call in t.calls("a")] == ["failed", "failed", "done"]
                await t.settle()
                t.assert_conserved()

        def test_without_a_loop(event_bus):
            with harness(event_bus) as t:
                event_bus.sync.publish("a", {})
                t.settle()
                assert t.published.one().sequence == 1
        """,
        passed=2,
    )


def test_another_bus_for_code_that_asks_for_it(session):
    """``get_event_bus()`` gives it until the end of the test; nested ones come back in order."""
    session(
        """
        from ironbus import EventBus
        from ironbus.bus import get_event_bus, publish_event, publish_event_sync

        of_the_process = get_event_bus()

        async def test_functions_of_the_module_use_it(event_bus, override_event_bus):
            assert get_event_bus() is of_the_process
            assert override_event_bus(event_bus) is event_bus
            assert get_event_bus() is event_bus
            await publish_event("a", {})
            publish_event_sync("a", {})
            assert event_bus.audit().accepted == 2

        def test_it_is_put_back(override_event_bus):
            assert get_event_bus() is of_the_process
            assert of_the_process.audit().accepted == 0
            first, second = EventBus(), EventBus()
            override_event_bus(first)
            override_event_bus(second)
            assert get_event_bus() is second

        def test_it_is_put_back_again():
            assert get_event_bus() is of_the_process
        """,
        passed=3,
    )


def test_failures_are_shown_where_the_test_is(session):
    """The harness's own frames are no part of the report; what was published is."""
    result = session(
        """
        from ironbus.testing import harness

        async def test_published(event_bus):
            async with harness(event_bus) as t:
                await event_bus.publish("order.paid", {"card": "4111-1111"}, key="k")
                t.published.one("order.sent")

        async def test_settle(event_bus):
            def bill(event):
                raise ValueError("no")
            event_bus.subscribe("order.paid", bill)
            async with harness(event_bus) as t:
                await event_bus.publish("order.paid", {})
                await t.settle()
        """,
        failed=2,
    )
    text = result.stdout.str()
    assert "expected exactly one event of 'order.sent', found 0; what was published:" in text
    assert "1  order.paid  key='k'" in text
    assert "4111" not in text.replace('{"card": "4111-1111"}', "")
    assert "_published.py" not in text
    assert "ExceptionGroup: 1 delivery failed: " in text


def test_the_override_without_pytest():
    """It is a context manager, and pytest is not needed for it, nor for anything else of the module."""
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pytest", "_pytest"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from ironbus import EventBus, InvalidOption
from ironbus.bus import get_event_bus
from ironbus.testing import harness, override_event_bus
bus, before = EventBus(), get_event_bus()
try:
    with override_event_bus(bus) as inside:
        assert get_event_bus() is inside is bus
        raise ZeroDivisionError
except ZeroDivisionError:
    assert get_event_bus() is before
try:
    override_event_bus(7).__enter__()
except InvalidOption as error:
    assert error.field == "bus"
with harness(bus) as t:
    bus.sync.publish("a")
    t.settle()
    t.published.one("a")
assert "pytest" not in sys.modules
print("fine")
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "fine\n"


def test_the_plugin_is_found_by_its_entry_point(pytester):
    """Nobody has to name it."""
    result = pytester.runpytest_subprocess("--fixtures", "-q")
    result.stdout.fnmatch_lines(["event_bus*", "override_event_bus*"])
