"""Claimed differential privacy: what it allows an attack, whether that says anything, and whether the audit refutes it.

All of it is read off one row of plain numbers (:func:`claim_columns`), so that every table shows a claim alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from coalmine.reporting.common import WORST_CASE
from coalmine.reporting.layout import UNKNOWN, Cell, Row, general, magnitude, percent

if TYPE_CHECKING:
    from coalmine.reporting.results import Claim, EmpiricalEpsilon, MethodMetrics

FPR = 0.001

VACUOUS = 0.9999
"""A guarantee is called vacuous if it allows a TPR of at least this at 0.1 % FPR (epsilon above about 9.2)."""

ACCOUNTANTS = {"pld": "PLD", "rdp": "RDP"}


def claimed_tpr_bound(claim: Claim, fpr: float) -> float:
    """Return the largest TPR at ``fpr`` that (epsilon, delta)-differential privacy allows.

    Kairouz, Oh & Viswanath, "The Composition Theorem for Differential Privacy" (ICML 2015), theorem 2.1: both
    ``tpr <= e^epsilon fpr + delta`` and ``1 - fpr <= e^epsilon (1 - tpr) + delta``.
    """
    if claim.epsilon is None:
        return 1.0
    delta = claim.delta or 0.0
    low = math.exp(min(claim.epsilon, 700.0)) * fpr + delta
    high = 1 - math.exp(-claim.epsilon) * (1 - fpr - delta)
    return min(1.0, low, high)


def is_meaningful(claim: Claim) -> bool:
    """Tell whether there is a guarantee that is not vacuous."""
    return claim.epsilon is not None and claimed_tpr_bound(claim, FPR) < VACUOUS


def is_refuted(claim: Claim, found: EmpiricalEpsilon) -> bool:
    """Tell whether the audit's lower bound exceeds the claimed epsilon: a bug, or a guarantee that does not hold.

    A guarantee at a delta holds at every larger one, so a bound at a smaller delta than the claim's refutes nothing.
    """
    return claim.epsilon is not None and found.delta >= (claim.delta or 0.0) and found.lower > claim.epsilon


def claim_columns(metrics: MethodMetrics) -> dict[str, Any]:
    """Return what a method claims, what that allows, and whether its own audit refutes it; no claim is infinity."""
    claim = metrics.claimed
    return {
        "claimed_epsilon": math.inf if claim.epsilon is None else claim.epsilon,
        "claimed_delta": claim.delta,
        "claimed_accountant": claim.accountant,
        "claimed_noise_multiplier": claim.noise_multiplier,
        "claimed_sampling_rate": claim.sampling_rate,
        "claimed_steps": claim.steps,
        "claimed_clip": claim.clip,
        "claimed_note": claim.note,
        "claimed_tpr_bound": claimed_tpr_bound(claim, FPR),
        "claim_exceeded": is_refuted(claim, metrics.variant(WORST_CASE).epsilon),
    }


def epsilon_cell(row: Row, prefix: str = "", mark: str = "") -> Cell:
    """Return the claimed epsilon, called vacuous or exceeded where it is, and the TPR at 0.1 % FPR that it allows.

    Args:
        row: holds :func:`claim_columns`.
        prefix: stands before their names.
        mark: of a footnote.
    """
    epsilon, bound, exceeded = (
        row[f"{prefix}{name}"] for name in ("claimed_epsilon", "claimed_tpr_bound", "claim_exceeded")
    )
    if math.isinf(epsilon):
        return Cell("∞")
    vacuous = bound >= VACUOUS
    words = [magnitude(epsilon), "vacuous" if vacuous else "", "exceeded by the audit" if exceeded else "", mark]
    allowed = "" if vacuous else f"(TPR ≤ {percent(bound, 2)})"
    return Cell(" ".join(filter(None, words)), allowed, warning=bool(exceeded))


def accounting_cell(row: Row) -> Cell:
    """Return delta, the accountant and the mechanism that it accounted for, as far as they are stated."""
    if math.isinf(row["claimed_epsilon"]):
        return Cell(UNKNOWN)
    numbers = {
        "σ = {}": row["claimed_noise_multiplier"],
        "q = {}": row["claimed_sampling_rate"],
        "{} steps": None if row["claimed_steps"] is None else int(row["claimed_steps"]),
        "C = {}": row["claimed_clip"],
    }
    delta, accountant = row["claimed_delta"], row["claimed_accountant"]
    parts = [
        "δ not stated" if delta is None else f"δ = {magnitude(delta)}",
        ACCOUNTANTS.get(accountant, accountant) or "accountant not stated",
        *(form.format(general(value)) for form, value in numbers.items() if value is not None),
    ]
    return Cell(", ".join(parts))
