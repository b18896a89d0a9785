"""``ironbus demo``: the act in memory, and the one with a kill; what must make it fail."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import command_line

pytest.importorskip("typer", reason="needs the extra cli")

from ironbus.cli.demo import sample
from ironbus.cli.demo_crash import KILL_AT, CrashReport, Killed, Life, crash, crash_and_recover, recover, totals
from ironbus.cli.demo_worker import FIRST, HELD_LINE, HELD_PARCEL


def unseen(name: str, count: int) -> None:
    """No progress."""


def test_its_json_has_both_acts(tmp_path: Path) -> None:
    """The failures of the handler that is said to fail are no failure of the demonstration."""
    run = command_line(tmp_path)("demo", "--json")
    assert (run.code, run.err) == (0, "")
    report: dict[str, Any] = run.json
    assert report["as_announced"] is True
    assert report["announced_failures"] > 0
    assert set(report["slow_waits"]) == {"CRITICAL", "HIGH", "NORMAL", "LOW"}

    killed = report["crash"]
    assert killed["balanced"] is True
    assert killed["died_of_sigkill"] is True
    assert killed["backlog_at_kill"] >= 10  # the warehouse is held within what was stored first
    assert 0 < killed["accepted_before"] <= killed["events_at_kill"] < killed["events"] == 308
    assert killed["accepted_after"] + killed["duplicates_after"] == killed["read"] == 325
    assert killed["duplicates_after"] > 17  # more than the log itself has: what the first life had stored is noticed
    assert killed["worker_ledger"]["offered"] == 325
    routed = {name: lane["routed"] for name, lane in killed["subscriptions"].items()}
    assert routed == totals() == {"billing": 65, "warehouse": 308, "mailer": 12, "audit": 308, "stock": 15}
    assert killed["dead_letters"] == killed["subscriptions"]["mailer"]["dead"] == 12
    assert list(tmp_path.iterdir()) == []


def test_its_text_says_that_both_balance(tmp_path: Path) -> None:
    """People see the account, not only the exit code."""
    run = command_line(tmp_path)("demo")
    assert (run.code, run.err) == (0, "")
    assert run.out.count("(balanced)") == 2
    assert "NOT" not in run.out
    assert "0 missing, 0 twice; 0 deliveries to go, 0 lost; the file is clean" in run.out


def test_a_journal_that_goes_away_between_kill_and_restart_does_not_balance(tmp_path: Path) -> None:
    """The control: a successor that begins with nothing accepts all again, and that must show."""
    path = tmp_path / "shop.bus"

    async def with_a_loss() -> tuple[Killed, CrashReport]:
        killed = await crash(path, unseen)
        for file in tmp_path.iterdir():
            file.unlink()
        return killed, await recover(path, killed, unseen, time.perf_counter())

    killed, report = asyncio.run(with_a_loss())
    assert killed.life.exit_status == -signal.SIGKILL
    assert killed.events > 0
    assert (report.events, report.missing, report.clean, report.backlog) == (
        308,
        0,
        True,
        0,
    )  # by itself it looks whole
    assert not report.balanced


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> CrashReport:
    """One good run."""
    return asyncio.run(crash_and_recover(tmp_path_factory.mktemp("demo"), unseen))


def lane(name: str, **faults: int) -> Callable[[CrashReport], dict[str, Any]]:
    def of(report: CrashReport) -> dict[str, Any]:
        return {
            "subscriptions": {**report.subscriptions, name: dataclasses.replace(report.subscriptions[name], **faults)}
        }

    return of


FAULTS: dict[str, Callable[[CrashReport], dict[str, Any]]] = {
    "not killed": lambda report: {"died_of_sigkill": False},
    "killed when all was done": lambda report: {"backlog_at_kill": 0},
    "an acknowledged event is gone": lambda report: {"accepted_before": report.events_at_kill + 1},
    "accepted a second time": lambda report: {"accepted_after": report.accepted_after + 1},
    "not noticed as a duplicate": lambda report: {"duplicates_after": report.duplicates_after - 1},
    "missing": lambda report: {"missing": 1},
    "twice": lambda report: {"twice": 1},
    "lost": lane("audit", lost=1, done=307),
    "done and dead": lane("billing", dead=1),
    "dead without an announcement": lane("billing", dead=1, done=64),
    "a failure that went well": lane("mailer", dead=11, done=1),
    "a letter twice": lambda report: {"dead_letters": report.dead_letters + 1},
    "damaged": lambda report: {"clean": False},
    "not settled": lambda report: {"backlog": 1},
    "the worker did not end": lambda report: {"worker_ledger": None},
    "the worker's own ledger": lambda report: {"worker_ledger": {**(report.worker_ledger or {}), "balanced": False}},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_tips_the_balance(report: CrashReport, fault: str) -> None:
    """A condition that nobody looks at would let a loss pass."""
    assert report.balanced
    assert not dataclasses.replace(report, **FAULTS[fault](report)).balanced


def test_a_line_that_a_kill_has_cut_off_tells_nothing() -> None:
    """Half a number is another number."""
    life = Life()
    assert life.hear(b"began audit 12\n") == ("audit", 12)
    assert life.hear(b"ended audit 12") is None
    assert (life.began, life.ended) == ({("audit", 12)}, set())


def test_the_kill_comes_before_the_worker_is_held() -> None:
    """Were it the other way round, the parent would wait for a parcel that never comes."""
    assert KILL_AT < HELD_PARCEL < len({str(line) for line in sample()[:FIRST]})
    assert FIRST < HELD_LINE < len(sample())
