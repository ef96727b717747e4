"""The stage that compares synthetic images with private ones, as anyone can call it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coalmine.artefacts import digest, read_json, read_npz, read_safetensors, write_json, write_npy, write_npz
from coalmine.audit.design import draw_design
from coalmine.audit.visual import Euclidean, Structural, resemblance, surroundings
from coalmine.data.sources import digits
from coalmine.models.settings import MLP
from coalmine.provenance import code_hash
from coalmine.run_files import write_design
from coalmine.shadows import PrivateData
from coalmine.stages import _command, pretrain
from coalmine.stages import resemble as stage
from coalmine.training.inference import embed
from coalmine.training.recipe import Augmentation, Normalisation, Recipe

SHADOWS = range(6)
NORMALISATION = Normalisation(mean=(0.3,), std=(0.35,))
SPEC: dict[str, Any] = {
    "seed": 3,
    "method": "tried",
    "images": 12,
    "level": 0.05,
    "confidence": 0.9,
    "bootstrap": 200,
    "normalisation": NORMALISATION.model_dump(mode="json"),
}
MODEL = MLP(hidden=(24,))
NETWORK: dict[str, Any] = {
    "seed": 3,
    "name": "features",
    "model": MODEL.model_dump(mode="json"),
    "training": Recipe(epochs=10, schedule="constant", augmentation=Augmentation(flip=False, shift=0)).model_dump(
        mode="json"
    ),
    "normalisation": NORMALISATION.model_dump(mode="json"),
}


class Job:
    """A folder with private, public and synthetic data, and a call of the stage in this process.

    The synthetic set of each shadow model: 5 copies of what it was given, 10 fresh images.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self._patch = root, monkeypatch
        train = digits.load(digits.Settings(), [], np.random.default_rng(0)).train
        self.images, self.labels = train.images[:120], train.labels[:120]
        self.public, self.public_labels = train.images[300:360], train.labels[300:360]
        self.fresh = train.images[400:460]
        self.design = draw_design(self.labels, 10, 6, 30, 20)
        write_npy(root / "images.npy", self.images)
        write_npy(root / "labels.npy", self.labels)
        write_npy(root / "public-images.npy", self.public)
        write_npy(root / "public-labels.npy", self.public_labels)
        write_json(root / "classes.json", {"classes": list(digits.CLASSES)})
        write_design(root / "canaries.csv", root / "membership.npy", self.design)
        for shadow in SHADOWS:
            source = np.concatenate([self.data().shadow(shadow).index[[3, 20, 41, 66, 80]], np.full(10, -1)])
            self.write(shadow, np.concatenate([self.images[source[:5]], self.fresh[10 * shadow :][:10]]), source)

    def data(self) -> PrivateData:
        return PrivateData(self.images, self.labels, digits.CLASSES, self.design)

    def write(self, number: int, images: np.ndarray, source: np.ndarray, **header: Any) -> None:
        """Write a synthetic set, and a file of measurements beside it, which the stage leaves alone."""
        made_by = {
            "stage": "synthesize",
            "spec": {"method": "tried"},
            "shadow": number,
            "inputs": self.data().digests(),
        }
        path = self.root / f"synthetic/tried/{number:03d}.npz"
        labels = np.zeros(len(images), dtype=np.int64)
        write_npz(path, made_by | header, {"images": images, "labels": labels, "source": source})
        write_json(path.with_suffix(".json"), {"seconds": 1})

    def pretrain(self, **changes: Any) -> Path:
        path = self.root / "pretrained/features.safetensors"
        line = ["--spec", json.dumps({**NETWORK, **changes}), "--public", *self.public_files(), "--device", "cpu"]
        assert self._call(pretrain, [*line, "--out", str(path), str(path.with_suffix(".json"))]) == 0
        return path

    def public_files(self) -> list[str]:
        return [str(self.root / f"public-{name}.npy") for name in ("images", "labels")]

    def run(self, *, public: bool = False, features: Path | None = None, **changes: Any) -> int:
        private = [str(self.root / name) for name in ("images.npy", "labels.npy", "classes.json")]
        line = ["--spec", json.dumps({**SPEC, **changes}), "--private", *private, "--design"]
        line += [str(self.root / "canaries.csv"), str(self.root / "membership.npy"), "--synthetic"]
        line += [str(path) for path in sorted((self.root / "synthetic/tried").iterdir(), reverse=True)]
        line += ["--public", *self.public_files()] if public else []
        line += ["--features", str(features), str(features.with_suffix(".json"))] if features else []
        line += ["--device", "cpu", "--threads", "1", "--out", *map(str, self.out)]
        return self._call(stage, line)

    def _call(self, module: Any, line: list[str]) -> int:
        self._patch.setattr(sys, "argv", [module.__name__, *line])
        try:
            _command.run(module.main)
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    @property
    def out(self) -> list[Path]:
        return [self.root / "visual/tried.npz", self.root / "visual/tried.json"]

    def result(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
        return (*read_npz(self.out[0]), read_json(self.out[1]))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


@pytest.fixture
def refused(job: Job, capsys: pytest.CaptureFixture[str]):
    """Run the stage, which must fail in one sentence and write nothing; return the sentence."""

    def run(**arguments: Any) -> str:
        capsys.readouterr()
        assert job.run(**arguments) == 1
        assert not any(path.exists() for path in job.out)
        return capsys.readouterr().err.strip()

    return run


def test_every_distance_index_and_p_value_is_the_audits_own(job: Job) -> None:
    network = job.pretrain(classes=12)
    assert job.run(public=True, features=network, images=100) == 0
    _, arrays, _ = job.result()
    weights = {name: torch.from_numpy(array) for name, array in read_safetensors(network)[1].items()}

    def features(images: np.ndarray) -> np.ndarray:
        return embed(MODEL, weights, images, NORMALISATION, 12, device=torch.device("cpu"))[0]

    kinds = {
        "pixel": (Euclidean(), np.asarray),
        "ssim": (Structural(), np.asarray),
        "features": (Euclidean(), features),
    }
    index = job.design.index
    for name, (metric, represent) in kinds.items():
        private, public = represent(job.images), represent(job.public)
        audited = surroundings(metric, private[index], private, index)
        for shadow in SHADOWS:
            rows = arrays["shadow"] == shadow
            images = represent(read_npz(job.root / f"synthetic/tried/{shadow:03d}.npz")[1]["images"])
            found = resemblance(surroundings(metric, images, private, index), audited, job.design.membership[:, shadow])
            for field, expected in (
                ("private", found.private.distance),
                ("private_index", found.private.index),
                ("held_out", found.held_out.distance),
                ("held_out_index", found.held_out.index),
                ("public", metric.matrix(images, public).min(axis=1)),
                ("public_index", metric.matrix(images, public).argmin(axis=1)),
                ("p", found.p),
            ):
                stored = arrays[f"{name}/{field}"]
                np.testing.assert_allclose(stored[rows], expected, atol=1e-5, err_msg=f"{name}/{field}")
                assert stored.dtype == (np.int64 if field.endswith("index") else np.float64)


def test_copies_are_found_with_their_sources_and_fresh_images_are_near_neither(job: Job) -> None:
    assert job.run(images=15) == 0
    _, arrays, told = job.result()
    copies = arrays["source"] >= 0
    assert copies.sum() == 30
    held_out = (~job.design.membership).sum(axis=0)
    for metric in ("pixel", "ssim"):
        np.testing.assert_array_equal(arrays[f"{metric}/private_index"][copies], arrays["source"][copies])
        np.testing.assert_array_equal(arrays[f"{metric}/private"][copies], 0)
        np.testing.assert_array_equal(arrays[f"{metric}/p"][copies], 1 / (1 + held_out[arrays["shadow"][copies]]))
        assert (arrays[f"{metric}/p"][~copies] > 0.05).mean() > 0.7
        share = told["metrics"][metric]["share"]
        assert 1 / 3 <= share["low"] <= share["value"] <= share["high"] < 0.6
    for shadow in SHADOWS:
        stranger = job.design.index[~job.design.membership[:, shadow]]
        rows = arrays["shadow"] == shadow
        assert np.isin(arrays["pixel/held_out_index"][rows], stranger).all()
        assert not np.isin(arrays["pixel/private_index"][rows], stranger).any()


def test_the_shares_are_those_of_the_p_values_with_everything_needed_to_read_them(job: Job) -> None:
    assert job.run() == 0
    header, arrays, told = job.result()
    assert header["stage"] == "resemble"
    assert header["spec"] == SPEC
    assert header["code"] == code_hash("coalmine.stages.resemble")
    sets = [read_npz(job.root / f"synthetic/tried/{shadow:03d}.npz")[1] for shadow in SHADOWS]
    assert header["inputs"] == {
        **job.data().digests(),
        "synthetic": [digest(one["images"], one["source"]) for one in sets],
    }
    assert {key: told[key] for key in header} == header
    assert (told["method"], told["images"], told["level"], told["confidence"]) == ("tried", 12, 0.05, 0.9)
    assert told["held_out"] == pytest.approx(25)
    assert set(told["metrics"]) == {"pixel", "ssim"}
    for name, metric in told["metrics"].items():
        per_model = [(arrays[f"{name}/p"][arrays["shadow"] == shadow] <= 0.05).mean() for shadow in SHADOWS]
        assert metric["per_model"] == pytest.approx(per_model)
        assert metric["share"]["value"] == pytest.approx(np.mean(per_model))
        assert min(per_model) <= metric["share"]["low"] <= metric["share"]["high"] <= max(per_model)


def test_not_more_images_than_asked_for_are_drawn_from_each_set(job: Job) -> None:
    assert job.run(images=6) == 0
    _, few, _ = job.result()
    assert np.array_equal(few["shadow"], np.repeat(SHADOWS, 6))
    drawn = few["position"].reshape(6, 6)
    assert (np.diff(drawn, axis=1) > 0).all()
    assert len({tuple(row) for row in drawn.tolist()}) == 6, "each shadow model has its own draw"
    sets = [read_npz(job.root / f"synthetic/tried/{shadow:03d}.npz")[1] for shadow in SHADOWS]
    source = [one["source"][row] for one, row in zip(sets, drawn, strict=True)]
    np.testing.assert_array_equal(few["source"], np.concatenate(source))
    before = job.out[0].read_bytes()
    assert job.run(images=6) == 0
    assert job.out[0].read_bytes() == before
    assert job.run(images=6, seed=4) == 0
    assert not np.array_equal(job.result()[1]["position"], few["position"])


def test_images_beyond_the_scale_are_clamped_before_they_are_compared(job: Job) -> None:
    for shadow in SHADOWS:
        source = job.data().shadow(shadow).index[[3, 20, 41]]
        images = (job.images[source] / 255).astype(np.float32)
        images[job.images[source] == 255] = 1.7
        images[job.images[source] == 0] = -0.4
        job.write(shadow, images, source)
    assert job.run() == 0
    _, arrays, told = job.result()
    np.testing.assert_array_equal(arrays["pixel/private_index"], arrays["source"])
    assert arrays["pixel/private"].max() < 1e-6
    assert told["metrics"]["ssim"]["share"]["value"] == 1


def test_a_long_comparison_says_how_far_it_is(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "SECONDS_BETWEEN_LINES", -1)
    assert job.run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "resemble tried: pixel: 2 of 6 shadow models compared" in lines
    assert "resemble tried: ssim: 6 of 6 shadow models compared" in lines


def test_a_level_that_no_image_could_reach_is_refused(refused: Any, job: Job) -> None:
    message = refused(level=0.01)
    held_out = int((~job.design.membership[:, 0]).sum())
    assert message == (
        f"error: visual.level cannot be used for shadow model 0: with {held_out} held-out images a p-value is "
        f"1/{held_out + 1} at least, so that none can reach the level 0.01: audit more samples (at least 99 held-out "
        "ones for each shadow model) or raise the level (audit.canaries, audit.average.samples, visual.level)."
    )


def test_sets_of_another_method_shadow_model_or_data_are_refused(refused: Any, job: Job) -> None:
    images, source = job.fresh[:3], np.full(3, -1)
    job.write(1, images, source, spec={"method": "other"})
    assert "001.npz was made with spec.method = 'other', but 'tried' is needed here" in refused()
    job.write(1, images, source, shadow=2)
    assert "001.npz was made with shadow = 2, but 1 is needed here" in refused()
    job.write(1, images, source, inputs={**job.data().digests(), "private": "0"})
    assert "001.npz was made with inputs.private = '0'" in refused()


def test_sets_of_both_stages_that_make_some_are_compared_and_no_others(refused: Any, job: Job) -> None:
    images, source = job.fresh[:3], np.full(3, -1)
    job.write(1, images, source, stage="distil")
    assert job.run() == 0
    for path in job.out:
        path.unlink()
    job.write(1, images, source, stage="prepare")
    assert "001.npz was made with stage = 'prepare', but 'synthesize' is needed here" in refused()


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 1)), np.zeros((0, 8, 8, 1), np.uint8)],
    ids=["colour", "float64", "none"],
)
def test_images_unlike_the_private_ones_are_refused(refused: Any, job: Job, images: np.ndarray) -> None:
    job.write(4, images, np.full(len(images), -1))
    message = refused()
    assert f"004.npz: the synthetic images are {images.dtype} of shape {images.shape}, expected" in message
    assert message.endswith("like the private ones: (n, 8, 8, 1). Mend the method.")


def test_a_network_for_other_normalisation_and_public_images_of_another_size_are_refused(
    refused: Any, job: Job
) -> None:
    network = job.pretrain(normalisation=Normalisation(mean=(0.1,), std=(0.35,)).model_dump(mode="json"))
    assert "features.safetensors was made with spec.normalisation = " in refused(features=network)
    write_npy(job.root / "public-images.npy", np.zeros((60, 4, 4, 1), np.uint8))
    assert "public images of shape (4, 4, 1) cannot be compared with private ones of shape (8, 8, 1)" in refused(
        public=True
    )
