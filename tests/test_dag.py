"""Snakemake's graph of jobs, held against what `snakemake --dry-run` says of the same configuration."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from coalmine.dag import Graph, read_graph
from coalmine.errors import CoalmineError

REPOSITORY = Path(__file__).resolve().parents[1]
SNAKEFILE = REPOSITORY / "Snakefile"


def graph_in(folder: Path, *targets: str, **options: object) -> Graph:
    return read_graph(targets, snakefile=SNAKEFILE, directory=folder, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return graph_in(tmp_path_factory.mktemp("empty"))


def dry_run(folder: Path, *arguments: str) -> Counter[str]:
    """The jobs by rule that Snakemake's own command line would run in an empty folder."""
    places = ["--snakefile", SNAKEFILE, "--directory", folder, "--workflow-profile", "none"]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments, *places, "--quiet", "rules", "--dry-run", "--cores", "1"],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    printed = done.stdout + done.stderr
    table = re.search(r"^job +count\n[- ]+\n(.*?)^total +(\d+)", printed, flags=re.MULTILINE | re.DOTALL)
    assert table, printed[-3000:]
    jobs = Counter({name: int(count) for name, count in (line.split() for line in table[1].splitlines())})
    assert jobs.total() == int(table[2])
    return jobs


def test_jobs_are_those_of_a_dry_run(whole: Graph, tmp_path: Path) -> None:
    assert Counter(job.rule for job in whole.jobs if job.needed) == dry_run(tmp_path)


def test_jobs_of_a_preset_and_a_target_are_those_of_a_dry_run(tmp_path: Path) -> None:
    preset = REPOSITORY / "workflow/presets/lite.yaml"
    graph = graph_in(tmp_path, "results/figure1.csv", configfiles=[preset])
    assert graph.run.name == "lite"
    expected = dry_run(tmp_path, "results/figure1.csv", "--configfile", str(preset))
    assert Counter(job.rule for job in graph.jobs if job.needed) == expected


def test_every_job_comes_after_those_that_make_its_inputs(whole: Graph) -> None:
    made: set[Path] = set()
    everything = {path for job in whole.jobs for path in job.outputs}
    for job in whole.jobs:
        assert not (everything & {*job.inputs}) - made, job
        made |= {*job.outputs}


def test_a_job_says_its_stage_method_program_spec_and_code(whole: Graph) -> None:
    (job,) = [job for job in whole.jobs if Path("results/demo/models/dm/000.safetensors") in job.outputs]
    assert (job.stage, job.subject, job.program) == ("train", "dm", "train")
    assert job.rule.startswith("train")
    assert job.spec is not None
    assert job.spec["method"] == "dm"
    assert job.code == whole.run.method_code("train", "dm")
    assert Path("results/demo/synthetic/dm/000.npz") in job.inputs
    assert Path("results/demo/models/dm/000.json") in job.outputs
    assert (job.needed, job.incomplete) == (True, ())
    assert job.reason.startswith("output files have to be generated")
    programs = {job.stage: job.program for job in whole.jobs}
    assert programs["design_worst"] == "design"
    assert programs["prepare_private"] == programs["prepare_public"] == "prepare"
    assert programs["publish_table"] == programs["all"] == ""


def test_files_that_are_found_are_explained_if_a_rule_makes_them(tmp_path: Path) -> None:
    table, unknown = Path("results/demo/table3.csv"), Path("results/demo/models/nothing/000.safetensors")
    alone = graph_in(tmp_path, "results/demo/config.json")
    assert [job.rule for job in alone.jobs] == ["configuration"]
    further = graph_in(tmp_path, "results/demo/config.json", found=[table, unknown, Path("README.md")])
    outputs = {path for job in further.jobs for path in job.outputs}
    assert table in outputs
    assert unknown not in outputs


def test_nothing_is_run_or_written_but_snakemakes_own_folder(tmp_path: Path) -> None:
    here = Path.cwd()
    assert not graph_in(tmp_path, "results/table3.csv").locked
    assert {path.name for path in tmp_path.iterdir()} <= {".snakemake"}
    assert Path.cwd() == here


@pytest.mark.parametrize(
    ("targets", "options", "told"),
    [
        (["results/nothing.csv"], {}, r"No rule to produce results/nothing\.csv"),
        ([], {"configfiles": [Path("no.yaml")]}, r"no\.yaml, given as --configfile, does not exist"),
        ([], {"snakefile": Path("nowhere/Snakefile")}, "run this command in the folder of the Snakefile"),
    ],
)
def test_what_snakemake_refuses_is_told_in_a_sentence(
    tmp_path: Path, targets: list[str], options: dict[str, object], told: str
) -> None:
    with pytest.raises(CoalmineError, match=told) as caught:
        read_graph(targets, **{"snakefile": SNAKEFILE, "directory": tmp_path, **options})  # type: ignore[arg-type]
    assert "Traceback" not in str(caught.value)


def test_a_wrong_configuration_is_told_whole(tmp_path: Path) -> None:
    overlay = tmp_path / "wrong.yaml"
    overlay.write_text("sedd: 1\nexecution: {batch: 0}\n")
    with pytest.raises(CoalmineError, match="nothing was started") as caught:
        graph_in(tmp_path, configfiles=[overlay])
    assert "sedd: is not a known key; did you mean seed?" in str(caught.value)
    assert "execution.batch" in str(caught.value)
