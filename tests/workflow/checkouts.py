"""Copies of the repository with a small configuration of their own, in which Snakemake runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ("Snakefile", "config.yaml", "workflow", "profiles", "envs", "src", "requirements.lock")

SMALL: dict[str, Any] = {
    "run": "small",
    "shadows": 6,
    "data": {"private_size": 120, "test_size": 40, "public": {"module": "rendered_digits", "size": 40}},
    "audit": {"canaries": 12, "average": {"models": "shared", "samples": 12}, "bootstrap": 20},
    "model": {"name": "mlp", "hidden": [16]},
    "training": {"epochs": 2, "batch_size": 32},
    "experts": {"quick": {"experts": 1, "epochs": 2, "batch_size": 32, "model": {"name": "mlp", "hidden": [8]}}},
    "methods": {
        "undefended": {"module": "undefended", "label": "Undefended"},
        "random": {"module": "coreset", "selection": "random", "fraction": 0.5},
        "forgetting": {"module": "coreset", "selection": "forgetting", "fraction": 0.5, "scoring_epochs": 2},
        "dm": {"module": "dm", "images_per_class": 1, "iterations": 3, "batch_size": 8, "network": {"name": "mlp"}},
        "mtt": {
            "module": "mtt",
            "experts": "quick",
            "images_per_class": 1,
            "iterations": 2,
            "steps": 2,
            "expert_epochs": 1,
            "max_start": 2,
        },
        "dfkd": {
            "module": "dfkd",
            "algorithm": "zskt",
            "batch_size": 16,
            "rounds": 2,
            "distillation_steps": 2,
            "latent": 8,
            "width": 8,
            "images": 12,
        },
        "second": {"module": "reuse", "set": "dfkd", "model": {"name": "mlp", "hidden": [8]}},
        "private": {"module": "dpsgd", "noise_multiplier": 2.0, "steps": 4, "batch_size": 32, "model": {"name": "mlp"}},
    },
    "visual": {"images": 3, "level": 0.25, "features": {"model": {"name": "mlp", "hidden": [16]}}},
    "controls": {"shuffled": {"of": "undefended"}},
    "tables": {
        "table1": {
            "methods": ["undefended", "random", "forgetting", "dm", "mtt", "dfkd", "second", "private", "shuffled"]
        },
        "table2": {"methods": ["dm", "mtt"]},
        "table3": {"methods": ["dm"]},
        "table4": {"methods": ["undefended", "random", "forgetting"], "baselines": ["private"]},
    },
    "figures": {
        "figure1": {"methods": ["undefended", "random", "forgetting"]},
        "figure5": {"methods": ["random", "forgetting"]},
        "figure6": {"methods": ["dm", "random"], "images": 2},
        "figure7": {"methods": ["undefended", "dm"]},
        "figure9": {"methods": ["dfkd", "second"]},
    },
    "execution": {"device": "cpu", "batch": 3},
}

_FEW = ("undefended", "dm", "private")
BRIEF: dict[str, Any] = {
    "methods": {name: SMALL["methods"][name] for name in _FEW},
    "experts": {},
    "visual": None,
    # Seconds are the one thing that two runs do not share.
    "tables": {"table1": {"methods": [*_FEW], "seconds": False}},
    "figures": {},
    "controls": {},
}
"""What the small run is cut down to where two runs are compared: one of each kind of method, one table."""

MESSAGES = {
    r"Accounting for the privacy of ([\w-]+)": "account",
    r"Training the ([\w-]+) experts": "experts",
    r"Fitting the ([\w-]+) generative models": "fit",
    r"Synthetic sets of ([\w-]+) ": "synthesize",
    r"Training the ([\w-]+) models": "train",
    r"Distilling the ([\w-]+) students": "distil",
    r"Querying the ([\w-]+) models": "logits",
    r"Attacking ([\w-]+)": "score",
    r"Comparing the images of ([\w-]+)": "resemble",
}
"""How Snakemake announces the jobs of the rules that have a method."""


SNAKEMAKE = (sys.executable, "-m", "snakemake")


def environment() -> dict[str, str]:
    """Return what Snakemake and its jobs are started with: this Python first, no other copy of the package."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**inherited, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


class Checkout:
    """A copy of the repository with a configuration of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def configure(self, **changes: object) -> None:
        """Write config.yaml: the small run with sections replaced."""
        base = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
        merged = {**base, **SMALL, "data": {**base["data"], **SMALL["data"]}}
        merged["audit"] = {**base["audit"], **SMALL["audit"]}
        merged["training"] = {**base["training"], **SMALL["training"]}
        (self.root / "config.yaml").write_text(yaml.safe_dump({**merged, **changes}, sort_keys=False))

    def snakemake(self, *arguments: str, check: bool = True) -> str:
        """Run Snakemake in the checkout and return what it printed."""
        done = subprocess.run(
            [*SNAKEMAKE, *arguments],
            cwd=self.root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if check and done.returncode:
            raise AssertionError(f"snakemake {' '.join(arguments)} failed:\n{done.stdout[-6000:]}")
        return done.stdout

    def planned(self, *arguments: str, target: str = "all") -> Counter[str]:
        """Return the jobs that a dry run would do, as ``stage`` or ``stage method``, with their numbers."""
        printed = self.snakemake(target, "--dry-run", "--cores", "2", "--quiet", "host", *arguments)
        jobs: Counter[str] = Counter()
        for pattern, stage in MESSAGES.items():
            jobs.update(f"{stage} {method}" for method in re.findall(rf"^Job \d+: {pattern}", printed, re.MULTILINE))
        table = re.search(r"^job +count\n[- ]+\n(.*?)^total +(\d+)", printed, flags=re.MULTILINE | re.DOTALL)
        if table is None:
            assert "Nothing to be done" in printed, printed
            return jobs
        for line in table[1].splitlines():
            name, count = line.split()
            stage = name.partition(".")[0]
            if stage not in MESSAGES.values():
                jobs[stage] += int(count)
        assert jobs.total() == int(table[2]), printed
        return jobs

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace text in a source file; it must be there."""
        file = self.root / path
        text = file.read_text()
        assert old in text, f"{path} has no {old!r}"
        file.write_text(text.replace(old, new, 1))


def copy_sources(target: Path, repository: Path = REPOSITORY) -> None:
    """Copy what Snakemake needs out of a repository, this one if no other is named."""
    for name in SOURCES:
        source = repository / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
