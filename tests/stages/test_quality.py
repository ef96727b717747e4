"""The stage that measures the quality of synthetic images, as anyone can call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_folder import NORMALISATION, SHADOWS, Folder, Killed, killed_after

from coalmine.artefacts import digest, read_safetensors
from coalmine.audit.quality import frechet_distance, nearest_ratio, precision_recall
from coalmine.data.images import ImageSet
from coalmine.diffusion import inception
from coalmine.models.settings import MLP
from coalmine.provenance import code_hash
from coalmine.stages import pretrain
from coalmine.stages import quality as stage
from coalmine.stages._per_model import summary
from coalmine.training.inference import embed
from coalmine.training.recipe import Augmentation, Recipe

SPEC: dict[str, Any] = {
    "seed": 3,
    "method": "tried",
    "shadows": SHADOWS,
    "images": 60,
    "neighbours": 3,
    "normalisation": NORMALISATION.model_dump(mode="json"),
    "inception": False,
}
MODEL = MLP(hidden=(12,))
NETWORK = {
    "seed": 3,
    "name": "features",
    "model": MODEL.model_dump(mode="json"),
    "training": Recipe(epochs=5, schedule="constant", augmentation=Augmentation(flip=False, shift=0)).model_dump(
        mode="json"
    ),
    "normalisation": NORMALISATION.model_dump(mode="json"),
    "classes": 10,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    return Folder(tmp_path, monkeypatch)


@pytest.fixture
def network(folder: Folder) -> Path:
    """The network that public data have trained."""
    path = folder.root / "pretrained/features.safetensors"
    line = ["--spec", json.dumps(NETWORK), "--public", *folder.files("public")]
    assert folder.call(pretrain, [*line, "--out", str(path), str(path.with_suffix(".json"))]) == 0
    return path


def run(folder: Folder, network: Path, **changes: Any) -> int:
    return folder.run(stage, {**SPEC, **changes}, ["--features", str(network), str(network.with_suffix(".json"))])


@pytest.fixture
def refused(folder: Folder, network: Path, capsys: pytest.CaptureFixture[str]):
    """Run the stage, which must fail in one sentence and write nothing; return the sentence."""

    def call(**changes: Any) -> str:
        capsys.readouterr()
        assert run(folder, network, **changes) == 1
        assert not folder.out.exists()
        return capsys.readouterr().err.strip()

    return call


def features(network: Path, images: np.ndarray) -> np.ndarray:
    weights = {name: torch.from_numpy(array) for name, array in read_safetensors(network)[1].items()}
    return embed(MODEL, weights, images, NORMALISATION, 10, device=torch.device("cpu"))[0]


def test_every_number_is_the_audits_own_on_the_images_of_that_shadow_model(folder: Folder, network: Path) -> None:
    assert run(folder, network, images=1000) == 0
    found = folder.found()
    private = features(network, folder.private.images)
    for shadow in range(SHADOWS):
        own = features(network, folder.sets[shadow].images)
        held = private[folder.data().shadow(shadow).index]
        assert found["distance"]["per_model"][shadow] == pytest.approx(frechet_distance(held, own), rel=1e-4)
        expected = precision_recall(held, own, 3)
        assert found["precision"]["per_model"][shadow] == pytest.approx(expected.precision)
        assert found["recall"]["per_model"][shadow] == pytest.approx(expected.recall)
        members, nonmembers = stage.audited_alike(folder.data(), shadow, 3)
        near = nearest_ratio(own, private[members], private[nonmembers])
        assert found["nearest"]["per_model"][shadow] == pytest.approx(near.ratio.mean(), rel=1e-4)
        assert found["nearest_balanced"]["per_model"][shadow] == pytest.approx(near.balance.mean(), rel=1e-4)
    for name in stage.MEASURES:
        values = found[name]["per_model"]
        assert found[name]["value"] == pytest.approx(np.mean(values))
        assert found[name]["se"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(SHADOWS))


def test_the_file_carries_what_determines_it_and_everything_needed_to_read_it(folder: Folder, network: Path) -> None:
    assert run(folder, network) == 0
    found = folder.found()
    header = {
        "stage": "quality",
        "spec": SPEC,
        "code": code_hash("coalmine.stages.quality"),
        "inputs": {
            **folder.data().digests(),
            "synthetic": [digest(own.images, own.labels) for own in folder.sets.values()],
            "features": read_safetensors(network)[0],
        },
    }
    assert {key: found[key] for key in header} == header
    assert found["space"] == {"name": "FD, mlp on public data", "inception": False}
    assert (found["method"], found["images"], found["neighbours"]) == ("tried", 60, 3)
    assert found["reference"] == len(folder.data().shadow(0).index)
    assert found["shadows"] == [0, 1, 2]
    assert not folder.kept.parent.exists()


def test_of_a_larger_set_the_first_images_are_compared_when_classes_take_turns(folder: Folder, network: Path) -> None:
    for shadow, own in list(folder.sets.items()):
        folder.write(shadow, own.take(np.argsort(own.labels, kind="stable")))
    assert run(folder, network, images=40) == 0
    found = folder.found()["distance"]["per_model"]
    for shadow in range(SHADOWS):
        own = folder.sets[shadow]
        counts = np.bincount(own.labels)
        rank = np.array([np.count_nonzero(own.labels[:row] == label) for row, label in enumerate(own.labels)])
        turns = np.argsort((rank + 0.5) / counts[own.labels], kind="stable")[:40]
        assert len(np.unique(own.labels[turns])) == 10
        private = features(network, folder.private.images[folder.data().shadow(shadow).index])
        expected = frechet_distance(private, features(network, own.images[turns]))
        assert found[shadow] == pytest.approx(expected, rel=1e-4)


def test_members_are_held_nonmembers_not_and_both_are_equally_many(folder: Folder) -> None:
    data = folder.data()
    for shadow in range(SHADOWS):
        members, nonmembers = stage.audited_alike(data, shadow, 3)
        inside = data.shadow(shadow).index
        assert np.isin(members, data.design.index).all()
        assert np.isin(nonmembers, data.design.index).all()
        assert np.isin(members, inside).all()
        assert not np.isin(nonmembers, inside).any()
        held = data.design.membership[:, shadow].sum()
        assert len(members) == len(nonmembers) == min(held, 50 - held)
        assert len({*members, *nonmembers}) == 2 * len(members)
    assert not np.array_equal(stage.audited_alike(data, 0, 3)[1], stage.audited_alike(data, 0, 4)[1])


def test_copies_of_what_was_trained_on_are_near_to_it_and_cover_it(folder: Folder, network: Path) -> None:
    for shadow in range(SHADOWS):
        index = folder.data().shadow(shadow).audited
        folder.write(shadow, ImageSet(folder.private.images[index], folder.private.labels[index]))
    assert run(folder, network, images=1000) == 0
    found = folder.found()
    assert found["nearest"]["value"] < 0.3
    assert found["nearest_balanced"]["value"] < 0.3
    assert found["precision"]["value"] == 1
    fresh = folder.sets[0]
    folder.write(0, ImageSet(255 - fresh.images, fresh.labels))
    assert run(folder, network, images=1000) == 0
    assert folder.found()["distance"]["per_model"][0] > 2 * found["distance"]["per_model"][0]


def test_images_beyond_the_scale_are_clamped(folder: Folder, network: Path) -> None:
    assert run(folder, network) == 0
    expected = folder.found()
    for shadow, own in list(folder.sets.items()):
        images = (own.images / 255).astype(np.float32)
        images[own.images == 0], images[own.images == 255] = -0.5, 1.5
        folder.write(shadow, ImageSet(images, own.labels))
    assert run(folder, network) == 0
    for name in stage.MEASURES:
        assert folder.found()[name]["per_model"] == pytest.approx(expected[name]["per_model"], rel=1e-3)


def test_an_option_without_files_stands_for_none(folder: Folder, network: Path) -> None:
    assert folder.run(stage, SPEC, ["--features", str(network), "--inception"]) == 0


def test_two_shadow_models_have_a_standard_error_of_half_their_difference() -> None:
    assert summary([1.0, 4.0]) == {"value": 2.5, "se": pytest.approx(1.5), "per_model": [1.0, 4.0]}


def test_a_single_shadow_model_has_no_standard_error(folder: Folder, network: Path) -> None:
    assert run(folder, network, shadows=1) == 0
    found = folder.found()
    assert found["shadows"] == [0]
    assert found["distance"]["se"] is None
    assert len(found["distance"]["per_model"]) == 1


def test_a_job_that_is_taken_up_again_writes_the_same_bytes(
    folder: Folder, network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, network) == 0
    whole = folder.out.read_bytes()
    folder.out.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(stage, "frechet_distance", killed_after(2, frechet_distance))
        with pytest.raises(Killed):
            run(folder, network)
    assert folder.kept.is_file()
    capsys.readouterr()
    assert run(folder, network) == 0
    assert folder.out.read_bytes() == whole
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "quality tried: 2 parts were finished by an interrupted job and are kept"
    assert [line.split(":")[1] for line in lines[1:]] == [
        " model 2",
        " FD, mlp on public data, mean of 3 shadow models",
    ]


def test_what_was_kept_of_another_job_is_not_taken_over(
    folder: Folder, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stage, "frechet_distance", killed_after(2, lambda *_: 1e9))
        with pytest.raises(Killed):
            run(folder, network)
    assert run(folder, network, neighbours=2) == 0
    assert max(folder.found()["distance"]["per_model"]) < 1e9


def test_the_fid_compares_bytes_by_the_inception_network(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def read(path: Path, device: torch.device) -> Any:
        assert (path.name, device.type) == ("weights.pth", "cpu")

        def network(images: np.ndarray) -> np.ndarray:
            seen.append(images)
            return images.reshape(len(images), -1)[:, :40].astype(np.float64)

        return network

    monkeypatch.setattr(inception, "read", read)
    own = folder.sets[0]
    folder.write(0, ImageSet((own.images / 255).astype(np.float32) * 1.2 - 0.1, own.labels))
    spec = {**SPEC, "inception": True}
    assert folder.run(stage, spec, ["--inception", "weights.pth"]) == 0
    found = folder.found()
    assert found["space"] == {"name": "FID, Inception-v3", "inception": True}
    assert found["inputs"]["features"] == {"sha256": inception.REMOTE.sha256}
    assert {images.dtype for images in seen} == {np.dtype(np.uint8)}
    assert len(seen[0]) == 120
    assert seen[1].max() == 255


def test_float_images_are_clamped_and_rounded_to_bytes() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    np.testing.assert_array_equal(stage.as_bytes((images / 255).astype(np.float32)), images)
    assert stage.as_bytes(images) is images
    beyond = np.array([-0.2, 1.3, 0.5 / 255 - 1e-4, 0.5 / 255 + 1e-4], np.float32)
    assert stage.as_bytes(beyond).tolist() == [0, 255, 0, 1]


def test_a_network_that_is_not_given_is_asked_for(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert folder.run(stage, SPEC, []) == 1
    assert "--features lists 0 networks, expected pretrained/features.safetensors" in capsys.readouterr().err
    assert folder.run(stage, {**SPEC, "inception": True}, []) == 1
    assert "the spec asks for the FID, which needs the file of the Inception network" in capsys.readouterr().err


def test_sets_of_others_missing_ones_and_too_small_ones_are_refused(refused: Any, folder: Folder) -> None:
    assert "--synthetic lists no set of shadow model 3 of tried, expected those of the first 4" in refused(shadows=4)
    own = folder.sets[1]
    folder.write(1, own, spec={"method": "other"})
    assert "001.npz was made with spec.method = 'other', but 'tried' is needed here" in refused()
    folder.write(1, own, inputs={**folder.data().digests(), "private": "0"})
    assert "001.npz was made with inputs.private = '0'" in refused()
    folder.write(1, own.take(np.arange(3)))
    assert "001.npz: 3 images are compared, each with the 3 nearest of the others; raise images of tried" in refused()
    folder.write(1, ImageSet(np.zeros((5, 8, 8, 3), np.uint8), own.labels[:5]))
    assert "001.npz: the synthetic images are uint8 of shape (5, 8, 8, 3), expected at least one" in refused()


def test_a_long_comparison_says_how_far_it_is(
    folder: Folder, network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "SECONDS_BETWEEN_LINES", -1)
    monkeypatch.setattr(stage, "IMAGES_AT_ONCE", 50)
    assert run(folder, network) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "quality tried: features of 100 of 120 private images" in lines
    assert "quality tried: features of 60 of 60 synthetic images of model 2" in lines
