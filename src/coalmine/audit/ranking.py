"""Do settings rank the same on synthetic as on real data? Rank correlation, and what choosing on synthetic data costs.

Who holds nothing but a synthetic set must choose hyper-parameters on it, too (Ghalebikesabi et al. 2023). Each of
several recipes trains classifiers on the synthetic sets of some shadow models. Their accuracies on held-out synthetic
and on real images are averaged over these models, and two questions are asked:

- Spearman's rank correlation of the two means over recipes (ties share the mean of their ranks).
- Regret: how much real accuracy the recipe that is best on synthetic data gives away against the best of all.

The interval of the correlation is a percentile bootstrap over shadow models: both means of every recipe are taken over
the same resampled models. It covers what varies from one shadow model to the next (private data, generative model,
synthetic set, training), given these recipes and this data set. It does not cover the choice of recipes: others would
have another correlation, and of few recipes any correlation says little. Nor does it undo that noise in the means pulls
a rank correlation towards 0: a replicate is noisier than the means themselves, so that the interval lies too near 0
where recipes are hard to tell apart. Four models have 35 different replicates only.

Simulated with 8 recipes whose true accuracies are so many standard deviations of one model's noise apart (400 audits
each), the interval at 95 % covered the correlation of the true accuracies

    true correlation        -0.14            0.83            1.00
    apart                0.5      1       0.5      1      0.5      1
    4 models            93 %    95 %     73 %    95 %    10 %    70 %
    8 models            98 %   100 %     91 %   100 %    35 %    98 %
    16 models           99 %   100 %     98 %   100 %    84 %   100 %

and always did at 3 deviations. Where it missed more often than at 95 %, it lay too low: a high correlation is
understated, not made up.

The best real accuracy is the largest of several estimates, chosen on the very images that it is measured on, so that
the regret is overstated on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from coalmine.audit.bootstrap import percentile_interval, resampling_weights
from coalmine.audit.inputs import FloatArray, require_probability

DECIMALS = 12
"""Means of accuracies are rounded so: equal means of different models may differ by rounding, which is no rank."""


@dataclass(frozen=True)
class Ranking:
    """How alike synthetic and real data rank recipes.

    Attributes:
        correlation: Spearman's of the means over models; None where either mean is the same for all recipes.
        low, high: its bootstrap interval; None without one model more, without replicates, or where more of these than
            lie outside of an interval have no correlation.
        chosen: positions of the recipes that are best on synthetic data, more than one on a tie.
        best: positions of those that are best on real data.
        regret: the best mean real accuracy minus that of the chosen recipe, the mean over ties.
        regret_se: standard error over models of the mean difference between these very recipes; None for one model.
    """

    correlation: float | None
    low: float | None
    high: float | None
    chosen: tuple[int, ...]
    best: tuple[int, ...]
    regret: float
    regret_se: float | None


def spearman(first: ArrayLike, second: ArrayLike) -> float | None:
    """Return Spearman's rank correlation of two sequences of numbers; None if either is constant or has one entry.

    Raises:
        ValueError: they have not the same length, or hold something that is not finite.
    """
    pair = [np.asarray(each, dtype=np.float64) for each in (first, second)]
    if pair[0].ndim != 1 or pair[0].shape != pair[1].shape or not all(np.isfinite(each).all() for each in pair):
        raise ValueError(f"give two sequences of as many finite numbers, not shapes {pair[0].shape}, {pair[1].shape}")
    if not pair[0].size:
        return None
    (value,) = _correlations(pair[0][None], pair[1][None])
    return None if np.isnan(value) else float(value)


def rank_recipes(
    synthetic: ArrayLike,
    real: ArrayLike,
    *,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: np.random.SeedSequence | int,
) -> Ranking:
    """Return how alike the accuracies of recipes rank on synthetic and on real data.

    Args:
        synthetic: accuracies on held-out synthetic images, ``(recipe, model)``.
        real: accuracies on real images, ``(recipe, model)``, of the same models.
        replicates: number of bootstrap replicates over models; 0 for no interval.
        confidence: of the interval.
        seed: of the bootstrap, not used up.

    Raises:
        ValueError: the arrays do not fit, are empty, or hold something that is not finite.
    """
    require_probability(confidence, "confidence")
    made, true = (np.asarray(each, dtype=np.float64) for each in (synthetic, real))
    if made.ndim != 2 or made.shape != true.shape or 0 in made.shape:
        raise ValueError(
            f"accuracies on synthetic data {made.shape} and on real data {true.shape} do not fit: give (recipe, model) "
            "twice"
        )
    if not (np.isfinite(made).all() and np.isfinite(true).all()):
        raise ValueError("every accuracy must be finite, so look for a broken result")
    models = made.shape[1]
    once = np.ones((1, models))
    means = _means(made, once)[0], _means(true, once)[0]
    correlation = spearman(*means)
    low, high = None, None
    if correlation is not None and replicates and models > 1:
        low, high = _interval(made, true, replicates, confidence, seed)
    chosen, best = (np.flatnonzero(mean == mean.max()) for mean in means)
    lost = true[best].mean(axis=0) - true[chosen].mean(axis=0)
    return Ranking(
        correlation=correlation,
        low=low,
        high=high,
        chosen=tuple(map(int, chosen)),
        best=tuple(map(int, best)),
        regret=float(means[1].max() - means[1][chosen].mean()),
        regret_se=float(lost.std(ddof=1) / np.sqrt(models)) if models > 1 else None,
    )


def _interval(
    synthetic: FloatArray, real: FloatArray, replicates: int, confidence: float, seed: np.random.SeedSequence | int
) -> tuple[float, float] | tuple[None, None]:
    weights = resampling_weights(synthetic.shape[1], replicates, np.random.default_rng(seed))
    sample = _correlations(_means(synthetic, weights), _means(real, weights))
    if np.isnan(sample).mean() > 1 - confidence:
        return None, None
    low, high = percentile_interval(sample, confidence)
    return float(low), float(high)


def _means(accuracies: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the weighted means over models, float64 ``(replicate, recipe)``, without the rounding of sums.

    Args:
        accuracies: float64 ``(recipe, model)``.
        weights: float64 ``(replicate, model)``, how often each model counts.
    """
    means: FloatArray = np.round(weights @ accuracies.T / weights.sum(axis=1, keepdims=True), DECIMALS)
    return means


def _correlations(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return Spearman's correlation row by row, float64 ``(row,)``; NaN where either row is constant."""
    ranks = [rankdata(each, axis=1) for each in (first, second)]
    centred = [each - each.mean(axis=1, keepdims=True) for each in ranks]
    together = (centred[0] * centred[1]).sum(axis=1)
    scale = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    # Ranks are whole or half numbers around their exact mean, so that a constant row has variation 0 exactly.
    correlations: FloatArray = np.where(
        scale > 0, np.clip(together / np.where(scale > 0, scale, 1.0), -1.0, 1.0), np.nan
    )
    return correlations
