"""How good synthetic images are, and whom they resemble, measured on features of images: arrays ``(n, d)``.

Three questions, each answered by comparing a set of synthetic images with sets of real ones:

- Do they look like real ones, as a whole? The Frechet distance of two Gaussians (Heusel, Ramsauer, Unterthiner, Nessler
  and Hochreiter, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017), called FID
  where features are those of the Inception network. Estimated from n images it is too large by about c / n (Chong and
  Forsyth, "Effectively Unbiased FID and Inception Score and Where to Find Them", 2020), so that only values of equally
  many images may be compared. For two sets of standard normal features in d dimensions c is d + d (d + 1) / 4 each.
- Is each of them realistic, and is everything real covered? Improved precision and recall (Kynkäänniemi et al., 2019).
- Are they nearer to what was trained on than to strangers from the same source? The ratio of two distances.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coalmine.audit.inputs import FloatArray
from coalmine.audit.visual import Euclidean, all_distances, nearest

DISTANCES_AT_ONCE = 1 << 24
"""Distances held at a time, 8 bytes each."""

ROWS_AT_ONCE = 4096
"""Images whose features are factorised at a time, or four times their dimension where that is more."""


def frechet_distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the squared Frechet distance of the Gaussians with the means and covariances of two sets of features.

    With means m and unbiased covariances S it is

        |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

    (Dowson and Landau, "The Frechet Distance between Multivariate Normal Distributions", 1982). For any roots
    S = R' R, the last trace is the sum of the singular values of R1 R2': R = U S^(1/2) with orthonormal columns
    U where S is not 0, so that these are the singular values of S1^(1/2) S2^(1/2), whose squares are the eigenvalues of
    S1^(1/2) S2 S1^(1/2). The root is the triangle of a QR factorisation of the centred features. No covariance and no
    eigenvalue of one is ever formed, whose rounding errors a square root would raise from 1e-16 to 1e-8; covariances
    without full rank, as those of fewer images than dimensions, are nothing special.

    Args:
        first: floats ``(n, d)``, at least two rows.
        second: floats ``(m, d)``, at least two rows.

    Returns:
        At least 0; the same for both orders up to rounding.

    Raises:
        ValueError: for other shapes, one row, or values that are not finite.
    """
    _check(first, second, least=2)
    (mean1, root1), (mean2, root2) = _mean_and_root(first), _mean_and_root(second)
    difference = mean1 - mean2
    common = np.linalg.svd(root1 @ root2.T, compute_uv=False).sum()
    distance = difference @ difference + np.sum(root1 * root1) + np.sum(root2 * root2) - 2 * common
    return max(0.0, float(distance))


