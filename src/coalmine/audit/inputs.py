"""Checks that every part of the audit shares: what an array of scores and a membership matrix must be."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


def checked_membership(membership: ArrayLike) -> BoolArray:
    """Return ``membership`` as bool ``(canary, model)``, or raise ValueError."""
    array = np.asarray(membership)
    if array.dtype != np.bool_ or array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"membership must be bool of shape (canary, model), not {array.dtype} of shape {array.shape}: "
            "give True where the canary is in the model's training set"
        )
    return array


def checked_scores(scores: ArrayLike, membership: BoolArray) -> FloatArray:
    """Return ``scores`` as finite float64 ``(canary, model, ...)`` that fit ``membership``, or raise ValueError."""
    array = np.asarray(scores, dtype=np.float64)
    if array.shape[:2] != membership.shape:
        raise ValueError(
            f"scores of shape {array.shape} do not fit membership of shape {membership.shape}: "
            "both start with (canary, model)"
        )
    require_finite(array, "score")
    return array


def require_finite(array: NDArray[Any], what: str) -> None:
    """Raise ValueError that names the first canary (and model) whose value is NaN or infinite."""
    finite = np.isfinite(array)
    if not finite.all():
        where = np.argwhere(~finite)[0]
        place = ", ".join(f"{axis} {index}" for axis, index in zip(("canary", "model", "view"), where, strict=False))
        raise ValueError(
            f"the {what} of {place} is {array[tuple(where)]}: every {what} must be finite, "
            "so look for a diverged or half-written model"
        )


def require_both_sides(membership: BoolArray) -> None:
    """Raise ValueError unless some pair is a member and some pair is not."""
    if membership.all() or not membership.any():
        raise ValueError("all pairs are on one side: an audit needs members and non-members")


def require_probability(value: float, name: str) -> None:
    """Raise ValueError unless 0 < ``value`` < 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}: give a probability strictly between 0 and 1")
