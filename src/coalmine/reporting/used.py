"""Canaries that synthetic sets are made from, and those that they are not: two groups, each audited on its own.

A set is made from a canary if one of its images started from the canary's image, or is a copy of it. Whether that
happened is known for each (canary, model) pair. Only canaries are compared that are treated alike in every model that
holds them, so that each is in one group and groups can be resampled canary by canary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from coalmine.audit.bootstrap import bootstrap, percentile_interval
from coalmine.audit.metrics import evaluate
from coalmine.audit.roc import roc_curve
from coalmine.reporting.common import WORST_CASE
from coalmine.reporting.results import HIGH_FPR, LOW_FPR, Audited
from coalmine.seeds import seed_sequence

if TYPE_CHECKING:
    from coalmine.reporting.results import Results

FEWEST = 5
"""Canaries that a group needs: intervals come from resampling them, and one in five chooses epsilon's threshold."""


class Division(NamedTuple):
    """The canaries of a method, bool ``(canary,)`` each: used by every model that holds them, by none, by some."""

    used: np.ndarray
    unused: np.ndarray
    sometimes: np.ndarray


def divide(taken: np.ndarray, membership: np.ndarray) -> Division:
    """Divide canaries by whether the synthetic sets of the models that hold them are made from them.

    A canary that no model holds, as may be with the first few of a run's shadow models, is in no part.

    Args:
        taken: bool ``(canary, model)``, the model's set holds something made from the canary.
        membership: bool ``(canary, model)``.
    """
    held = membership.any(axis=1)
    used = (taken | ~membership).all(axis=1) & held
    unused = ~(taken & membership).any(axis=1) & held
    return Division(used, unused, held & ~used & ~unused)


class Groups(NamedTuple):
    """The primary attack's scores on the canaries of each group of a :class:`Division`."""

    used: Audited
    unused: Audited
    sometimes: Audited


def read_groups(results: Results, method: str) -> Groups | None:
    """Return the primary attack's scores group by group.

    None for a control with shuffled membership: its files do not tell which models truly hold a canary.
    """
    metrics = results.metrics[method]
    metrics.variant(WORST_CASE)
    if metrics.membership == "shuffled":
        return None
    file = results.scores(method)
    audited = file.read(WORST_CASE, metrics.primary)
    division = divide(file.read_taken(WORST_CASE), audited.membership)
    return Groups(*(Audited(audited.scores[rows], audited.membership[rows]) for rows in division))


def group_columns(
    name: str, group: Audited | None, method: str, *, confidence: float, replicates: int
) -> dict[str, Any]:
    """Return how many canaries a group has and what the attack reaches on them, None for what they are too few for.

    Columns: ``<name>_canaries``; of TPRs at 0.1 % and 1 % FPR and of AUC the value and its interval; the false
    positives at 0.1 % FPR, and how many that allows.
    """
    found = None
    if group is not None and len(group.scores) >= FEWEST:
        seed = seed_sequence(0, "reporting", "used canaries", method, name)
        found = evaluate(*group, confidence=confidence, replicates=replicates, seed=seed)
    low = found["tpr"][LOW_FPR] if found else {}
    columns: dict[str, Any] = {f"{name}_canaries": None if group is None else len(group.scores)}
    for quantity, interval in (
        (f"tpr_at_fpr_{LOW_FPR}", low),
        (f"tpr_at_fpr_{HIGH_FPR}", found["tpr"][HIGH_FPR] if found else {}),
        ("auc", found["auc"] if found else {}),
    ):
        columns[f"{name}_{quantity}"] = interval.get("value")
        columns[f"{name}_{quantity}_low"] = interval.get("low")
        columns[f"{name}_{quantity}_high"] = interval.get("high")
    columns[f"{name}_false_positives"] = low.get("false_positives")
    columns[f"{name}_false_positives_allowed"] = low.get("allowed")
    return columns


def difference_columns(
    groups: Groups | None, method: str, *, confidence: float, replicates: int
) -> dict[str, float | None]:
    """Return the AUC on used canaries minus that on unused ones, with its interval; None if there are too few.

    The groups share no canary, so each is resampled on its own.
    """
    names = ("auc_difference", "auc_difference_low", "auc_difference_high")
    if groups is None or min(len(groups.used.scores), len(groups.unused.scores)) < FEWEST:
        return dict.fromkeys(names)
    samples = [
        bootstrap(*group, (), replicates, seed_sequence(0, "reporting", "AUC difference", method, name))[:, 0]
        for name, group in (("used", groups.used), ("unused", groups.unused))
    ]
    value = roc_curve(*groups.used).auc - roc_curve(*groups.unused).auc
    low, high = percentile_interval(samples[0] - samples[1], confidence)
    return dict(zip(names, (value, float(low), float(high)), strict=True))
