"""The handler, fed with the events of real runs of the small configuration (tests/workflow/checkouts.py)."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from screens import Screen
from snakemake.logging import logger
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

from snakemake_logger_plugin_coalmine import LogHandler, live
from snakemake_logger_plugin_coalmine.announce import JOBS, announce
from snakemake_logger_plugin_coalmine.rule_names import stage_of
from snakemake_logger_plugin_coalmine.run import Job, Run

BEGUN = 1_790_000_000.0
"""When the recorded runs began, as these tests have it."""
EVENTS = Path(__file__).parent / "events"


def recorded(name: str) -> list[dict[str, object]]:
    """Read the events of a run: done, failed (a method that raises), interrupted (Ctrl-C, jobs announced)."""
    return [json.loads(line) for line in (EVENTS / f"{name}.jsonl").read_text().splitlines()]


def record(event: dict[str, object]) -> logging.LogRecord:
    told = logging.makeLogRecord({"msg": "", **event})
    if event.get("event") == "workflow_started":
        told.quietness = Quietness.HOST
    told.levelno = int(event.get("level", logging.INFO))  # type: ignore[call-overload]
    told.levelname = logging.getLevelName(told.levelno)
    told.created = BEGUN + float(event["created"])  # type: ignore[arg-type]
    return told


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Pipe(io.StringIO):
    encoding = "utf-8"


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let nothing happen between events, at a time of the recording, in a folder without results."""
    monkeypatch.setattr(live, "_TICK", 1e6)
    monkeypatch.setattr(time, "time", lambda: BEGUN + 1000)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.chdir(tmp_path)


def handler(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **settings: object) -> LogHandler:
    monkeypatch.setattr("sys.stderr", stream)
    usual: dict[str, object] = {
        "printshellcmds": False,
        "nocolor": True,
        "quiet": {Quietness.HOST, Quietness.REASON, Quietness.RULES},
        "debug_dag": False,
        "verbose": False,
        "show_failed_logs": True,
        "stdout": False,
        "dryrun": False,
    }
    return LogHandler(SimpleNamespace(**{**usual, **settings}), None)  # type: ignore[arg-type]


def shown(monkeypatch: pytest.MonkeyPatch, name: str, **settings: object) -> list[str]:
    """Return the lines that a run without a terminal prints."""
    stream = Pipe()
    shows = handler(monkeypatch, stream, **settings)
    for event in recorded(name):
        shows.emit(record(event))
    shows.close()
    return stream.getvalue().splitlines()


def test_snakemake_finds_the_plugin_by_its_name() -> None:
    assert LoggerPluginRegistry().plugins["coalmine"].log_handler is LogHandler


def test_it_imports_nothing_of_a_package_that_the_snakefile_has_yet_to_choose() -> None:
    told = "import sys, snakemake_logger_plugin_coalmine; print([name for name in sys.modules if 'coalmine' in name])"
    imported = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout
    assert "snakemake_logger_plugin_coalmine.run" in imported
    assert "'coalmine" not in imported


def test_a_finished_run_is_one_line_a_job_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, "done")
    assert lines[0] == "Building DAG of jobs..."
    assert lines[-1] == "Done: 63 jobs in 17 min: results/table1.{csv,html,tex}"
    assert len(lines) == 63 + 2
    line = re.compile(r"\d\d:\d\d:\d\d  [a-z_]+ ?[\w ]*-?\d*: [\w ]+; \d+ of 63 jobs, (about|no) .*left.*")
    assert [text for text in lines[1:-1] if not line.fullmatch(text)] == []
    assert lines[1].startswith("14:13:21  prepare_public: 1 s; 1 of 63 jobs, about ")
    assert [int(re.search(r"(\d+) of 63", text)[1]) for text in lines[1:-1]] == [*range(1, 64)]  # type: ignore[index]


