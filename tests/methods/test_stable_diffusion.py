"""Stable Diffusion, fine-tuned: what is learned, drawn and refused; on a tiny model, without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from pydantic import ValidationError

from coalmine.artefacts import write_safetensors
from coalmine.checkpoint import Checkpoint
from coalmine.diffusion import latent, latent_settings
from coalmine.diffusion.latent_settings import LatentFit
from coalmine.errors import CoalmineError
from coalmine.methods import stable_diffusion
from coalmine.methods.stable_diffusion import Settings
from coalmine.models.settings import MLP
from coalmine.outline import Outline
from coalmine.shadows import Fitted, PrivateData, Setup
from coalmine.training.recipe import Augmentation, Recipe, Siamese

OUTLINE = Outline(population=1200.0, classes=10, channels=1, experts={})


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def data(private_digits) -> PrivateData:
    return private_digits(60, 20)


@pytest.fixture
def own(folder) -> Callable[..., LatentFit]:
    def settings(**changes) -> LatentFit:
        given = {"path": str(folder), "steps": 6, "batch_size": 4, "resolution": 16, "precision": "float32"}
        return LatentFit(**{**given, "label_dropout": 0.2, **changes})

    return settings


@pytest.fixture
def setup(make_setup) -> Setup:
    return replace(make_setup(), class_names=tiny.CLASSES)


@pytest.fixture
def fitted(own, data, setup, tmp_path) -> Callable[..., Setup]:
    """Return a function that fits models as the stage does; it returns the set-up with their files."""

    def fit(shadows=(0,), data: PrivateData = data, **changes) -> Setup:
        numbers = [data.shadow(number) for number in shadows]
        for shadow, model in zip(numbers, stable_diffusion.fit(numbers, own(**changes), setup), strict=True):
            header = {"spec": {"settings": {"fit": own(**changes).model_dump(mode="json")}}}
            path = tmp_path / "generators" / f"{shadow.number:03d}.safetensors"
            write_safetensors(path, header, {name: one.numpy() for name, one in model.state.items()})
        return replace(setup, generator=lambda shadow: tmp_path / "generators" / f"{shadow.number:03d}.safetensors")

    return fit


def fit_one(data: PrivateData, own: LatentFit, setup: Setup, number: int = 0) -> Fitted:
    (model,) = stable_diffusion.fit([data.shadow(number)], own, setup)
    return model


def drawn(setup: Setup, data: PrivateData, shadows=(0,), **settings):
    given = {"generator": "other", "steps": 3, "images_at_once": 8, **settings}
    return list(stable_diffusion.synthesize([data.shadow(number) for number in shadows], Settings(**given), setup))


def same(one: Fitted, other: Fitted) -> bool:
    return all(torch.equal(one.state[name], other.state[name]) for name in one.state | other.state)


# Fitting


def test_training_changes_the_low_rank_changes_and_nothing_else(own, data, setup, monkeypatch):
    built = []
    plain = latent.StableDiffusion

    def build(*given):
        built.append(plain(*given))
        return built[0]

    monkeypatch.setattr(latent, "StableDiffusion", build)
    untrained = plain(own(), tiny.CLASSES, setup.device)
    model = fit_one(data, own(), setup)
    names = set(untrained.adapter)
    assert set(model.state) == names | {latent.BASE}
    assert all(model.state[name].dtype == torch.float32 for name in names)
    # Second factors are 0 at first, so these have been trained.
    assert all(bool(model.state[name].any()) for name in names)
    for network in ("_unet", "_vae"):
        before = getattr(untrained, network).state_dict()
        after = getattr(built[0], network).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], one) for name, one in before.items() if "lora_" not in name)


def test_the_loss_goes_down_on_few_images(own, private_digits, setup):
    data = private_digits(20, 2)
    how = own(steps=40, batch_size=16, learning_rate=2e-2, rank=8, snr_gamma=None, label_dropout=0.0)
    model, shadow = latent.StableDiffusion(how, tiny.CLASSES, setup.device), data.shadow(0)
    images = torch.from_numpy(shadow.images).movedim(-1, 1).float() / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    z = model.scaled(model.encode(images).mode())
    noise, time = torch.randn(z.shape, generator=generator), torch.randint(1000, (len(z),), generator=generator)

    def loss() -> float:
        with torch.no_grad():
            return float(model.loss(z, time, noise, torch.from_numpy(shadow.labels)))

    model.begin(torch.Generator().manual_seed(0))
    before = loss()
    state = fit_one(data, how, setup).state
    model.take({name: one.numpy() for name, one in state.items()})
    assert loss() < 0.9 * before


def test_a_shadow_models_changes_are_its_own_whoever_is_fitted_with_it(own, data, setup):
    shadows = [data.shadow(number) for number in (0, 1)]
    together = list(stable_diffusion.fit(shadows, own(), setup))
    assert not same(*together)
    for number, model in enumerate(together):
        assert same(model, fit_one(data, own(), setup, number))


def test_an_excluded_sample_changes_no_bit(own, data, setup):
    shadow = data.shadow(0)
    excluded = np.setdiff1d(np.arange(len(data.images)), shadow.index)
    other = data.images.copy()
    other[excluded] = 255 - other[excluded]
    one = fit_one(data, own(), setup)
    assert same(one, fit_one(replace(data, images=other), own(), setup))
    other[shadow.index] = 255 - other[shadow.index]
    assert not same(one, fit_one(replace(data, images=other), own(), setup))


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-3},
        {"warmup": 3},
        {"average": 0.9},
        {"label_dropout": 0.9},
        {"augmentation": Augmentation(flip=True, shift=2)},
        {"snr_gamma": 1.0},
        {"distribution": 0.1},
        {"gradient_norm": 1e-3},
        {"prompt": "a drawing of {}"},
        {"names": dict.fromkeys(tiny.CLASSES, "x")},
        {"precision": "bfloat16"},
    ],
)
def test_every_setting_of_training_matters(changes, own, data, setup):
    assert not same(fit_one(data, own(), setup), fit_one(data, own(**changes), setup))


class Killed(Checkpoint):
    """A checkpoint that is due after every step and, like a kill, raises after so many."""

    def __init__(self, path: Path, kill_after: int | None = None) -> None:
        super().__init__(path, {"made": "here"}, seconds=0)
        self._left = kill_after

    def save(self, arrays) -> None:
        super().save(arrays)
        self._left = None if self._left is None else self._left - 1
        if self._left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_killed_training_ends_with_the_same_bytes(average, own, data, setup, tmp_path):
    how = own(average=average, augmentation=Augmentation(flip=True, shift=1))
    plain = fit_one(data, how, setup)
    file = tmp_path / "checkpoint.npz"
    with pytest.raises(KeyboardInterrupt):
        fit_one(data, how, replace(setup, checkpoint=lambda shadow: Killed(file, kill_after=4)))
    resumed = fit_one(data, how, replace(setup, checkpoint=lambda shadow: Killed(file)))
    assert same(plain, resumed)
    # Not the whole network is saved: three times the changes (weights, two moments), and an average.
    assert file.stat().st_size < 6 * sum(one.nbytes for one in plain.state.values()) + 100_000


# Drawing


def test_a_killed_drawing_ends_with_the_same_bytes(fitted, data, tmp_path):
    setup = fitted()
    for name, settings in {"text": {"images": 20}, "image": {"strength": 0.7, "images": 20}}.items():
        (plain,) = drawn(setup, data, **settings)
        file, parts = tmp_path / f"{name}.npz", []
        killed = replace(setup, checkpoint=lambda shadow, file=file: Killed(file, kill_after=2))
        with pytest.raises(KeyboardInterrupt):
            drawn(killed, data, **settings)
        resumed = replace(setup, checkpoint=lambda shadow, file=file: Killed(file), progress=parts.append)
        (found,) = drawn(resumed, data, **settings)
        assert found.images.tobytes() == plain.images.tobytes()
        assert "taken up after 16 of" in parts[0]


def test_images_from_text_are_of_all_classes_alike_and_start_from_nobody(fitted, data):
    (made,) = drawn(fitted(), data, images=25)
    assert made.images.dtype == np.uint8
    assert made.images.shape == (25, 8, 8, 1)
    assert made.labels.tolist() == [number % 10 for number in range(25)]
    assert made.source.tolist() == [-1] * 25


def test_images_from_images_are_one_for_each_private_one_with_its_given_label(fitted, data):
    (made,) = drawn(fitted(), data, strength=0.5)
    shadow = data.shadow(0)
    assert made.images.dtype == np.uint8
    assert made.images.shape == (len(shadow.index), 8, 8, 1)
    np.testing.assert_array_equal(made.source, shadow.index)
    np.testing.assert_array_equal(made.labels, shadow.labels)
    assert (made.labels != data.labels[made.source]).any()  # canaries with their wrong label
    (fewer,) = drawn(fitted(), data, strength=0.5, images=10)
    assert len(set(fewer.source.tolist())) == 10
    assert set(fewer.source.tolist()) <= set(shadow.index.tolist())


def test_coloured_private_images_give_coloured_sets(fitted, data, own, setup):
    coloured = replace(data, images=np.repeat(data.images, 3, axis=3))
    assert same(fit_one(data, own(), setup), fit_one(coloured, own(), setup))
    setup = fitted(data=coloured)
    (made,), (grey,) = (drawn(setup, one, images=8) for one in (coloured, data))
    assert made.images.shape == (8, 8, 8, 3)
    np.testing.assert_allclose(grey.images[..., 0], made.images.mean(axis=3), atol=1)


def test_without_strength_images_are_what_the_autoencoder_renders(fitted, data, own):
    """It is as near to the private image as the autoencoder and shrinking allow: here far off, its weights are random.

    Neither the low-rank changes, nor prompts, nor noise matter then.
    """
    setup = fitted()
    (made,) = drawn(setup, data, strength=0.0)
    (again,) = drawn(replace(setup, seed=5, method="other"), data, strength=0.0, lora_scale=0.0, guidance=1.0)
    np.testing.assert_array_equal(made.images, again.images)
    model, shadow = latent.StableDiffusion(own(), tiny.CLASSES, setup.device), data.shadow(0)
    images = torch.from_numpy(shadow.images).movedim(-1, 1).float() / 127.5 - 1
    enlarged = torch.nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True).repeat(1, 3, 1, 1)
    with torch.no_grad():
        rendered = model._vae.decode(model._vae.encode(enlarged).latent_dist.mode()).sample
    shrunk = torch.nn.functional.interpolate(rendered, (8, 8), mode="bilinear", antialias=True).mean(dim=1)
    np.testing.assert_allclose(made.images[..., 0], ((shrunk + 1) * 127.5).clamp(0, 255), atol=1)


def test_with_full_strength_images_do_not_depend_on_the_private_ones(fitted, data):
    setup = fitted()
    inverted = replace(data, images=255 - data.images)
    (one,), (other,) = (drawn(setup, private, strength=1.0, images=8) for private in (data, inverted))
    np.testing.assert_array_equal(one.images, other.images)
    (near,), (far,) = (drawn(setup, private, strength=0.4, images=8) for private in (data, inverted))
    assert (near.images != far.images).any()


def test_the_fitted_model_the_label_and_the_way_of_drawing_matter(fitted, data):
    setup = fitted(steps=10, learning_rate=3e-2)
    (made,) = drawn(setup, data, images=8)
    for changes in ({"lora_scale": 0.0}, {"guidance": 1.0}, {"steps": 5}, {"scheduler": "unipc"}):
        (other,) = drawn(setup, data, images=8, **changes)
        assert (other.images != made.images).any(), changes
    (other,) = drawn(replace(setup, seed=1), data, images=8)
    assert (other.images != made.images).any()


def test_sets_do_not_depend_on_which_shadow_models_are_drawn_together(fitted, data):
    setup = fitted((0, 1), steps=10, learning_rate=3e-2)
    together = drawn(setup, data, (0, 1), images=8)
    for number, made in enumerate(together):
        np.testing.assert_array_equal(made.images, drawn(setup, data, (number,), images=8)[0].images)
    assert (together[0].images != together[1].images).any()


def test_changes_of_other_weights_are_refused(fitted, data, folder, tmp_path):
    moved = tiny.save(tmp_path / "moved")
    setup = fitted(path=str(moved))
    (made,) = drawn(setup, data, images=4)
    assert made.images.shape == (4, 8, 8, 1)
    other = tiny.save(tmp_path / "other", seed=3)
    file = "unet/diffusion_pytorch_model.safetensors"
    (moved / file).write_bytes((other / file).read_bytes())
    with pytest.raises(CoalmineError, match="moved are not those that were fine-tuned"):
        drawn(setup, data, images=4)


def test_images_that_are_not_finite_are_refused(fitted, data, monkeypatch):
    setup = fitted()
    monkeypatch.setattr(latent.StableDiffusion, "draw", lambda self, labels, noise, own, **how: noise * float("nan"))
    with pytest.raises(CoalmineError, match=r"image of model 0 is not finite; raise steps \(now 3\)"):
        drawn(setup, data, images=4)


# Refusals before any job


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"images": 5}, "set either fit, or generator"),
        ({"images": 5, "generator": "a", "fit": {"path": "b", "steps": 1}}, "set either fit, or generator"),
        ({"generator": "a"}, "images is required"),
        ({"generator": "a", "images": 5, "guidance": 0.5}, "greater than or equal to 1"),
        ({"generator": "a", "images": 5, "scheduler": "euler_a"}, "'ddim', 'pndm', 'dpmsolver' or 'unipc'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given, told):
    with pytest.raises(ValidationError, match=told):
        Settings(**given)


def objection(settings: Settings, outline: Outline = OUTLINE) -> tuple[str, str] | None:
    return stable_diffusion.objection(settings, MLP(), Recipe(), outline)


def test_settings_that_cannot_work_are_told_before_any_job(own, folder, monkeypatch):
    assert objection(Settings(fit=own(), images=5)) is None
    assert objection(Settings(generator="other", strength=0.5)) is None
    field, reason = objection(Settings(fit=own(path="/nowhere"), images=5))
    assert field == "fit.path"
    assert "is '/nowhere', which is no folder" in reason
    field, reason = objection(Settings(fit=own(path=str(folder / "unet")), images=5))
    assert field == "fit.path"
    assert "has no model_index.json" in reason
    field, _ = objection(Settings(fit=own(augmentation=Augmentation(siamese=Siamese())), images=5))
    assert field == "fit.augmentation.siamese"
    assert "4 channels" in objection(Settings(generator="other", images=5), OUTLINE._replace(channels=4))[1]
    monkeypatch.setattr(latent_settings, "find_spec", lambda name: None if name in ("peft", "transformers") else name)
    for settings in (Settings(fit=own(), images=5), Settings(generator="other", images=5)):
        field, reason = objection(settings)
        assert "needs peft and transformers" in reason
        assert "pip install 'coalmine[stable-diffusion]'" in reason


def test_sets_without_generators_are_refused(data, setup):
    with pytest.raises(CoalmineError, match="--generators"):
        drawn(setup, data, images=4)
