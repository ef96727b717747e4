"""RDED: crops of private images, chosen and labelled by a teacher. A distilled set without any optimisation.

Sun et al., "On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation Paradigm" (CVPR 2024).
A teacher is trained on the shadow model's data. Of every class (by the given labels), ``images`` random samples are
cropped ``crops`` times, each crop a random square, resized; the crop on which the teacher's cross entropy with the
given label is lowest stands for its sample, and the best ``images_per_class factor^2`` of these are kept. ``factor^2``
of them, each of ``1 / factor`` of the size, are tiled into one image, whose label is the teacher's softmax of it.

With ``factor: 1``, the papers' choice for CIFAR-10, the set holds real, cropped people with what the teacher learned
about them. Which people is up to the teacher: it dislikes the label of a mislabelled canary unless it has memorised it,
so that hardly any canary is taken where there is a choice. With ``images`` equal to ``images_per_class factor^2`` there
is none, and the set is a positive control, which the audit must find to leak.

The paper's students are given the teacher's softmax of every augmented view anew at every step. Here each image has one
label, that of the image as it is, so that the set is all that leaves the private side.

``source`` names the sample that an image is a crop of; of a tiled image, its first tile's, which is the one that the
teacher likes best. The others go unrecorded: with ``factor`` above 1, more canaries are in the set than it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field
from scipy.special import logsumexp, softmax

from coalmine import settings
from coalmine.costs.work import Counter, Work
from coalmine.errors import CoalmineError
from coalmine.shadows import Setup, Shadow, Synthetic
from coalmine.training.recipe import Recipe

if TYPE_CHECKING:
    from coalmine.models.settings import ModelSettings
    from coalmine.outline import Outline
    from coalmine.training.loop import Trained

SOURCE = "copied"


class Settings(settings.Settings):
    """Hyper-parameters of RDED; the defaults are the paper's for CIFAR-10."""

    images_per_class: int = Field(10, ge=1, description="Synthetic images of each class (the paper: 1, 10, 50).")
    images: int = Field(300, ge=1, description="Private samples of each class to choose from, or all there are (300).")
    crops: int = Field(5, ge=1, description="Random crops of each, of which the best is taken (5).")
    least_area: float = Field(0.08, gt=0, le=1, description="Smallest share of an image that a crop covers (0.08).")
    factor: int = Field(1, ge=1, description="Crops on each side of a synthetic image (1; larger images: 2).")
    teacher: Recipe | None = Field(None, description="How the teacher is trained; null: as the audited models are.")


def objection(settings: Settings, model: ModelSettings, recipe: Recipe, outline: Outline) -> tuple[str, str] | None:
    """Return the field and the reason why these settings cannot work, or None."""
    needed = settings.images_per_class * settings.factor**2
    if needed > settings.images:
        return "images", f"is {settings.images}, but {_needs(settings)}; choose from at least as many."
    if outline.image_size is not None and outline.image_size[0] % settings.factor:
        return "factor", f"is {settings.factor}, which does not divide the size of an image, {outline.image_size[0]}."
    if outline.classes is None or outline.population is None:
        return None
    if needed * outline.classes > outline.population:
        return "images_per_class", (
            f"is {settings.images_per_class}: {_needs(settings)}, {needed * outline.classes} in {outline.classes} "
            f"classes, more than the {outline.population:.0f} private samples of a shadow model; lower it."
        )
    return None


