"""Stages that are killed with signal 9 while they train: run again, they end with the same bytes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_stages import CONFIGURATION, Folder, call

from coalmine.config import check
from coalmine.kept import drop_kept

# What a job does in minutes is done in seconds here: it saves its state twenty times a second.
HURRIED = (
    "import runpy, sys, coalmine.checkpoint\n"
    "coalmine.checkpoint.SECONDS_BETWEEN = 0.05\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
)
LONG = {
    **CONFIGURATION,
    "training": {**CONFIGURATION["training"], "epochs": 500},
    "methods": {
        "undefended": {"module": "undefended"},
        "random": {"module": "coreset", "selection": "forgetting", "fraction": 0.5, "scoring_epochs": 500},
    },
}


class Long(Folder):
    """A run whose trainings take seconds."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.run = check(LONG)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def kill_in_training(line: list[str], folder: Path, rng: random.Random) -> str:
    """Run a stage as a process of its own; kill it some time after it has saved a state. Return what it printed."""
    job = subprocess.Popen([sys.executable, "-c", HURRIED, *line], stdout=subprocess.PIPE, text=True)
    seen = states(folder)
    while job.poll() is None and states(folder) == seen:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.4))
    job.send_signal(signal.SIGKILL)
    printed, _ = job.communicate()
    assert job.returncode == -signal.SIGKILL, "the training is too short for a kill in the middle"
    return printed


def states(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*/*/.finished/*.checkpoint.*.npz")}


@pytest.mark.parametrize(
    ("stage", "method", "mode"),
    [
        ("models", "undefended", "sequential"),
        ("models", "undefended", "stacked"),
        ("synthetic", "random", "sequential"),
    ],
)
def test_a_killed_stage_goes_on_where_it_stood(tmp_path: Path, stage: str, method: str, mode: str) -> None:
    whole, killed = Long(tmp_path / "whole"), Long(tmp_path / "killed")
    for folder in (whole, killed):
        assert call(folder.prepare()) == 0
        assert call(folder.draw()) == 0

    def line(folder: Long) -> list[str]:
        made = folder.train(method, range(3)) if stage == "models" else folder.synthesize(method, range(3))
        return [mode if one == "sequential" else one for one in made]

    assert call(line(whole)) == 0
    rng = random.Random(f"{stage} {mode}")
    printed = [kill_in_training(line(killed), killed.root, rng) for _ in range(2)]
    last = subprocess.run(
        [sys.executable, "-c", HURRIED, *line(killed)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert "taken up after step" in last
    assert "taken up after step" in printed[1]
    artefacts = f"{stage}/{method}/*.npz", f"{stage}/{method}/*.safetensors"
    assert len(whole.contents(*artefacts)) == 3
    assert killed.contents(*artefacts) == whole.contents(*artefacts)
    drop_kept(killed.root)  # as Snakemake does after a run
    assert not list(killed.root.rglob(".finished"))
    for number in range(3):
        measured = json.loads((killed.root / f"{stage}/{method}/{number:03d}.json").read_text())
        assert measured["seconds"] > 0
