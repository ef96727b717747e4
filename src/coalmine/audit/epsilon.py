"""A lower bound on epsilon from one attack: how private the training can be at most, given what the attack saw.

(epsilon, delta)-differential privacy forces TPR <= e^epsilon FPR + delta on every attack, and the same with members and
non-members exchanged, TNR <= e^epsilon FNR + delta (Kairouz, Oh and Viswanath 2015; Jagielski, Ullman and Oprea 2020).
Confidence bounds on the two rates hence bound epsilon from below.

What is independent here? Not the pairs: all models of one canary share the image, and its scores the shadows. So each
canary contributes two numbers in [0, 1], the share of its IN models and of its OUT models that are accepted, and
canaries are taken as independent. Hoeffding (1963), Theorem 1, bounds the mean of n such numbers, whatever their
distributions and however the pairs within a canary depend on each other:

    P[mean <= observed] <= exp(-n KL(observed || mean))    for observed <= mean.

With nothing observed this is the Clopper-Pearson bound of n coin flips, 1 - alpha^(1/n); a Clopper-Pearson bound on the
pooled pairs would claim many times more independent evidence than there is. What it takes for granted: that one
canary's scores say nothing about another's. Effects that all canaries of a model share are not covered. Leave-one-out
scores carry one more trace of the truth, as the target's own side has one shadow fewer: simulated without any leak, the
bound stays at 0 as it should from 8 models on, but not for offline LiRA with 6.

The threshold is chosen on a fifth of the canaries and judged on the others, so that the search costs no confidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, xlogy

from coalmine.audit.inputs import BoolArray, FloatArray, checked_membership, checked_scores, require_probability
from coalmine.audit.roc import roc_curve

SELECTION_SHARE = 5
"""One canary in so many serves to choose the threshold."""

BISECTIONS = 60


@dataclass(frozen=True)
class EpsilonBound:
    """A statement about the training procedure that holds with a stated confidence.

    Attributes:
        lower: with probability ``confidence``, no epsilon below this holds at ``delta``; 0 if nothing is shown.
        confidence: of ``lower``, over the draw of canaries, membership and training.
        delta: of the differential privacy that is bounded.
        ceiling: what a perfect attack on as many canaries would have shown; a bound near it is saturated.
        canaries: number of canaries that it rests on (those that chose the threshold not counted).
        threshold: scores from here on were called members.
    """

    lower: float
    confidence: float
    delta: float
    ceiling: float
    canaries: int
    threshold: float


def epsilon_lower_bound(
    scores: ArrayLike,
    membership: ArrayLike,
    *,
    confidence: float = 0.95,
    delta: float = 1e-5,
    seed: np.random.SeedSequence | int = 0,
) -> EpsilonBound:
    """Bound epsilon from below by one attack with a threshold chosen on other canaries.

    Both rates are bounded at half of the allowed error, and both directions of the definition use these two bounds.

    Args:
        scores: finite floats ``(canary, model)``, larger for members.
        membership: bool ``(canary, model)``; each canary is IN and OUT at least once.
        confidence: in (0, 1).
        delta: in [0, 1).
        seed: draws the canaries that choose the threshold.

    Raises:
        ValueError: if there are fewer than 5 canaries, or one is always IN or always OUT.
    """
    member = checked_membership(membership)
    values = checked_scores(scores, member)
    require_probability(confidence, "confidence")
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}: give a probability from 0 to below 1")
    canaries = len(member)
    if canaries < SELECTION_SHARE:
        raise ValueError(f"{canaries} canaries: one in {SELECTION_SHARE} chooses the threshold, so give at least that")
    one_sided = member.all(axis=1) | ~member.any(axis=1)
    if one_sided.any():
        raise ValueError(
            f"canary {one_sided.argmax()} is IN all models or in none: each must be IN some and OUT of some"
        )

    shuffled = np.random.default_rng(seed).permutation(canaries)
    chooses, judges = np.split(shuffled, [canaries // SELECTION_SHARE])
    alpha = 1 - confidence

    def bound(tpr: ArrayLike, fpr: ArrayLike) -> FloatArray:
        return _epsilon(tpr, fpr, delta=delta, n=len(judges), alpha=alpha / 2)

    candidates = roc_curve(values[chooses], member[chooses])
    gains = np.diff(candidates.true_positives, prepend=0) > 0
    going_on_costs = np.diff(candidates.false_positives, append=np.inf) > 0
    corner = np.flatnonzero(gains & going_on_costs)  # any other threshold is beaten by one of these
    best = corner[np.argmax(bound(candidates.tpr[corner], candidates.fpr[corner]))]
    threshold = float(candidates.thresholds[best])

    accepted = values[judges] >= threshold
    tpr, fpr = _mean_share(accepted, member[judges]), _mean_share(accepted, ~member[judges])
    return EpsilonBound(
        lower=max(0.0, float(bound(tpr, fpr))),
        confidence=confidence,
        delta=delta,
        ceiling=max(0.0, float(bound(1.0, 0.0))),
        canaries=len(judges),
        threshold=threshold,
    )


def _mean_share(accepted: BoolArray, chosen: BoolArray) -> float:
    """Return the mean over canaries of the share of their chosen models that accept them."""
    return float(np.mean(np.count_nonzero(accepted & chosen, axis=1) / np.count_nonzero(chosen, axis=1)))


def _epsilon(tpr: ArrayLike, fpr: ArrayLike, *, delta: float, n: int, alpha: float) -> FloatArray:
    """Return the larger epsilon of both directions; each rate is bounded at ``alpha``; negative if nothing is shown."""
    fpr_upper = mean_upper_bound(fpr, n, alpha)
    fnr_upper = mean_upper_bound(1 - np.asarray(tpr), n, alpha)
    accepting = np.maximum(1 - fnr_upper - delta, np.finfo(np.float64).tiny) / fpr_upper
    refusing = np.maximum(1 - fpr_upper - delta, np.finfo(np.float64).tiny) / fnr_upper
    return np.log(np.maximum(accepting, refusing))


def mean_upper_bound(mean: ArrayLike, n: int, alpha: float) -> FloatArray:
    """Return the upper confidence bound of an expectation: the largest p with n KL(mean || p) <= log(1 / alpha).

    Hoeffding, "Probability Inequalities for Sums of Bounded Random Variables" (1963), Theorem 1, solved by bisection.

    Args:
        mean: floats ``(...)`` in [0, 1], the mean of ``n`` independent variables that lie in [0, 1].
        n: number of variables.
        alpha: probability with which the bound may fail, in (0, 1).

    Returns:
        float64 ``(...)`` in [mean, 1]. For a lower bound take ``1 - mean_upper_bound(1 - mean, n, alpha)``.
    """
    require_probability(alpha, "alpha")
    mean = np.asarray(mean, dtype=np.float64)
    if n < 1 or mean.min() < 0 or mean.max() > 1:
        raise ValueError(f"the mean of {n} variables spans {mean.min()} to {mean.max()}: give at least one, in [0, 1]")
    # KL(mean || p) = -entropy - mean log p - (1 - mean) log(1 - p)
    target = xlogy(mean, mean) + xlogy(1 - mean, 1 - mean) + np.log(alpha) / n
    low, high = mean, np.ones_like(mean)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        within = xlogy(mean, middle) + xlogy(1 - mean, 1 - middle) >= target
        low, high = np.where(within, middle, low), np.where(within, high, middle)
    return high


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a binomial probability, for *independent* trials.

    Clopper and Pearson (1934). Not for the pooled pairs of an audit, which are dependent; right for one model, or for
    one pair of each canary.
    """
    require_probability(confidence, "confidence")
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"{successes} successes in {trials} trials: give 0 <= successes <= trials and at least 1 trial"
        )
    tail = (1 - confidence) / 2
    low = betaincinv(successes, trials - successes + 1, tail) if successes else 0.0
    high = betaincinv(successes + 1, trials - successes, 1 - tail) if successes < trials else 1.0
    return float(low), float(high)
