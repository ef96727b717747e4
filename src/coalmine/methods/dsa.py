"""DC and DSA: gradient matching.

Zhao, Mopuri & Bilen, "Dataset Condensation with Gradient Matching" (ICLR 2021; DC), with differentiable Siamese
augmentation by Zhao & Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021; DSA):

    for every iteration:
        theta <- a fresh random network
        for every outer step:
            loss = sum over classes of D(grad CE(A(real); theta), grad CE(A(synthetic); theta))
            move the synthetic images against the gradient of loss
            train theta on the synthetic images for some inner steps

D sums, over the output units of all layers, one minus the cosine between both gradients of that unit's weights. DC has
no augmentation (``siamese: null``) and starts from noise. Private information enters through the class gradients over
batches, and through the images that the optimisation starts from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from coalmine.costs.work import GRADIENT, SECOND_GRADIENT, Counter, Work
from coalmine.distillation import start
from coalmine.distillation.start import uses_public
from coalmine.models.settings import ConvNet, ModelSettings
from coalmine.shadows import Setup, Shadow, Synthetic
from coalmine.training.recipe import Recipe, Siamese

if TYPE_CHECKING:
    import torch

    from coalmine.distillation.networks import Networks, Weights
    from coalmine.outline import Outline
    from coalmine.training.sgd import SGD

__all__ = ["SOURCE", "Settings", "class_gradients", "gradient_distance", "objection", "synthesize", "uses_public"]

SOURCE = "initialised"

_EPSILON = 1e-6
"""Added to the product of norms, as in the authors' code."""


class Settings(start.Start):
    """Hyper-parameters of gradient matching; the defaults are those of DSA for CIFAR-10 at 10 images per class."""

    iterations: int = Field(1000, ge=1, description="Random networks (the papers: 1,000).")
    outer_steps: int = Field(
        10, ge=1, description="Updates of the images with each network (1 image/class: 1, 10: 10, 50: 50)."
    )
    inner_epochs: int = Field(
        50, ge=0, description="Epochs of the network's training between them (10 images/class: 50, 50: 10)."
    )
    learning_rate: float = Field(0.1, gt=0, description="Of pixels (0.1).")
    momentum: float = Field(0.5, ge=0, lt=1, description="Of pixels (0.5).")
    network_rate: float = Field(0.01, gt=0, description="Learning rate of the network's training (0.01).")
    network_momentum: float = Field(0.5, ge=0, lt=1, description="Momentum of the network's training (0.5).")
    network_batch_size: int = Field(256, ge=1, description="Synthetic images of a step of that training, or all (256).")
    batch_size: int = Field(256, ge=1, description="Real images of each class a step (256).")
    siamese: Siamese | None = Field(Siamese(), description="Augmentation of both sides (DSA), or null (DC).")
    network: ModelSettings = Field(ConvNet(), description="The matched network, without batch norm (ConvNet-3).")


def objection(settings: Settings, model: ModelSettings, recipe: Recipe, outline: Outline) -> tuple[str, str] | None:
    """Return the field and the reason why these settings cannot work, or None."""
    return start.objection(settings, outline) or start.network_objection(settings.network)


