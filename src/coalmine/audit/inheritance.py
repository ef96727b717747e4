"""Where the leak of a student comes from that never saw private data: what it takes over from its own teacher.

Each student is taught by the model of the same index of another method, its teacher, which did see private data. Three
questions, for IN and for OUT pairs of canary and model apart, all at view 0:

- How often does either predict the query label? On mislabelled canaries that is the wrong one.
- Do students of teachers that predict it often do so often, too? (correlation of rates, over shadow models)
- Is a student surer of just those canaries that *its* teacher is surer of than other teachers are? (correlation of
  scores, over pairs)

A correlation of raw numbers would be there without any copying: members differ from non-members, and what is hard for
one network is hard for another. So both are taken of what is left of each (canary, model) pair after the mean of that
canary over all models on the same side, IN or OUT, which tells nothing about any one teacher. What a student shares
with its teacher beyond that is its teacher's own: the chances of its training and the rest of its data. Both
correlations are 0 on average of a student whose teacher is independent in either. (Networks trained independently on
the same rest correlate, too: little in their scores on the IN side, where the canary itself decides, but on the OUT
side. A student without private data has that from its teacher all the same.)

Where a rate does not vary, which is what a teacher does that memorises every canary, it has no correlation. The scores
still vary then.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coalmine.audit.bootstrap import percentile_interval, resampling_weights
from coalmine.audit.inputs import (
    BoolArray,
    FloatArray,
    checked_membership,
    checked_scores,
    require_both_sides,
    require_probability,
)
from coalmine.audit.scores import logit_score

ROUNDING = 1e-12
"""Relative size below which a difference is rounding, not variation."""


class Pairs(NamedTuple):
    """What teachers and students make of the same queries, ``(canary, model)`` each."""

    teacher: NDArray[Any]
    student: NDArray[Any]


def inheritance(
    teacher: ArrayLike,
    student: ArrayLike,
    labels: NDArray[np.integer],
    membership: ArrayLike,
    *,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: np.random.SeedSequence | int,
) -> dict[str, Any]:
    """Return what students take over from their teachers, as a dictionary that JSON can hold.

    ``{"members": side, "nonmembers": side, "followed": {"taught", "taught_pairs", "untaught", "untaught_pairs"}}``
    with ``side = {"pairs", "teacher", "student", "rates", "scores"}``: the number of pairs, the shares for which
    teacher and student predict the query label, and the correlations, each ``{"value", "low", "high"}`` or None where
    either of the two does not vary. ``followed`` are the student's shares of IN pairs for which its teacher predicts
    the query label (taught) or does not (untaught), None without any; they describe and do not tell copying from
    canaries that are easy for both.

    Intervals are percentile bootstraps: over models for rates, as each model has one; over canaries and models for
    scores, as the pairs of either are not independent (see :mod:`coalmine.audit.bootstrap`). Their bounds are None
    without replicates, and where more replicates than lie outside of an interval have nothing that varies.

    Args:
        teacher: floats ``(canary, model, class)``, logits of each model's teacher for the canaries as they are.
        student: floats ``(canary, model, class)``, of the models themselves.
        labels: integers ``(canary,)``, the query label.
        membership: bool ``(canary, model)``, the same for teacher and student.
        replicates: number of bootstrap replicates; 0 for no intervals.
        confidence: of the intervals.
        seed: the same seed resamples the same canaries and models, and is not used up.

    Raises:
        ValueError: if the arrays do not fit, or all pairs are on one side.
    """
    member = checked_membership(membership)
    require_both_sides(member)
    require_probability(confidence, "confidence")
    if np.shape(teacher) != np.shape(student) or np.shape(student)[:2] != member.shape or np.ndim(student) != 3:
        raise ValueError(
            f"logits of teachers {np.shape(teacher)}, of students {np.shape(student)} and membership {member.shape} do "
            "not fit: give (canary, model, class) twice and (canary, model)"
        )
    rng = np.random.default_rng(seed)
    canary_weights, model_weights = (resampling_weights(size, replicates, rng) for size in member.shape)
    hits = Pairs(predicts(teacher, labels), predicts(student, labels))
    scores = Pairs(logit_score(teacher, labels), logit_score(student, labels))
    found: dict[str, Any] = {}
    for name, side in (("members", member), ("nonmembers", ~member)):
        own = Pairs(*(side_centred(each, side) for each in scores))
        found[name] = {
            "pairs": int(side.sum()),
            "teacher": float(hits.teacher[side].mean()),
            "student": float(hits.student[side].mean()),
            "rates": _reported(*_of_rates(hits, side, model_weights), confidence),
            "scores": _reported(*_of_scores(own, canary_weights, model_weights), confidence),
        }
    return {**found, "followed": _followed(hits, member)}


def predicts(logits: ArrayLike, labels: NDArray[np.integer]) -> BoolArray:
    """Return bool ``(canary, model)``: the largest of the logits, ``(canary, model, class)``, is the query label's."""
    predicted: BoolArray = np.asarray(logits).argmax(axis=-1) == np.asarray(labels)[:, None]
    return predicted


