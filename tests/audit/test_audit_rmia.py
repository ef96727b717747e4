"""RMIA by sorting equals RMIA by definition."""

import numpy as np
import pytest

from coalmine.audit.design import shuffled_membership
from coalmine.audit.rmia import Rmia
from coalmine.audit.roc import auc


def naive(probability, membership, rmia):
    canaries, models = probability.shape
    result = np.zeros((canaries, models))
    for target in range(models):
        marginal = np.zeros(canaries)
        for x in range(canaries):
            references = [m for m in range(models) if m != target and (rmia.online or not membership[x, m])]
            mean = np.mean(probability[x, references])
            a = rmia.offline_a
            marginal[x] = mean if rmia.online else ((1 + a) * mean + (1 - a)) / 2
        ratio = probability[:, target] / marginal
        for x in range(canaries):
            others = np.delete(ratio, x)
            result[x, target] = np.mean(ratio[x] / others > rmia.gamma)
    return result


VARIANTS = [
    Rmia(online=True),
    Rmia(online=False),
    Rmia(online=True, gamma=1.0),
    Rmia(online=False, gamma=1.2, offline_a=0.8),
]


@pytest.mark.parametrize("rmia", VARIANTS, ids=str)
def test_sorting_equals_the_naive_loop(rmia):
    rng = np.random.default_rng(0)
    member = shuffled_membership(np.tile([True, False, True, False, False], (20, 2)), rng)
    probability = rng.beta(0.3, 0.6, size=(20, 10))
    np.testing.assert_allclose(rmia(probability, member), naive(probability, member, rmia), rtol=1e-12)


@pytest.mark.parametrize("rmia", VARIANTS, ids=str)
def test_tiny_probabilities_beside_large_ones_keep_their_ratio(rmia):
    rng = np.random.default_rng(1)
    member = shuffled_membership(np.tile([True, False], (30, 4)), rng)
    probability = 10.0 ** -rng.integers(0, 40, size=(30, 8))
    probability[:, 3] = 1.0
    np.testing.assert_allclose(rmia(probability, member), naive(probability, member, rmia), rtol=1e-12)


@pytest.mark.parametrize("online", [True, False])
def test_equal_samples_beat_nobody_even_at_gamma_one(online):
    member = np.tile([True, False], (5, 3))
    assert not Rmia(online=online, gamma=1.0)(np.full((5, 6), 0.25), member).any()


@pytest.mark.parametrize("online", [True, False])
def test_probabilities_that_round_to_zero_are_no_obstacle(online):
    member = np.tile([True, False], (5, 3))
    probability = np.where(member, 0.9, 0.0)
    probability[0] = 0.0
    scores = Rmia(online=online)(probability, member)
    assert np.isfinite(scores).all()
    assert scores[1:][member[1:]].min() > scores[1:][~member[1:]].max()


@pytest.mark.parametrize("online", [True, False])
def test_members_score_higher_and_shuffling_membership_ends_it(online):
    """Under the null the AUC of 1,000 canaries has an sd of 0.004: 0.02 fails less than once in 10^6 seeds."""
    rng = np.random.default_rng(2)
    member = shuffled_membership(np.tile([True, False], (1_000, 8)), rng)
    probability = 1 / (1 + np.exp(-(rng.normal(size=(1_000, 1)) + rng.normal(size=(1_000, 16)) + 4 * member - 2)))
    assert auc(Rmia(online=online)(probability, member), member) > 0.9
    shuffled = shuffled_membership(member, rng)
    assert auc(Rmia(online=online)(probability, shuffled), shuffled) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"gamma": 0.9}, "at least 1"), ({"offline_a": 1.1}, "0 to 1"), ({"offline_a": -1}, "0 to 1")],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rmia(**arguments)


@pytest.mark.parametrize(
    ("probability", "models", "message"),
    [
        (np.full((3, 6), 1.1), 6, r"values in \[0, 1\]"),
        (np.full((3, 6), -0.1), 6, r"values in \[0, 1\]"),
        (np.full((3, 6, 1), 0.5), 6, "one view"),
        (np.full((1, 6), 0.5), 6, "at least 2"),
        (np.full((3, 2), 0.5), 2, "no reference model when model .* at least 4 models"),
    ],
)
def test_impossible_inputs_are_refused(probability, models, message):
    member = np.tile([True, False], (len(probability), models // 2))
    with pytest.raises(ValueError, match=message):
        Rmia(online=False)(probability, member)


def test_names_say_the_variant():
    assert (Rmia().name, Rmia(online=False).name) == ("rmia-online", "rmia-offline")
    assert (Rmia().gamma, Rmia().offline_a) == (2.0, 0.33)
