"""The table of data-free methods, and which settings are refused."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from coalmine.datafree.settings import ALGORITHMS, TERMS, DataFree
from coalmine.methods import dfkd
from coalmine.models.settings import MLP, ResNet, SmallNet
from coalmine.outline import Outline
from coalmine.training.recipe import Recipe

WEIGHTS = {
    "dafl": {"one_hot": 1.0, "activation": 0.001, "balance": 20.0},
    "dfad": {"adversarial": 1.0},
    "zskt": {"adversarial": 1.0},
    "dfq": {"one_hot": 1.0, "balance": 20.0, "batch_norm": 1.0, "adversarial": 1.0},
    "deepinversion": {"one_hot": 1.0, "batch_norm": 10.0, "adversarial": 1.0, "total_variation": 0.001},
    "cmi": {"one_hot": 1.0, "batch_norm": 1.0, "adversarial": 0.5, "contrastive": 0.8},
    "fast": {"one_hot": 0.4, "batch_norm": 10.0, "adversarial": 1.33},
    "reduced": {"batch_norm": 1.0},
}
"""The published weights for CIFAR-10."""

STEPS = {
    "dafl": (1, 5), "dfad": (1, 5), "zskt": (1, 10), "dfq": (1, 10),
    "deepinversion": (2000, 400), "cmi": (200, 400), "fast": (5, 400), "reduced": (2, None),
}  # fmt: skip
"""Steps of synthesis and of the student in a round."""


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_method_has_its_published_weights_and_steps(algorithm) -> None:
    settings = DataFree(algorithm=algorithm)
    assert settings.weights() == WEIGHTS[algorithm]
    assert (settings.generator_steps, settings.distillation_steps) == STEPS[algorithm]
    each = settings.distillation_steps
    assert each is None or each * settings.rounds == 400, "steps of the student an epoch"


MADE_AND_TAUGHT = {
    "dafl": ("generator", 0.001, None, False, 0.0, 0, 1.0),
    "dfad": ("generator", 0.001, None, False, 0.0, 0, 1.0),
    "zskt": ("generator", 0.001, None, False, 0.0, 0, 1.0),
    "dfq": ("generator", 0.001, None, False, 0.0, 0, 1.0),
    "deepinversion": ("pixels", 0.1, None, False, 0.0, 0, 20.0),
    "cmi": ("fresh", 0.001, 0.001, True, 0.0, 0, 20.0),
    "fast": ("meta", 0.003, 0.01, True, 0.9, 20, 20.0),
    "reduced": ("generator", 0.005, 0.015, True, 0.9, 20, 20.0),
}
"""Source, its rate and that of its inputs, augmented or not, momentum of statistics, warm-up, student's temperature."""

ASKED = {
    "dafl": ("predicted", None, False), "dfad": (None, "l1", False), "zskt": (None, "kl", False),
    "dfq": ("predicted", "kl", False), "deepinversion": ("drawn", "js", False), "cmi": ("drawn", "kl", True),
    "fast": ("drawn", "kl", True), "reduced": (None, None, False),
}  # fmt: skip
"""Which class an image is to be of; the measure of disagreement; whether it counts only where both name one class."""


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_method_makes_images_and_teaches_as_published(algorithm) -> None:
    own = DataFree(algorithm=algorithm)
    made = (own.source, own.rate, own.latent_rate, own.augmented, own.statistics_momentum, own.warmup, own.temperature)
    assert made == MADE_AND_TAUGHT[algorithm]
    asked = (own.target if own.one_hot else None, own.divergence if own.adversarial else None, own.masked)
    assert asked == ASKED[algorithm]
    assert own.learns_from == ("fresh" if algorithm in ("dafl", "dfad", "zskt", "dfq") else "memory")
    assert own.criterion == ("l1" if algorithm == "dfad" else "kl")
    assert own.latent == {"dafl": 512, "zskt": 100}.get(algorithm, 256)
    assert own.second_moment == (0.99 if algorithm == "deepinversion" else 0.999)
    assert own.roll == (2 if algorithm == "deepinversion" else 0)
    assert own.reset == (120 if algorithm == "fast" else None)
    assert own.passes == (5 if algorithm == "reduced" else None)


def test_what_is_given_replaces_what_the_method_has() -> None:
    settings = DataFree(algorithm="dfq", balance=0.0, batch_norm=2.5, rounds=3)
    assert settings.weights() == {"one_hot": 1.0, "batch_norm": 2.5, "adversarial": 1.0}
    assert (settings.rounds, settings.target) == (3, "predicted")


