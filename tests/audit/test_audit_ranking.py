"""Ranking of recipes on synthetic and on real data, against SciPy, naive loops and simulated truth."""

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from coalmine.audit.ranking import rank_recipes, spearman


def test_the_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 3, 8, 40):
        first, second = rng.normal(size=(2, size))
        assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_ties_share_the_mean_of_their_ranks_as_in_scipy() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        first, second = rng.integers(4, size=(2, 9))
        assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(np.sqrt(0.9))


def test_the_correlation_sees_only_the_order() -> None:
    values = np.array([0.1, 0.4, 0.2, 0.9, 0.6])
    assert spearman(values, np.exp(5 * values)) == 1.0
    assert spearman(values, -(values**3)) == -1.0


def test_a_constant_sequence_has_no_correlation() -> None:
    assert spearman([0.3, 0.3, 0.3], [1, 2, 3]) is None
    assert spearman([1, 2, 3], [0.3, 0.3, 0.3]) is None
    assert spearman([1.0], [2.0]) is None
    assert spearman([], []) is None


@pytest.mark.parametrize(
    ("first", "second"), [([1, 2], [1, 2, 3]), ([1, np.nan], [1, 2]), ([1, 2], [np.inf, 2]), ([[1, 2]], [[1, 2]])]
)
def test_what_cannot_be_ranked_is_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="two sequences of as many finite numbers"):
        spearman(first, second)


SYNTHETIC = np.array([[0.70, 0.80], [0.90, 0.80], [0.60, 0.60], [0.80, 0.84]])
REAL = np.array([[0.50, 0.60], [0.62, 0.60], [0.40, 0.44], [0.70, 0.62]])


def test_recipes_are_ranked_by_their_means_over_models() -> None:
    found = rank_recipes(SYNTHETIC, REAL, replicates=0, seed=0)
    # Means 0.75, 0.85, 0.60, 0.82 against 0.55, 0.61, 0.42, 0.66: ranks 2 4 1 3 against 2 3 1 4.
    assert found.correlation == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert (found.low, found.high) == (None, None)
    assert (found.chosen, found.best) == ((1,), (3,))
    assert found.regret == pytest.approx(0.66 - 0.61)
    lost = np.array([0.70 - 0.62, 0.62 - 0.60])
    assert found.regret_se == pytest.approx(lost.std(ddof=1) / np.sqrt(2))


def test_the_best_recipe_of_both_has_no_regret() -> None:
    found = rank_recipes(REAL, REAL, seed=0)
    assert (found.correlation, found.regret, found.regret_se) == (1.0, 0.0, 0.0)


def test_regret_is_the_mean_over_recipes_that_tie_on_synthetic_data() -> None:
    synthetic = np.array([[0.8, 0.9], [0.9, 0.8], [0.5, 0.5]])
    real = np.array([[0.6, 0.6], [0.8, 0.8], [0.9, 0.9]])
    found = rank_recipes(synthetic, real, seed=0)
    assert found.chosen == (0, 1)
    assert found.regret == pytest.approx(0.9 - 0.7)


def test_equal_means_tie_whatever_the_order_of_models() -> None:
    """0.1 + 0.2 + 0.3 depends on the order of its terms in binary, which must decide no rank."""
    orders = [*itertools.permutations([0.1, 0.2, 0.3])]
    assert len({sum(order) for order in orders}) > 1
    found = rank_recipes(np.array(orders), np.arange(18.0).reshape(6, 3), replicates=50, seed=0)
    assert found.correlation is None
    assert (found.low, found.high) == (None, None)
    assert found.chosen == tuple(range(6))


def test_the_interval_is_that_of_a_naive_bootstrap_over_models() -> None:
    rng = np.random.default_rng(2)
    synthetic, real = rng.random((2, 6, 5))
    every = [
        spearmanr(synthetic[:, drawn].mean(axis=1), real[:, drawn].mean(axis=1)).statistic
        for drawn in map(list, itertools.product(range(5), repeat=5))
    ]
    found = rank_recipes(synthetic, real, replicates=20_000, confidence=0.8, seed=3)
    assert found.low == pytest.approx(np.quantile(every, 0.1), abs=0.03)
    assert found.high == pytest.approx(np.quantile(every, 0.9), abs=0.03)
    again = rank_recipes(synthetic, real, replicates=20_000, confidence=0.8, seed=3)
    assert found == again


def test_one_model_has_no_interval_and_no_error() -> None:
    found = rank_recipes(SYNTHETIC[:, :1], REAL[:, :1], seed=0)
    assert found.correlation is not None
    assert (found.low, found.high, found.regret_se) == (None, None, None)