def test_a_failure_is_told_at_once_with_method_rule_log_and_its_last_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "results/small/logs/synthesize/dm-000.log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {number}\n" for number in range(40)) + "ValueError: deliberately wrong\n\n")
    lines = shown(monkeypatch, "failed")
    assert lines == [
        "Building DAG of jobs...",
        "FAILED: synthesize dm 0-2 (rule synthesize.dm.000) after 4 s; the end of "
        "results/small/logs/synthesize/dm-000.log:",
        *(f"  | line {number}" for number in range(26, 40)),
        "  | ValueError: deliberately wrong",
        "FAILED: synthesize dm 3-5 (rule synthesize.dm.003) after 4 s; its log "
        "results/small/logs/synthesize/dm-003.log is empty",
        "Stopped after 17 min: 0 of 9 jobs done, 2 failed (synthesize dm 0-2, synthesize dm 3-5). What is finished is "
        "kept: the same command goes on from here.",
    ]


def test_jobs_that_die_because_the_user_stops_the_run_are_no_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, "interrupted")
    assert not any("FAILED" in line or "CalledProcessError" in line for line in lines)
    assert lines[-2] == "Terminating processes on user request, this might take some time."
    assert re.fullmatch(r"Interrupted after 17 min: \d\d of 63 jobs done\. What is finished is kept: .*", lines[-1])


def test_in_a_terminal_the_display_is_drawn_in_place_and_nothing_else_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    shows = handler(monkeypatch, stream)
    screen, at = Screen(80, 24), 0
    for number, event in enumerate(recorded("done")):
        shows.emit(record(event))
        if shows._display is not None:
            shows._display.refresh(BEGUN + float(event["created"]))  # type: ignore[arg-type]
        screen.feed(stream.getvalue()[at:])
        at = len(stream.getvalue())
        if number == 200:
            middle = screen.text().splitlines()
    shows.close()
    assert screen.feed(stream.getvalue()[at:]).text().splitlines() == [
        "Building DAG of jobs...",
        "Done: 63 jobs in 17 min: results/table1.{csv,html,tex}",
    ]
    assert screen.modes == []  # whatever ends the process, the terminal is as it was
    assert middle[0] == "Building DAG of jobs..."
    assert middle[1].startswith("done: prepare_private, prepare_public, design_worst, pretrain")
    assert any(re.fullmatch(r"train +█+░+ +\d+/14", line) for line in middle)
    assert sum(line.startswith("> ") for line in middle) == 2
    assert re.fullmatch(r"\d+ of 63 jobs done, 2 running, \d+ to go", middle[-2])
    assert re.fullmatch(r"\d.* elapsed, about .* left \(.* to .*\)", middle[-1])


def test_a_narrowed_terminal_is_cleared_of_wrapped_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    shows = handler(monkeypatch, stream)
    size = os.terminal_size((80, 24))
    monkeypatch.setattr("os.get_terminal_size", lambda *_: size)
    monkeypatch.setattr(stream, "fileno", lambda: 2)
    for event in recorded("done")[:200]:
        shows.emit(record(event))
    display = shows._display
    assert display is not None
    display.refresh(BEGUN + 90)
    wide = stream.getvalue()
    size = os.terminal_size((50, 24))
    display.refresh(BEGUN + 91)
    # A terminal that reflows has wrapped what stood there.
    screen = Screen(50, 24).feed(wide).feed(stream.getvalue()[len(wide) :])
    lines = screen.text().splitlines()
    shows.close()
    assert lines[0] == "Building DAG of jobs..."
    assert sum("jobs done" in line for line in lines) == 1
    assert all(len(line) < 50 for line in lines)


def test_notes_are_the_last_lines_of_logs_that_this_run_wrote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = Terminal()
    shows = handler(monkeypatch, stream)
    begun = [event for event in recorded("failed") if event.get("event") in ("run_info", "job_info")]
    for event in begun:
        shows.emit(record(event))
    folder = tmp_path / "results/small/logs/synthesize"
    folder.mkdir(parents=True)
    for name, written in (("dm-000", BEGUN + 5), ("dm-003", BEGUN - 5)):
        (folder / f"{name}.log").write_text("dm 0-2: 1 of 3: epoch 7\ndm 0-2: 2 of 3: epoch 31.0: loss 0.12\n\n")
        os.utime(folder / f"{name}.log", (written, written))
    display = shows._display
    assert display is not None
    assert [(job.name, job.note) for job in display._view(BEGUN + 9).running] == [
        ("synthesize dm 0-2", "2 of 3: epoch 31.0: loss 0.12"),
        ("synthesize dm 3-5", ""),
    ]
    shows.close()