def test_reading_back_what_was_written_gives_the_same_settings() -> None:
    settings = dfkd.Settings(algorithm="cmi", adversarial=0.0, latent=17)
    assert dfkd.Settings.model_validate_json(json.dumps(settings.model_dump(mode="json"))) == settings


def test_weights_stand_in_the_order_of_the_terms_and_name_all_of_them() -> None:
    every = DataFree(algorithm="fast", **dict.fromkeys(TERMS, 2.0))
    assert list(every.weights()) == list(TERMS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "dream"}, "'dafl'"),
        ({}, "algorithm"),
        ({"algorithm": "fast", "passes": 2}, "give one, null the other"),
        ({"algorithm": "fast", "distillation_steps": None}, "give one, null the other"),
        ({"algorithm": "fast", "learns_from": "fresh"}, "learns_from: memory"),
        ({"algorithm": "dfq", "latent_rate": 0.1}, "latent_rate: null"),
        ({"algorithm": "dfq", "warmup": 3}, "warmup: 0"),
        ({"algorithm": "cmi", "latent_rate": None}, "give latent_rate"),
        ({"algorithm": "zskt", "adversarial": 0.0}, "no loss has a weight"),
        ({"algorithm": "reduced", "batch_norm": 0.0, "adversarial": 1.0}, "warmup has no student"),
        ({"algorithm": "cmi", "reset": 3}, "give reset: null"),
        ({"algorithm": "dfq", "balance": -1.0}, "greater than or equal to 0"),
        ({"algorithm": "dfq", "ballance": 1.0}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_a_remedy(changes, message) -> None:
    with pytest.raises(ValidationError, match=message):
        DataFree(**changes)


# --- what only the whole run can tell ----------------------------------------------------------------------------


def objection(settings: dfkd.Settings, size: int = 32, teacher: object = None) -> tuple[str, str] | None:
    models = {"undefended": teacher or ResNet()}
    outline = Outline(1000.0, 10, 3, {}, (size, size), models)
    return dfkd.objection(settings, SmallNet(), Recipe(epochs=30, milestones=()), outline)


@pytest.mark.parametrize("algorithm", ["dfq", "deepinversion", "cmi", "fast", "reduced"])
@pytest.mark.parametrize("teacher", [MLP(), ResNet(norm="group")])
def test_a_teacher_without_batch_norm_is_refused_for_losses_that_need_its_statistics(algorithm, teacher) -> None:
    field, reason = objection(dfkd.Settings(algorithm=algorithm), teacher=teacher)
    assert field == "teacher"
    assert "without batch norm" in reason
    assert "norm: batch" in reason
    assert objection(dfkd.Settings(algorithm=algorithm)) is None


def test_cmi_needs_the_layers_even_without_the_loss_of_their_statistics() -> None:
    found = objection(dfkd.Settings(algorithm="cmi", batch_norm=0.0), teacher=MLP())
    assert found is not None
    assert "contrastive" in found[1]


@pytest.mark.parametrize("algorithm", ["dafl", "dfad", "zskt"])
def test_methods_without_these_losses_take_any_teacher(algorithm) -> None:
    assert objection(dfkd.Settings(algorithm=algorithm), teacher=MLP()) is None


def test_sizes_that_a_generator_cannot_make_are_refused() -> None:
    field, reason = objection(dfkd.Settings(algorithm="dfq"), size=30)
    assert field == "source"
    assert "take pixels" in reason
    assert objection(dfkd.Settings(algorithm="deepinversion"), size=30) is None


def test_more_images_than_are_remembered_are_refused() -> None:
    assert objection(dfkd.Settings(algorithm="fast", images=50 * 256)) is None
    found = objection(dfkd.Settings(algorithm="fast", images=50 * 256 + 1))
    assert found == ("images", "is 12801, but only 12800 are remembered; lower it, or raise memory or epochs.")
    assert objection(dfkd.Settings(algorithm="dfq", images=30 * 40 * 10 * 2, batch_size=2, memory=10**6)) is None
    assert (
        objection(dfkd.Settings(algorithm="dfq", images=30 * 40 * 10 * 2 + 1, batch_size=2, memory=10**6))[0]
        == "images"
    )
    assert objection(dfkd.Settings(algorithm="dfq", images=200, memory=100))[0] == "images"
