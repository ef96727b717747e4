"""Scores are what their formulas say, for any logits."""

import numpy as np
import pytest
from scipy.special import softmax

from coalmine.audit.scores import hinge_score, logit_score, margins

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 4, 3, 5)) * 3
LABELS = RNG.integers(5, size=7)


def queried(array, labels):
    return np.stack([array[canary, ..., label] for canary, label in enumerate(labels)])


def test_the_logit_score_is_the_log_odds_of_the_softmax_probability():
    probability = queried(softmax(LOGITS, axis=-1), LABELS)
    np.testing.assert_allclose(logit_score(LOGITS, LABELS), np.log(probability / (1 - probability)), rtol=1e-9)


def test_the_hinge_score_is_the_margin_over_the_best_other_class():
    expected = [
        [[view[label] - max(np.delete(view, label)) for view in model] for model in canary]
        for canary, label in zip(LOGITS, LABELS, strict=True)
    ]
    np.testing.assert_array_equal(hinge_score(LOGITS, LABELS), expected)


def test_margins_are_both_scores():
    both = margins(LOGITS, LABELS)
    np.testing.assert_array_equal(both.logit, logit_score(LOGITS, LABELS))
    np.testing.assert_array_equal(both.hinge, hinge_score(LOGITS, LABELS))


def test_a_constant_shift_changes_nothing():
    shifted = LOGITS + RNG.normal(size=(7, 4, 3, 1)) * 100
    np.testing.assert_allclose(logit_score(shifted, LABELS), logit_score(LOGITS, LABELS), atol=1e-11)
    np.testing.assert_allclose(hinge_score(shifted, LABELS), hinge_score(LOGITS, LABELS), atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_inputs_are_never_changed_and_scores_are_float64(dtype):
    logits = LOGITS.astype(dtype)
    before = logits.copy()
    assert logit_score(logits, LABELS).dtype == hinge_score(logits, LABELS).dtype == np.float64
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(logit_score(logits, LABELS), logit_score(before.astype(np.float64), LABELS))


def test_huge_logits_keep_their_margin():
    logits = np.array([[[1e30, 0.0, -1e30]], [[-5e4, -5e4 - 1.5, -6e4]]])
    np.testing.assert_allclose(logit_score(logits, np.array([0, 1]))[:, 0], [1e30, -1.5], rtol=1e-12)
    np.testing.assert_allclose(hinge_score(logits, np.array([2, 0]))[:, 0], [-2e30, 1.5], rtol=1e-12)


def test_with_two_classes_both_scores_are_the_difference():
    logits = RNG.normal(size=(6, 3, 2))
    labels = np.array([0, 1, 0, 1, 1, 0])
    difference = (logits[..., 0] - logits[..., 1]) * np.where(labels == 0, 1, -1)[:, None]
    np.testing.assert_allclose(logit_score(logits, labels), difference, rtol=1e-12)
    np.testing.assert_allclose(hinge_score(logits, labels), difference, rtol=1e-12)


def test_any_number_of_axes_lies_between_canary_and_class():
    assert logit_score(LOGITS[:, 0, 0], LABELS).shape == (7,)
    np.testing.assert_array_equal(logit_score(LOGITS[:, 0, 0], LABELS), logit_score(LOGITS, LABELS)[:, 0, 0])
    assert logit_score(LOGITS[..., None, :], LABELS).shape == (7, 4, 3, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_named(bad):
    logits = LOGITS.copy()
    logits[5, 2, 1, 3] = bad
    with pytest.raises(ValueError, match="logit of canary 5, model 2, view 1"):
        logit_score(logits, LABELS)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (LOGITS, LABELS[:-1], "one integer for each of 7"),
        (LOGITS, LABELS.astype(float), "one integer"),
        (LOGITS, LABELS + 5, "there are 5 classes"),
        (LOGITS, LABELS - 5, "there are 5 classes"),
        (LOGITS[..., :1], LABELS * 0, "at least 2 classes"),
        (LABELS.astype(float), LABELS, "at least 2 classes"),
    ],
)
def test_impossible_queries_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        hinge_score(logits, labels)