def synthesize(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[Synthetic]:
    """Yield one synthetic set per shadow model, in order."""
    for group in setup.groups(shadows):
        yield from _distil(group, settings, setup)


def work(settings: Settings, counter: Counter) -> Work:
    """Return what one shadow model takes: gradients of real images, those through synthetic ones', and training."""
    network, classes = settings.network, counter.classes
    images, updates = classes * settings.images_per_class, settings.iterations * settings.outer_steps
    target = counter.steps(network, updates, classes * settings.batch_size, passes=GRADIENT, copies=classes)
    matched = counter.steps(network, updates, images, passes=SECOND_GRADIENT, copies=classes)
    batch = min(settings.network_batch_size, images)
    between = settings.iterations * (settings.outer_steps - 1) * settings.inner_epochs
    trained = counter.steps(network, between * images / batch, batch)
    return target + matched + trained + counter.image_set(images, floats=True)


def _distil(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> list[Synthetic]:
    import torch

    from coalmine.distillation.optimise import Variable, optimise
    from coalmine.distillation.real import RealBatches, by_class
    from coalmine.distillation.sets import Sets
    from coalmine.training.sgd import SGD

    sets = Sets.begin(shadows, settings, setup)
    images = Variable(sets.images, settings.learning_rate, settings.momentum)
    real_batches = RealBatches(shadows, setup.classes, settings.batch_size, sets.spaces[0])
    networks = sets.networks(settings.network)
    copies = sets.networks(settings.network, len(shadows) * setup.classes)  # one a class, to have each class's gradient
    labels = torch.from_numpy(sets.labels).to(setup.device)

    def iterate(iteration: int, generators: Sequence[torch.Generator]) -> torch.Tensor:
        weights = [weight.requires_grad_() for weight in networks.fresh(generators)]
        sgd = SGD(weights, settings.network_momentum)
        total = torch.zeros(len(shadows), device=setup.device)
        for step in range(settings.outer_steps):
            synthetic = by_class(images.value, setup.classes)
            real, synthetic = real_batches.pairs(synthetic, settings.siamese, generators)
            target = class_gradients(copies, weights, real, create_graph=False)
            losses = gradient_distance(target, class_gradients(copies, weights, synthetic, create_graph=True))
            (gradient,) = torch.autograd.grad(losses.sum(), images.value)  # each shadow model's own
            images.step(gradient)
            total += losses.detach()
            if step + 1 < settings.outer_steps:
                _train(networks, sgd, images.value.detach(), labels, settings, generators)
        return total / settings.outer_steps

    optimise({"images": images}, iterate, settings.iterations, shadows, setup)
    return sets.finished(images.result)


def class_gradients(copies: Networks, weights: Weights, images: torch.Tensor, create_graph: bool) -> list[torch.Tensor]:
    """Return the gradient of each class's mean cross entropy by the weights of its shadow model's network.

    Args:
        copies: as many networks as shadow models times classes.
        weights: of one network a shadow model, ``(model, *shape)`` each.
        images: ``(model, class, n, channel, height, width)``; the label of an image is its class.
        create_graph: whether a gradient is to be taken through the result.

    Returns:
        ``(model, class, *shape)`` for each weight.
    """
    import torch

    from coalmine.distillation.networks import mean_cross_entropy

    models, classes, n = images.shape[:3]
    copied = [weight.detach().repeat_interleave(classes, dim=0).requires_grad_() for weight in weights]
    labels = torch.arange(classes, device=images.device).repeat(models)[:, None].expand(-1, n)
    losses = mean_cross_entropy(copies.logits(copied, images.flatten(0, 1)), labels)
    gradients = torch.autograd.grad(losses.sum(), copied, create_graph=create_graph)
    return [gradient.view(models, classes, *gradient.shape[1:]) for gradient in gradients]


def gradient_distance(real: Sequence[torch.Tensor], synthetic: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return D of DC (its section 3.3) summed over classes, ``(model,)``.

    One minus the cosine between both gradients of each output unit's weights, summed over the units of all layers;
    biases and norms have no units in this sense and are left out, as in the authors' code.

    Args:
        real: gradients ``(model, class, output, ...)`` for each weight, as from :func:`class_gradients`.
        synthetic: the same of the other side.
    """
    distance = real[0].new_zeros(len(real[0]))
    for a, b in zip(real, synthetic, strict=True):
        if a.ndim > 3:  # beyond model, class and output: not a vector
            a, b = a.flatten(3), b.flatten(3)
            norms = a.norm(dim=3) * b.norm(dim=3)
            distance = distance + (1 - (a * b).sum(3) / (norms + _EPSILON)).sum((1, 2))
    return distance


def _train(
    networks: Networks,
    sgd: SGD,
    images: torch.Tensor,
    labels: torch.Tensor,
    settings: Settings,
    generators: Sequence[torch.Generator],
) -> None:
    """Train the networks, whose weights ``sgd`` holds, on the synthetic images for some epochs."""
    import torch

    from coalmine.distillation.networks import mean_cross_entropy
    from coalmine.training import siamese

    for _ in range(settings.inner_epochs):
        order = torch.stack([torch.randperm(len(labels), generator=generator) for generator in generators])
        for rows in torch.split(order.to(images.device), settings.network_batch_size, dim=1):
            batch = torch.stack([own[chosen] for own, chosen in zip(images, rows, strict=True)])
            if settings.siamese:
                drawn = [siamese.draw(settings.siamese, generator, rows.shape[1]) for generator in generators]
                batch = siamese.apply_each(batch, settings.siamese, drawn)
            losses = mean_cross_entropy(networks.logits(sgd.parameters, batch), labels[rows])
            sgd.step(torch.autograd.grad(losses.sum(), sgd.parameters), settings.network_rate)
