"""Runs the fault tests at length and says what was done to the files, and what did not hold.

Called by ``make torture``. The tests are those of the gate; they do more of the
same when ``IRONBUS_TORTURE_REPORT`` names a file, and add to it what they did.
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

ENGINE = ("journal_kill", "journal_power", "journal_faults", "journal_flips", "journal_model", "dead_letters_file")


def main() -> int:
    """The exit code: how many suites have failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        environment = {**os.environ, "IRONBUS_TORTURE_REPORT": str(report)}
        suites = [["cargo", "test", "--locked", "--test", name] for name in ENGINE]
        suites.append([sys.executable, "-m", "pytest", "-q", "--override-ini=timeout=0", "tests/faults"])
        began = time.monotonic()
        failed = [" ".join(suite[-2:]) for suite in suites if subprocess.run(suite, env=environment).returncode]
        done: Counter[str] = Counter()
        for line in report.read_text().splitlines() if report.exists() else ():
            what, _, count = line.partition("\t")
            done[what] += int(count)
    table = Table("what", "count", title=f"{time.monotonic() - began:,.0f} s")
    table.columns[1].justify = "right"
    for what, count in sorted(done.items()):
        table.add_row(what, f"{count:,}")
    table.add_row("suites with a violation", str(len(failed)), end_section=True)
    Console().print(table)
    for suite in failed:
        print(f"FAILED: {suite}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
