"""The receiver operating characteristic of an attack: an exact step function over all pooled (canary, model) pairs.

A pair is called a member when its score reaches the threshold; tied scores stand or fall together. The TPR at an FPR is
the largest that some threshold attains with an FPR at or below it: no interpolation, and 8 false positives among 8,000
are within 0.1 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from coalmine.audit.inputs import FloatArray, IntArray, checked_membership, checked_scores, require_both_sides


@dataclass(frozen=True)
class OperatingPoint:
    """The best threshold within an allowed false positive rate.

    Attributes:
        tpr: share of the members that it accepts.
        false_positives: number of non-members that it accepts.
        allowed: number of non-members that it might have accepted.
        threshold: pairs with at least this score are accepted; infinite if that is none.
    """

    tpr: float
    false_positives: int
    allowed: int
    threshold: float


@dataclass(frozen=True, eq=False)
class Roc:
    """All thresholds that differ in what they accept, strictest first, from accepting nothing to everything.

    Attributes:
        false_positives: int64 ``(threshold,)``, number of accepted non-members.
        true_positives: int64 ``(threshold,)``, number of accepted members.
        thresholds: float64 ``(threshold,)``, falling; the first is infinite.
    """

    false_positives: IntArray
    true_positives: IntArray
    thresholds: FloatArray

    @property
    def fpr(self) -> FloatArray:
        """False positive rates, float64 ``(threshold,)``."""
        return self.false_positives / self.false_positives[-1:]

    @property
    def tpr(self) -> FloatArray:
        """True positive rates, float64 ``(threshold,)``."""
        return self.true_positives / self.true_positives[-1:]

    @property
    def auc(self) -> float:
        """Probability that a random member outscores a random non-member, ties counted half (Mann-Whitney)."""
        doubled = np.diff(self.false_positives) @ (self.true_positives[1:] + self.true_positives[:-1])
        return float(doubled / (2 * self.false_positives[-1] * self.true_positives[-1]))

    def at_fpr(self, fpr: float) -> OperatingPoint:
        """Return the point with the largest TPR whose FPR is at most ``fpr``, in [0, 1]."""
        nonmembers = self.false_positives[-1:]
        allowed = int(allowed_false_positives(nonmembers, fpr)[0])
        best = int(np.searchsorted(self.false_positives, allowed, side="right")) - 1
        return OperatingPoint(
            tpr=float(self.true_positives[best] / self.true_positives[-1]),
            false_positives=int(self.false_positives[best]),
            allowed=allowed,
            threshold=float(self.thresholds[best]),
        )


def roc_curve(scores: ArrayLike, membership: ArrayLike) -> Roc:
    """Return the ROC of all pairs pooled.

    Args:
        scores: finite floats ``(canary, model)``, larger for members.
        membership: bool ``(canary, model)``.

    Raises:
        ValueError: if scores are not finite, or all pairs are on one side.
    """
    member = checked_membership(membership)
    values = checked_scores(scores, member)
    require_both_sides(member)
    order = np.argsort(-values, axis=None)
    ranked = values.ravel()[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)
    true_positives = np.cumsum(member.ravel()[order])[last_of_tie]
    return Roc(
        false_positives=np.append(0, last_of_tie + 1 - true_positives),
        true_positives=np.append(0, true_positives),
        thresholds=np.append(np.inf, ranked[last_of_tie]),
    )


def tpr_at_fpr(scores: ArrayLike, membership: ArrayLike, fpr: float) -> OperatingPoint:
    """Return the largest TPR with an FPR of at most ``fpr`` and what attains it; see :func:`roc_curve`."""
    return roc_curve(scores, membership).at_fpr(fpr)


def auc(scores: ArrayLike, membership: ArrayLike) -> float:
    """Return the area under the ROC; see :func:`roc_curve` and :attr:`Roc.auc`."""
    return roc_curve(scores, membership).auc


def allowed_false_positives(nonmembers: IntArray | FloatArray, fpr: float) -> IntArray:
    """Return the largest whole numbers k with k / nonmembers <= fpr, exactly as doubles compare, int64."""
    if not 0 <= fpr <= 1:
        raise ValueError(f"the false positive rate is {fpr}: give a number from 0 to 1")
    allowed: IntArray = np.floor(fpr * nonmembers).astype(np.int64) + 1
    for _ in range(2):  # the product may have been rounded either way
        allowed -= allowed / nonmembers > fpr
    return allowed
