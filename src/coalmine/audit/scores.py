"""How sure a model is of the canary label: two scores of a query, from logits, larger for members.

Both are margins of the queried logit over the others: ``hinge`` over the largest, ``logit`` over their soft maximum,
which is the logit-scaled confidence log(p / (1 - p)) of Carlini et al., "Membership Inference Attacks From First
Principles" (2022), without the loss of precision of a softmax.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coalmine.audit.inputs import FloatArray, require_finite


class Margins(NamedTuple):
    """Both scores of the same queries, float64 ``(canary, ...)``."""

    logit: FloatArray
    hinge: FloatArray


def margins(logits: ArrayLike, labels: NDArray[np.integer]) -> Margins:
    """Return both scores, which share their work.

    Args:
        logits: floats ``(canary, ..., class)``, usually ``(canary, model, view, class)``; not changed.
        labels: integers ``(canary,)``, the queried class of each canary.

    Raises:
        ValueError: if shapes, labels or logits are impossible.
    """
    values = np.asarray(logits)
    labels = np.asarray(labels)
    if values.ndim < 2 or values.shape[-1] < 2:
        raise ValueError(f"logits have shape {values.shape}: give (canary, ..., class) with at least 2 classes")
    if labels.shape != values.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels are {labels.dtype} of shape {labels.shape}: "
            f"give one integer for each of {values.shape[0]} canaries"
        )
    if labels.size and (labels.min() < 0 or labels.max() >= values.shape[-1]):
        raise ValueError(f"labels span {labels.min()} to {labels.max()} but there are {values.shape[-1]} classes")
    require_finite(values, "logit")

    # Class first: the reductions below then run over long contiguous rows, several times faster than over ten values.
    others = np.array(np.moveaxis(values, -1, 0), dtype=np.float64, order="C")
    queried = labels, np.arange(labels.size)
    own = others[queried]
    others[queried] = -np.inf
    top = others.max(axis=0)
    hinge = own - top
    others -= top
    return Margins(logit=hinge - np.log(np.exp(others, out=others).sum(axis=0)), hinge=hinge)


def logit_score(logits: ArrayLike, labels: NDArray[np.integer]) -> FloatArray:
    """Return z_y - log sum_{j != y} exp(z_j) as float64 ``(canary, ...)``; see :func:`margins`."""
    return margins(logits, labels).logit


def hinge_score(logits: ArrayLike, labels: NDArray[np.integer]) -> FloatArray:
    """Return z_y - max_{j != y} z_j as float64 ``(canary, ...)``; see :func:`margins`."""
    return margins(logits, labels).hinge
