"""How jobs are spread over the GPUs of one machine. No GPU is needed: a pretended `nvidia-smi` lists some."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from checkouts import Checkout, copy_sources

LISTING = "GPU 0: NVIDIA Pretended (UUID: GPU-aaaa-1)\nGPU 1: NVIDIA Pretended (UUID: GPU-bbbb-2)\n"


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{LISTING}'\n")
    (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    copy_sources(tmp_path / "checkout")
    return Checkout(tmp_path / "checkout")


def threads(checkout: Checkout, stage: str, cores: int) -> set[int]:
    """Return the threads of a stage's jobs in a dry run."""
    printed = checkout.snakemake("all", "--dry-run", "--printshellcmds", "--quiet", "host", "--cores", str(cores))
    return {int(count) for count in re.findall(rf"stages\.{stage} .*?--threads (\d+)", printed, re.DOTALL)}


@pytest.mark.parametrize(
    ("cores", "jobs_per_gpu", "wanted"),
    [
        (16, 1, 6),  # two jobs of six fit into 16 cores, three don't, and four cores are left for attacks
        (8, 1, 3),
        (2, 1, 1),
        (16, 3, 3),  # six slots: five jobs fit into 16 cores
    ],
)
def test_no_more_jobs_fit_into_the_cores_than_gpus_can_take(
    two_gpus: Checkout, cores: int, jobs_per_gpu: int, wanted: int
) -> None:
    two_gpus.configure(execution={"device": "auto", "jobs_per_gpu": jobs_per_gpu})
    assert threads(two_gpus, "train", cores) == {wanted}
    assert cores // wanted <= 2 * jobs_per_gpu


def test_without_a_gpu_every_job_has_one_thread(two_gpus: Checkout) -> None:
    two_gpus.configure(execution={"device": "cpu"})
    assert threads(two_gpus, "train", 16) == {1}


def test_more_gpus_than_there_are_are_refused_before_any_job(two_gpus: Checkout) -> None:
    two_gpus.configure(execution={"device": "auto", "gpus": 5})
    printed = two_gpus.snakemake("all", "--dry-run", "--cores", "2", check=False)
    assert "execution.gpus is 5, but this process can use 2 GPUs here. Ask for no more" in printed
    assert "Traceback" not in printed


def test_jobs_that_train_claim_the_gpus_that_there_are(two_gpus: Checkout) -> None:
    two_gpus.configure(execution={"device": "auto", "batch": 1})
    two_gpus.snakemake("results/small/models/undefended/000.safetensors", "--cores", "2")
    (folder,) = two_gpus.root.parent.glob("coalmine-gpus-*")
    assert [path.name for path in folder.iterdir()] == ["GPU-aaaa-1.0.lock"]
