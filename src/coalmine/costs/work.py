"""What a computation has to do, and the counter that a method's file is given to say it.

A method's file may define ``work(settings, counter)``, beside ``synthesize`` or ``train``: what one shadow model takes.
``distil`` has two parts, the images and the student, so its ``work`` returns a pair. Beside ``fit`` there may be
``fit_work(own, counter)``. A file without them is priced by what it took before, whatever its settings ("unscaled").

This module is part of the code of every method that imports it, hence of its hash: the arithmetic is elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True)
class Work:
    """What one shadow model's computation takes. Works add up; times a number, they are done so often.

    Attributes:
        operations: multiply-adds of networks; a backward pass counts as two forward ones.
        launches: calls of an operation on a whole batch, each of which has a fixed cost.
        memory: bytes held at once, beyond the libraries.
        images: of the synthetic set that is made.
        disk: bytes of the artefact's arrays.
    """

    operations: float = 0.0
    launches: float = 0.0
    memory: float = 0.0
    images: float = 0.0
    disk: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Return both, one after the other: memory is not held twice."""
        return Work(
            self.operations + other.operations,
            self.launches + other.launches,
            max(self.memory, other.memory),
            self.images + other.images,
            self.disk + other.disk,
        )

    def __mul__(self, times: float) -> Work:
        """Return the computation done so many times, with one result."""
        return Work(self.operations * times, self.launches * times, self.memory, self.images, self.disk)


class ImageGenerator(NamedTuple):
    """The generator of data-free methods (``coalmine.datafree.generator``)."""

    latent: int
    width: int


class StableDiffusion(NamedTuple):
    """One part of Stable Diffusion 1.5, for images of so many pixels a side."""

    part: str
    resolution: int
    rank: int = 0


GRADIENT = 3.0
"""Passes of a step that takes the gradient by weights: forward is one, backward two."""

INPUT_GRADIENT = 2.0
"""Passes where the gradient is taken by the images alone: backward is one then."""

SECOND_GRADIENT = 9.0
"""Passes where a gradient is taken of a gradient: back through forward and backward, at twice the price of these."""


class Counter(Protocol):
    """Counts what networks do to images of the run's kind.

    ``network`` is any settings of ``coalmine.models.settings``, a ``coalmine.diffusion.settings.UNet``, or one of the
    tuples above.
    """

    @property
    def population(self) -> float:
        """Private samples of a shadow model on average."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def model(self) -> Any:
        """The architecture of the method's entry, None where the stage must not know it."""
        ...

    @property
    def recipe(self) -> Any:
        """The training recipe of the method's entry, None likewise."""
        ...

    @property
    def teacher(self) -> Any:
        """The architecture of a data-free method's teacher."""
        ...

    def looks(self, network: Any, images: float, *, at_once: int = 1024) -> Work:
        """Return the work of one forward pass over so many images."""
        ...

    def steps(
        self, network: Any, steps: float, batch: float, *, passes: float = GRADIENT, graphs: float = 1, copies: int = 1
    ) -> Work:
        """Return the work of so many steps on batches.

        Args:
            network: whose gradient is taken.
            steps: their number.
            batch: images of each.
            passes: in units of a forward pass.
            graphs: batches whose activations are held at once.
            copies: of the network that a call computes at once, sharing out the batch.
        """
        ...

    def private_steps(self, network: Any, steps: float, batch: float, views: int, micro_batch: int) -> Work:
        """Return the work of differentially private steps, whose gradients are held example by example."""
        ...

    def training(self, images: float, *, recipe: Any = None, epochs: float | None = None) -> Work:
        """Return the work of training the entry's classifier, by its own recipe unless another is given."""
        ...

    def image_set(self, images: float, *, soft: bool = False, floats: bool = False) -> Work:
        """Return a set of so many images as the result: with soft labels, with float32 pixels."""
        ...

    def weights(self, network: Any) -> Work:
        """Return a file of a network's weights as the result."""
        ...

    def experts(self, name: str) -> Any:
        """Return the settings of an entry of ``experts``."""
        ...

    def fitted(self) -> dict[str, Any]:
        """Return the block ``fit`` of the generative models that images are drawn from, as JSON has it."""
        ...

    def denoiser(self, own: Any) -> Any:
        """Return the U-Net that a block ``fit`` trains: its own, or that of the pre-trained one it starts from."""
        ...