def synthesize(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[Synthetic]:
    """Yield the crops of each shadow model's samples, in order, class by class, with soft labels."""
    for group in setup.groups(shadows):
        sets = [shadow.training_set() for shadow in group]
        teachers = setup.train(sets, group, purpose="teacher", recipe=settings.teacher)
        for shadow, teacher in zip(group, teachers, strict=True):
            yield _composed(shadow, teacher, settings, setup)


def work(settings: Settings, counter: Counter) -> Work:
    """Return what one shadow model takes: a teacher, and its looks at all crops and at what is made of them."""
    images, candidates = counter.classes * settings.images_per_class, counter.classes * settings.images
    teacher = counter.training(counter.population, recipe=settings.teacher)
    looks = counter.looks(counter.model, min(candidates, counter.population) * settings.crops + images)
    return teacher + looks + counter.image_set(images, soft=True)


def _composed(shadow: Shadow, teacher: Trained, settings: Settings, setup: Setup) -> Synthetic:
    """Return the synthetic set that a shadow model's teacher chooses and labels."""
    from coalmine.training.inference import predict

    query = partial(
        predict,
        setup.model,
        teacher.state,
        normalisation=setup.normalisation,
        classes=setup.classes,
        device=setup.device,
        precision=(settings.teacher or setup.recipe).precision,
    )
    rng = setup.rng(shadow, "crops")
    size, count = shadow.pool.shape[1], settings.images_per_class
    if size % settings.factor:
        raise CoalmineError(f"{setup.method}: factor is {settings.factor}, which does not divide the size {size}")
    images, sources = [], []
    for label in range(setup.classes):
        rows = _candidates(shadow, label, settings, setup, rng)
        crops = random_crops(shadow.pool[shadow.index[rows]], settings.crops, size // settings.factor, settings, rng)
        canvas = on_canvas(crops.reshape(-1, *crops.shape[2:]), size, setup.normalisation.mean)
        losses = cross_entropy(query(canvas)[:, 0], label).reshape(crops.shape[:2])
        which, best = select(losses, count * settings.factor**2)
        images.append(tile(crops[which, best], settings.factor))
        sources.append(shadow.index[rows[which[:count]]])
    made = np.concatenate(images)
    labels = softmax(query(made)[:, 0].astype(np.float64), axis=1).astype(np.float32)
    return Synthetic(made, labels, source=np.concatenate(sources))


def _candidates(shadow: Shadow, label: int, settings: Settings, setup: Setup, rng: np.random.Generator) -> np.ndarray:
    """Return positions within the shadow model's data of random samples of one class."""
    members = np.flatnonzero(shadow.labels == label)
    if len(members) < settings.images_per_class * settings.factor**2:
        raise CoalmineError(
            f"{setup.method}: {_needs(settings)}, but shadow model {shadow.number} has only {len(members)} samples of "
            f"class {label}; lower images_per_class"
        )
    return rng.permutation(members)[: settings.images]


def _needs(settings: Settings) -> str:
    return (
        f"{settings.images_per_class} images of {settings.factor} x {settings.factor} crops need "
        f"{settings.images_per_class * settings.factor**2} samples of each class"
    )


def random_crops(images: np.ndarray, count: int, size: int, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Crop random squares out of images and resize them, bilinear with antialiasing.

    The share of the area that a crop covers is uniform from ``least_area`` to 1; its place is uniform.

    Args:
        images: uint8 (n, height, width, channel), height = width.
        count: crops of each.
        size: of the result, in pixels.
        settings: of the method.
        rng: draws.

    Returns:
        uint8 (n, count, size, size, channel).
    """
    import torch
    from torch.nn import functional as F

    n, whole, _, channels = images.shape
    area = rng.uniform(settings.least_area, 1, (n, count))
    sides = np.maximum(1, np.rint(whole * np.sqrt(area)).astype(np.int64))
    top, left = rng.integers(0, whole - sides + 1, (2, n, count))
    crops = np.empty((n, count, size, size, channels), dtype=np.uint8)
    for side in np.unique(sides):
        which, crop = np.nonzero(sides == side)
        windows = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(1, 2))
        chosen = windows[which, top[which, crop], left[which, crop]].astype(np.float32)
        resized = F.interpolate(torch.from_numpy(chosen), (size, size), mode="bilinear", antialias=True)
        crops[which, crop] = resized.round().clamp(0, 255).byte().movedim(1, -1).numpy()
    return crops


def on_canvas(crops: np.ndarray, size: int, mean: Sequence[float]) -> np.ndarray:
    """Put crops in the middle of images of the data's mean colour, since the teacher expects images of full size.

    Args:
        crops: uint8 (n, crop size, crop size, channel).
        size: of the images.
        mean: of each channel, from 0 to 1.

    Returns:
        float32 (n, size, size, channel), from 0 to 1.
    """
    inner = crops.shape[1]
    canvas = np.empty((len(crops), size, size, crops.shape[3]), dtype=np.float32)
    canvas[:] = np.array(mean, dtype=np.float32)
    start = (size - inner) // 2
    canvas[:, start : start + inner, start : start + inner] = crops / np.float32(255)
    return canvas


def cross_entropy(logits: np.ndarray, label: int) -> np.ndarray:
    """Return the cross entropy (n,) of logits (n, class) with one label, in double precision."""
    exact = logits.astype(np.float64)
    loss: np.ndarray = logsumexp(exact, axis=1) - exact[:, label]
    return loss


def select(losses: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``count`` images whose best crop has the lowest loss, best first, and the number of that crop.

    Args:
        losses: (image, crop).
        count: at most as many as there are images.
    """
    best = losses.argmin(axis=1)
    which = np.argsort(losses.min(axis=1), kind="stable")[:count]
    return which, best[which]


def tile(crops: np.ndarray, factor: int) -> np.ndarray:
    """Tile ``factor x factor`` crops into each image, row by row: image i of m holds the crops i, m + i, 2 m + i, ...

    Args:
        crops: (m factor^2, size, size, channel), best first, so that every image's first tile is among the m best.
        factor: tiles on each side.

    Returns:
        (m, factor size, factor size, channel).
    """
    size, channels = crops.shape[1], crops.shape[3]
    grid = crops.reshape(factor, factor, -1, size, size, channels)
    return grid.transpose(2, 0, 3, 1, 4, 5).reshape(-1, factor * size, factor * size, channels)
