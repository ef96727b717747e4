"""Labelled images as arrays, and the stratified test split of data that come without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coalmine.errors import CoalmineError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images.

    Attributes:
        images: uint8 (n, height, width, channel), one channel (grey) or three (red, green, blue).
        labels: int64 (n,), the class of each image, counted from 0.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> ImageSet:
        """Return the samples that an index or boolean array selects."""
        return ImageSet(self.images[index], self.labels[index])

    def check(self, what: str, n_classes: int) -> None:
        """Raise CoalmineError unless shapes, types and labels are what every later stage takes for granted.

        Args:
            what: the name of these data in the message, e.g. ``"private data"``.
            n_classes: labels must lie in 0 .. n_classes - 1.
        """
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
            raise CoalmineError(
                f"{what}: images are {images.dtype} of shape {images.shape}, expected uint8 of shape "
                "(n, height, width, channel) with 1 or 3 channels and at least one image; mend the data source."
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise CoalmineError(
                f"{what}: labels are {labels.dtype} of shape {labels.shape}, expected int64 of shape "
                f"({len(images)},), one for each image; mend the data source."
            )
        if labels.min() < 0 or labels.max() >= n_classes:
            raise CoalmineError(
                f"{what}: labels lie in {labels.min()} .. {labels.max()}, expected 0 .. {n_classes - 1} "
                f"for {n_classes} classes; mend the data source or its class names."
            )


@dataclass(frozen=True, eq=False)
class Splits:
    """What a source delivers.

    Attributes:
        train: the images to train on (as private or as public data).
        test: the images that the reported accuracy is measured on; None where the source has none.
        classes: the name of each label.
    """

    train: ImageSet
    test: ImageSet | None
    classes: tuple[str, ...]


def split_off_test(
    images: ImageSet,
    fraction_or_size: float,
    rng: np.random.Generator,
    *,
    classes: Sequence[str] | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Split images at random into train and test, with the same class proportions in both.

    Args:
        images: all samples.
        fraction_or_size: the test part, as a float between 0 and 1 or as an int number of images.
        rng: draws which images go to the test part.
        classes: names of the labels, for messages.

    Returns:
        (train, test), both in the order of ``images``; the class shares of the test part are rounded by largest
        remainder, so that they sum to its size.

    Raises:
        CoalmineError: the test part is empty or everything, or a class would be missing from one of the parts.
    """
    n = len(images)
    size = fraction_or_size if isinstance(fraction_or_size, int) else round(fraction_or_size * n)
    if not 0 < size < n:
        raise CoalmineError(
            f"a test split of {fraction_or_size} takes {size} of {n} images, expected at least 1 and at most {n - 1}; "
            "set another test size or fraction."
        )
    in_test = np.zeros(n, dtype=bool)
    for label, share in enumerate(_test_shares(images.labels, size, classes)):
        in_test[rng.choice(np.flatnonzero(images.labels == label), share, replace=False)] = True
    return images.take(~in_test), images.take(in_test)


def _test_shares(labels: np.ndarray, size: int, classes: Sequence[str] | None) -> np.ndarray:
    """Return how many test images each class gives, int64 (label,), by largest remainder."""
    counts = np.bincount(labels)
    shares, remainders = np.divmod(counts * size, counts.sum())
    shares[np.argsort(-remainders, kind="stable")[: size - shares.sum()]] += 1
    missing = np.flatnonzero((counts > 0) & ((shares == 0) | (shares == counts)))
    if missing.size:
        label = missing[0]
        name = repr(classes[label]) if classes else label
        raise CoalmineError(
            f"class {name} has {counts[label]} images, of which {shares[label]} would go to a test split of {size}, "
            "expected at least one in each part; add images of that class or set another test size or fraction."
        )
    return shares