def test_a_silent_run_says_once_a_minute_that_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Pipe()
    shows = handler(monkeypatch, stream)
    for event in recorded("failed")[:14]:
        shows.emit(record(event))
    for second in range(1, 200):
        assert shows._display is not None
        shows._display.refresh(BEGUN + second)
    told = stream.getvalue().splitlines()[1:]
    shows.close()
    assert told == [
        f"14:1{minute}:2{second}  running: synthesize dm 0-2 for {minute - 3} min{rest}, synthesize dm 3-5 for "
        f"{minute - 3} min{rest}; 0 of 9 jobs, time left not known yet"
        for minute, second, rest in ((4, 1, " 1 s"), (5, 1, " 1 s"), (6, 1, " 1 s"))
    ]


def test_a_run_that_was_priced_knows_from_its_begin_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Pipe()
    shows = handler(monkeypatch, stream)
    train = {"rule_name": "train.dm.000", "wildcards": {}, "resources": {"_cores": 1}}
    jobs = [
        {**train, "jobid": number, "output": [f"results/run/models/dm/{number:03d}.safetensors"], "expected": 600.0}
        for number in range(3)
    ]
    for event in recorded("failed")[:12]:
        shows.emit(record(event))
    at = float(recorded("failed")[11]["created"])  # type: ignore[arg-type]
    shows.emit(record({"event": JOBS, "jobs": jobs, "created": at}))
    assert shows._display is not None
    left = shows._display._left_now(BEGUN + at)
    shows.close()
    assert left is not None
    assert left.seconds == pytest.approx(1200)  # three jobs on two cores
    assert (left.low < 900, left.high > 1600) == (True, True)


