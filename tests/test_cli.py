"""The command line: what it counts, what it says, and how it ends."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli, command_line

pytest.importorskip("typer", reason="needs the extra cli")

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("IRONBUS_DATA", HERE.parent.parent / "shared" / "data"))
INCIDENTS = DATA / "bpic2013_incidents.jsonl.gz"


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """A real process in an empty folder: exit codes, streams and the working directory are what is tested."""
    return command_line(tmp_path)


def lines(*records: Any) -> bytes:
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in records)


def event(number: int, **more: Any) -> dict[str, Any]:
    return {"type": "order.paid", "data": {"id": number}, **more}


def counts(report: dict[str, Any]) -> dict[str, int]:
    return {name: report[name] for name in ("read", "bad", "duplicates", "delivered", "lost", "dead")}


def test_feed_counts_each_line_once(cli: Cli, tmp_path: Path) -> None:
    """The account of a file must add up to its lines."""
    (tmp_path / "log.jsonl").write_bytes(lines(event(1), event(2), event(1)))
    run = cli("feed", "log.jsonl", "--json")
    assert run.code == 0
    assert counts(run.json) == {"read": 3, "bad": 0, "duplicates": 0, "delivered": 3, "lost": 0, "dead": 0}
    assert run.err == ""


def test_feed_json_has_the_documented_form(cli: Cli) -> None:
    """Programs read this object; a field that goes missing breaks them."""
    report = cli("feed", "-", "--json", stdin=lines(event(1))).json
    assert {"read", "bad", "duplicates", "delivered", "lost", "dead", "seconds", "rate", "latency", "ledger"} <= set(
        report
    )
    assert set(report["latency"]) == {"wait", "work"}
    assert report["ledger"]["offered"] == 1
    assert report["ledger"]["subscriptions"]["feed"]["done"] == 1


def test_feed_reads_gzip_from_files_and_pipes(cli: Cli, tmp_path: Path) -> None:
    """Logs are kept gzipped; the content tells, not the name."""
    packed = gzip.compress(lines(event(1), event(2)))
    (tmp_path / "log.gz").write_bytes(packed)
    assert cli("feed", "log.gz", "--json").json["delivered"] == 2
    assert cli("feed", "-", "--json", stdin=packed).json["delivered"] == 2


def test_feed_takes_a_last_line_without_its_end_and_skips_empty_ones(cli: Cli) -> None:
    """A log is often read while it is written; empty lines are not events."""
    report = cli("feed", "-", "--json", stdin=b"\n  \r\n" + lines(event(1)) + json.dumps(event(2)).encode()).json
    assert counts(report) == {"read": 2, "bad": 0, "duplicates": 0, "delivered": 2, "lost": 0, "dead": 0}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{secret", "not JSON"),
        (b'{"type": "secret", "data": NaN}', "not JSON"),
        (b'"secret"', "not a JSON object"),
        (b'{"data": "secret"}', 'no field "type"'),
        (b'{"type": "secret"}', 'no field "data"'),
        (b'{"type": 7, "data": "secret"}', 'the field "type" is not a string'),
        (b'{"type": "", "data": "secret"}', "type"),
        (b"[" * 200_000, "not JSON"),
    ],
)
def test_a_bad_line_is_named_by_number_and_stops_nothing(cli: Cli, bad: bytes, reason: str) -> None:
    """One bad line must not cost the others, nor show its content."""
    run = cli("feed", "-", "--json", stdin=lines(event(1), b"", bad, event(2)))
    assert run.code == 0
    assert counts(run.json) == {"read": 3, "bad": 1, "duplicates": 0, "delivered": 2, "lost": 0, "dead": 0}
    assert run.err.startswith("line 3: ")
    assert reason in run.err
    assert "secret" not in run.err + run.out


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A line that is too long is one bad line, and reading goes on after it."""
    import asyncio
    import io

    from ironbus.cli import lines as module

    monkeypatch.setattr(module, "MAX_LINE", 100)
    monkeypatch.setattr(module, "CHUNK", 64)
    path = tmp_path / "log"
    path.write_bytes(b"1\n" + b"x" * 1_000 + b"\n3\n" + b"y" * 101)

    async def read() -> list[tuple[int, bytes | None]]:
        with io.FileIO(path) as raw:
            return [line async for batch in module.numbered_lines(raw) for line in batch]

    assert asyncio.run(read()) == [(1, b"1"), (2, None), (3, b"3"), (4, None)]


