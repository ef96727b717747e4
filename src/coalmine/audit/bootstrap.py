"""Percentile bootstrap intervals of AUC and TPR at fixed FPRs, over canaries or over canaries and models.

The pairs of one canary are dependent, so a binomial interval on pooled pairs is several times too narrow: whole
canaries are resampled (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979, with canaries as the units).
That says how the result varies with the drawn canaries, given these models. The two-way bootstrap also resamples
models, independently (Owen, "The Pigeonhole Bootstrap", 2007): it covers effects that all canaries of one model share
and is conservative without them.

A replicate is a vector of multinomial weights, and scores do not change: pairs are ranked once, and every replicate is
two running sums over them. No interval can reach beyond the data: an attack that errs nowhere has a point for its
interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from coalmine.audit.inputs import (
    FloatArray,
    IntArray,
    checked_membership,
    checked_scores,
    require_both_sides,
    require_probability,
)
from coalmine.audit.roc import allowed_false_positives

BLOCK_VALUES = 1 << 17
"""Weights of pairs held at a time: they stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class RankedPairs:
    """Members and non-members, each ranked by falling score, and how they interleave.

    Attributes:
        members: int64 ``(2, member)``, canary and model of each member.
        nonmembers: int64 ``(2, nonmember)``.
        beating: int64 ``(nonmember + 1,)``, members that score above each non-member; all of them after the last.
        reaching: int64 ``(nonmember,)``, members that score at least as much as each non-member.
    """

    members: IntArray
    nonmembers: IntArray
    beating: IntArray
    reaching: IntArray

    def metrics(self, canary_weights: FloatArray, model_weights: FloatArray, fprs: Sequence[float]) -> FloatArray:
        """Return AUC and TPRs when each pair counts as often as its canary's weight times its model's.

        Args:
            canary_weights: float64 ``(replicate, canary)``, whole numbers.
            model_weights: float64 ``(replicate, model)``, whole numbers; ``(1, 1)`` ones count each model once.
            fprs: false positive rates.

        Returns:
            float64 ``(replicate, 1 + len(fprs))``; NaN where no member or no non-member has weight.
        """
        weights = _pair_weights(self.nonmembers, canary_weights, model_weights)
        accepted = np.zeros((len(weights), self.members.shape[1] + 1))
        np.cumsum(_pair_weights(self.members, canary_weights, model_weights), axis=1, out=accepted[:, 1:])
        false_positives = np.cumsum(weights, axis=1)
        members = np.where(accepted[:, -1] > 0, accepted[:, -1], np.nan)
        nonmembers = np.where(false_positives[:, -1] > 0, false_positives[:, -1], np.nan)

        won = np.take(accepted, self.beating[:-1], axis=1) + np.take(accepted, self.reaching, axis=1)
        area = np.einsum("rn,rn->r", weights, won) / (2 * members * nonmembers)
        columns = [area]
        for fpr in fprs:
            allowed = allowed_false_positives(np.maximum(false_positives[:, -1], 1), fpr)
            first_refused = np.count_nonzero(false_positives <= allowed[:, None], axis=1)
            columns.append(accepted[np.arange(len(accepted)), self.beating[first_refused]] / members)
        lost = np.isnan(area)
        metrics: FloatArray = np.stack([np.where(lost, np.nan, column) for column in columns], axis=1)
        return metrics


def rank_pairs(scores: ArrayLike, membership: ArrayLike) -> RankedPairs:
    """Rank all pairs once, for any number of replicates.

    Args:
        scores: finite floats ``(canary, model)``, larger for members.
        membership: bool ``(canary, model)``.
    """
    member = checked_membership(membership)
    values = checked_scores(scores, member)
    require_both_sides(member)
    members, member_scores = _ranked(values, member)
    nonmembers, nonmember_scores = _ranked(values, ~member)
    return RankedPairs(
        members=members,
        nonmembers=nonmembers,
        beating=np.append(np.searchsorted(-member_scores, -nonmember_scores, side="left"), member_scores.size),
        reaching=np.searchsorted(-member_scores, -nonmember_scores, side="right"),
    )


def _ranked(scores: FloatArray, chosen: np.ndarray) -> tuple[IntArray, FloatArray]:
    pairs = np.stack(np.nonzero(chosen))
    values = scores[chosen]
    order = np.argsort(-values)
    return pairs[:, order], values[order]


def _pair_weights(pairs: IntArray, canary_weights: FloatArray, model_weights: FloatArray) -> FloatArray:
    weights: FloatArray = np.take(canary_weights, pairs[0], axis=1)
    if model_weights.shape[1] > 1:
        weights *= np.take(model_weights, pairs[1], axis=1)
    return weights


def resampling_weights(items: int, replicates: int, rng: np.random.Generator) -> FloatArray:
    """Return float64 ``(replicate, item)``: how often each item is drawn in ``items`` draws with replacement."""
    draws = rng.integers(items, size=(replicates, items)) + items * np.arange(replicates)[:, None]
    return np.bincount(draws.ravel(), minlength=replicates * items).reshape(replicates, items).astype(np.float64)


def bootstrap(
    scores: ArrayLike,
    membership: ArrayLike,
    fprs: Sequence[float],
    replicates: int,
    seed: np.random.SeedSequence | int,
    two_way: bool = False,
) -> FloatArray:
    """Return AUC and TPRs of resampled audits, float64 ``(replicate, 1 + len(fprs))``.

    Args:
        scores: finite floats ``(canary, model)``, larger for members.
        membership: bool ``(canary, model)``.
        fprs: false positive rates, as in :func:`coalmine.audit.roc.tpr_at_fpr`.
        replicates: number of resampled audits, at least 1; a replicate that draws no member or no non-member is NaN.
        seed: the same seed draws the same canaries (and models) for every attack on as many, so that differences of
            two attacks' replicates are those of a paired bootstrap.
        two_way: resample models too.
    """
    if replicates < 1:
        raise ValueError(f"{replicates} bootstrap replicates: give at least 1")
    ranked = rank_pairs(scores, membership)
    canaries, models = np.shape(membership)
    rng = np.random.default_rng(seed)
    canary_weights = resampling_weights(canaries, replicates, rng)
    model_weights = resampling_weights(models, replicates, rng) if two_way else np.ones((replicates, 1))
    step = max(1, BLOCK_VALUES // (canaries * models))
    return np.concatenate(
        [
            ranked.metrics(canary_weights[start : start + step], model_weights[start : start + step], fprs)
            for start in range(0, replicates, step)
        ]
    )


def percentile_interval(values: FloatArray, confidence: float) -> FloatArray:
    """Return ``(2, ...)``: the central interval of the replicates (first axis), NaNs left out.

    Args:
        values: float64 ``(replicate, ...)``.
        confidence: share of the replicates inside, in (0, 1).
    """
    require_probability(confidence, "confidence")
    return np.nanquantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
