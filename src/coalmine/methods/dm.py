"""DM: distribution matching (Zhao & Bilen, "Dataset Condensation with Distribution Matching", WACV 2023).

The synthetic images of a class are moved until random networks embed them, on average, where they embed the real ones:

    loss = sum over classes of || mean phi(A(real)) - mean phi(A(synthetic)) ||^2,

with the features phi of a freshly drawn network in every iteration and one random augmentation A for both sides.
Private information enters through class means over batches, and through the images that the optimisation starts from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from coalmine.costs.work import INPUT_GRADIENT, Counter, Work
from coalmine.distillation import start
from coalmine.distillation.start import uses_public
from coalmine.models.settings import ConvNet, ModelSettings
from coalmine.shadows import Setup, Shadow, Synthetic
from coalmine.training.recipe import Recipe, Siamese

if TYPE_CHECKING:
    import torch

    from coalmine.distillation.networks import Networks, Weights
    from coalmine.outline import Outline

__all__ = ["SOURCE", "Settings", "mean_features", "objection", "squared_distance", "synthesize", "uses_public"]

SOURCE = "initialised"


class Settings(start.Start):
    """Hyper-parameters of distribution matching; the defaults are the paper's for CIFAR-10."""

    iterations: int = Field(20_000, ge=1, description="Random networks, one an iteration (the paper: 20,000).")
    learning_rate: float = Field(1.0, gt=0, description="Of pixels (1; 10 from 100 images per class on).")
    momentum: float = Field(0.5, ge=0, lt=1, description="Of pixels (0.5).")
    batch_size: int = Field(256, ge=1, description="Real images of each class an iteration (256).")
    siamese: Siamese | None = Field(Siamese(), description="Augmentation of both sides, or null.")
    network: ModelSettings = Field(ConvNet(), description="The network that embeds, without batch norm (ConvNet-3).")


def objection(settings: Settings, model: ModelSettings, recipe: Recipe, outline: Outline) -> tuple[str, str] | None:
    """Return the field and the reason why these settings cannot work, or None."""
    return start.objection(settings, outline) or start.network_objection(settings.network)


def synthesize(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[Synthetic]:
    """Yield one synthetic set per shadow model, in order."""
    for group in setup.groups(shadows):
        yield from _distil(group, settings, setup)


def work(settings: Settings, counter: Counter) -> Work:
    """Return what one shadow model takes: each iteration looks at real images and moves the synthetic ones."""
    images, real = counter.classes * settings.images_per_class, counter.classes * settings.batch_size
    seen = counter.looks(settings.network, real, at_once=real) * settings.iterations
    moved = counter.steps(settings.network, settings.iterations, images, passes=INPUT_GRADIENT)
    return seen + moved + counter.image_set(images, floats=True)


def _distil(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> list[Synthetic]:
    import torch

    from coalmine.distillation.optimise import Variable, optimise
    from coalmine.distillation.real import RealBatches, by_class
    from coalmine.distillation.sets import Sets

    sets = Sets.begin(shadows, settings, setup)
    images = Variable(sets.images, settings.learning_rate, settings.momentum)
    real_batches = RealBatches(shadows, setup.classes, settings.batch_size, sets.spaces[0])
    networks = sets.networks(settings.network)

    def iterate(iteration: int, generators: Sequence[torch.Generator]) -> torch.Tensor:
        weights = networks.fresh(generators)
        synthetic = by_class(images.value, setup.classes)
        real, synthetic = real_batches.pairs(synthetic, settings.siamese, generators)
        with torch.no_grad():
            target = mean_features(networks, weights, real)
        losses = squared_distance(target, mean_features(networks, weights, synthetic))
        (gradient,) = torch.autograd.grad(losses.sum(), images.value)  # each shadow model's own
        images.step(gradient)
        return losses.detach()

    optimise({"images": images}, iterate, settings.iterations, shadows, setup)
    return sets.finished(images.result)


def mean_features(networks: Networks, weights: Weights, images: torch.Tensor) -> torch.Tensor:
    """Return each class's mean features ``(model, class, dimension)`` of ``(model, class, n, channel, h, w)``."""
    features = networks.features(weights, images.flatten(1, 2))
    return features.view(*images.shape[:3], -1).mean(2)


def squared_distance(real: torch.Tensor, synthetic: torch.Tensor) -> torch.Tensor:
    """Return the loss ``(model,)`` of mean features ``(model, class, dimension)`` of both sides."""
    return (real - synthetic).square().sum((1, 2))
