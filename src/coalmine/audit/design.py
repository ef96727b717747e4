"""Which samples are canaries, which label they carry, and which models contain them.

The protocol is that of Aerni, Zhang and Tramer, "Evaluations of Machine Learning Privacy Defenses are Misleading"
(2024), which Zhao and Zhang (2025) follow: mislabelled samples, each in the training set of exactly half of the models.
One seed feeds one generator per concern through nested ``Generator.spawn``, so that the canaries do not depend on the
number of models, the labels do not depend on the number of canaries, and membership depends on neither.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coalmine.audit.inputs import BoolArray, IntArray, checked_membership


@dataclass(frozen=True, eq=False)
class Design:
    """The audited samples, in the order in which they were drawn.

    Attributes:
        index: int64 ``(canary,)``, positions in the private data.
        true_label: int64 ``(canary,)``.
        canary_label: int64 ``(canary,)``, the label trained on when IN and queried always.
        mislabelled: bool ``(canary,)``, whether the canary label is a wrong one.
        membership: bool ``(canary, model)``, whether the model trains on the sample; otherwise it never sees it.
    """

    index: IntArray
    true_label: IntArray
    canary_label: IntArray
    mislabelled: BoolArray
    membership: BoolArray

    def __post_init__(self) -> None:
        checked_membership(self.membership)
        expected = (self.membership.shape[0],)
        for name in ("index", "true_label", "canary_label", "mislabelled"):
            if (shape := getattr(self, name).shape) != expected:
                raise ValueError(f"{name} has shape {shape}, expected {expected}: one entry for each row of membership")


def draw_design(
    labels: NDArray[np.integer], n_classes: int, n_models: int, n_canaries: int, n_clean: int = 0, seed: int = 0
) -> Design:
    """Draw the canaries, their wrong labels and the membership of every audited sample.

    Args:
        labels: integers ``(n,)`` in ``[0, n_classes)``, the true labels of the private data.
        n_classes: number of classes, at least 2.
        n_models: number of shadow models, even; each audited sample is IN in exactly half of them.
        n_canaries: number of mislabelled samples: the first of one random permutation of the private data.
        n_clean: number of further samples, next in that permutation, that are audited with their right label.
        seed: non-negative integer.

    Raises:
        ValueError: if no such design exists.
    """
    n = len(labels)
    audited = n_canaries + n_clean
    if n_models < 2 or n_models % 2:
        raise ValueError(f"n_models is {n_models}: give an even number from 2, as each sample is IN in half of them")
    if n_classes < 2:
        raise ValueError(f"n_classes is {n_classes}: a wrong label needs at least 2 classes")
    if n_canaries < 0 or n_clean < 0 or not 0 < audited < n:
        raise ValueError(
            f"{n_canaries} canaries and {n_clean} clean samples out of {n}: "
            "audit at least 1 sample and leave at least 1 that every model trains on"
        )
    if np.ndim(labels) != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype} of shape {np.shape(labels)}: give integers of shape (n,)")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(
            f"labels span {labels.min()} to {labels.max()}: they must lie in [0, {n_classes}), so check n_classes"
        )

    _, splits, rest = np.random.default_rng(seed).spawn(3)
    order, rest = rest.spawn(2)
    transforms, _ = rest.spawn(2)
    noise, _ = transforms.spawn(2)

    index = order.permutation(n)[:audited].astype(np.int64)
    mislabelled = np.arange(audited) < n_canaries
    true_label = labels[index].astype(np.int64)
    change = noise.integers(n_classes - 1, size=n)[index]
    wrong_label = np.where(change < true_label, change, change + 1)

    rank = np.argsort(splits.uniform(size=(n_models, n))[:, index], axis=0)
    membership = np.zeros((n_models, audited), dtype=np.bool_)
    np.put_along_axis(membership, rank[: n_models // 2], True, axis=0)

    return Design(
        index=index,
        true_label=true_label,
        canary_label=np.where(mislabelled, wrong_label, true_label),
        mislabelled=mislabelled,
        membership=np.ascontiguousarray(membership.T),
    )


def first_models(design: Design, models: int) -> Design:
    """Return the design of the first so many models, for a method that was not worth more: the same canaries.

    Every canary was IN in half of all models; of the first ones it is in some number that chance has drawn.

    Raises:
        ValueError: if there are fewer models.
    """
    if not 0 < models <= design.membership.shape[1]:
        raise ValueError(f"the first {models} of {design.membership.shape[1]} models: give a number from 1 to that")
    return replace(design, membership=design.membership[:, :models])


def fewest_on_a_side(membership: BoolArray) -> int:
    """Return the least number of models on one side, IN or OUT, of any canary, from bool ``(canary, model)``."""
    inside = checked_membership(membership).sum(axis=1)
    return int(np.minimum(inside, membership.shape[1] - inside).min())


def average_case(design: Design) -> Design:
    """Return the average-case design: the same samples in the same models, all labels left right."""
    return replace(design, canary_label=design.true_label, mislabelled=np.zeros_like(design.mislabelled))


def shuffled_membership(membership: BoolArray, rng: np.random.Generator) -> BoolArray:
    """Return bool ``(canary, model)`` with each row permuted independently: the null control.

    Every canary stays IN in as many models, but what is said about it has nothing to do with the truth, so that no
    attack can do better than chance.
    """
    return rng.permuted(checked_membership(membership), axis=1)


def population(design: Design, n: int) -> float:
    """Return how many of the ``n`` private samples a model trains on, on average: audited ones are IN in half of them.

    It is the same for all models and known without looking at any of them: the public size of the private data.
    """
    return n - len(design.index) / 2


def training_indices(design: Design, n: int, model: int) -> IntArray:
    """Return the sorted int64 positions that ``model`` trains on: all samples that nobody audits and its IN ones.

    Raises:
        ValueError: if ``model`` is not one of the design, or an audited sample lies outside the ``n`` private ones.
    """
    models = design.membership.shape[1]
    if not 0 <= model < models:
        raise ValueError(f"model {model} is not in the design, which has models 0 to {models - 1}")
    if design.index.min() < 0 or design.index.max() >= n:
        raise ValueError(
            f"the design audits sample {design.index.max()} but there are {n}: it was drawn for other data"
        )
    trained = np.ones(n, dtype=np.bool_)
    trained[design.index] = design.membership[:, model]
    return np.flatnonzero(trained)


def training_labels(labels: NDArray[np.integer], design: Design) -> IntArray:
    """Return int64 ``(n,)``: ``labels`` with the canary labels put in, whichever model trains on them.

    Raises:
        ValueError: if ``labels`` are not those that the design was drawn from.
    """
    if design.index.max() >= len(labels) or not np.array_equal(labels[design.index], design.true_label):
        raise ValueError("labels differ from the design's true labels: the design was drawn for other data")
    result = labels.astype(np.int64)
    result[design.index] = design.canary_label
    return result
