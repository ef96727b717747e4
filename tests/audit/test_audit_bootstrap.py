"""Weighted replicates equal audits pooled anew, and intervals cover what they promise."""

import numpy as np
import pytest

from coalmine.audit.bootstrap import bootstrap, percentile_interval, rank_pairs, resampling_weights
from coalmine.audit.design import shuffled_membership
from coalmine.audit.lira import Lira
from coalmine.audit.roc import roc_curve, tpr_at_fpr

FPRS = (0.0, 0.01, 0.1, 0.5, 1.0)


def balanced(canaries, models, rng):
    return shuffled_membership(np.tile([True, False], (canaries, models // 2)), rng)


def small_audit(digits, seed=0):
    rng = np.random.default_rng(seed)
    member = rng.random((25, 8)) < 0.4
    return np.round(rng.normal(size=(25, 8)) + member, digits), member


def pooled_anew(scores, membership, canary_weights, model_weights):
    """Repeat rows and columns as often as they were drawn, and evaluate from scratch."""
    rows = np.repeat(np.arange(len(scores)), canary_weights.astype(int))
    columns = np.repeat(np.arange(scores.shape[1]), model_weights.astype(int))
    scores, membership = scores[np.ix_(rows, columns)], membership[np.ix_(rows, columns)]
    roc = roc_curve(scores, membership)
    return [roc.auc, *(roc.at_fpr(fpr).tpr for fpr in FPRS)]


@pytest.mark.parametrize("digits", [12, 1, 0])
@pytest.mark.parametrize("two_way", [False, True])
def test_given_weights_equal_naive_pooling(digits, two_way):
    scores, member = small_audit(digits)
    rng = np.random.default_rng(1)
    canary_weights = resampling_weights(25, 40, rng)
    model_weights = resampling_weights(8, 40, rng) if two_way else np.ones((40, 8))
    weights = model_weights if two_way else np.ones((40, 1))
    fast = rank_pairs(scores, member).metrics(canary_weights, weights, FPRS)
    slow = [pooled_anew(scores, member, c, m) for c, m in zip(canary_weights, model_weights, strict=True)]
    np.testing.assert_allclose(fast, slow, rtol=1e-13)


@pytest.mark.parametrize("two_way", [False, True])
def test_blocks_do_not_show(monkeypatch, two_way):
    scores, member = small_audit(1)
    whole = bootstrap(scores, member, FPRS, 50, seed=3, two_way=two_way)
    assert whole.shape == (50, 1 + len(FPRS))
    monkeypatch.setattr("coalmine.audit.bootstrap.BLOCK_VALUES", 7 * scores.size)
    np.testing.assert_array_equal(bootstrap(scores, member, FPRS, 50, seed=3, two_way=two_way), whole)
    rng = np.random.default_rng(3)
    canary_weights = resampling_weights(25, 50, rng)
    model_weights = resampling_weights(8, 50, rng) if two_way else np.ones((50, 1))
    np.testing.assert_array_equal(rank_pairs(scores, member).metrics(canary_weights, model_weights, FPRS), whole)


def test_weights_are_multinomial():
    """Means of 20,000 replicates: 5 sd of every checked mean, so fewer than one seed in 100,000 fails."""
    weights = resampling_weights(10, 20_000, np.random.default_rng(0))
    assert np.all(weights.sum(axis=1) == 10)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=5 * np.sqrt(0.9 / 20_000))
    np.testing.assert_allclose(weights.var(axis=0), 0.9, atol=0.07)
    assert np.corrcoef(weights[:, 0], weights[:, 1])[0, 1] == pytest.approx(-1 / 9, abs=5 / np.sqrt(20_000))


def test_the_same_seed_draws_the_same_canaries_for_every_attack():
    scores, member = small_audit(12)
    first = bootstrap(scores, member, FPRS, 20, seed=4)
    np.testing.assert_array_equal(bootstrap(3 * scores + 1, member, FPRS, 20, seed=4), first)
    assert not np.array_equal(bootstrap(scores, member, FPRS, 20, seed=5), first)


def test_replicates_that_lost_a_side_are_left_out_of_the_interval():
    scores = np.array([[1.0, 0.0]])
    member = np.array([[True, False]])
    values = bootstrap(scores, member, (0.0,), 200, seed=0, two_way=True)
    lost = np.isnan(values).all(axis=1)
    assert 60 < lost.sum() < 140
    assert np.isfinite(values[~lost]).all()
    np.testing.assert_array_equal(percentile_interval(values, 0.95), [[1, 1], [1, 1]])


def test_the_interval_is_the_central_share_of_the_replicates():
    values = np.stack([np.arange(1001.0), -np.arange(1001.0)], axis=1)
    np.testing.assert_allclose(percentile_interval(values, 0.9), [[50, -950], [950, -50]])


def heterogeneous_audit(rng, canaries):
    """Leaks differ between canaries; the TPR at 0.1 % FPR is about 19 %, as in the published simulation."""
    member = balanced(canaries, 32, rng)
    leak = np.maximum(rng.normal(1.5, 2.1, size=(canaries, 1)), 0)
    return Lira()(rng.normal(size=(canaries, 32)) + leak * member, member), member


def test_intervals_over_canaries_cover_and_binomial_ones_do_not():
    """200 audits of 500 canaries. Coverage below 0.89 when it is 0.95 happens for fewer than one seed in 1,000."""
    rng = np.random.default_rng(0)
    truth = roc_curve(*heterogeneous_audit(rng, 40_000))
    true_tpr = truth.at_fpr(0.001).tpr
    assert 0.17 < true_tpr < 0.21
    estimates, intervals = [], []
    for audit in range(200):
        scores, member = heterogeneous_audit(rng, 500)
        estimates.append(tpr_at_fpr(scores, member, 0.001).tpr)
        intervals.append(percentile_interval(bootstrap(scores, member, (0.001,), 200, seed=audit), 0.95))
    low, high = np.moveaxis(intervals, 1, 0)
    covers_auc, covers_tpr = ((low <= [truth.auc, true_tpr]) & ([truth.auc, true_tpr] <= high)).mean(axis=0)
    assert covers_auc >= 0.89
    assert covers_tpr >= 0.89
    binomial = 1.96 * np.sqrt(np.multiply(estimates, 1 - np.array(estimates)) / 8_000)
    assert np.mean(np.abs(np.array(estimates) - true_tpr) <= binomial) < 0.5
    assert 0.7 < np.mean(high - low, axis=0)[1] / (2 * 1.96 * np.std(estimates)) < 1.5


def test_resampling_models_too_widens_the_interval_where_models_differ():
    rng = np.random.default_rng(6)
    member = balanced(300, 16, rng)
    scores = rng.normal(size=(300, 16)) + member + 2 * rng.normal(size=(1, 16))
    canaries, both = (
        np.std(bootstrap(scores, member, (), 300, seed=0, two_way=two_way)[:, 0]) for two_way in (False, True)
    )
    assert both > 1.5 * canaries


def test_impossible_requests_are_refused():
    scores, member = small_audit(1)
    with pytest.raises(ValueError, match="at least 1"):
        bootstrap(scores, member, FPRS, 0, seed=0)
    with pytest.raises(ValueError, match="members and non-members"):
        bootstrap(scores, np.ones_like(member), FPRS, 5, seed=0)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        percentile_interval(np.zeros(3), 1.0)


def two_attacks(rng, canaries, models=16, gap=0.0):
    """Two audits of the same canaries, which leak as strongly under both; ``gap`` weakens the second."""
    member = balanced(canaries, models, rng)
    leak = rng.gamma(1.5, 2.0, size=(canaries, 1)) * member
    noise = rng.normal(size=(2, canaries, models))
    return noise[0] + leak, noise[1] + (1 - gap) * leak, member


def test_differences_of_replicates_equal_a_naive_paired_loop():
    """Whole canaries are drawn, the same for both attacks, and each audit is evaluated from scratch."""
    first, second, member = two_attacks(np.random.default_rng(0), 30, gap=0.4)
    fast = bootstrap(first, member, (0.01,), 40, seed=7) - bootstrap(second, member, (0.01,), 40, seed=7)
    draws = np.random.default_rng(7).integers(30, size=(40, 30))
    slow = [
        [
            roc_curve(first[drawn], member[drawn]).auc - roc_curve(second[drawn], member[drawn]).auc,
            tpr_at_fpr(first[drawn], member[drawn], 0.01).tpr - tpr_at_fpr(second[drawn], member[drawn], 0.01).tpr,
        ]
        for drawn in draws
    ]
    np.testing.assert_allclose(fast, slow, atol=1e-13)


def test_paired_intervals_cover_equal_leaks():
    """400 audits of 200 canaries. Coverage below 0.92 when it is 0.95 happens for fewer than one seed in 100.

    Above 0.99, intervals would be too wide to tell anything: fewer than one seed in 100,000 gives that.
    """
    rng = np.random.default_rng(0)
    intervals, estimates = [], []
    for seed in range(400):
        *attacks, member = two_attacks(rng, 200)
        first, second = (bootstrap(scores, member, (0.001,), 200, seed)[:, 1] for scores in attacks)
        intervals.append(percentile_interval(first - second, 0.95))
        estimates.append(np.subtract(*(tpr_at_fpr(scores, member, 0.001).tpr for scores in attacks)))
    low, high = np.transpose(intervals)
    assert 0.92 <= np.mean((low <= 0) & (high >= 0)) <= 0.99
    assert 0.8 < np.mean(high - low) / (2 * 1.96 * np.std(estimates)) < 1.3


def test_pairing_narrows_the_interval_where_canaries_differ():
    first, _, member = two_attacks(np.random.default_rng(1), 200)
    second = first + 0.05 * np.random.default_rng(2).normal(size=first.shape)
    one, paired, unpaired = (
        bootstrap(scores, member, (), 300, seed)[:, 0] for scores, seed in ((first, 0), (second, 0), (second, 1))
    )
    assert np.std(one - paired) < 0.2 * np.std(one - unpaired)
