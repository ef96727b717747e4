"""The design is the published protocol, bit for bit, and cannot be drawn wrongly."""

import hashlib

import numpy as np
import pytest

from coalmine.audit.design import (
    Design,
    average_case,
    draw_design,
    fewest_on_a_side,
    first_models,
    shuffled_membership,
    training_indices,
    training_labels,
)

CIFAR_LABELS = np.arange(50_000) % 10


@pytest.fixture(scope="module")
def golden() -> Design:
    return draw_design(CIFAR_LABELS, n_classes=10, n_models=32, n_canaries=500)


def test_seed_0_draws_the_published_canaries(golden):
    first = [18263, 32432, 4748, 23677, 19639, 37729, 38674, 32862, 5167, 10021]
    assert golden.index[:10].tolist() == first
    assert golden.index.dtype == golden.true_label.dtype == golden.canary_label.dtype == np.int64
    assert hashlib.sha256(np.sort(golden.index).tobytes()).hexdigest().startswith("24bbc40a20e0ef78")


def test_seed_0_draws_the_published_wrong_labels(golden):
    offsets = [4, 6, 4, 3, 3, 8, 1, 3, 7, 8]
    true = CIFAR_LABELS[golden.index[:10]]
    assert golden.canary_label[:10].tolist() == [c if c < y else c + 1 for c, y in zip(offsets, true, strict=True)]
    assert golden.mislabelled.all()


def test_seed_0_draws_the_published_membership(golden):
    per_model = golden.membership.sum(axis=0)
    assert (per_model.min(), per_model.max(), per_model.mean()) == (222, 272, 250.0)
    assert round(float(per_model.std()), 1) == 11.6
    assert (golden.membership.sum(axis=1) == 16).all()


def test_membership_is_the_lower_half_of_uniforms_drawn_for_all_samples():
    design = draw_design(np.zeros(300, int), n_classes=2, n_models=8, n_canaries=40, seed=5)
    _, splits, _ = np.random.default_rng(5).spawn(3)
    smallest = np.argsort(splits.uniform(size=(8, 300)), axis=0)[:4]
    expected = [[model in smallest[:, index] for model in range(8)] for index in design.index]
    np.testing.assert_array_equal(design.membership, expected)


def test_canaries_do_not_depend_on_models_nor_labels_on_the_number_of_canaries(golden):
    other = draw_design(CIFAR_LABELS, n_classes=10, n_models=64, n_canaries=700)
    np.testing.assert_array_equal(other.index[:500], golden.index)
    np.testing.assert_array_equal(other.canary_label[:500], golden.canary_label)
    assert not np.array_equal(draw_design(CIFAR_LABELS, 10, 32, 500, seed=1).index, golden.index)


def test_clean_samples_follow_the_canaries_and_keep_their_label(golden):
    design = draw_design(CIFAR_LABELS, n_classes=10, n_models=32, n_canaries=500, n_clean=100)
    np.testing.assert_array_equal(design.index[:500], golden.index)
    np.testing.assert_array_equal(design.membership[:500], golden.membership)
    np.testing.assert_array_equal(design.mislabelled, np.arange(600) < 500)
    np.testing.assert_array_equal(design.canary_label == design.true_label, np.arange(600) >= 500)
    assert (design.membership.sum(axis=1) == 16).all()
    assert len(np.unique(design.index)) == 600


def test_wrong_labels_are_wrong_and_uniform():
    labels = np.full(9_000, 3)
    design = draw_design(labels, n_classes=10, n_models=2, n_canaries=8_999)
    counts = np.bincount(design.canary_label, minlength=10)
    assert counts[3] == 0
    # Chi-squared with 8 degrees of freedom: 26.1 is exceeded once in 1,000 seeds.
    assert ((np.delete(counts, 3) - 8_999 / 9) ** 2).sum() / (8_999 / 9) < 26.1


def test_the_average_case_has_the_same_samples_and_models_with_right_labels(golden):
    average = average_case(golden)
    np.testing.assert_array_equal(average.index, golden.index)
    np.testing.assert_array_equal(average.membership, golden.membership)
    np.testing.assert_array_equal(average.canary_label, golden.true_label)
    assert not average.mislabelled.any()
    assert golden.mislabelled.all()


