"""Learning rates, steps and what a recipe refuses."""

import math

import pytest
from pydantic import ValidationError

from coalmine.training.recipe import Normalisation, Recipe


def test_the_protocol_warms_up_over_one_epoch_and_falls_fivefold_at_60_120_and_160():
    recipe = Recipe()
    n = 2560  # ten steps an epoch
    rates = [recipe.learning_rate_at(step, n) for step in range(recipe.steps(n))]
    assert len(rates) == 2000
    assert rates[:10] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1])
    assert rates[10] == rates[599] == 0.1
    assert rates[600] == rates[1199] == pytest.approx(0.02)
    assert rates[1200] == rates[1599] == pytest.approx(0.004)
    assert rates[1600] == rates[1999] == pytest.approx(0.0008)


def test_milestones_count_samples_and_not_whole_batches():
    recipe = Recipe(epochs=4, batch_size=4, milestones=(2,), warmup_epochs=0)
    n = 6  # step 3 starts at sample 12, exactly two epochs
    assert recipe.steps(n) == 6
    assert [recipe.learning_rate_at(step, n) for step in range(6)] == pytest.approx([0.1] * 3 + [0.02] * 3)
    n = 7  # step 3 starts at 12 of 14 samples, step 4 at 16
    assert recipe.steps(n) == 7
    assert [recipe.learning_rate_at(step, n) for step in range(7)] == pytest.approx([0.1] * 4 + [0.02] * 3)


def test_cosine_falls_from_the_end_of_warm_up_to_zero():
    recipe = Recipe(epochs=5, batch_size=10, schedule="cosine", learning_rate=0.4)
    n = 40  # four steps an epoch
    rates = [recipe.learning_rate_at(step, n) for step in range(20)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4] == pytest.approx(0.4)
    assert rates[12] == pytest.approx(0.2)
    assert rates[19] == pytest.approx(0.2 * (1 + math.cos(math.pi * 15 / 16)))


def test_without_warm_up_the_first_step_has_the_full_rate():
    recipe = Recipe(epochs=2, warmup_epochs=0, schedule="constant")
    assert [recipe.learning_rate_at(step, 1000) for step in range(8)] == [0.1] * 8


def test_a_set_smaller_than_the_batch_is_one_batch():
    recipe = Recipe(epochs=7, batch_size=64, schedule="constant")
    assert recipe.batch(10) == 10
    assert recipe.steps(10) == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"milestones": (60, 60)}, "must increase"),
        ({"milestones": (120, 60)}, "must increase"),
        ({"epochs": 160}, "must lie before the last epoch, epochs is 160; .* cosine"),
        ({"epochs": 1, "schedule": "constant"}, r"warmup_epochs \(1\) must be fewer than epochs \(1\)"),
        ({"momentum": 1.0}, "less than 1"),
        ({"learning_rate": 0.0}, "greater than 0"),
        ({"gamma": 0.0}, "greater than 0"),
        ({"label_smoothing": 0.1}, "Extra inputs"),
    ],
)
def test_impossible_recipes_are_refused_with_a_reason(fields, message):
    with pytest.raises(ValidationError, match=message):
        Recipe(**fields)


def test_recipes_read_lists_as_yaml_has_them_and_survive_json():
    recipe = Recipe.model_validate({"epochs": 30, "milestones": [10, 20], "augmentation": {"flip": False, "shift": 2}})
    assert recipe.milestones == (10, 20)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_normalisation_has_one_mean_and_deviation_a_channel():
    with pytest.raises(ValidationError, match="mean has 3 channels but std has 1"):
        Normalisation(mean=(0.5, 0.5, 0.5), std=(0.2,))
    with pytest.raises(ValidationError, match="greater than 0"):
        Normalisation(mean=(0.5,), std=(0.0,))
