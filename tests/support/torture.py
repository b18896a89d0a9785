"""The long form of the fault tests: ``make torture`` asks for more of the same work and gathers what was done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_REPORT = os.environ.get("IRONBUS_TORTURE_REPORT")


def times(short: T, long: T) -> T:
    """How often, or with what, the work is done: shorter in the gate, longer in ``make torture``."""
    return short if _REPORT is None else long


def done(what: str, count: int) -> None:
    """Adds to the report what a test has done, when all of it held."""
    if _REPORT is not None:
        with Path(_REPORT).open("a") as report:
            report.write(f"{what}\t{count}\n")


def control() -> None:
    """Adds to the report that a negative control has failed, as it should."""
    done("negative controls that failed as they should", 1)
