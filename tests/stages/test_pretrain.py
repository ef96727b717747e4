"""The stage that trains a network on public data, as anyone can call it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coalmine.artefacts import digest, read_json, read_safetensors, write_npy
from coalmine.data.sources import digits
from coalmine.models.settings import MLP
from coalmine.provenance import code_hash
from coalmine.stages import _command
from coalmine.stages import pretrain as stage
from coalmine.training import loop
from coalmine.training.inference import embed, predict
from coalmine.training.recipe import Augmentation, Normalisation, Recipe

MODEL = MLP(hidden=(24,))
RECIPE = Recipe(
    epochs=15, batch_size=20, learning_rate=0.1, schedule="constant", augmentation=Augmentation(flip=False, shift=0)
)
NORMALISATION = Normalisation(mean=(0.3,), std=(0.35,))
SPEC: dict[str, Any] = {
    "seed": 3,
    "name": "features",
    "model": MODEL.model_dump(mode="json"),
    "training": RECIPE.model_dump(mode="json"),
    "normalisation": NORMALISATION.model_dump(mode="json"),
}


class Job:
    """A folder with public data, and a call of the stage in this process."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self._patch = root, monkeypatch
        train = digits.load(digits.Settings(), [], np.random.default_rng(0)).train
        self.images, self.labels = train.images[:120], train.labels[:120]

    def run(self, out: str = "features", **changes: Any) -> int:
        write_npy(self.root / "images.npy", self.images)
        write_npy(self.root / "labels.npy", self.labels)
        line = ["pretrain", "--spec", json.dumps({**SPEC, **changes}), "--public"]
        line += [str(self.root / "images.npy"), str(self.root / "labels.npy"), "--device", "cpu", "--threads", "1"]
        line += ["--out", str(self.root / f"{out}.safetensors"), str(self.root / f"{out}.json")]
        self._patch.setattr(sys, "argv", line)
        try:
            _command.run(stage.main)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def state(self, out: str = "features") -> dict[str, torch.Tensor]:
        _, weights = read_safetensors(self.root / f"{out}.safetensors")
        return {name: torch.from_numpy(array) for name, array in weights.items()}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


def test_the_network_tells_the_public_images_apart_and_says_so(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.run() == 0
    logits = predict(MODEL, job.state(), job.images, NORMALISATION, 10, device=torch.device("cpu"))[:, 0]
    right = (logits.argmax(axis=1) == job.labels).mean()
    assert right > 0.8
    assert capsys.readouterr().out.endswith(
        f"pretrain features: mlp trained on 120 public images of 10 classes, {right:.1%} of them right\n"
    )
    features, _ = embed(MODEL, job.state(), job.images, NORMALISATION, 10, device=torch.device("cpu"))
    assert features.shape == (120, 24)


def test_the_file_carries_what_determines_it_and_measurements_lie_beside_it(job: Job) -> None:
    assert job.run() == 0
    header, _ = read_safetensors(job.root / "features.safetensors")
    assert header == {
        "stage": "pretrain",
        "spec": SPEC,
        "code": code_hash("coalmine.stages.pretrain"),
        "classes": 10,
        "inputs": {"public": digest(job.images, job.labels)},
    }
    measured = read_json(job.root / "features.json")
    assert measured["bytes"] == (job.root / "features.safetensors").stat().st_size
    assert measured["seconds"] > 0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_or_name_other_weights(job: Job) -> None:
    for out, changes in (("one", {}), ("two", {}), ("seed", {"seed": 4}), ("name", {"name": "other"})):
        assert job.run(out, **changes) == 0
    one, two = (job.root / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    for other in ("seed", "name"):
        assert not torch.equal(job.state(other)["head.weight"], job.state("one")["head.weight"])


def test_the_number_of_classes_can_be_given(job: Job) -> None:
    assert job.run(classes=12) == 0
    assert len(job.state()["head.bias"]) == 12


def test_public_data_of_one_class_are_refused(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.labels = np.zeros_like(job.labels)
    assert job.run() == 1
    assert "120 public labels of 1 classes; a network learns features by telling at least 2" in capsys.readouterr().err
    assert not (job.root / "features.safetensors").exists()


def test_an_interrupted_training_goes_on_and_gives_the_same_bytes(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.run("whole") == 0
    monkeypatch.setattr("coalmine.checkpoint.SECONDS_BETWEEN", 0.0)
    update, left = loop._Training._update, iter(range(40))

    def make(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Training, "_update", make)
        with pytest.raises(KeyboardInterrupt):
            job.run()
    saved = job.root / ".unfinished/features.npz"
    assert saved.is_file()
    assert not (job.root / "features.safetensors").exists()
    content = saved.read_bytes()
    capsys.readouterr()
    assert job.run() == 0
    assert capsys.readouterr().out.startswith("pretrain features: features: taken up after step 40 of 90\n")
    assert (job.root / "features.safetensors").read_bytes() == (job.root / "whole.safetensors").read_bytes()
    assert not saved.exists()
    # Other settings begin anew.
    assert job.run("seed", seed=4) == 0
    saved.write_bytes(content)
    assert job.run(seed=4) == 0
    assert "taken up" not in capsys.readouterr().out
    assert (job.root / "features.safetensors").read_bytes() == (job.root / "seed.safetensors").read_bytes()
