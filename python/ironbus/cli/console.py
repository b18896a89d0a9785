"""What the commands share: the streams, the exit codes, errors as one line, functions by name."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console

from ironbus.errors import IronbusError

T = TypeVar("T")
PIPE_WIDTH = 140  # columns where there is no terminal to ask

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and no progress.")]
AsJsonLines = Annotated[bool, typer.Option("--json", help="Print JSON Lines on stdout.")]


def consoles() -> tuple[Console, Console]:
    """For results and for everything else; made for each run, because tests exchange the streams."""
    out, err = (None if stream.isatty() else PIPE_WIDTH for stream in (sys.stdout, sys.stderr))
    return Console(highlight=False, width=out), Console(stderr=True, highlight=False, width=err)


def fail(text: str) -> NoReturn:
    """One line for people, and exit code 2."""
    say(text)
    raise typer.Exit(2)


def say(text: str) -> None:
    """One line for people on stderr."""
    print(f"ironbus: {text}", file=sys.stderr)


@contextmanager
def errors_told() -> Iterator[None]:
    """An error of ironbus is one line for people, and exit code 2."""
    try:
        yield
    except IronbusError as error:
        fail(str(error))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs the work; Ctrl-C ends it without a traceback."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(130) from None


def print_json(value: Any) -> None:
    """One object on one line of stdout."""
    print(json.dumps(value))


def load_handler(path: str) -> Callable[..., Any]:
    """The function at ``module:function``, looked for in the working directory too."""
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        fail(f"--handler {path}: give it as module:function")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        fail(f"--handler {path}: there is no module {error.name}")
    except AttributeError:
        fail(f"--handler {path}: the module has no {name}")
    except Exception as error:  # whatever a module may raise while it is imported
        fail(f"--handler {path}: the module cannot be imported ({type(error).__name__})")
    if not callable(found):
        fail(f"--handler {path}: that is not a function")
    handler: Callable[..., Any] = found
    return handler


__all__ = ["AsJson", "AsJsonLines", "consoles", "errors_told", "fail", "load_handler", "print_json", "run", "say"]
