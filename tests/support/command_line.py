"""The command line as a real process: exit codes, streams and the working directory are what is tested."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Run:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Run]


def command_line(folder: Path) -> Cli:
    """Runs ``ironbus`` in a folder."""

    def run(*args: str | Path, stdin: bytes = b"") -> Run:
        done = subprocess.run(
            [sys.executable, "-m", "ironbus.cli", *map(str, args)],
            cwd=folder,
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return Run(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run
