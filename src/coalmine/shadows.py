"""What a method is given: one shadow model's private data, and the settings that all shadow models share.

A shadow model's data are all samples that are not audited, and the audited ones that its membership column includes,
canaries with their wrong label (design, section 5). Images lie in one pool that all shadow models share, so that they
are put on a device once; a method reads it through the shadow model's index only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from coalmine import checkpoint, seeds
from coalmine.artefacts import digest
from coalmine.audit.design import Design, training_indices, training_labels
from coalmine.checkpoint import Checkpoint
from coalmine.data.images import ImageSet
from coalmine.mechanism import Mechanism
from coalmine.run_files import design_digest, read_classes, read_design, read_images

if TYPE_CHECKING:
    import torch

    from coalmine.models.settings import ModelSettings
    from coalmine.training.loop import Mode, ModelGenerators, Observer, Trained
    from coalmine.training.recipe import Normalisation, Recipe
    from coalmine.training.sets import TrainingSet
    from coalmine.training.whitening import Whitening


@dataclass(frozen=True)
class Shadow:
    """The private data of one shadow model.

    Attributes:
        number: the shadow model, a column of the membership matrix.
        pool: uint8 (n, height, width, channel), the images of all private samples; only those of ``index`` may be used.
        index: int64 (m,), the samples that this shadow model may see, ascending.
        labels: int64 (m,), their labels, canaries with their wrong one.
        audited: int64 (a,), those of ``index`` that are audited (canaries and clean samples), ascending. For methods
            that divide them into strata on purpose, so that the audit can compare these; no defence knows them.
    """

    number: int
    pool: np.ndarray
    index: np.ndarray
    labels: np.ndarray
    audited: np.ndarray

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
        learning_rate: base rate that the method learned for training on this set, in place of the recipe's.
        whitening: of the space that the images were made in, where models are trained on them and queried; the images
            themselves are stored after its inverse.
    """

    images: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    learning_rate: float | None = None
    whitening: Whitening | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the fields of a synthetic set's file, without those that are None."""
        arrays = {"images": self.images, "labels": self.labels, "source": self.source}
        if self.learning_rate is not None:
            arrays["learning_rate"] = np.array(self.learning_rate)
        return arrays | (self.whitening.state() if self.whitening else {})


class Numbered(Protocol):
    """What belongs to one shadow model: its private data, or its teacher."""

    @property
    def number(self) -> int:
        """The shadow model, a column of the membership matrix."""
        ...


class Checkpoints(Protocol):
    """Opens the place where a computation on one shadow model saves its state."""

    def __call__(self, shadow: Numbered, purpose: str = "") -> Checkpoint:
        """Open it; different computations on one shadow model have different purposes."""
        ...


@dataclass(frozen=True, eq=False)
class Teacher:
    """The audited model of another method for one shadow model: all that a data-free method is given of private data.

    Attributes:
        number: the shadow model.
        model: architecture.
        state: parameters and buffers, on the CPU.
        channels: of the images that it classifies.
        image_size: their height and width in pixels.
        classes: number of classes.
    """

    number: int
    model: ModelSettings
    state: Mapping[str, torch.Tensor]
    channels: int
    image_size: int
    classes: int


@dataclass(frozen=True, eq=False)
class Distilled:
    """What a data-free method makes from one teacher.

    Attributes:
        state: the student's parameters and buffers after its last step, on the CPU.
        synthetic: a sample of the images that it was taught with, and the teacher's answers to them.
        synthesis_seconds: wall time of making images.
        training_seconds: wall time of teaching the student.
    """

    state: Mapping[str, torch.Tensor]
    synthetic: Synthetic
    synthesis_seconds: float
    training_seconds: float


@dataclass(frozen=True, eq=False)
class Fitted:
    """A generative model that a method has fitted to the private data of one shadow model.

    Attributes:
        state: what ``synthesize`` needs of it, on the CPU.
        seconds: wall time of fitting.
    """

    state: Mapping[str, torch.Tensor]
    seconds: float


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
        class_names: their names; none where a method has no use for them.
        device: where to compute.
        mode: how several models are trained: one after another or as one stacked ensemble.
        progress: prints a line that a person can follow.
        public: public images, or None for a method that needs none.
        mechanism: what the method's guarantee allows it to do with private data; None for a method without one.
        experts: returns the file of a shadow model's expert trajectories; None for a method that names none.
        pretrained: the file of the network that public data have trained; None for a method that names none.
        generator: returns the file of the generative model that was fitted for a shadow model; None for a method that
            fits none.
        checkpoint: opens the place where a shadow model's long computation saves its state; ``train`` does so itself.
    """

    method: str
    seed: int
    model: ModelSettings
    recipe: Recipe
    normalisation: Normalisation
    classes: int
    device: torch.device
    mode: Mode
    progress: Callable[[str], None]
    public: ImageSet | None = None
    mechanism: Mechanism | None = None
    experts: Callable[[Shadow], Path] | None = None
    pretrained: Path | None = None
    generator: Callable[[Shadow], Path] | None = None
    class_names: tuple[str, ...] = ()
    checkpoint: Checkpoints = field(default=checkpoint.without)

    def rng(self, shadow: Numbered, purpose: str) -> np.random.Generator:
        """Return the NumPy generator for one purpose of one shadow model."""
        return seeds.numpy_generator(self.seed, self.method, shadow.number, purpose)

    def generators(self, shadow: Numbered, purpose: str) -> ModelGenerators:
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
            purpose: names the random streams and the checkpoint, so that different trainings of one shadow model are
                independent.
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
            checkpoint=lambda position: self.checkpoint(shadows[position], purpose),
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
        names = read_classes(classes)
        data.check(f"private data ({images}, {labels})", len(names))
        return PrivateData(data.images, data.labels, names, design)

    @property
    def shape(self) -> dict[str, int]:
        """What a model's input and output must fit, as artefacts carry it."""
        return {"channels": self.images.shape[3], "image_size": self.images.shape[1], "classes": len(self.classes)}

    def shadow(self, number: int) -> Shadow:
        """Return the view of shadow model ``number``."""
        index = training_indices(self.design, len(self.labels), number)
        audited = np.intersect1d(self.design.index, index)
        return Shadow(number, self.images, index, training_labels(self.labels, self.design)[index], audited)

    def digests(self) -> dict[str, str]:
        """Digests of data and design, as artefacts carry them."""
        return {"private": digest(self.images, self.labels), "design": design_digest(self.design)}
