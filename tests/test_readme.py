"""Runs what the README shows, so that it cannot promise what does not work.

A ``python`` block runs as a program of its own, and each command of a
``console`` block (``$ ...``, going on in lines of ``> ...``) in a shell, in an empty folder. What they print is
compared with the ``text`` block that follows, or the lines below the command,
where there are any; ``...`` stands for anything, and runs of blanks are equal.
``ironbus`` in a command is the script beside the running Python; it needs the extra
``cli``. ``sh`` blocks install or measure things and are not run.
"""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from ironbus._core import debug_build

README = Path(__file__).resolve().parent.parent / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = {"python", "console", "text", "sh"}
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
                elif row.startswith((">\n", "> ")) and found[-1].wanted is None:
                    found[-1].source += "\n" + row[2:].rstrip("\n")
                elif found and found[-1].kind == "console":
                    found[-1].wanted = (found[-1].wanted or "") + row
    return found


TEXT = README.read_text(encoding="utf-8")
EXAMPLES = examples(TEXT)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)]+)\)")
COMMAND = re.compile(r"(?:^|[|;&]\s*)ironbus\b", re.MULTILINE)


def cannot_run(example: Example) -> str | None:
    """Why an example is not for this installation; None if it is."""
    if example.kind != "console" or not COMMAND.search(example.source):
        return None
    if importlib.util.find_spec("typer") is None or importlib.util.find_spec("rich") is None:
        return "needs the extra cli"
    if "ironbus bench" in example.source and debug_build:
        return "a debug build refuses to measure"
    return None


def check(example: Example, folder: Path) -> None:
    """Runs it; raises ``AssertionError`` if it fails or prints something else."""
    env = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    env.pop("IRONBUS_LOG_DIR", None)  # an example that wants an event log says so
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
    if reason := cannot_run(example):
        pytest.skip(reason)
    check(example, tmp_path)


def test_the_readme_has_examples() -> None:
    """A README whose fences are written otherwise would pass unread."""
    assert {example.kind for example in EXAMPLES} == {"python", "console"}
    assert {match.group(1) for match in FENCE.finditer(TEXT)} <= KINDS
    assert len(re.findall(r"^\s*(?:```|~~~)", TEXT, re.MULTILINE)) == 2 * len(FENCE.findall(TEXT))


def test_every_output_belongs_to_an_example() -> None:
    """A text block that follows no program would be compared with nothing."""
    compared = sum(example.kind == "python" and example.wanted is not None for example in EXAMPLES)
    assert compared == sum(match.group(1) == "text" for match in FENCE.finditer(TEXT))


def test_links_lead_somewhere() -> None:
    """To a heading of the README, or to a file of the repository."""
    headings = {re.sub(r"[^a-z0-9 -]", "", name.lower()).replace(" ", "-") for name in HEADING.findall(TEXT)}
    for target in LINK.findall(TEXT):
        assert target[1:] in headings if target.startswith("#") else (README.parent / target).exists(), target


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
