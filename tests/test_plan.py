"""`coalmine plan`: the jobs of a dry run with prices, for people and for scripts."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from coalmine import plan
from coalmine.__main__ import FAULT, main
from coalmine.dag import read_graph

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command on an empty folder of results; return its exit status and what it prints."""
    monkeypatch.chdir(REPOSITORY)

    def asked(*arguments: str) -> tuple[int, str, str]:
        status = main(["plan", *arguments, "--directory", str(tmp_path), "--cores", "2"])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return asked


def test_the_plan_holds_the_jobs_that_snakemake_would_run(ask: Any, tmp_path: Path) -> None:
    status, printed, _ = ask("results/table3.csv", "--json")
    told = json.loads(printed)
    assert status == 0
    jobs = [job for job in read_graph(["results/table3.csv"], directory=tmp_path).jobs if job.needed]
    assert told["jobs"] == {"needed": len(jobs), "all": len(jobs)}
    expected = Counter((job.subject, "models") for job in jobs if job.program == "train")
    assert expected == {(name, "models"): 2 for name in ("dm", "dsa", "mtt", "tesla")}
    lines = {(line["method"], line["stage"]): line for line in told["lines"]}
    for key, count in expected.items():
        assert (lines[key]["jobs"], lines[key]["artefacts"]) == (count, 32)
    assert ("small", "experts") in lines
    for line in lines.values():
        assert 0 < line["seconds_low"] < line["seconds"] < line["seconds_high"], line
        assert line["level"] != "unscaled", line
        assert line["disk_mb"] > 0
    assert told["unpriced"] == {}
    wall = told["wall_seconds"]
    assert (
        max(wall["longest_chain"], told["seconds"]["median"] / 2.2) <= wall["median"] <= told["seconds"]["median"] * 1.1
    )


def test_the_display_of_a_run_begins_with_the_seconds_of_the_plan(
    ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, printed, _ = ask("results/figure5.csv", "--json")
    graph = read_graph(["results/figure5.csv"], directory=tmp_path)
    jobs = {3 * number: job for number, job in enumerate(graph.jobs)}
    expected = plan.expected_seconds(jobs, graph.run, tmp_path)
    assert expected.keys() == jobs.keys()
    assert all((expected[number] > 0) == (job.spec is not None) for number, job in jobs.items())
    # A sum of means there, a median of sums here.
    assert sum(expected.values()) == pytest.approx(json.loads(printed)["seconds"]["median"], rel=0.2)
    monkeypatch.setattr("coalmine.costs.devices.processor", lambda: "A processor that nobody knows")
    assert plan.expected_seconds(jobs, graph.run, tmp_path) == expected
    monkeypatch.setattr(plan, "uses_gpu", lambda jobs, run: True)
    monkeypatch.setattr("coalmine.costs.devices.card", lambda: "A card that nobody knows")
    assert plan.expected_seconds(jobs, graph.run, tmp_path) == {}


def test_people_read_the_table_its_totals_and_what_they_rest_on(ask: Any) -> None:
    status, printed, _ = ask("results/figure5.csv", "--device", "A card that nobody knows", "--like", "NVIDIA H200")
    assert status == 0
    assert "results/figure5.csv of the run demo" in printed
    assert "0 up to date" in printed
    assert any(line.split()[:2] == ["forgetting", "synthesis"] for line in printed.splitlines())
    for word in ("total: ", "time to the end with 2 cores: ", "memory: ", "disk: ", "Intervals hold 80%"):
        assert word in printed
    assert "No record of A card that nobody knows: hours are those of" in printed
    assert "NVIDIA H200, at its data sheet's peak" in printed
    assert max(map(len, printed.split("\n\n")[1].splitlines())) < 140


@pytest.mark.parametrize(("load", "busy"), [(7.5, True), (1.5, False)])
def test_a_busy_machine_is_told(ask: Any, monkeypatch: pytest.MonkeyPatch, load: float, busy: bool) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    _, printed, _ = ask("results/figure5.csv")
    assert ("This machine is busy: 7.5 processes want its 2 cores" in printed) == busy


def test_scripts_read_one_row_for_each_method_and_stage(ask: Any) -> None:
    _, printed, _ = ask("results/figure5.csv", "--csv")
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert {(row["method"], row["stage"]) for row in rows} == {
        (method, stage) for method in ("random", "forgetting") for stage in ("synthetic", "models", "logits", "scores")
    }
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_a_preset_for_gpus_is_priced_whole(ask: Any) -> None:
    preset = str(REPOSITORY / "workflow/presets/paper.yaml")
    _, printed, _ = ask("results/table3.csv", "--configfile", preset, "--gpus", "8", "--json")
    told = json.loads(printed)
    assert told["wall_seconds"]["gpus"] == 8
    assert told["unpriced"].keys() <= {"download"}
    assert all(line["seconds"] for line in told["lines"])
    spread = told["seconds"]["high"] / told["seconds"]["low"]
    assert spread > 2, "an extrapolation to larger networks on another device is no sure thing"


def test_twice_the_speed_is_half_the_seconds(ask: Any) -> None:
    plain, fast = (json.loads(ask("results/figure5.csv", "--json", "--speed", speed)[1]) for speed in ("1", "2"))
    for before, after in zip(plain["lines"], fast["lines"], strict=True):
        assert after["seconds"] == pytest.approx(before["seconds"] / 2, rel=1e-6)


def test_a_disk_that_is_too_small_is_an_answer_that_scripts_stop_at(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    status, printed, _ = ask("results/figure5.csv")
    assert status == plan.DOES_NOT_FIT == 1
    assert "WARNING: the disk is too small" in printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("results/table99.csv",), "table99"),
        (("results/figure5.csv", "--speed", "0"), "--speed is 0; expected a number above 0"),
        (("results/figure5.csv", "--like", "a toaster"), "The peak of 'a toaster' is not known"),
        (("results/figure5.csv", "--configfile", "absent.yaml"), "absent.yaml"),
    ],
)
def test_what_cannot_be_planned_is_said(ask: Any, arguments: tuple[str, ...], told: str) -> None:
    status, _, error = ask(*arguments)
    assert status == FAULT
    assert told in error
