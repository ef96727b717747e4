"""What a method is given: one shadow model's private data, and the settings that all shadow models share.

A shadow model's data are all samples that are not audited, and the audited ones that its membership column includes,
canaries with their wrong label (design, section 5). Images lie in one pool that all shadow models share, so that they
are put on a device once; a method reads it through the shadow model's index only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coalmine import seeds
from coalmine.artefacts import digest
from coalmine.audit.design import Design, training_indices, training_labels
from coalmine.data.images import ImageSet
from coalmine.mechanism import Mechanism
from coalmine.run_files import design_digest, read_classes, read_design, read_images

if TYPE_CHECKING:
    import torch

    from coalmine.models.settings import ModelSettings
    from coalmine.training.loop import Mode, ModelGenerators, Observer, Trained
    from coalmine.training.recipe import Normalisation, Recipe
    from coalmine.training.sets import TrainingSet


@dataclass(frozen=True)
class Shadow:
    """The private data of one shadow model.

    Attributes:
        number: the shadow model, a column of the membership matrix.
        pool: uint8 (n, height, width, channel), the images of all private samples; only those of ``index`` may be used.
        index: int64 (m,), the samples that this shadow model may see, ascending.
        labels: int64 (m,), their labels, canaries with their wrong one.
    """

    number: int
    pool: np.ndarray
    index: np.ndarray
    labels: np.ndarray

    @property
    def images(self) -> np.ndarray:
        """uint8 (m, height, width, channel): a copy of the images that this shadow model may see."""
        images: np.ndarray = self.pool[self.index]
        return images

    def training_set(self) -> TrainingSet:
        """Return the whole view as a training set that shares the images with other shadow models."""
        from coalmine.training.sets import TrainingSet

        return TrainingSet(images=self.pool, labels=self.labels, index=self.index)


@dataclass(frozen=True)
class Synthetic:
    """What a method hands to the downstream model in place of the private data.

    Attributes:
        images: uint8 (or float32 where the method needs it) (m, height, width, channel).
        labels: int64 (m,) or soft float32 (m, class).
        source: int64 (m,), the private index that an image was copied or initialised from, else -1.
    """

    images: np.ndarray
    labels: np.ndarray
    source: np.ndarray


@dataclass(frozen=True)
class Setup:
    """Everything but private data that a method may use; the same for all shadow models of the run.

    Attributes:
        method: the method's name in the configuration; random streams are keyed by it.
        seed: the run's seed.
        model: architecture of the audited model.
        recipe: its training recipe.
        normalisation: constants of the input normalisation; never computed from private data.
        classes: number of classes.
        public: public images, or None when the run has none.
        device: where to compute.
        mode: how several models are trained: one after another or as one stacked ensemble.
        progress: prints a line that a person can follow.
        mechanism: what the method's guarantee allows it to do with private data; None for a method without one.
    """

    method: str
    seed: int
    model: ModelSettings
    recipe: Recipe
    normalisation: Normalisation
    classes: int
    public: ImageSet | None
    device: torch.device
    mode: Mode
    progress: Callable[[str], None]
    mechanism: Mechanism | None = None

    def rng(self, shadow: Shadow, purpose: str) -> np.random.Generator:
        """Return the NumPy generator for one purpose of one shadow model."""
        return seeds.numpy_generator(self.seed, self.method, shadow.number, purpose)

    def generators(self, shadow: Shadow, purpose: str) -> ModelGenerators:
        """Return the generators of one model's training: initial weights, order and augmentation."""
        from coalmine.training.loop import ModelGenerators

        return ModelGenerators.named(self.seed, self.method, shadow.number, purpose)

    def train(
        self,
        sets: Sequence[TrainingSet],
        shadows: Sequence[Shadow],
        *,
        purpose: str = "training",
        recipe: Recipe | None = None,
        observe: Observer | None = None,
    ) -> Iterator[Trained]:
        """Train one model of the run's architecture on each set, for the shadow model beside it.

        Args:
            sets: what to train on.
            shadows: the shadow model of each set; its random streams are used.
            purpose: names the random streams, so that different trainings of one shadow model are independent.
            recipe: the run's recipe unless given.
            observe: sees every batch before its update.
        """
        from coalmine.training.loop import train

        return train(
            self.model,
            sets,
            recipe or self.recipe,
            self.normalisation,
            [self.generators(shadow, purpose) for shadow in shadows],
            self.classes,
            device=self.device,
            mode=self.mode,
            observe=observe,
            progress=self.progress,
            names=[f"model {shadow.number}" for shadow in shadows],
        )

    def groups(self, shadows: Sequence[Shadow]) -> Iterator[Sequence[Shadow]]:
        """Yield the shadow models that are worked on at once: all when stacked, else one after another.

        One after another, each result can be saved as soon as it is there.
        """
        if self.mode == "stacked":
            yield shadows
        else:
            yield from ([shadow] for shadow in shadows)


@dataclass(frozen=True)
class PrivateData:
    """The private samples with the audit design laid over them.

    Attributes:
        images: uint8 (n, height, width, channel).
        labels: int64 (n,), true labels.
        classes: class names.
        design: canaries and membership.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    design: Design

    @staticmethod
    def read(images: Path, labels: Path, classes: Path, canaries: Path, membership: Path) -> PrivateData:
        """Read the files of the ``prepare`` and ``design`` stages and check that they belong together."""
        data = read_images(images, labels)
        design = read_design(canaries, membership, data.labels)
        return PrivateData(data.images, data.labels, read_classes(classes), design)

    def shadow(self, number: int) -> Shadow:
        """Return the view of shadow model ``number``."""
        index = training_indices(self.design, len(self.labels), number)
        return Shadow(number, self.images, index, training_labels(self.labels, self.design)[index])

    def digests(self) -> dict[str, str]:
        """Digests of data and design, as artefacts carry them."""
        return {"private": digest(self.images, self.labels), "design": design_digest(self.design)}
