"""The bound on epsilon is exact where a closed form is known, and it errs no more often than it says."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from coalmine.audit.design import shuffled_membership
from coalmine.audit.epsilon import clopper_pearson, epsilon_lower_bound, mean_upper_bound
from coalmine.audit.lira import Lira


def balanced(canaries, models, rng):
    return shuffled_membership(np.tile([True, False], (canaries, models // 2)), rng)


@pytest.mark.parametrize("n", [1, 5, 400, 100_000])
@pytest.mark.parametrize("alpha", [0.025, 0.05, 0.25])
def test_with_nothing_observed_the_bound_is_that_of_clopper_and_pearson(n, alpha):
    assert mean_upper_bound(0.0, n, alpha) == pytest.approx(1 - alpha ** (1 / n), rel=1e-9)
    assert mean_upper_bound(0.0, n, alpha) == pytest.approx(clopper_pearson(0, n, 1 - 2 * alpha)[1], rel=1e-9)


def test_the_bound_solves_the_chernoff_equation():
    mean = np.linspace(0.001, 0.999, 41)
    upper = mean_upper_bound(mean, 400, 0.025)
    divergence = mean * np.log(mean / upper) + (1 - mean) * np.log((1 - mean) / (1 - upper))
    assert np.all(upper > mean)
    np.testing.assert_allclose(400 * divergence, np.log(1 / 0.025), rtol=1e-8)


def test_the_bound_is_looser_than_the_exact_binomial_one_but_not_by_much():
    successes = np.arange(401)
    ours = mean_upper_bound(successes / 400, 400, 0.025)
    exact = np.array([clopper_pearson(k, 400, 0.95)[1] for k in successes])
    assert np.all(ours >= exact - 1e-12)
    assert np.all(ours - exact < 0.02)
    assert ours[-1] == 1.0


@pytest.mark.parametrize("probability", [0.003, 0.2, 0.9])
def test_the_bound_fails_no_more_often_than_allowed(probability):
    """Exact, for the coin flips that are the worst case of Hoeffding's theorem."""
    successes = np.arange(401)
    fails = mean_upper_bound(successes / 400, 400, 0.025) < probability
    assert binom.pmf(successes, 400, probability)[fails].sum() <= 0.025


def test_clopper_pearson_gives_the_values_of_r():
    """``binom.test(3, 10)`` and ``binom.test(0, 10)``."""
    assert clopper_pearson(3, 10) == pytest.approx((0.06673951, 0.65245285), abs=1e-8)
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 0.3084971), abs=1e-7)
    assert clopper_pearson(10, 10) == pytest.approx((0.6915029, 1.0), abs=1e-7)


def test_clopper_pearson_inverts_the_binomial_tails():
    low, high = clopper_pearson(7, 50, 0.9)
    assert binom.sf(6, 50, low) == pytest.approx(0.05)
    assert binom.cdf(7, 50, high) == pytest.approx(0.05)


@pytest.mark.parametrize(("canaries", "ceiling"), [(500, 4.6815), (100, 3.0535), (5, 0.0)])
def test_a_perfect_attack_reaches_the_ceiling_and_a_reversed_one_shows_nothing(canaries, ceiling):
    member = balanced(canaries, 32, np.random.default_rng(0))
    bound = epsilon_lower_bound(member.astype(float), member)
    judges = canaries - canaries // 5
    zero = 1 - 0.025 ** (1 / judges)
    assert bound.canaries == judges
    assert bound.lower == bound.ceiling == pytest.approx(max(0, np.log((1 - zero - 1e-5) / zero)), rel=1e-9)
    assert bound.ceiling == pytest.approx(ceiling, abs=1e-3)
    assert epsilon_lower_bound(-member.astype(float), member).lower == 0.0


def test_confidence_and_delta_move_the_ceiling():
    member = balanced(100, 8, np.random.default_rng(0))
    for confidence, delta in ((0.99, 0.0), (0.8, 0.1)):
        bound = epsilon_lower_bound(member.astype(float), member, confidence=confidence, delta=delta)
        zero = 1 - ((1 - confidence) / 2) ** (1 / 80)
        assert bound.lower == bound.ceiling == pytest.approx(np.log((1 - zero - delta) / zero), rel=1e-9)
        assert (bound.confidence, bound.delta) == (confidence, delta)


