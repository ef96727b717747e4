"""Checks of labelled images, and the stratified test split."""

from __future__ import annotations

import numpy as np
import pytest

from coalmine.data.images import ImageSet, split_off_test
from coalmine.errors import CoalmineError


def numbered(labels: list[int]) -> ImageSet:
    """Images that carry their own index in two pixels."""
    index = np.arange(len(labels))
    images = np.stack([index % 256, index // 256], axis=1).astype(np.uint8).reshape(-1, 1, 2, 1)
    return ImageSet(images, np.array(labels, dtype=np.int64))


def indices(images: ImageSet) -> list[int]:
    return (images.images[:, 0, 0, 0] + 256 * images.images[:, 0, 1, 0].astype(int)).tolist()


def good() -> ImageSet:
    return ImageSet(np.zeros((3, 4, 5, 3), np.uint8), np.array([0, 1, 2], np.int64))


def test_good_images_pass_and_know_their_number() -> None:
    good().check("private data", 3)
    assert len(good()) == 3


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((3, 4, 5, 3), np.float32),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((3, 4, 5, 2), np.uint8),
        np.zeros((0, 4, 5, 1), np.uint8),
        np.zeros((3, 0, 5, 1), np.uint8),
    ],
)
def test_images_of_another_type_or_shape_are_refused(images: np.ndarray) -> None:
    with pytest.raises(CoalmineError, match=r"private data: images are \w+ of shape .*, expected uint8 of shape"):
        ImageSet(images, np.zeros(len(images), np.int64)).check("private data", 3)


@pytest.mark.parametrize("labels", [np.zeros(3, np.int32), np.zeros(2, np.int64), np.zeros((3, 1), np.int64)])
def test_labels_of_another_type_or_number_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(CoalmineError, match=r"test data: labels are .* expected int64 of shape \(3,\)"):
        ImageSet(good().images, labels).check("test data", 3)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    labels = np.array([0, 1, label], np.int64)
    with pytest.raises(CoalmineError, match=r"labels lie in .* expected 0 \.\. 2 for 3 classes"):
        ImageSet(good().images, labels).check("test data", 3)


def test_a_split_is_a_partition_in_order_with_the_shares_of_the_classes() -> None:
    images = numbered([0, 1, 2, 1] * 100)
    train, test = split_off_test(images, 0.25, np.random.default_rng(1))
    assert sorted(indices(train) + indices(test)) == list(range(400))
    assert indices(train) == sorted(indices(train))
    assert indices(test) == sorted(indices(test))
    assert np.bincount(test.labels).tolist() == [25, 50, 25]
    assert np.bincount(train.labels).tolist() == [75, 150, 75]
    for part in (train, test):
        np.testing.assert_array_equal(part.labels, images.labels[indices(part)])


def test_shares_are_rounded_by_largest_remainder() -> None:
    # Of 10 of 21: 2.86, 3.33 and 3.81 images; the two largest remainders get the two places that are left.
    labels = [0] * 6 + [1] * 7 + [2] * 8
    _, test = split_off_test(numbered(labels), 10, np.random.default_rng(0))
    assert np.bincount(test.labels).tolist() == [3, 3, 4]


def test_a_size_and_the_same_fraction_give_the_same_split() -> None:
    images = numbered([0, 1] * 50)
    by_size = split_off_test(images, 20, np.random.default_rng(3))
    by_fraction = split_off_test(images, 0.2, np.random.default_rng(3))
    assert indices(by_size[1]) == indices(by_fraction[1])


def test_the_generator_decides_who_is_tested_on() -> None:
    images = numbered([0, 1] * 50)
    draws = [indices(split_off_test(images, 0.5, np.random.default_rng(seed))[1]) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] != list(range(0, 100, 2))


@pytest.mark.parametrize("size", [0, 10, 0.01, 0.99])
def test_an_empty_part_is_refused(size: float) -> None:
    with pytest.raises(CoalmineError, match=r"a test split of .* takes (0|10) of 10 images, expected at least 1"):
        split_off_test(numbered([0, 1] * 5), size, np.random.default_rng(0))


@pytest.mark.parametrize(("size", "given"), [(0.2, 0), (0.9, 1)])
def test_a_class_that_one_part_would_miss_is_named(size: float, given: int) -> None:
    images = numbered([0] * 30 + [2])
    with pytest.raises(CoalmineError, match=f"class 'lynx' has 1 images, of which {given} would go to a test split"):
        split_off_test(images, size, np.random.default_rng(0), classes=("cat", "dog", "lynx"))
    with pytest.raises(CoalmineError, match="class 2 has 1 images"):
        split_off_test(images, size, np.random.default_rng(0))
