"""Runs the fault tests at length and says what was done to the files, and what did not hold.

Called by ``make torture``. The tests are those of the gate; they do more of the
same when ``IRONBUS_TORTURE_REPORT`` names a file, and add to it what they did,
each when all of it held.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

ENGINE = (
    "journal_kill",
    "journal_power",
    "journal_faults",
    "journal_flips",
    "journal_model",
    "dead_letters_file",
    "engine_durable_keys",
)


def suites() -> dict[str, list[str]]:
    """The command of each: the engine's, and every file of tests/faults by itself."""
    found = {name: ["cargo", "test", "--locked", "--test", name] for name in ENGINE}
    pytest = [sys.executable, "-m", "pytest", "-q", "--override-ini=timeout=0"]
    for file in sorted(Path("tests/faults").glob("test_*.py")):
        found[file.stem] = [*pytest, str(file)]
    return found


def run(command: list[str], report: Path) -> tuple[bool, Counter[str]]:
    """Whether all held, and what was done."""
    environment = {**os.environ, "IRONBUS_TORTURE_REPORT": str(report)}
    held = subprocess.run(command, env=environment, check=False).returncode == 0
    counts: Counter[str] = Counter()
    for line in report.read_text().splitlines() if report.exists() else ():
        what, _, count = line.partition("\t")
        counts[what] += int(count)
    return held, counts


def main() -> int:
    """The exit code: how many suites have failed."""
    table = Table("suite", "what", "count")
    table.columns[2].justify = "right"
    total: Counter[str] = Counter()
    failed = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name, command in suites().items():
            since = time.monotonic()
            held, counts = run(command, Path(folder) / name)
            failed += [] if held else [name]
            total += counts
            for what, count in sorted(counts.items()):
                table.add_row(name, what, f"{count:,}")
            seconds = f"{time.monotonic() - since:,.0f} s"
            table.add_row(name, "held" if held else "VIOLATED", seconds, end_section=True)
    for what, count in sorted(total.items()):
        table.add_row("all", what, f"{count:,}")
    table.add_row("all", "suites with a violation", str(len(failed)))
    table.add_row("all", "took", f"{time.monotonic() - began:,.0f} s")
    Console().print(table)
    for name in failed:
        print(f"FAILED: {name}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