def test_feed_keys_and_priorities(cli: Cli) -> None:
    """A key that was asked for must be there; a priority may be a name, a number, or absent."""
    run = cli(
        "feed", "-", "--json", "--key-field", "case", "--priority-field", "level", "--concurrency", "4",
        stdin=lines(
            event(1, case="a"),
            event(2, case=7, level="high"),
            event(3, case="b", level=0),
            event(4),
            event(5, case=""),
            event(6, case="c", level="urgent"),
            event(7, case="c", level=9),
            event(8, case="c", level=True),
        ),
    )  # fmt: skip
    assert counts(run.json) == {"read": 8, "bad": 5, "duplicates": 0, "delivered": 3, "lost": 0, "dead": 0}
    assert [line.split(":")[0] for line in run.err.splitlines()] == [f"line {n}" for n in range(4, 9)]


def test_feed_dedupe_goes_by_type_and_data(cli: Cli) -> None:
    """The same content is delivered once, whatever the order of its fields; another type is another event."""
    run = cli(
        "feed", "-", "--json", "--dedupe",
        stdin=lines({"type": "a", "data": {"x": 1, "y": 2}}, {"type": "a", "data": {"y": 2, "x": 1}},
                    {"type": "b", "data": {"x": 1, "y": 2}}),
    )  # fmt: skip
    assert counts(run.json) == {"read": 3, "bad": 0, "duplicates": 1, "delivered": 2, "lost": 0, "dead": 0}


def test_feed_dedupe_survives_a_bad_line_in_the_same_batch(cli: Cli) -> None:
    """A batch that the bus refuses is published again one by one: nothing of it may count twice."""
    run = cli("feed", "-", "--json", "--dedupe", stdin=lines(event(1), {"type": "", "data": 1}, event(1), event(2)))
    assert counts(run.json) == {"read": 4, "bad": 1, "duplicates": 1, "delivered": 2, "lost": 0, "dead": 0}


def test_feed_calls_a_handler_of_the_working_directory(cli: Cli, tmp_path: Path) -> None:
    """One's own function is found where the command is run, and keeps the order of the file."""
    (tmp_path / "mine.py").write_text("def handle(event):\n    open('seen', 'a').write(f'{event.data[\"id\"]} ')\n")
    run = cli("feed", "-", "--json", "--handler", "mine:handle", stdin=lines(*map(event, range(20))))
    assert (run.code, run.json["delivered"]) == (0, 20)
    assert (tmp_path / "seen").read_text().split() == [str(n) for n in range(20)]


def test_a_failing_handler_is_dead_and_exit_code_1(cli: Cli, tmp_path: Path) -> None:
    """A script must notice that its handler failed; the payload stays out of the text."""
    (tmp_path / "mine.py").write_text(
        "async def handle(event):\n    if event.data['id'] == 2: raise ValueError('secret')\n"
    )
    run = cli("feed", "-", "--json", "--handler", "mine:handle", stdin=lines(*map(event, range(5))))
    assert run.code == 1
    assert counts(run.json) == {"read": 5, "bad": 0, "duplicates": 0, "delivered": 4, "lost": 0, "dead": 1}
    assert "secret" not in run.err + run.out


def test_many_failures_do_not_flood_the_terminal(cli: Cli, tmp_path: Path) -> None:
    """The first few say it all."""
    (tmp_path / "mine.py").write_text("def handle(event):\n    raise ValueError\n")
    run = cli("feed", "-", "--json", "--handler", "mine:handle", stdin=lines(*map(event, range(500))))
    assert run.json["dead"] == 500
    assert len(run.err.splitlines()) < 50