def side_centred(values: ArrayLike, side: BoolArray) -> FloatArray:
    """Return float64 ``(canary, model)``: each value minus the mean of its canary over the models on its side, else 0.

    Args:
        values: finite numbers ``(canary, model)``.
        side: bool ``(canary, model)``, the pairs that count.
    """
    array = checked_scores(values, side)
    mean = np.sum(array, axis=1, where=side) / np.maximum(side.sum(axis=1), 1)
    centred = np.where(side, array - mean[:, None], 0.0)
    # A canary that all models treat alike has a mean with a rounding error, which is no variation.
    centred[np.abs(centred) <= ROUNDING * np.abs(array).max(initial=0)] = 0.0
    return centred


def standardised_rates(hits: BoolArray, side: BoolArray) -> FloatArray:
    """Return float64 ``(model,)``: each model's rate on its side, as if all models held the same canaries.

    By chance, one model holds more of the canaries that are easy for all. Its rate is compared with what the models
    on the same side reach on the very canaries that it holds; the difference is added to the rate of all pairs, so that
    a rate may come out a little below 0 or above 1. NaN for a model without any pair on the side.

    Args:
        hits: bool ``(canary, model)``, what the rate is of.
        side: bool ``(canary, model)``, the pairs that count.
    """
    excess = _excess(hits, side, np.ones((1, side.shape[1])))[0]
    rates: FloatArray = np.where(side.any(axis=0), hits[side].mean() + excess, np.nan)
    return rates


def _excess(hits: BoolArray, side: BoolArray, model_weights: FloatArray) -> FloatArray:
    """Return by how much the rate of each model exceeds that of all on the canaries that it holds, 0 without any.

    Args:
        hits: bool ``(canary, model)``.
        side: bool ``(canary, model)``.
        model_weights: float64 ``(replicate, model)``, how often each model counts among all.

    Returns:
        float64 ``(replicate, model)``.
    """
    held, hit = side.astype(np.float64), (hits & side).astype(np.float64)
    usual = (model_weights @ hit.T) / np.maximum(model_weights @ held.T, 1)  # of each canary
    excess: FloatArray = (hit.sum(axis=0) - usual @ held) / np.maximum(held.sum(axis=0), 1)
    return excess


def _of_rates(hits: Pairs, side: BoolArray, model_weights: FloatArray) -> tuple[float, FloatArray]:
    """Return the correlation over models of teachers' and students' rates, and its replicates, NaN if undefined."""
    weights = np.concatenate([np.ones((1, side.shape[1])), model_weights]) * side.any(axis=0)
    total = np.maximum(weights.sum(axis=1), 1)  # a replicate may hold no such model; then nothing varies
    rates = Pairs(*(_excess(each, side, weights) for each in hits))
    teacher, student = (each - ((weights * each).sum(axis=1) / total)[:, None] for each in rates)
    values = _correlations(
        (weights * teacher * student).sum(axis=1),
        (weights * teacher**2).sum(axis=1),
        (weights * student**2).sum(axis=1),
        least=total * ROUNDING**2,  # rates are 1 at most: smaller deviations are rounding
    )
    return float(values[0]), values[1:]


def _of_scores(centred: Pairs, canary_weights: FloatArray, model_weights: FloatArray) -> tuple[float, FloatArray]:
    """Return the correlation over pairs of centred scores, and its replicates, NaN if undefined."""
    products = [centred.teacher * centred.student, centred.teacher**2, centred.student**2]
    together, teacher, student = (
        np.append(each.sum(), np.einsum("rm,rm->r", canary_weights @ each, model_weights)) for each in products
    )
    values = _correlations(together, teacher, student, least=np.zeros(len(together)))
    return float(values[0]), values[1:]


def _correlations(together: FloatArray, teacher: FloatArray, student: FloatArray, least: FloatArray) -> FloatArray:
    """Return correlations from moments, float64 ``(replicate,)``; NaN where either variation is ``least`` or less."""
    varies = (teacher > least) & (student > least)
    scale = np.sqrt(np.where(varies, teacher, 1.0)) * np.sqrt(np.where(varies, student, 1.0))
    correlations: FloatArray = np.where(varies, np.clip(together / scale, -1.0, 1.0), np.nan)
    return correlations


def _reported(value: float, sample: FloatArray, confidence: float) -> dict[str, float | None] | None:
    """Return a correlation with its interval, None if it is undefined."""
    if np.isnan(value):
        return None
    if not len(sample) or np.isnan(sample).mean() > 1 - confidence:
        return {"value": value, "low": None, "high": None}
    low, high = percentile_interval(sample, confidence)
    return {"value": value, "low": float(low), "high": float(high)}


def _followed(hits: Pairs, member: BoolArray) -> dict[str, float | int | None]:
    """Return how often students predict the label of IN canaries whose label their teachers do or do not predict."""
    found: dict[str, float | int | None] = {}
    for name, chosen in (("taught", member & hits.teacher), ("untaught", member & ~hits.teacher)):
        found[name] = float(hits.student[chosen].mean()) if chosen.any() else None
        found[f"{name}_pairs"] = int(chosen.sum())
    return found