def identical_canaries(accepted_in, accepted_out, canaries=50):
    """Of 8 IN and 8 OUT models so many accept, for every canary: the choice of canaries cannot matter."""
    member = np.tile(np.arange(16) < 8, (canaries, 1))
    accepted = np.tile(np.r_[np.arange(8) < accepted_in, np.arange(8) < accepted_out], (canaries, 1))
    return accepted.astype(float), member


def test_accepting_members_bounds_epsilon_by_the_ratio_of_tpr_to_fpr():
    bound = epsilon_lower_bound(*identical_canaries(6, 0), delta=1e-3)
    tpr_lower = 1 - mean_upper_bound(0.25, 40, 0.025)
    fpr_upper = mean_upper_bound(0.0, 40, 0.025)
    assert bound.lower == pytest.approx(np.log((tpr_lower - 1e-3) / fpr_upper), rel=1e-9)
    assert bound.threshold == 1.0


def test_refusing_nonmembers_bounds_epsilon_by_the_ratio_of_tnr_to_fnr():
    bound = epsilon_lower_bound(*identical_canaries(8, 2), delta=1e-3)
    tnr_lower = 1 - mean_upper_bound(0.25, 40, 0.025)
    fnr_upper = mean_upper_bound(0.0, 40, 0.025)
    assert bound.lower == pytest.approx(np.log((tnr_lower - 1e-3) / fnr_upper), rel=1e-9)


def test_each_canary_counts_once_however_many_models_it_is_in():
    member = np.arange(16) < np.where(np.arange(60) % 2, 14, 2)[:, None]
    accepted = np.where(member, np.arange(60)[:, None] % 2 == 0, False)
    accepted[::6, 0] = False
    order = np.random.default_rng(7).permutation(60)
    judges = order[12:]
    tpr = np.mean([accepted[c, member[c]].mean() for c in judges])
    expected = np.log((1 - mean_upper_bound(1 - tpr, 48, 0.025) - 1e-5) / mean_upper_bound(0.0, 48, 0.025))
    assert epsilon_lower_bound(accepted.astype(float), member, seed=7).lower == pytest.approx(expected, rel=1e-9)


def test_the_threshold_is_chosen_without_the_canaries_that_judge_it():
    rng = np.random.default_rng(2)
    member = balanced(50, 8, rng)
    scores = rng.normal(size=(50, 8)) + 2 * member
    chooses = np.random.default_rng(3).permutation(50)[:10]
    bound = epsilon_lower_bound(scores, member, seed=3)
    assert bound.threshold in scores[chooses]
    others = np.setdiff1d(np.arange(50), chooses)
    scores[others] = rng.permuted(scores[others], axis=1)
    changed = epsilon_lower_bound(scores, member, seed=3)
    assert changed.threshold == bound.threshold
    assert changed.lower != bound.lower


def test_the_threshold_is_the_best_of_all_on_the_canaries_that_choose():
    rng = np.random.default_rng(4)
    for tied in (False, True):
        member = balanced(100, 16, rng)
        scores = rng.normal(size=(100, 16)) + 2.5 * member
        scores = np.round(scores, 1) if tied else scores
        chooses = np.random.default_rng(0).permutation(100)[:20]
        picked, inside = scores[chooses], member[chooses]

        def promise(threshold, picked=picked, inside=inside):
            fpr = mean_upper_bound((picked >= threshold)[~inside].mean(), 80, 0.025)
            fnr = mean_upper_bound((picked < threshold)[inside].mean(), 80, 0.025)
            return max((1 - fnr - 1e-5) / fpr, (1 - fpr - 1e-5) / fnr)

        best = max(np.unique(picked), key=promise)
        assert promise(epsilon_lower_bound(scores, member).threshold) == pytest.approx(promise(best), rel=1e-9)