def _mean_and_root(features: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Return the mean ``(d,)`` and R ``(min(n, d), d)``, where R' R is the unbiased covariance."""
    n, dimension = features.shape
    mean = features.mean(axis=0, dtype=np.float64)
    root = np.empty((0, dimension))
    step = max(ROWS_AT_ONCE, 4 * dimension)
    for start in range(0, n, step):
        centred = features[start : start + step].astype(np.float64) - mean
        root = np.asarray(np.linalg.qr(np.concatenate([root, centred]), mode="r"))
    return mean, root / np.sqrt(n - 1)


class PrecisionRecall(NamedTuple):
    """The shares of synthetic images that are realistic, and of real ones that are covered, from 0 to 1."""

    precision: float
    recall: float


def precision_recall(real: NDArray[Any], synthetic: NDArray[Any], k: int) -> PrecisionRecall:
    """Return improved precision and recall.

    A set's manifold is the union of the balls around its images, each up to the image's k-th nearest neighbour in its
    own set, borders included; precision is the share of synthetic images on the real manifold, recall that of real ones
    on the synthetic manifold (Kynkäänniemi, Karras, Laine, Lehtinen and Aila, "Improved Precision and Recall Metric for
    Assessing Generative Models", 2019, where k is 3 and both sets are equally large). The fewer images, the larger the
    balls, so that only values of equally many images may be compared.

    Args:
        real: floats ``(n, d)``.
        synthetic: floats ``(m, d)``.
        k: which neighbour, from 1 to the number of images of the smaller set less one.

    Raises:
        ValueError: for other shapes, too few images, or values that are not finite.
    """
    if k < 1:
        raise ValueError(f"the neighbour k is {k}: give at least 1")
    _check(real, synthetic, least=k + 1)
    real_radii, synthetic_radii = neighbour_distances(real, k), neighbour_distances(synthetic, k)
    realistic, covered = np.zeros(len(synthetic), dtype=bool), np.zeros(len(real), dtype=bool)
    for rows in _blocks(len(synthetic), len(real)):
        distances = all_distances(Euclidean(), synthetic[rows], real)
        realistic[rows] = (distances <= real_radii).any(axis=1)
        covered |= (distances <= synthetic_radii[rows, None]).any(axis=0)
    return PrecisionRecall(float(realistic.mean()), float(covered.mean()))


def neighbour_distances(features: NDArray[Any], k: int) -> FloatArray:
    """Return float64 ``(n,)``: the distance of each image to the k-th nearest other one of its set, k from 1."""
    radii = np.empty(len(features))
    for rows in _blocks(len(features), len(features)):
        distances = all_distances(Euclidean(), features[rows], features)
        own = np.arange(len(distances))
        distances[own, rows.start + own] = np.inf
        radii[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


class Nearness(NamedTuple):
    """Where each image lies between what was trained on and what was not, by its distances a and b to the nearest.

    If one set was drawn like the other, the two can change places, so that a and b are distributed alike. The mean of
    ``balance`` is 1 then. That of ``ratio`` is larger: with E[a / b] = E[b / a] = r and (a / b) (b / a) = 1, r >= 1 by
    the inequality of Cauchy and Schwarz (1.02 to 1.05 for handwritten digits among 25 to 250 of each kind).

    Attributes:
        ratio: float64 ``(image,)``, a / b, from 0; 1 where both are 0, infinite where b alone is.
        balance: float64 ``(image,)``, 2 a / (a + b), from 0 to 2; 1 where both are 0.
    """

    ratio: FloatArray
    balance: FloatArray


def nearest_ratio(images: NDArray[Any], members: NDArray[Any], nonmembers: NDArray[Any]) -> Nearness:
    """Compare the distances of images to the nearest of what was trained on and of equally many that were not.

    Args:
        images: floats ``(image, d)``.
        members: floats ``(n, d)``, of samples that were trained on.
        nonmembers: floats ``(n, d)``, as many of samples from the same source that were not.

    Returns:
        Both below 1 for an image that is nearer to a member.

    Raises:
        ValueError: for other shapes, unequal numbers, which would favour the larger set, or values that are not finite.
    """
    _check(images, members, least=1)
    _check(images, nonmembers, least=1)
    if len(members) != len(nonmembers):
        raise ValueError(
            f"{len(members)} members and {len(nonmembers)} non-members: the larger set is nearer by its size alone, so "
            "give equally many"
        )
    near, far = (nearest(Euclidean(), images, one).distance for one in (members, nonmembers))
    equal = np.ones(len(images))
    beyond = np.where(near > 0, np.inf, equal)
    return Nearness(
        ratio=np.divide(near, far, out=beyond, where=far > 0),
        balance=np.divide(2 * near, near + far, out=equal, where=near + far > 0),
    )


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices of the rows of a matrix, each of which fits in memory."""
    step = max(1, DISTANCES_AT_ONCE // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _check(first: NDArray[Any], second: NDArray[Any], least: int) -> None:
    """Raise ValueError unless both are finite features of one dimension and have at least so many rows."""
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"features of shapes {first.shape} and {second.shape} cannot be compared: give two arrays (n, d) of one d"
        )
    if min(len(first), len(second)) < least:
        raise ValueError(f"{len(first)} and {len(second)} images: at least {least} of each are needed here")
    for features in (first, second):
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise ValueError(f"the features of image {int(finite.argmin())} are not finite: look at the network")