@pytest.mark.parametrize(
    "arguments",
    [
        ["missing.jsonl"],
        ["."],
        ["-", "--handler", "nothing"],
        ["-", "--handler", "no_such_module_here:f"],
        ["-", "--handler", "json:no_such_function"],
        ["-", "--handler", "json:__name__"],
        ["-", "--concurrency", "2"],
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(cli: Cli, arguments: list[str]) -> None:
    """People get a sentence, not a traceback."""
    run = cli("feed", *arguments)
    assert run.code == 2
    assert run.out == ""
    assert len(run.err.splitlines()) == 1
    assert run.err.startswith("ironbus: ")


def test_a_truncated_archive_is_said_and_exit_code_1(cli: Cli, tmp_path: Path) -> None:
    """What could be read is delivered, and the rest is not passed over in silence."""
    packed = gzip.compress(lines(*map(event, range(20_000))))
    (tmp_path / "cut.gz").write_bytes(packed[: len(packed) // 2])
    run = cli("feed", "cut.gz", "--json")
    assert run.code == 1
    assert run.json["complete"] is False
    assert run.json["delivered"] > 0
    assert "cannot be read to its end" in run.err


def test_feed_prints_a_table_for_people(cli: Cli) -> None:
    """Without --json the same figures stand in a table, and no progress bar goes into a pipe."""
    run = cli("feed", "-", stdin=lines(event(1)))
    assert run.code == 0
    assert "1 read" in run.out
    assert "balanced" in run.out
    assert run.err == ""


@pytest.mark.skipif(not INCIDENTS.exists(), reason="the incident log is not here (IRONBUS_DATA)")
def test_feed_a_real_log(cli: Cli) -> None:
    """65,533 real events, 15,260 of them copies: each in its place."""
    run = cli("feed", INCIDENTS, "--dedupe", "--key-field", "key", "--concurrency", "4", "--json")
    assert run.code == 0
    assert counts(run.json) == {
        "read": 65_533,
        "bad": 0,
        "duplicates": 15_260,
        "delivered": 50_273,
        "lost": 0,
        "dead": 0,
    }


def test_the_sample_log_is_what_its_generator_writes() -> None:
    """A sample that was edited by hand could not be made again."""
    from importlib.resources import files

    made = subprocess.run(
        [sys.executable, HERE / "tools" / "make_sample.py"], capture_output=True, check=True, timeout=60
    )
    assert made.stdout == files("ironbus.cli").joinpath("sample.jsonl").read_bytes()


def test_the_help_says_what_to_install(cli: Cli) -> None:
    assert 'pip install "ironbus[bench]"' in cli("bench", "--help").out


def test_version_and_help(cli: Cli) -> None:
    """Both work without a bus."""
    import ironbus

    assert cli("--version").out == f"ironbus {ironbus.__version__}\n"
    run = cli("--help")
    assert run.code == 0
    assert all(command in run.out for command in ("feed", "bench", "demo"))


@pytest.mark.parametrize(
    "program", [[sys.executable, "-m", "ironbus.cli"], [Path(sys.executable).with_name("ironbus")]]
)
@pytest.mark.parametrize(
    "arguments", [["--help"], ["feed", "missing.jsonl"], ["dlq", "nonsense"], ["feed", "-", "--json"]]
)
def test_a_process_from_scratch_does_the_same(
    cli: Cli, tmp_path: Path, program: list[Any], arguments: list[str]
) -> None:
    """The runs of these tests share the start of Python and the imports."""
    own = subprocess.run(
        [*program, *arguments], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    shared = cli(*arguments)
    assert (own.returncode, own.stderr.decode()) == (shared.code, shared.err)
    if "--json" in arguments:
        assert counts(json.loads(own.stdout)) == counts(shared.json)
    else:
        assert own.stdout.decode() == shared.out


def test_without_the_extra_the_script_says_how_to_get_it(tmp_path: Path) -> None:
    """A bare install has the script but not its libraries."""
    code = "import sys; sys.modules['typer'] = None\nfrom ironbus.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 'pip install "ironbus[cli]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """An input of five lines."""
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(f'{{"type": "t", "data": {n}}}\n' for n in range(1, 6)))
    return path


def test_a_journal_is_fed_from_where_it_was_left(cli: Cli, tmp_path: Path, numbers: Path) -> None:
    """Started again, with more lines in the input: only those are new, and a copied line of a pipe is new as well."""
    first = cli("feed", str(numbers), "--into", str(tmp_path / "x.bus"), "--json").json
    assert (first["read"], first["skipped"], first["delivered"]) == (5, 0, 0), "without a handler they are stored"
    with numbers.open("a") as more:
        more.write('{"type": "t", "data": 0}\n')
    then = cli("feed", str(numbers), "--into", str(tmp_path / "x.bus"), "--json").json
    assert (then["read"], then["skipped"]) == (1, 5)
    rows = cli("query", str(tmp_path / "x.bus"), "SELECT data FROM event ORDER BY sequence", "--json").out.splitlines()
    assert [json.loads(row)["data"] for row in rows] == ["1", "2", "3", "4", "5", "{}"]
    last = cli("feed", str(numbers), "--into", str(tmp_path / "x.bus"), "--json").json
    assert (last["read"], last["skipped"]) == (0, 6)


def test_duplicates_at_the_end_of_a_feed_stay_duplicates(cli: Cli, tmp_path: Path, numbers: Path) -> None:
    """They are no events, so the next run looks at them again, and finds that they are none."""
    numbers.write_text(numbers.read_text() * 2)
    for read, skipped, duplicates in ((10, 0, 5), (5, 5, 5)):
        run = cli("feed", str(numbers), "--into", str(tmp_path / "x.bus"), "--dedupe", "--json").json
        assert (run["read"], run["skipped"], run["duplicates"]) == (read, skipped, duplicates)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (['{"type": "t", "data": 9}'] * 5, "line 5 is not the one"),
        (["no event"] * 5, "line 5 is not the one"),
        (['{"type": "t", "data": 0}'] * 4, "ends before line 5"),
    ],
)
def test_an_input_that_has_changed_is_not_gone_on_with(
    cli: Cli, tmp_path: Path, numbers: Path, lines: list[str], complaint: str
) -> None:
    """Its lines would be skipped unseen."""
    assert cli("feed", str(numbers), "--into", str(tmp_path / "x.bus")).code == 0
    numbers.write_text("\n".join(lines))
    run = cli("feed", str(numbers), "--into", str(tmp_path / "x.bus"))
    assert run.code == 2
    assert complaint in run.err


def test_what_cannot_be_fed_into_is_said_in_a_line(cli: Cli, tmp_path: Path, numbers: Path) -> None:
    """A text file stays what it is."""
    run = cli("feed", str(numbers), "--into", str(numbers))
    assert run.code == 2
    assert "not a SQLite database" in run.err
    assert "Traceback" not in run.err


def test_bench_measures_a_row(cli: Cli) -> None:
    """The smallest round of one row without a peer: figures, targets and verdicts are there."""
    from ironbus import _core

    if _core.debug_build:
        pytest.skip("a debug build refuses to measure")
    run = cli("bench", "--events", "1000", "--rounds", "1", "--only", "latency", "--json")
    assert run.code == 0, run.err
    (row,) = run.json["rows"]
    assert [figure["label"] for figure in row["figures"]] == ["p50", "p99"]
    assert all(figure["verdict"] in ("aim", "must", "missed") for figure in row["figures"])


def test_bench_measures_a_bus_with_a_file(cli: Cli) -> None:
    """The smallest round of the rows that need no broker; each says how durable its events were."""
    from ironbus import _core

    if _core.debug_build:
        pytest.skip("a debug build refuses to measure")
    for row in ("receipt each", "key parked", "never comes back", "opening"):
        run = cli("bench", "--events", "1000", "--rounds", "1", "--only", row, "--json")
        assert run.code == 0, run.err
        (measured,) = run.json["rows"]
        assert measured["durability"] == "fsync"
        assert all(figure["value"] > 0 for figure in measured["figures"])


def test_bench_leaves_out_a_broker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started where it is found, and missed where it is not; a figure is never made up."""
    from ironbus.cli.bench import measure
    from ironbus.cli.bench_durable import ROWS
    from ironbus.cli.bench_kit import Scale

    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    result = measure(ROWS[0], Scale(events=100, rounds=1))
    assert result.sample is None
    assert result.left_out in ("redis-server is not installed", "redis is not installed")


def test_what_a_row_says_in_its_own_process_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it measured, why it was left out, and that it failed."""
    from ironbus.cli.bench import measure_apart
    from ironbus.cli.bench_kit import Row, Scale
    from ironbus.cli.bench_rows import ROWS

    latency, brokers = (next(row for row in ROWS if name in row.name) for name in ("latency", "durable"))
    scale = Scale(events=1_000, rounds=1)
    measured = measure_apart(latency, scale)
    assert measured.row is latency
    assert measured.sample is not None
    assert len(measured.sample.values) == len(latency.targets)
    assert measured.sample.rate > 0

    monkeypatch.setenv("PATH", "")
    left_out = measure_apart(brokers, scale)
    assert left_out.sample is None
    assert left_out.left_out in ("redis-server is not installed", "redis is not installed")

    with pytest.raises(RuntimeError, match="the measuring process failed: StopIteration"):
        measure_apart(Row("no such row", (), lambda _: pytest.fail("it runs elsewhere")), scale)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets ten seconds pass on a machine with two processors, of which its host takes so many."""
    from ironbus.cli import bench_kit

    clock = {"now": 0.0, "stolen": 5.0}
    monkeypatch.setattr(bench_kit.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(bench_kit, "stolen", lambda: clock["stolen"])
    monkeypatch.setattr(bench_kit.os, "cpu_count", lambda: 2)

    def ten_seconds(stolen: float) -> None:
        clock["now"] += 10.0
        clock["stolen"] += stolen

    return ten_seconds


@pytest.mark.parametrize(
    ("stolen", "counts"),
    [
        ([0.0, 0.0, 0.0], [0, 1, 2]),
        ([0.1, 0.15, 0.0], [0, 1, 2]),  # up to a hundredth is nothing
        ([9.0, 0.0, 4.0, 0.1, 0.0], [1, 3, 4]),
        ([9.0, 8.0, 0.0, 4.0, 3.0, 9.0], [2, 4, 3]),
    ],
)
def test_rounds_that_the_host_disturbed_are_repeated(
    host: Callable[[float], None], stolen: list[float], counts: list[int]
) -> None:
    """Chosen by what was stolen, never by what was measured; and not for ever."""
    from ironbus.cli.bench_kit import Rounds

    rounds: Rounds[int] = Rounds(3)
    for number, seconds in enumerate(stolen):
        assert rounds.go_on()
        host(seconds)
        rounds.add(number)
    assert not rounds.go_on()
    assert rounds.best() == counts


def test_what_was_stolen_is_read_from_the_system_where_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In ticks, of all processors."""
    from ironbus.cli import bench_kit

    stat = tmp_path / "stat"
    monkeypatch.setattr(bench_kit, "STAT", stat)
    assert bench_kit.stolen() == 0.0
    stat.write_text("cpu  10 20 30 40 50 60 70 250 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n")
    assert bench_kit.stolen() == 250 / os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu  10 20 30 40\n")
    assert bench_kit.stolen() == 0.0


def test_bench_says_what_the_host_took(host: Callable[[float], None]) -> None:
    """Figures of a machine that was stopped in the middle are not those of one that was not."""
    from ironbus.cli.bench import measure, result_json, stolen_line
    from ironbus.cli.bench_kit import Row, Sample, Scale, Target

    def row(stolen: float) -> Row:
        def measured(scale: Scale) -> Sample:
            host(stolen)
            return Sample((1.0,))

        return Row("a row", (Target("speed", "x", 1.0, 2.0),), measured)

    disturbed = measure(row(3.0), Scale())
    assert result_json(disturbed)["stolen"] == 0.15
    assert "15%" in stolen_line([measure(row(0.0), Scale()), disturbed])
    assert stolen_line([measure(row(0.1), Scale())]) == ""


def test_bench_names_its_rows_when_none_fits(cli: Cli) -> None:
    """A typing error must not look like a benchmark that ran."""
    run = cli("bench", "--only", "no such row")
    assert run.code == 2
    assert "publish_many" in run.err


def test_each_row_of_the_bench_is_tried_by_its_target() -> None:
    """A figure on the wrong side of its bound must not pass for one that is met."""
    from ironbus.cli.bench_kit import Target

    speed = Target("speed", "x", 1.5, 2.5)
    assert [speed.verdict(value) for value in (1.4, 1.5, 2.5)] == ["missed", "must", "aim"]
    size = Target("size", "B", 64, 36, at_most=True)
    assert [size.verdict(value) for value in (65, 64, 36)] == ["missed", "must", "aim"]
