"""The robust membership inference attack (RMIA), leave-one-out: every model is the target once.

Zarifzadeh, Liu and Shokri, "Low-Cost High-Power Membership Inference Attacks" (2024). A canary x is compared with other
samples z: with r_x = p(x | target) / p(x), its score is the share of z for which r_x / r_z > gamma, where p(x) is the
probability under models of which half trained on x, estimated from the reference models.

The population z consists of the other audited samples, queried as they are. The protocol reserves test data for the
reported accuracy, and the audited samples are drawn from the same distribution; half of them are members of any target,
which makes the comparison stricter than with pure non-members but favours neither side. Scores are multiples of
1 / (canaries - 1), so few canaries cannot resolve a small FPR.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from coalmine.audit.inputs import BoolArray, FloatArray, checked_membership, checked_scores


@dataclass(frozen=True)
class Rmia:
    """One variant of the attack.

    Attributes:
        online: p(x) is the mean over all reference models. Offline, only those OUT are used and the mean over models of
            which half are IN is approximated by ((1 + a) p_OUT(x) + (1 - a)) / 2.
        gamma: how much likelier x must be than z to count, at least 1.
        offline_a: the a above, in [0, 1]: how far p_IN(x) = a p_OUT(x) + 1 - a depends on p_OUT(x).
    """

    online: bool = True
    gamma: float = 2.0
    offline_a: float = 0.33

    def __post_init__(self) -> None:
        if self.gamma < 1:
            raise ValueError(f"gamma is {self.gamma}: give at least 1, or every sample beats itself")
        if not 0 <= self.offline_a <= 1:
            raise ValueError(f"offline_a is {self.offline_a}: give a number from 0 to 1")

    @property
    def name(self) -> str:
        """The variant as in result tables, without the number of views."""
        return f"rmia-{'online' if self.online else 'offline'}"

    def __call__(self, probability: ArrayLike, membership: ArrayLike) -> FloatArray:
        """Attack every model with the others as its references.

        Args:
            probability: floats ``(canary, model)`` in [0, 1], the softmax probability of the canary label, one view.
            membership: bool ``(canary, model)``.

        Returns:
            float64 ``(canary, model)`` in [0, 1], larger for members.

        Raises:
            ValueError: if there are too few canaries or reference models.
        """
        membership = checked_membership(membership)
        probability = checked_scores(probability, membership)
        canaries = len(membership)
        if probability.ndim != 2 or probability.min() < 0 or probability.max() > 1:
            raise ValueError("RMIA compares probabilities of one view: give values in [0, 1] of shape (canary, model)")
        if canaries < 2:
            raise ValueError("RMIA compares a canary with the other audited samples: give at least 2")
        probability = np.maximum(probability, np.finfo(np.float64).tiny)

        if self.online:
            marginal = _mean_of_others(probability, np.ones_like(membership))
        else:
            outside = _mean_of_others(probability, ~membership)
            marginal = ((1 + self.offline_a) * outside + (1 - self.offline_a)) / 2
        ratio = probability / marginal
        # gamma >= 1, so that a sample is never counted against itself.
        beaten = [np.searchsorted(np.sort(self.gamma * column), column) for column in ratio.T]
        return np.stack(beaten, axis=1) / (canaries - 1)


def _mean_of_others(probability: FloatArray, chosen: BoolArray) -> FloatArray:
    """Return ``(canary, model)``: the mean over the chosen models but that one.

    Sums from both ends rather than the total minus one term, which would lose small probabilities beside large ones.
    """
    terms = np.where(chosen, probability, 0.0)
    before, after = np.zeros_like(terms), np.zeros_like(terms)
    before[:, 1:] = np.cumsum(terms[:, :-1], axis=1)
    after[:, :-1] = np.cumsum(terms[:, :0:-1], axis=1)[:, ::-1]
    count = chosen.sum(axis=1, keepdims=True) - chosen
    if count.min() < 1:
        canary, model = np.unravel_index(count.argmin(), count.shape)
        raise ValueError(
            f"canary {canary} has no reference model when model {model} is the target: "
            "train at least 4 models with each canary IN in half of them"
        )
    mean: FloatArray = (before + after) / count
    return mean
