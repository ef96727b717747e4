"""What is reported about one attack: AUC, TPR at low FPR, a lower bound on epsilon, each with its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coalmine.audit.bootstrap import bootstrap, percentile_interval
from coalmine.audit.epsilon import epsilon_lower_bound
from coalmine.audit.inputs import checked_membership, require_both_sides
from coalmine.audit.roc import roc_curve


def evaluate(
    scores: ArrayLike,
    membership: ArrayLike,
    *,
    fprs: Sequence[float] = (0.001, 0.01),
    replicates: int = 1000,
    confidence: float = 0.95,
    delta: float = 1e-5,
    seed: np.random.SeedSequence | int,
    two_way: bool = False,
) -> dict[str, Any]:
    """Return all metrics of one attack as a dictionary that JSON can hold.

    ``{"auc": {"value", "low", "high"}, "tpr": {"0.001": {"value", "low", "high", "false_positives", "allowed"}, ...},
    "epsilon": {"lower", "confidence", "delta", "ceiling", "canaries"}, "pairs", "members"}``. Rates are fractions,
    ``low`` and ``high`` the bootstrap interval, or None without replicates.

    Args:
        scores: finite floats ``(canary, model)``, larger for members.
        membership: bool ``(canary, model)``.
        fprs: false positive rates at which the TPR is reported.
        replicates: number of bootstrap replicates; 0 for no intervals.
        confidence: of the intervals and of the bound on epsilon.
        delta: of the differential privacy that is bounded.
        seed: the same seed resamples the same canaries for every attack, and is not used up.
        two_way: resample models too (see :mod:`coalmine.audit.bootstrap`).
    """
    roc = roc_curve(scores, membership)
    bootstrap_seed, epsilon_seed = _children(seed)
    intervals: list[Any] = [(None, None)] * (1 + len(fprs))
    if replicates:
        sample = bootstrap(scores, membership, fprs, replicates, bootstrap_seed, two_way)
        intervals = percentile_interval(sample, confidence).T.tolist()

    tpr = {}
    for fpr, (low, high) in zip(fprs, intervals[1:], strict=True):
        point = roc.at_fpr(fpr)
        tpr[fpr_key(fpr)] = {
            "value": point.tpr,
            "low": low,
            "high": high,
            "false_positives": point.false_positives,
            "allowed": point.allowed,
        }
    bound = epsilon_lower_bound(scores, membership, confidence=confidence, delta=delta, seed=epsilon_seed)
    low, high = intervals[0]
    return {
        "auc": {"value": roc.auc, "low": low, "high": high},
        "tpr": tpr,
        "epsilon": {
            "lower": bound.lower,
            "confidence": bound.confidence,
            "delta": bound.delta,
            "ceiling": bound.ceiling,
            "canaries": bound.canaries,
        },
        "pairs": int(np.size(membership)),
        "members": int(np.count_nonzero(membership)),
    }


def _children(seed: np.random.SeedSequence | int) -> list[np.random.SeedSequence]:
    """Return two independent seeds without changing the state of ``seed``."""
    parent = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    return [np.random.SeedSequence(parent.entropy, spawn_key=(*parent.spawn_key, child)) for child in range(2)]


def fpr_key(fpr: float) -> str:
    """Return the name of a false positive rate in results, such as ``"0.001"``."""
    return f"{fpr:g}"


def max_over_variants(per_variant: Mapping[str, Mapping[str, Any]], fpr: float) -> dict[str, Any]:
    """Return ``{"value", "variant"}``: the largest TPR at ``fpr`` of several attacks, the first on a tie.

    Earlier evaluations of this protocol report this number. It is chosen on the very data it is computed from and so
    biased upwards; it stands beside the attack that was fixed in advance, never in its place.

    Args:
        per_variant: results of :func:`evaluate` by attack name.
        fpr: one of the false positive rates they were evaluated at.
    """
    if not per_variant:
        raise ValueError("there is no attack to take the maximum over: give at least one result of evaluate()")
    key = fpr_key(fpr)
    for variant, result in per_variant.items():
        if key not in result["tpr"]:
            raise ValueError(f"{variant} was evaluated at FPR {', '.join(result['tpr'])}, not at {key}: add it to fprs")
    variant = max(per_variant, key=lambda name: per_variant[name]["tpr"][key]["value"])
    return {"value": per_variant[variant]["tpr"][key]["value"], "variant": variant}


def memorised(logits: ArrayLike, labels: NDArray[np.integer], membership: ArrayLike) -> dict[str, float]:
    """Return ``{"members", "nonmembers"}``: the shares of IN and OUT pairs predicted as the canary label at view 0.

    Args:
        logits: floats ``(canary, model, view, class)``.
        labels: integers ``(canary,)``, the canary label.
        membership: bool ``(canary, model)``.
    """
    member = checked_membership(membership)
    require_both_sides(member)
    values = np.asarray(logits)
    if values.ndim != 4 or values.shape[:2] != member.shape or np.shape(labels) != member.shape[:1]:
        raise ValueError(
            f"logits of shape {values.shape}, labels {np.shape(labels)} and membership {member.shape} do not fit: "
            "give (canary, model, view, class), (canary,) and (canary, model)"
        )
    predicted = values[:, :, 0].argmax(axis=-1) == np.asarray(labels)[:, None]
    return {"members": float(predicted[member].mean()), "nonmembers": float(predicted[~member].mean())}