def test_shuffling_keeps_each_canary_half_in_and_forgets_the_truth(golden):
    shuffled = shuffled_membership(golden.membership, np.random.default_rng(0))
    assert (shuffled.sum(axis=1) == 16).all()
    # 16,000 pairs agree by chance in half of the cases; 4 standard deviations fail once in 16,000 seeds.
    assert abs((shuffled == golden.membership).mean() - 0.5) < 4 * 0.5 / np.sqrt(16_000)


def test_shuffling_permutes_each_row_by_itself():
    member = np.arange(20) < np.arange(1, 20)[:, None]
    shuffled = shuffled_membership(member, np.random.default_rng(0))
    np.testing.assert_array_equal(shuffled.sum(axis=1), member.sum(axis=1))
    alike = shuffled_membership(np.tile([True, False], (50, 8)), np.random.default_rng(0))
    assert len(np.unique(alike, axis=0)) == 50


def test_a_model_trains_on_everything_but_its_out_samples(golden):
    for model in (0, 31):
        trained = training_indices(golden, 50_000, model)
        assert trained.dtype == np.int64
        expected = set(range(50_000)) - set(golden.index[~golden.membership[:, model]].tolist())
        assert trained.tolist() == sorted(expected)


def test_training_labels_carry_the_canary_labels_and_leave_the_input_alone(golden):
    labels = CIFAR_LABELS.copy()
    result = training_labels(labels, golden)
    np.testing.assert_array_equal(labels, CIFAR_LABELS)
    np.testing.assert_array_equal(result[golden.index], golden.canary_label)
    assert np.count_nonzero(result != labels) == 500
    assert result.dtype == np.int64


def test_labels_of_other_data_are_refused(golden):
    with pytest.raises(ValueError, match="drawn for other data"):
        training_labels((CIFAR_LABELS + 1) % 10, golden)
    with pytest.raises(ValueError, match="drawn for other data"):
        training_labels(CIFAR_LABELS[:100], golden)


def test_models_and_samples_outside_the_design_are_refused(golden):
    for model in (-1, 32):
        with pytest.raises(ValueError, match="models 0 to 31"):
            training_indices(golden, 50_000, model)
    with pytest.raises(ValueError, match="drawn for other data"):
        training_indices(golden, 100, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_models": 3}, "even number"),
        ({"n_models": 0}, "even number"),
        ({"n_classes": 1}, "at least 2 classes"),
        ({"n_classes": 9}, r"lie in \[0, 9\)"),
        ({"n_canaries": 100}, "out of 100"),
        ({"n_canaries": 60, "n_clean": 40}, "out of 100"),
        ({"n_canaries": 0}, "at least 1 sample"),
        ({"n_clean": -1}, "at least 1 sample"),
        ({"labels": np.arange(100) % 10 - 1}, "span -1 to 8"),
        ({"labels": np.zeros(100)}, "give integers"),
    ],
)
def test_impossible_designs_are_refused(change, message):
    arguments = {"labels": np.arange(100) % 10, "n_classes": 10, "n_models": 4, "n_canaries": 10}
    with pytest.raises(ValueError, match=message):
        draw_design(**(arguments | change))


def test_parts_of_a_design_must_fit_each_other(golden):
    with pytest.raises(ValueError, match="true_label has shape"):
        Design(golden.index, golden.true_label[:1], golden.canary_label, golden.mislabelled, golden.membership)
    with pytest.raises(ValueError, match="membership must be bool"):
        Design(golden.index, golden.true_label, golden.canary_label, golden.mislabelled, golden.membership.astype(int))


def test_the_first_models_of_a_design_keep_its_canaries_and_their_membership():
    design = draw_design(np.arange(50) % 5, 5, 8, 20, 10, seed=3)
    first = first_models(design, 5)
    np.testing.assert_array_equal(first.membership, design.membership[:, :5])
    np.testing.assert_array_equal(first.canary_label, design.canary_label)
    with pytest.raises(ValueError, match="the first 9 of 8 models"):
        first_models(design, 9)


def test_the_fewest_models_on_a_side_are_those_of_the_worst_canary():
    membership = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]], dtype=bool)
    assert fewest_on_a_side(membership) == 1
    assert fewest_on_a_side(~membership) == 1
    assert fewest_on_a_side(membership[[0, 2]]) == 2
