"""The reduced demo through a real Slurm equals the local one, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cluster
import pytest
from checkouts import BRIEF, Checkout, copy_sources

pytestmark = [
    pytest.mark.skipif(cluster.why_not() is not None, reason=str(cluster.why_not())),
    pytest.mark.xdist_group("slurm"),  # what they share takes long to make
]

# What this one node needs besides the profile that is shipped: no accounting to ask, and little patience.
HERE = (
    "--slurm-status-command", "squeue",
    "--slurm-init-seconds-before-status-checks", "3",
    "--seconds-between-status-checks", "2",
    "--latency-wait", "5",
    "--slurm-keep-successful-logs",
)  # fmt: skip


def checkout(folder: Path, **execution: object) -> Checkout:
    copy_sources(folder)
    made = Checkout(folder)
    made.configure(**BRIEF, execution={"batch": 3, **execution})
    return made


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = checkout(tmp_path_factory.mktemp("local"), device="cpu")
    made.snakemake("results/table1.csv", "--cores", "2")
    return made


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # Sockets must have short names.
    with cluster.running(tmp_path_factory.mktemp("s")) as logs:
        yield logs


def artefacts(made: Checkout) -> dict[str, bytes]:
    """Return everything that a run made but measurements, their check sums and logs."""
    root = made.root / "results"
    found = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
    measured = {path.with_suffix(".json") for path in found if path.suffix in (".npz", ".safetensors")}
    return {
        str(path): full.read_bytes()
        for path, full in found.items()
        if path not in measured and ".sha256" not in path.parts and "logs" not in path.parts
    }


def test_table1_through_slurm_has_the_bytes_of_the_local_run(local: Checkout, slurm: Path, tmp_path: Path) -> None:
    # Jobs that train are handed a pretended GPU, and compute on the CPU.
    asked = {"train": {"gpu": 1}, "score": {"mem_mb": 1500, "runtime": 7, "slurm_partition": "main"}}
    through = checkout(tmp_path / "checkout", device="cpu", resources=asked)
    before = set(cluster.jobs())
    through.snakemake("results/table1.csv", "--workflow-profile", "profiles/slurm", *HERE)
    jobs = {number: job for number, job in cluster.jobs().items() if number not in before}
    assert artefacts(through) == artefacts(local)
    assert {job["JobState"] for job in jobs.values()} == {"COMPLETED"}
    trained = [job for job in jobs.values() if "rule_train." in job["StdOut"]]
    scored = [job for job in jobs.values() if "rule_score" in job["StdOut"]]
    assert len(trained) == 2 * len(BRIEF["methods"])
    assert len(scored) == len(BRIEF["methods"])
    assert {job.get("TresPerJob") for job in trained} == {"gres:gpu:1"}
    assert {job.get("TresPerJob") for job in scored} == {None}
    assert {(job["MinMemoryNode"], job["TimeLimit"]) for job in scored} == {("1500M", "00:07:00")}


def test_a_cluster_must_be_told_whether_jobs_want_gpus(slurm: Path, tmp_path: Path) -> None:
    undecided = checkout(tmp_path / "checkout", device="auto")
    printed = undecided.snakemake("results/table1.csv", "--workflow-profile", "profiles/slurm", *HERE, check=False)
    assert "Jobs run on other machines, but execution.device is auto" in printed
    assert not (undecided.root / "results/small").exists()
