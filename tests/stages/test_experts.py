"""The stage that trains experts, as anyone can call it, and what an interrupted job of it leaves behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coalmine.artefacts import read_json, read_safetensors, write_json, write_npy
from coalmine.audit.design import draw_design
from coalmine.data.sources import digits
from coalmine.distillation.settings import Experts
from coalmine.distillation.trajectories import Trajectories
from coalmine.kept import drop_kept
from coalmine.models.settings import MLP, ConvNet
from coalmine.provenance import code_hash
from coalmine.run_files import write_design
from coalmine.shadows import PrivateData
from coalmine.stages import _command
from coalmine.stages import experts as stage
from coalmine.training import whitening
from coalmine.training.recipe import Normalisation, Siamese

SETTINGS = Experts(
    model=ConvNet(depth=1, width=4),
    experts=4,
    epochs=2,
    batch_size=16,
    siamese=Siamese(operations=("crop", "rotate")),
)
SPEC: dict[str, Any] = {
    "seed": 3,
    "experts": "small",
    "settings": SETTINGS.model_dump(mode="json"),
    "normalisation": Normalisation(mean=(0.3,), std=(0.35,)).model_dump(mode="json"),
}


class Job:
    """A folder with data and design, and a call of the stage in this process."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self._patch = root, monkeypatch
        train = digits.load(digits.Settings(), [], np.random.default_rng(0)).train
        self.images, self.labels = train.images[:60], train.labels[:60]
        self.design = draw_design(self.labels, 10, 6, 12)
        self.write()

    def write(self) -> None:
        write_npy(self.root / "images.npy", self.images)
        write_npy(self.root / "labels.npy", self.labels)
        write_json(self.root / "classes.json", {"classes": list(digits.CLASSES)})
        write_design(self.root / "canaries.csv", self.root / "membership.npy", self.design)

    def run(self, *shadows: int, mode: str = "sequential", **changes: Any) -> int:
        spec = {**SPEC, **changes}
        files = [self.root / f"experts/small/{one:03d}.{end}" for end in ("safetensors", "json") for one in shadows]
        private = [self.root / name for name in ("images.npy", "labels.npy", "classes.json")]
        line = ["experts", "--spec", json.dumps(spec), "--private", *map(str, private), "--design"]
        line += [str(self.root / "canaries.csv"), str(self.root / "membership.npy"), "--device", "cpu", "--mode", mode]
        line += ["--threads", "1", "--out", *map(str, files)]
        self._patch.setattr(sys, "argv", line)
        try:
            _command.run(stage.main)
        except SystemExit as end:
            return int(end.code or 0)
        drop_kept(self.root)  # as Snakemake does after a run
        return 0

    def file(self, shadow: int) -> Path:
        return self.root / f"experts/small/{shadow:03d}.safetensors"

    def data(self) -> PrivateData:
        return PrivateData(self.images, self.labels, digits.CLASSES, self.design)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    threads = torch.get_num_threads()
    yield Job(tmp_path, monkeypatch)
    torch.set_num_threads(threads)


def test_each_shadow_model_has_a_file_of_its_experts_with_what_determines_it(job: Job) -> None:
    assert job.run(1, 4) == 0
    for shadow in (1, 4):
        read = Trajectories(job.file(shadow))
        assert read.header == {
            "stage": "experts",
            "spec": SPEC,
            "code": code_hash("coalmine.stages.experts"),
            "shadow": shadow,
            "shape": {"channels": 1, "image_size": 8, "classes": 10},
            "inputs": job.data().digests(),
        }
        assert (read.experts, read.epochs, read.settings) == (4, 2, SETTINGS)
        measured = read_json(job.file(shadow).with_suffix(".json"))
        assert measured["seconds"] > 0
        assert measured["bytes"] == job.file(shadow).stat().st_size
    weights = [read_safetensors(job.file(shadow))[1]["weights"] for shadow in (1, 4)]
    assert weights[0].shape == (4, 3, 4 * 9 + 4 + 4 + 4 + 4 * 16 * 10 + 10)
    # Experts differ from each other, between shadow models and from epoch to epoch: no two snapshots are one array.
    every = np.concatenate([one.reshape(12, -1) for one in weights])
    distances = np.abs(every[:, None] - every[None]).max(axis=2) + np.eye(24)
    assert distances.min() > 1e-3


def test_the_same_command_gives_the_same_bytes_whatever_the_batch(job: Job) -> None:
    job.run(1, 4)
    first = job.file(4).read_bytes()
    job.file(4).unlink()
    job.run(4)
    assert job.file(4).read_bytes() == first


