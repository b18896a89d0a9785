"""Runs what the README shows, so that it cannot promise what does not work.

A ``python`` block runs as a program of its own, and each command of a
``console`` block (``$ ...``) in a shell, in an empty folder. What they print is
compared with the ``text`` block that follows, or the lines below the command,
where there are any; ``...`` stands for anything, and runs of blanks are equal.
``sh`` blocks install things and are not run.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass
class Example:
    line: int
    kind: str  # "python", or "console" for one command
    source: str
    wanted: str | None


def examples(text: str) -> list[Example]:
    """All that can be run, in order."""
    found: list[Example] = []
    last_end = 0
    for match in FENCE.finditer(text):
        kind, body = match.groups()
        line = text.count("\n", 0, match.start()) + 2
        between = text[last_end : match.start()]
        last_end = match.end()
        if kind == "python":
            found.append(Example(line, kind, body, None))
        elif kind == "text" and found and found[-1].kind == "python" and not between.strip():
            found[-1].wanted = body
        elif kind == "console":
            for offset, row in enumerate(body.splitlines(keepends=True)):
                if row.startswith("$ "):
                    found.append(Example(line + offset, kind, row[2:].strip(), None))
                elif found and found[-1].kind == "console":
                    found[-1].wanted = (found[-1].wanted or "") + row
    return found


EXAMPLES = examples(README.read_text(encoding="utf-8"))


def check(example: Example, folder: Path) -> None:
    """Runs it; raises ``AssertionError`` if it fails or prints something else."""
    env = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    if example.kind == "python":
        command = [sys.executable, "-X", "dev", "-c", example.source]
    else:
        command = ["bash", "-euo", "pipefail", "-c", example.source]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, f"README line {example.line}:\n{done.stderr}"
    if example.wanted is not None:
        checker = doctest.OutputChecker()
        expected = doctest.Example("", example.wanted)
        difference = f"README line {example.line}:\n{checker.output_difference(expected, done.stdout, FLAGS)}"
        assert checker.check_output(expected.want, done.stdout, FLAGS), difference


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"line-{example.line}")
def test_example(example: Example, tmp_path: Path) -> None:
    """What the README shows works as it is printed."""
    check(example, tmp_path)


def test_the_readme_has_examples() -> None:
    """A README whose fences are written otherwise would pass unread."""
    assert any(example.kind == "python" for example in EXAMPLES)


def test_a_wrong_output_is_noticed(tmp_path: Path) -> None:
    """The check itself must be able to fail."""
    text = "```python\nprint(1)\n```\n\n```text\n{}\n```\n\n```console\n$ echo a; echo b\na\n...\n$ exit 3\n```\n"
    right, command, failing = examples(text.format(1))
    wrong = examples(text.format(2))[0]
    check(right, tmp_path)
    check(command, tmp_path)
    with pytest.raises(AssertionError):
        check(wrong, tmp_path)
    with pytest.raises(AssertionError):
        check(failing, tmp_path)
