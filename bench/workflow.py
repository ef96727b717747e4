"""What the workflow itself costs: planning large graphs, starting a stage, running jobs.

    python bench/workflow.py graph     # dry runs: 1,000 shadow models x 20 methods, and 10,000 jobs
    python bench/workflow.py start     # each stage until its arguments are read
    python bench/workflow.py overhead  # seconds of Snakemake and of starting Python for each job, in a real small run

Results are in bench/README.md. Nothing is trained but the small run of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES = sorted(path.stem for path in (REPOSITORY / "src/coalmine/stages").glob("[a-z]*.py"))
METHODS = [
    *("undefended", "dpsgd-veryhigh", "dpsgd-eps8", "dpsgd-eps1"),
    *("random", "forgetting", "herding", "rded"),
    *("dm", "dsa", "mtt", "tesla", "datm", "dm-public", "dsa-public", "mtt-public"),
    *("deepinversion", "fast", "dfq", "diffusion-scratch"),
]
"""Of the default run: trained on private data, on coresets, distilled sets, dreamt and drawn images."""


def environment() -> dict[str, str]:
    """Return the environment in which the sources beside this file are run."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "PATH": path, "OMP_NUM_THREADS": "1"}


def measured(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Run a command; return its seconds, its peak memory in MB (10^6 bytes) and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6, done.stdout


def graph(shadows: int, batch: int) -> dict[str, object]:
    """Dry-run table 1 of so many shadow models of all ``METHODS``."""
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    fewer = {name: {"shadows": min(32, shadows)} for name, own in config["methods"].items() if "shadows" in own}
    overlay = {
        "run": "large",
        "shadows": shadows,
        "methods": fewer | {"diffusion-scratch": {"shadows": shadows}},
        "tables": {"table1": {"methods": METHODS}},
        "execution": {"batch": batch},
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "overlay.yaml"
        file.write_text(yaml.safe_dump(overlay))
        target = "results/large/table1.csv"
        command = [sys.executable, "-m", "snakemake", target, "--dry-run", "--cores", "2", "--configfile", str(file)]
        seconds, memory, printed = measured([*command, "--quiet", "all", "--directory", folder, *HERE], REPOSITORY)
    (jobs,) = {int(total) for total in re.findall(r"^total +(\d+)$", printed, re.MULTILINE)}
    return {"shadows": shadows, "batch": batch, "jobs": jobs, "seconds": round(seconds, 1), "memory_mb": round(memory)}


HERE = ("--snakefile", str(REPOSITORY / "Snakefile"), "--workflow-profile", str(REPOSITORY / "profiles/default"))


def start(stage: str) -> dict[str, object]:
    """Start a stage and let it read its arguments, the fastest of five times."""
    command = [sys.executable, "-m", f"coalmine.stages.{stage}", "--help"]
    return {"stage": stage, "seconds": round(min(measured(command, REPOSITORY)[0] for _ in range(5)), 2)}


def overhead() -> dict[str, object]:
    """Make the tests' small run on one core and subtract what its jobs took from the whole."""
    sys.path.insert(0, str(REPOSITORY / "tests/workflow"))
    from checkouts import Checkout, copy_sources

    with tempfile.TemporaryDirectory() as folder:
        copy_sources(Path(folder) / "checkout")
        checkout = Checkout(Path(folder) / "checkout")
        checkout.configure()
        began = time.perf_counter()
        checkout.snakemake("all", "--cores", "1")
        whole = time.perf_counter() - began
        records = [json.loads(path.read_text()) for path in (checkout.root / ".snakemake/metadata").rglob("*")]
    # Outputs of one job share its times.
    jobs = {(record["rule"], record["starttime"]): record["endtime"] - record["starttime"] for record in records}
    return {
        "jobs": len(jobs),
        "seconds": round(whole, 1),
        "seconds_of_jobs": round(sum(jobs.values()), 1),
        "controller_seconds_per_job": round((whole - sum(jobs.values())) / len(jobs), 3),
        "start_of_a_training_job": start("train")["seconds"],
    }


def main() -> None:
    """Run one benchmark and print its results as JSON lines."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("what", choices=("graph", "start", "overhead"))
    what = command.parse_args().what
    if what == "graph":
        # Snakemake's own 10,000 jobs come from one shadow model a job.
        results = (graph(shadows, batch) for shadows, batch in ((1000, 32), (1000, 16), (180, 1)))
    elif what == "start":
        results = map(start, STAGES)
    else:
        results = iter([overhead()])
    for result in results:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
