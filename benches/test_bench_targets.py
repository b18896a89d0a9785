"""The rows of the table of targets; the rows themselves are in ``ironbus.cli.bench_rows``."""

from __future__ import annotations

import os

import pytest
from ironbus.cli.bench import Result, measure_apart, result_json
from ironbus.cli.bench_kit import Row, Scale
from ironbus.cli.bench_rows import ROWS
from pytest_benchmark.fixture import BenchmarkFixture

SCALE = Scale(
    events=int(os.environ.get("IRONBUS_BENCH_EVENTS", "100000")),
    rounds=int(os.environ.get("IRONBUS_BENCH_ROUNDS", "9")),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace(" ", "-"))
def test_row(row: Row, benchmark: BenchmarkFixture, results: list[Result]) -> None:
    """Each row takes rounds of its own, in turn with its peer's, so pytest-benchmark runs it once."""
    result = benchmark.pedantic(measure_apart, args=(row, SCALE), rounds=1, iterations=1)
    results.append(result)
    benchmark.extra_info.update(result_json(result))
    if result.sample is None:
        pytest.skip(result.left_out)