def test_no_excluded_sample_changes_a_file_but_for_the_digest_of_the_data(job: Job) -> None:
    job.run(1)
    before = read_safetensors(job.file(1))[1]["weights"]
    excluded = np.setdiff1d(np.arange(60), job.data().shadow(1).index)
    assert len(excluded) > 3
    job.images = job.images.copy()
    job.images[excluded] = 255 - job.images[excluded]
    job.write()
    job.run(1)
    np.testing.assert_array_equal(read_safetensors(job.file(1))[1]["weights"], before)


def test_a_whitening_is_fitted_on_the_shadow_models_own_images(job: Job) -> None:
    settings = SETTINGS.model_copy(update={"zca": True, "experts": 1})
    assert job.run(1, 4, settings=settings.model_dump(mode="json")) == 0
    for shadow in (1, 4):
        read = Trajectories(job.file(shadow)).whitening
        assert read is not None
        fitted = whitening.fit(job.data().shadow(shadow).images)
        np.testing.assert_array_equal(read.matrix, fitted.matrix)
        np.testing.assert_array_equal(read.mean, fitted.mean)


# --- interrupted jobs --------------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for a kill."""


def kill_at(expert: int, shadow: int, patch: pytest.MonkeyPatch) -> Callable[[], list[tuple[int, list[int]]]]:
    """Have the training stop before an expert, and note which experts are trained."""
    train, seen = stage.Training._train, []

    def training(self: Any, of: Any, experts: Any, *data: Any) -> Any:
        if (of.number, expert) in [(shadow, one) for one in experts]:
            raise KilledError
        seen.append((of.number, list(experts)))
        return train(self, of, experts, *data)

    patch.setattr(stage.Training, "_train", training)
    return lambda: seen


@pytest.mark.parametrize("mode", ["sequential", "stacked"])
def test_finished_experts_survive_a_kill_and_the_file_has_the_same_bytes(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    monkeypatch.setattr("coalmine.distillation.experts.STACKED_AT_ONCE", 1)
    job.run(1, 4, mode=mode)
    expected = {shadow: job.file(shadow).read_bytes() for shadow in (1, 4)}
    for shadow in (1, 4):
        job.file(shadow).unlink()
    monkeypatch.setattr(stage, "SECONDS_BETWEEN", 0.0)
    with monkeypatch.context() as patch:
        kill_at(2, shadow=4, patch=patch)
        with pytest.raises(KilledError):
            job.run(1, 4, mode=mode)
    assert not job.file(1).exists()
    assert len(list(job.file(4).parent.glob(".finished/004.experts-*.npz"))) == 2
    with monkeypatch.context() as patch:
        trained = kill_at(99, shadow=4, patch=patch)
        capsys.readouterr()
        assert job.run(1, 4, mode=mode) == 0
        assert trained() == [(4, [2]), (4, [3])]
    assert (
        "experts small 1, 4: model 4: 2 experts were finished by an interrupted job and are kept"
        in capsys.readouterr().out
    )
    assert {shadow: job.file(shadow).read_bytes() for shadow in (1, 4)} == expected
    assert not (job.root / "experts/small/.finished").exists()


def test_experts_of_other_settings_or_code_are_not_taken_over(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SECONDS_BETWEEN", 0.0)
    with monkeypatch.context() as patch:
        kill_at(2, shadow=4, patch=patch)
        with pytest.raises(KilledError):
            job.run(4)
    with monkeypatch.context() as patch:
        trained = kill_at(99, shadow=4, patch=patch)
        job.run(4, settings=SETTINGS.model_copy(update={"learning_rate": 0.02}).model_dump(mode="json"))
        assert trained() == [(4, [expert]) for expert in range(4)]
    assert not (job.root / "experts/small/.finished").exists()


def test_the_measured_seconds_include_those_of_the_interrupted_job(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(stage.time, "perf_counter", lambda: now[0])
    kept = stage._Kept(job.root / ".finished/004.safetensors", {"stage": "experts"})
    for expert, moment in enumerate((50.0, 100.0, 130.0)):  # the second is saved with the first, the third never
        now[0] = moment
        kept.add(expert, np.zeros((3, 5)))
    again = stage._Kept(job.root / ".finished/004.safetensors", {"stage": "experts"})
    assert sorted(again.load()) == [0, 1]
    now[0] += 7
    assert again.seconds() == 100 + 7


def test_divergence_ends_the_job_with_one_sentence(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": 1e38, "model": MLP(hidden=(4,))})
    assert job.run(1, settings=settings.model_dump(mode="json")) == 1
    assert "diverged in epoch 1 of 2" in capsys.readouterr().err