def test_an_interval_is_refused_where_too_many_replicates_have_no_correlation() -> None:
    """Only one of three models tells recipes apart: 8 of 27 replicates, 30 %, leave it out."""
    synthetic = np.array([[0.5, 0.5, 0.5], [0.5, 0.5, 0.6]])
    found = rank_recipes(synthetic, synthetic, seed=0)
    assert found.correlation == 1.0
    assert (found.low, found.high) == (None, None)


@pytest.mark.parametrize(
    ("synthetic", "real"), [(SYNTHETIC, REAL[:3]), (SYNTHETIC[0], REAL[0]), (SYNTHETIC[:0], REAL[:0])]
)
def test_accuracies_that_do_not_fit_are_refused(synthetic: np.ndarray, real: np.ndarray) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        rank_recipes(synthetic, real, seed=0)


def test_accuracies_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="every accuracy must be finite"):
        rank_recipes(SYNTHETIC, np.where(REAL > 0.65, np.nan, REAL), seed=0)


def test_unrelated_accuracies_have_no_correlation_on_average() -> None:
    """Given independent orders of n recipes it is 0 with variance 1 / (n - 1); at 4 standard errors, 1 in 16,000."""
    rng = np.random.default_rng(4)
    trials, recipes = 400, 6
    found = np.array(
        [rank_recipes(*rng.random((2, recipes, 4)), replicates=0, seed=0).correlation for _ in range(trials)],
        dtype=float,
    )
    assert abs(np.mean(found)) < 4 / np.sqrt(trials * (recipes - 1))
    assert np.var(found) == pytest.approx(1 / (recipes - 1), rel=0.3)  # 4 standard errors of a variance


def simulate(gap: float, order: list[int], models: int, trials: int) -> tuple[float, float, float, float]:
    """Return the true correlation, its share of audits covered, those missed from below, and the mean estimate.

    True accuracies lie ``gap`` standard deviations of a model's noise apart, on real data in the order given; models
    also have an effect of their own on all real accuracies.
    """
    rng = np.random.default_rng(5)
    synthetic, real = gap * np.arange(len(order)), gap * np.array(order)
    truth = spearman(synthetic, real)
    assert truth is not None
    shape = (len(order), models)
    inside = below = total = 0.0
    for _ in range(trials):
        noisy = (
            synthetic[:, None] + rng.normal(size=shape),
            real[:, None] + rng.normal(size=shape) + rng.normal(size=models),
        )
        found = rank_recipes(*noisy, replicates=200, seed=int(rng.integers(1 << 30)))
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= truth <= found.high
        below += found.high < truth
        total += found.correlation or 0.0
    return truth, inside / trials, below / trials, total / trials


UNRELATED, PARTLY, SAME = [3, 6, 0, 5, 7, 1, 4, 2], [1, 0, 4, 2, 3, 7, 5, 6], [*range(8)]


@pytest.mark.parametrize("order", [UNRELATED, PARTLY, SAME])
def test_recipes_that_are_well_apart_show_the_true_correlation(order: list[int]) -> None:
    truth, covered, _, mean = simulate(3.0, order, models=8, trials=100)
    assert covered >= 0.95
    assert mean == pytest.approx(truth, abs=0.01)


def test_the_interval_covers_the_true_correlation_of_unrelated_rankings() -> None:
    """93 % in 400 audits with 4 models: of 200, fewer than 170 has probability 1e-4 at 92 %."""
    _, covered, _, _ = simulate(0.5, UNRELATED, models=4, trials=200)
    assert covered >= 0.85


def test_noise_pulls_a_perfect_correlation_down_and_never_up() -> None:
    """What the module says of recipes that are hard to tell apart: the interval lies too low."""
    truth, covered, below, mean = simulate(0.5, PARTLY, models=4, trials=200)
    assert mean < truth
    assert covered < 0.85
    assert below > 0.9 * (1 - covered)


def test_regret_is_overstated_on_average_and_not_by_much_more_than_the_noise() -> None:
    """Recipes as good as each other have no regret; the largest of 8 standard normal means is 1.42 above the others."""
    rng = np.random.default_rng(6)
    models = 4
    regrets = [rank_recipes(*rng.normal(size=(2, 8, models)), replicates=0, seed=0).regret for _ in range(400)]
    assert np.mean(regrets) == pytest.approx(1.42 / np.sqrt(models), rel=0.15)
    assert min(regrets) >= 0