def test_what_cannot_be_priced_is_announced_and_run(caplog: pytest.LogCaptureFixture) -> None:
    def price(jobs: object) -> dict[int, float]:
        raise RuntimeError("no prices")

    class Job(SimpleNamespace):
        __hash__ = object.__hash__

    job = Job(
        jobid=7, rule=SimpleNamespace(name="train.dm.000"), wildcards_dict={}, input=[], output=[], log=[], threads=1,
        resources={},
    )  # fmt: skip
    dag = SimpleNamespace(needrun_jobs=lambda exclude_finished: [job], dependencies=defaultdict(list))
    with caplog.at_level(logging.INFO, logger.name):
        announce(dag, price)
    (warned,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert "cannot be predicted: RuntimeError('no prices')" in warned.getMessage()
    (jobs,) = [one.jobs for one in caplog.records if getattr(one, "event", None) == JOBS]
    assert [(one["jobid"], one["expected"]) for one in jobs] == [(7, None)]


@pytest.mark.parametrize(
    "settings",
    [{"dryrun": True}, {"verbose": True}, {"printshellcmds": True}, {"debug_dag": True}, {"quiet": {Quietness.ALL}}],
)
def test_whoever_asks_for_more_or_less_gets_snakemakes_own_words(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    stream = Pipe()
    shows = handler(monkeypatch, stream, **settings)
    for event in recorded("failed"):
        if event.get("event") in (None, "run_info"):
            shows.emit(record(event))
    shows.close()
    lines = stream.getvalue().splitlines()
    if "quiet" in settings:
        assert lines == []
    else:
        assert [line for line in lines if line.startswith(("Select", "Elapsed", "Exiting"))] == [
            "Select jobs to execute...",
            "Exiting because a job execution failed. Look above for error messages",
            "Elapsed time: 0:00:04.569404",
        ]
        assert not any(line.startswith(("FAILED", "Stopped", "Done")) for line in lines)


def test_a_fault_of_the_display_is_told_once_and_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(Run, "finish", broken)
    lines = shown(monkeypatch, "done")
    told = [line for line in lines if "a fault" in line]
    assert len(told) == 1
    where = r"\(test_progress_events\.py, line \d+: ZeroDivisionError: a fault\)"
    assert re.match(rf"The display of --logger coalmine stopped {where}\. The run is not affected", told[0])
    assert lines[-1].startswith("Elapsed time: ")  # Snakemake's own words go on


def test_nobody_left_to_read_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(Pipe):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    assert shown(monkeypatch, "failed") != []
    stream = Closed()
    shows = handler(monkeypatch, stream)
    for event in recorded("failed"):
        shows.emit(record(event))
    shows.close()


def test_announced_jobs_bring_methods_before_they_begin() -> None:
    events = recorded("interrupted")
    stats = next(event["stats"] for event in events if event.get("event") == "run_info")
    jobs = next(event["jobs"] for event in events if event.get("event") == JOBS)
    run = Run(BEGUN, {rule: n for rule, n in stats.items() if rule != "total"}, {"_cores": 2}, False)  # type: ignore[attr-defined]
    order = list(run.stages())
    assert {task.kind[1] for task in run.tasks(BEGUN)} == {""}
    run.plan(map(Job.of, jobs))  # type: ignore[arg-type]
    assert list(run.stages()) == order
    kinds = {task.kind for task in run.tasks(BEGUN)}
    assert {("train", "undefended"), ("synthesize", "dm"), ("experts", "quick"), ("score", "shuffled")} <= kinds
    assert run.total == len(run.tasks(BEGUN)) == 63
    sizes = {task.kind[0]: task.size for task in run.tasks(BEGUN)}
    assert (sizes["train"], sizes["distil"], sizes["score"]) == (3, 3, 1)


def test_failed_jobs_and_what_waits_for_them_are_not_to_be_waited_for() -> None:
    run = Run(0.0, {"fit.a.000": 1, "train.a.000": 1, "score": 2}, {}, False)
    run.plan(
        [
            Job(0, "fit.a.000", "a"),
            Job(1, "train.a.000", "a", after=frozenset({0})),
            Job(2, "score", "a", after=frozenset({1})),
            Job(3, "score", "b"),
        ]
    )
    run.begin(Job(0, "fit.a.000", "a"), 1.0)
    assert run.fail(0, 5.0) is not None
    assert [task.id for task in run.tasks(6.0)] == [3]
    run.begin(Job(0, "fit.a.000", "a"), 7.0)  # Snakemake tries again
    assert sorted(task.id for task in run.tasks(8.0)) == [0, 1, 2, 3]
    assert run.failed == {}


def test_a_job_that_waits_in_a_cluster_runs_from_its_first_words_on() -> None:
    run = Run(0.0, {"train.a.000": 3}, {"_nodes": 100}, True)
    for number in range(3):
        run.begin(Job(number, "train.a.000", "a", needs={"_nodes": 1}), 10.0, local=False)
    run.observe(lambda progress: 50.0 if progress.job.id == 1 else None)
    assert [task.elapsed for task in run.tasks(60.0)] == [None, 10.0, None]
    assert run.capacity_now() == {"_nodes": 1}
    assert run.finish(1, 70.0) == (run.planned[1], 20.0)


@pytest.mark.parametrize(
    ("rule", "stage"),
    [("train.a-b.016", "train"), ("pretrain_denoiser", "pretrain_denoiser"), ("all", "all")],
)
def test_a_stage_is_a_rule_without_method_and_shadow_models(rule: str, stage: str) -> None:
    assert stage_of(rule) == stage


def test_ten_thousand_jobs_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Pipe()
    shows = handler(monkeypatch, stream)
    shows.emit(record({"created": 0, "event": "run_info", "stats": {"train.a.000": 10_000}}))
    begun = time.perf_counter()
    for number in range(10_000):
        fields = {
            "jobid": number,
            "rule_name": "train.a.000",
            "wildcards": {"method": f"m{number % 9}"},
            "input": [f"in/{number}-{part}" for part in range(60)],
            "output": [f"results/run/models/m/{shadow:03d}.json" for shadow in range(16)],
            "resources": {"_cores": 1},
        }
        shows.emit(record({"created": number / 1e3, "event": "job_info", **fields}))
        shows.emit(record({"created": (number + 1) / 1e3, "event": "job_finished", "job_id": number}))
    seconds = time.perf_counter() - begun
    shows.close()
    assert len(stream.getvalue().splitlines()) == 10_001
    assert seconds < 60  # some 5 s on an idle core
