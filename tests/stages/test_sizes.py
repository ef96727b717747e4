"""The stages that train classifiers on (parts of) synthetic sets, by size and by recipe, as anyone can call them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_folder import NORMALISATION, SHADOWS, Folder, Killed, killed_after

from coalmine.artefacts import digest
from coalmine.checkpoint import Checkpoint
from coalmine.data.images import ImageSet
from coalmine.models.settings import MLP
from coalmine.provenance import code_hash
from coalmine.stages import _models, _utility, recipes, sizes
from coalmine.stages._synthetic import in_turn
from coalmine.training import whitening
from coalmine.training.inference import predict
from coalmine.training.loop import ModelGenerators, train
from coalmine.training.recipe import Augmentation, Recipe
from coalmine.training.sets import TrainingSet

CPU = torch.device("cpu")
MODEL = MLP(hidden=(16,))
RECIPE = Recipe(
    epochs=6, batch_size=16, learning_rate=0.1, schedule="constant", augmentation=Augmentation(flip=False, shift=1)
)
COMMON: dict[str, Any] = {
    "seed": 3,
    "method": "tried",
    "model": MODEL.model_dump(mode="json"),
    "normalisation": NORMALISATION.model_dump(mode="json"),
    "shadows": SHADOWS,
}
SIZES: dict[str, Any] = {**COMMON, "training": RECIPE.model_dump(mode="json"), "sizes": [10, 40, 100]}
OVERRIDES: list[dict[str, Any]] = [{}, {"learning_rate": 0.02}, {"epochs": 2}]
RECIPES: dict[str, Any] = {
    **COMMON,
    "validation": 0.2,
    "recipes": [
        {"overrides": own, "training": RECIPE.model_copy(update=own).model_dump(mode="json")} for own in OVERRIDES
    ],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    return Folder(tmp_path, monkeypatch)


def run(folder: Folder, stage: Any, spec: dict[str, Any], mode: str = "sequential", **changes: Any) -> int:
    return folder.run(stage, {**spec, **changes}, ["--test", *folder.files("test")], mode)


def accuracy(own: TrainingSet, test: ImageSet, shadow: int, purpose: str, recipe: Recipe = RECIPE) -> float:
    """Train as the stages should, and return the accuracy."""
    generators = ModelGenerators.named(3, "tried", shadow, purpose)
    (trained,) = train(MODEL, [own], recipe, NORMALISATION, [generators], 10, device=CPU)
    logits = predict(MODEL, trained.state, test.images, NORMALISATION, 10, device=CPU)[:, 0]
    return float(np.mean(logits.argmax(axis=1) == test.labels))


def turns(own: ImageSet) -> ImageSet:
    return own.take(in_turn(own.labels))


# --- the order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 9, 10, 25, 40])
def test_classes_that_take_turns_already_are_left_as_they_are(n: int) -> None:
    np.testing.assert_array_equal(in_turn(np.arange(n) % 10), np.arange(n))
    soft = np.eye(10, dtype=np.float32)[np.arange(n) % 10]
    np.testing.assert_array_equal(in_turn(soft), np.arange(n))


def test_every_beginning_and_end_has_the_classes_of_the_whole_and_images_of_a_class_keep_their_order() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    for given in (labels, np.random.default_rng(0).permutation(labels)):
        order = in_turn(given)
        assert np.array_equal(np.sort(order), np.arange(100))
        for label, share in enumerate((0.6, 0.3, 0.1)):
            count = np.cumsum(given[order] == label)
            assert np.abs(count - share * np.arange(1, 101)).max() <= 1
            assert (np.diff(order[given[order] == label]) > 0).all()


# --- sizes -------------------------------------------------------------------------------------------------------


def test_accuracies_are_those_of_training_on_the_first_images_from_the_same_weights(folder: Folder) -> None:
    assert run(folder, sizes, SIZES) == 0
    found = folder.found()
    assert [one["size"] for one in found["sizes"]] == [10, 40, 100]
    for one in found["sizes"]:
        own = [turns(folder.sets[shadow]).take(np.arange(one["size"])) for shadow in range(SHADOWS)]
        expected = [
            accuracy(TrainingSet(first.images, first.labels), folder.test, shadow, "sizes")
            for shadow, first in enumerate(own)
        ]
        assert one["accuracy"]["per_model"] == expected
        assert one["accuracy"]["value"] == pytest.approx(np.mean(expected))
        assert one["accuracy"]["se"] == pytest.approx(np.std(expected, ddof=1) / np.sqrt(SHADOWS))
    few, _, all_of_them = (one["accuracy"]["value"] for one in found["sizes"])
    assert all_of_them > few + 0.1


def test_all_models_of_a_shadow_model_start_from_the_same_weights(folder: Folder, monkeypatch: Any) -> None:
    first: dict[str, list[torch.Tensor]] = {}

    def watched(*arguments: Any, **options: Any) -> Any:
        for name, generators in zip(options["names"], arguments[4], strict=True):
            first.setdefault(name.partition(", ")[2], []).append(generators.initialisation.get_state())
        return train(*arguments, **options)

    monkeypatch.setattr(_utility, "train", watched)
    assert run(folder, sizes, SIZES) == 0
    assert {len(states) for states in first.values()} == {3}
    assert all(torch.equal(states[0], one) for states in first.values() for one in states)
    assert not torch.equal(first["model 0"][0], first["model 1"][0])


def test_the_file_of_sizes_carries_what_determines_it(folder: Folder) -> None:
    assert run(folder, sizes, SIZES) == 0
    found = folder.found()
    header = {
        "stage": "sizes",
        "spec": SIZES,
        "code": code_hash("coalmine.stages.sizes"),
        "inputs": {
            **folder.data().digests(),
            "test": digest(folder.test.images, folder.test.labels),
            "synthetic": [_models.digest_of_set(folder.synthetic(shadow)) for shadow in range(SHADOWS)],
        },
    }
    assert {key: found[key] for key in header} == header
    assert (found["method"], found["shadows"]) == ("tried", [0, 1, 2])
    assert not folder.kept.parent.exists()


def test_stacked_training_finds_the_same_and_is_kept_size_by_size(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(folder, sizes, SIZES) == 0
    alone = folder.found()
    assert run(folder, sizes, SIZES, mode="stacked") == 0
    together, stacked = folder.found(), folder.out.read_bytes()
    for one, other in zip(alone["sizes"], together["sizes"], strict=True):
        assert one["accuracy"]["per_model"] == pytest.approx(other["accuracy"]["per_model"], abs=0.03)
    with monkeypatch.context() as patch:
        patch.setattr(_utility, "predict", killed_after(4, predict))
        with pytest.raises(Killed):
            run(folder, sizes, SIZES, mode="stacked")
    calls: list[Any] = []
    monkeypatch.setattr(_utility, "predict", lambda *own, **further: calls.append(1) or predict(*own, **further))
    assert run(folder, sizes, SIZES, mode="stacked") == 0
    assert len(calls) == 6, "the second stack, which was not finished, is trained as a whole"
    assert folder.out.read_bytes() == stacked


def test_soft_labels_are_learned_with_the_rate_and_the_whitening_of_the_set(folder: Folder) -> None:
    for shadow in range(SHADOWS):
        own = folder.sets[shadow]
        white = whitening.fit(own.images)
        soft = (0.9 * np.eye(10)[own.labels] + 0.01).astype(np.float32)
        further = {"labels": soft, "learning_rate": np.array(0.03), **white.state()}
        folder.write(shadow, own, further)
    assert run(folder, sizes, SIZES, sizes=[50]) == 0
    for shadow in range(SHADOWS):
        own = folder.sets[shadow]
        rows = in_turn(own.labels)[:50]
        soft = (0.9 * np.eye(10)[own.labels[rows]] + 0.01).astype(np.float32)
        expected = TrainingSet(own.images[rows], soft, learning_rate=0.03, whitening=whitening.fit(own.images))
        found = folder.found()["sizes"][0]["accuracy"]["per_model"][shadow]
        assert found == accuracy(expected, folder.test, shadow, "sizes")
        assert found != accuracy(replace(expected, learning_rate=None), folder.test, shadow, "sizes")


def test_a_size_larger_than_a_set_is_refused_before_anything_is_trained(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    own = folder.sets[1]
    folder.write(1, own.take(np.arange(80)))
    assert run(folder, sizes, SIZES) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: utility.sizes asks for 100 synthetic images of tried, but ")
    assert captured.err.endswith("001.npz holds 80; raise images of tried, or lower utility.sizes.\n")
    assert not folder.out.exists()


def test_sets_of_another_shadow_model_are_refused(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.write(1, folder.sets[1], shadow=2)
    assert run(folder, sizes, SIZES) == 1
    assert "001.npz was made with shadow = 2, but 1 is needed here" in capsys.readouterr().err


@pytest.mark.parametrize(("stage", "spec"), [(sizes, SIZES), (recipes, RECIPES)], ids=["sizes", "recipes"])
def test_a_job_that_is_taken_up_again_writes_the_same_bytes(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: Any, spec: Any
) -> None:
    assert run(folder, stage, spec) == 0
    whole = folder.out.read_bytes()
    folder.out.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(_utility, "train", killed_after(5, train))
        with pytest.raises(Killed):
            run(folder, stage, spec)
    assert folder.kept.is_file()
    assert not folder.out.exists()
    capsys.readouterr()
    trained: list[str] = []
    monkeypatch.setattr(_utility, "train", lambda *own, **more: trained.extend(more["names"]) or train(*own, **more))
    assert run(folder, stage, spec) == 0
    assert len(trained) == 4
    assert folder.out.read_bytes() == whole
    assert not folder.kept.parent.exists()
    assert "5 parts were finished by an interrupted job and are kept" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("mode", ["sequential", "stacked"])
def test_a_training_that_is_interrupted_goes_on_where_it_stood(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    assert run(folder, sizes, SIZES, mode=mode) == 0
    whole = folder.out.read_bytes()
    folder.out.unlink()
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", killed_after(12, Checkpoint.save))
        with pytest.raises(Killed):
            run(folder, sizes, SIZES, mode=mode)
    assert len([*folder.kept.parent.glob("tried.checkpoint.*-model-*.npz")]) == (SHADOWS if mode == "stacked" else 1)
    capsys.readouterr()
    assert run(folder, sizes, SIZES, mode=mode) == 0
    assert re.search(r"taken up after step [1-9]", capsys.readouterr().out)
    assert folder.out.read_bytes() == whole
    assert not folder.kept.parent.exists()


def test_what_was_kept_of_another_spec_is_not_taken_over(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_utility, "train", killed_after(5, train))
        with pytest.raises(Killed):
            run(folder, sizes, SIZES)
    assert run(folder, sizes, SIZES, seed=4) == 0
    other = folder.out.read_bytes()
    folder.out.unlink()
    assert run(folder, sizes, SIZES, seed=4) == 0
    assert folder.out.read_bytes() == other


# --- recipes -----------------------------------------------------------------------------------------------------


def test_recipes_are_measured_on_the_last_synthetic_images_and_on_real_ones(folder: Folder) -> None:
    assert run(folder, recipes, RECIPES) == 0
    found = folder.found()
    assert (found["validation"], found["recipes"], found["shadows"]) == (20, OVERRIDES, [0, 1, 2])
    for number, overrides in enumerate(OVERRIDES):
        recipe = RECIPE.model_copy(update=overrides)
        for shadow in range(SHADOWS):
            own = turns(folder.sets[shadow])
            fitted, last = own.take(np.arange(80)), own.take(np.arange(80, 100))
            learned = TrainingSet(fitted.images, fitted.labels)
            assert found["synthetic"][number][shadow] == accuracy(learned, last, shadow, "recipes", recipe)
            assert found["real"][number][shadow] == accuracy(learned, folder.test, shadow, "recipes", recipe)
    assert found["synthetic"] != found["real"]


def test_a_recipe_with_a_learning_rate_overrules_the_sets_own_and_soft_labels_count_as_their_class(
    folder: Folder,
) -> None:
    for shadow in range(SHADOWS):
        own = folder.sets[shadow]
        soft = (0.6 * np.eye(10)[own.labels] + 0.04).astype(np.float32)
        folder.write(shadow, own, {"labels": soft, "learning_rate": np.array(0.3)})
    assert run(folder, recipes, RECIPES) == 0
    found = folder.found()
    own = turns(folder.sets[0])
    soft = (0.6 * np.eye(10)[own.labels[:80]] + 0.04).astype(np.float32)
    last = own.take(np.arange(80, 100))
    for number, rate in ((0, 0.3), (1, 0.02)):
        expected = TrainingSet(own.images[:80], soft, learning_rate=rate)
        assert found["synthetic"][number][0] == accuracy(expected, last, 0, "recipes")
        assert found["real"][number][0] == accuracy(expected, folder.test, 0, "recipes")


@pytest.mark.parametrize(("validation", "count"), [(0.001, 0), (0.999, 100)])
def test_a_share_that_leaves_nothing_on_one_side_is_refused(
    folder: Folder, capsys: pytest.CaptureFixture[str], validation: float, count: int
) -> None:
    assert run(folder, recipes, RECIPES, validation=validation) == 1
    assert capsys.readouterr().err == (
        f"error: utility.validation, {validation:g}, holds out {count} of 100 synthetic images of tried, expected at "
        "least one in each part; set another share, or raise the number of images.\n"
    )


def test_the_stages_say_what_they_found(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, recipes, RECIPES) == 0
    lines = capsys.readouterr().out.splitlines()
    found = folder.found()
    synthetic, real = (found[name][1] for name in ("synthetic", "real"))
    assert (
        f"recipes tried: recipe 1, model 2: trained on 80 images, accuracy {synthetic[2]:.1%} and {real[2]:.1%}"
        in lines
    )
    assert (
        f'recipes tried: recipe 1 {{"learning_rate": 0.02}}: accuracy {np.mean(synthetic):.1%} on held-out synthetic '
        f"images, {np.mean(real):.1%} on real ones, mean of 3 shadow models"
    ) in lines
