"""What ``import ironbus`` gives, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys

import ironbus
import ironbus.errors
from ironbus import _core

CODE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import ironbus
    import ironbus.bus, ironbus.ordering
for warning in caught:
    print(warning.category.__name__, warning.filename, warning.message)
"""


def test_every_error_can_be_caught_by_its_name_in_the_package() -> None:
    """People look for errors where they found the bus."""
    assert set(ironbus.errors.__all__) <= set(ironbus.__all__)
    for name in ironbus.errors.__all__:
        assert getattr(ironbus, name) is getattr(ironbus.errors, name)


def test_all_names_are_there_once() -> None:
    """A name in ``__all__`` that does not exist breaks every ``import *``."""
    assert len(ironbus.__all__) == len(set(ironbus.__all__))
    assert [name for name in ironbus.__all__ if not hasattr(ironbus, name)] == []


def test_only_a_debug_build_says_what_it_is() -> None:
    """Once, at the caller's line, and with the way out of it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    if _core.debug_build:
        (line,) = lines
        assert line.startswith("RuntimeWarning <string> ironbus is a debug build")
        assert "maturin develop --release" in line
    else:
        assert lines == []
