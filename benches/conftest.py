"""Prints the table of targets when all benchmarks have run."""

from __future__ import annotations

import pytest
from ironbus import _core
from ironbus.cli.bench import Result, show
from ironbus.cli.console import consoles

RESULTS: pytest.StashKey[list[Result]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    if _core.debug_build:
        raise pytest.UsageError("this is a debug build, and its figures would mean nothing: run `make bench`")
    config.stash[RESULTS] = []


@pytest.fixture
def results(pytestconfig: pytest.Config) -> list[Result]:
    return pytestconfig.stash[RESULTS]


def pytest_terminal_summary(config: pytest.Config) -> None:
    if config.stash[RESULTS]:
        show(config.stash[RESULTS], consoles()[0])