def exceeded(true_epsilon, runs, draw):
    bounds = [epsilon_lower_bound(*draw(np.random.default_rng(run)), delta=0.0, seed=run).lower for run in range(runs)]
    return np.mean(np.array(bounds) > true_epsilon), np.mean(bounds)


@pytest.mark.parametrize("dependent", [True, False])
def test_randomised_response_is_not_accused_of_more_than_its_epsilon(dependent):
    """Each answer is right with odds e^1 to 1; dependent: all models of a canary roll the same die.

    The bound may exceed the true epsilon in 5 % of the runs; above 8.5 % of 200 happens for one seed in 50 at worst,
    and in practice never, as the bound is conservative.
    """

    def draw(rng):
        member = balanced(500, 32, rng)
        die = rng.random((500, 1) if dependent else (500, 32))
        truthful = die < np.e / (1 + np.e)
        return (truthful == member).astype(float), member

    rate, mean = exceeded(1.0, 200, draw)
    assert rate <= 0.085
    assert 0.6 < mean < 1.0


def test_pooling_dependent_pairs_would_accuse_wrongly():
    """What the per-canary bound is for: Clopper-Pearson on the 8,000 pooled pairs of that audit is often wrong."""
    wrong = 0
    for run in range(200):
        rng = np.random.default_rng(run)
        member = balanced(500, 32, rng)
        accepted = (rng.random((500, 1)) < np.e / (1 + np.e)) == member
        tpr_lower, _ = clopper_pearson(int((accepted & member).sum()), 8_000)
        _, fpr_upper = clopper_pearson(int((accepted & ~member).sum()), 8_000)
        wrong += np.log(tpr_lower / fpr_upper) > 1.0
    assert wrong / 200 > 0.2


@pytest.mark.parametrize("lira", [Lira(), Lira(online=False), Lira(fixed_variance=True)], ids=lambda lira: lira.name)
def test_without_a_leak_nothing_is_shown(lira):
    """More than 4 of 60 audits above 0 at a level of 5 % would be no surprise; the bound is conservative: none is."""

    def draw(rng):
        member = balanced(200, 16, rng)
        return lira(rng.normal(size=(200, 16)), member), member

    rate, _ = exceeded(0.0, 60, draw)
    assert rate <= 0.05


def test_a_gaussian_mechanism_is_bounded_below_its_epsilon_and_not_far_below():
    """A shift of one sd is (2, 0.0209)-differentially private (Dong, Roth and Su 2019, corollary 2.13).

    At most 5 % of 40 audits may exceed 2, and as the best threshold shows less, none does.
    """
    delta = norm.cdf(-1.5) - np.exp(2) * norm.cdf(-2.5)

    def draw(rng):
        member = balanced(500, 16, rng)
        return rng.normal(size=(500, 16)) + member, member

    rngs = [np.random.default_rng(run) for run in range(40)]
    bounds = [epsilon_lower_bound(*draw(rng), delta=delta, seed=run).lower for run, rng in enumerate(rngs)]
    assert np.mean(np.array(bounds) > 2) <= 0.05
    assert np.mean(bounds) > 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"confidence": 1.0}, "strictly between 0 and 1"),
        ({"delta": 1.0}, "from 0 to below 1"),
        ({"delta": -0.1}, "from 0 to below 1"),
        ({"scores": np.zeros((4, 4)), "membership": np.tile([True, False], (4, 2))}, "4 canaries"),
        ({"membership": np.arange(40).reshape(10, 4) > 3}, "canary 0 is IN all models or in none"),
    ],
)
def test_impossible_requests_are_refused(arguments, message):
    defaults = {"scores": np.zeros((10, 4)), "membership": np.tile([True, False], (10, 2))}
    with pytest.raises(ValueError, match=message):
        epsilon_lower_bound(**(defaults | arguments))


@pytest.mark.parametrize("successes", [-1, 11])
def test_impossible_counts_are_refused(successes):
    with pytest.raises(ValueError, match="in 10 trials"):
        clopper_pearson(successes, 10)
    with pytest.raises(ValueError, match="give at least one, in"):
        mean_upper_bound(successes, 10, 0.05)
