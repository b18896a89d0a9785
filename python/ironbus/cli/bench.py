"""Runs the rows of the benchmark and shows what they measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import ironbus
from ironbus.cli.bench_kit import QUIET, NotHere, Row, Sample, Scale, Stretch, Target
from ironbus.cli.render import seconds

PEERS = ("blinker", "nats", "pyee", "redis")
STYLES = {"aim": "green", "must": "yellow", "missed": "red"}
VERDICTS = {"aim": "met, and the aim", "must": "met", "missed": "MISSED"}


@dataclass(frozen=True, slots=True)
class Result:
    """A row and what it measured, or why it was left out."""

    row: Row
    sample: Sample | None
    left_out: str = ""
    stolen: float = 0.0  # of the machine's time, by its host


def measure_apart(row: Row, scale: Scale) -> Result:
    """Runs one row in a process of its own, so that it measures the same whichever rows were run before it."""
    code = f"from ironbus.cli import bench; bench.report({row.name!r}, {scale.events}, {scale.rounds})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        why = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"the measuring process failed: {why[-1]}")
    told = json.loads(done.stdout)
    if (sample := told.pop("sample")) is not None:
        sample = Sample(**sample | {"values": tuple(sample["values"])})
    return Result(row, sample, **told)


def report(name: str, events: int, rounds: int) -> None:
    """Runs in that process: prints what the row of this name measured."""
    from ironbus.cli.bench_rows import ROWS

    result = measure(next(row for row in ROWS if row.name == name), Scale(events, rounds))
    sample = None if result.sample is None else asdict(result.sample)
    print(json.dumps({"sample": sample, "left_out": result.left_out, "stolen": result.stolen}))


def measure(row: Row, scale: Scale) -> Result:
    """Runs one row here."""
    stretch = Stretch()
    try:
        return Result(row, row.measure(scale), stolen=stretch.share())
    except NotHere as reason:
        return Result(row, None, str(reason))
    except ModuleNotFoundError as missing:
        if missing.name not in PEERS:
            raise
        return Result(row, None, f"{missing.name} is not installed")


def machine() -> dict[str, Any]:
    """Where the figures were measured."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "ironbus": ironbus.__version__,
    }


def machine_line() -> str:
    """The same in a line."""
    told = machine()
    return (
        f"ironbus {told['ironbus']}, CPython {told['python']}, {told['system']}, {told['cores']} cores, {told['cpu']}"
    )


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.machine()


def shown(value: float, unit: str) -> str:
    """A figure with its unit."""
    return {"x": f"{value:.2f} x", "B": f"{value:,.0f} B"}.get(unit) or seconds(value)


def bound(target: Target, value: float) -> str:
    """A target with its direction."""
    return ("≤ " if target.at_most else "≥ ") + shown(value, target.unit)


def table(results: Sequence[Result]) -> Table:
    """One line a figure."""
    made = Table()
    for column, justify in (
        ("work", "left"),
        ("figure", "right"),
        ("must", "right"),
        ("aim", "right"),
        ("", "left"),
        ("events/s", "right"),
        ("beside", "left"),
        ("events/s", "right"),
    ):
        made.add_column(column, justify=justify)  # type: ignore[arg-type]
    for result in results:
        row, sample = result.row, result.sample
        if sample is None:
            made.add_row(row.name, "", "", "", f"left out: {result.left_out}", "", row.peer, "")
            continue
        for index, (target, value) in enumerate(zip(row.targets, sample.values, strict=True)):
            verdict = target.verdict(value)
            first = index == 0
            made.add_row(
                row.name if first else f"  {target.label}",
                shown(value, target.unit),
                bound(target, target.must),
                bound(target, target.aim),
                f"[{STYLES[verdict]}]{VERDICTS[verdict]}[/]",
                f"{sample.rate:,.0f}" if first and sample.rate else "",
                (row.peer or (f"peak {sample.peak / 1e6:,.0f} MB" if sample.peak else target.label)) if first else "",
                f"{sample.peer_rate:,.0f}" if first and sample.peer_rate else "",
            )
    return made


def stolen_line(results: Sequence[Result]) -> str:
    """What the host took, in a line, or nothing."""
    most = max((result.stolen for result in results), default=0.0)
    if most <= QUIET:
        return ""
    return f"The host of this machine took up to {most:.0%} of its time for others while a row was measured."


def result_json(result: Result) -> dict[str, Any]:
    """A row for ``--json``; times in seconds, sizes in bytes, ratios and shares plain."""
    row, sample = result.row, result.sample
    told: dict[str, Any] = {
        "name": row.name,
        "peer": row.peer or None,
        "durability": row.durability,
        "left_out": result.left_out or None,
    }
    if sample is not None:
        told |= {
            "rate": sample.rate or None,
            "peer_rate": sample.peer_rate or None,
            "peak_bytes": sample.peak or None,
            "stolen": result.stolen,
            "figures": [
                {
                    "label": target.label,
                    "unit": target.unit,
                    "value": value,
                    "must": target.must,
                    "aim": target.aim,
                    "at_most": target.at_most,
                    "verdict": target.verdict(value),
                }
                for target, value in zip(row.targets, sample.values, strict=True)
            ],
        }
    return told


def show(results: Sequence[Result], console: Console) -> None:
    """Where it was measured, the table, and what the host took meanwhile."""
    console.print(machine_line(), soft_wrap=True)
    console.print(table(results))
    if stolen := stolen_line(results):
        console.print(stolen, soft_wrap=True)


__all__ = [
    "Result",
    "machine",
    "machine_line",
    "measure",
    "measure_apart",
    "report",
    "result_json",
    "show",
    "stolen_line",
    "table",
]
