"""What makes images: a generator used throughout, a fresh one for each batch, a meta-learned one, or pixels.

A source begins an ``Attempt`` at a batch of images; its steps move whatever the images depend on against a loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from coalmine.datafree.generator import Generator
from coalmine.datafree.settings import DataFree
from coalmine.training.augment import normalise
from coalmine.training.recipe import Normalisation
from coalmine.training.state import of_optimiser, prefixed, restore_optimiser, under

FIRST_MOMENT = 0.5
"""Adam's first decay in all the methods."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """One batch of images while it is made.

    Attributes:
        images: returns the images, from 0 to 1, (image, channel, height, width), with their graph.
        optimisers: of what the images depend on.
        collect: called when gradients are there, before a step.
        constrain: called after a step.
    """

    images: Callable[[], torch.Tensor]
    optimisers: Sequence[torch.optim.Optimizer]
    collect: Callable[[], None] | None = None
    constrain: Callable[[], None] | None = None

    def step(self, loss: torch.Tensor, others: Sequence[torch.optim.Optimizer] = ()) -> None:
        """Move against the gradient of a loss of ``images()``, together with what ``others`` optimise."""
        optimisers = [*self.optimisers, *others]
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.collect:
            self.collect()
        for optimiser in optimisers:
            optimiser.step()
        if self.constrain:
            self.constrain()


class Source(Protocol):
    """Makes batches of images."""

    def begin(self, generator: torch.Generator) -> Attempt:
        """Begin a batch, with randomness from a CPU generator."""
        ...

    def finish(self) -> None:
        """Learn from a finished batch whatever later ones profit from."""
        ...

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Return a batch of images that has not been optimised, without a graph."""
        ...

    def reset(self) -> None:
        """Begin anew in part."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Return what lasts from batch to batch, by name."""
        ...

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what ``state`` returned."""
        ...


def make_source(
    settings: DataFree,
    shape: tuple[int, int, int],
    normalisation: Normalisation,
    device: torch.device,
    weights: torch.Generator,
) -> Source:
    """Return the source of a method.

    Args:
        settings: of the method.
        shape: of an image, (channel, height, width).
        normalisation: of images, for pixels.
        device: where to compute.
        weights: draws the weights of generators.
    """
    if settings.source == "pixels":
        return Pixels(settings, shape, normalisation, device)
    sources = {"generator": Lasting, "fresh": Fresh, "meta": Meta}
    return sources[settings.source](settings, Generator(settings.latent, settings.width, *shape[:2]), device, weights)


def adam(groups: Iterable[Any], settings: DataFree, rate: float | None = None) -> torch.optim.Adam:
    """Return Adam as the methods use it."""
    return torch.optim.Adam(groups, lr=rate or settings.rate, betas=(FIRST_MOMENT, settings.second_moment))


def both(network: Generator, latent: torch.Tensor, settings: DataFree) -> torch.optim.Adam:
    """Return Adam for a generator and the inputs of one batch."""
    groups = [{"params": list(network.parameters())}, {"params": [latent], "lr": settings.latent_rate}]
    return adam(groups, settings)


class Pixels:
    """DeepInversion: noise becomes images, pixel by pixel. Nothing lasts from batch to batch."""

    def __init__(
        self, settings: DataFree, shape: tuple[int, int, int], normalisation: Normalisation, device: torch.device
    ) -> None:
        self._settings, self._shape, self._device = settings, shape, device
        ends = normalise(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, shape[0], 1, 1), normalisation)
        self._black, self._white = ends.to(device)

    def begin(self, generator: torch.Generator) -> Attempt:
        """Draw standard normal images in the space that networks see, where the optimiser works, too."""
        drawn = torch.randn(self._settings.batch_size, *self._shape, generator=generator)
        x = drawn.to(self._device).requires_grad_()

        def render() -> torch.Tensor:
            images: torch.Tensor = (x - self._black) / (self._white - self._black)
            return images

        @torch.no_grad()
        def clip() -> None:
            x.copy_(torch.maximum(torch.minimum(x, self._white), self._black))

        return Attempt(render, [adam([x], self._settings)], constrain=clip)

    def finish(self) -> None:
        """Learn nothing."""

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Refuse: there is nothing but what a batch's loss makes of it."""
        raise NotImplementedError("pixels are images only once they have been optimised")

    def reset(self) -> None:
        """Nothing lasts."""

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing lasts."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Nothing lasts."""


class Lasting:
    """One generator throughout, whose weights each batch moves on.

    Without learned inputs Adam goes on, too; with them (the predecessor) every batch has a new one for both.
    """

    def __init__(self, settings: DataFree, network: Generator, device: torch.device, weights: torch.Generator) -> None:
        self._settings, self._device, self._weights = settings, device, weights
        network.draw(weights)
        self.network = network.to(device)
        self._optimiser = self._outer()

    def _outer(self) -> torch.optim.Adam:
        return adam(self.network.parameters(), self._settings)

    def latent(self, generator: torch.Generator) -> torch.Tensor:
        """Draw inputs of the generator for a batch."""
        drawn = torch.randn(self._settings.batch_size, self._settings.latent, generator=generator)
        return drawn.to(self._device)

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Return a batch of images from fresh inputs."""
        images: torch.Tensor = self.network(self.latent(generator))
        return images

    def begin(self, generator: torch.Generator) -> Attempt:
        """Begin with new inputs, drawn anew at each step, or learned with the weights."""
        if self._settings.latent_rate is None:
            return Attempt(lambda: self.network(self.latent(generator)), [self._optimiser])
        latent = self.latent(generator).requires_grad_()
        return Attempt(lambda: self.network(latent), [both(self.network, latent, self._settings)])

    def finish(self) -> None:
        """The weights have moved already."""

    def reset(self) -> None:
        """Draw the first layer anew."""
        self.network.draw_first_layer(self._weights)

    def state(self) -> dict[str, torch.Tensor]:
        """Return weights and the optimiser's moments."""
        return prefixed("network", self.network.state_dict()) | prefixed("optimiser", of_optimiser(self._optimiser))

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up weights and moments."""
        self.network.load_state_dict(under("network", state))
        restore_optimiser(self._optimiser, under("optimiser", state))


class Fresh(Lasting):
    """CMI: every batch has a generator of its own, which starts from random weights."""

    def begin(self, generator: torch.Generator) -> Attempt:
        """Draw the weights anew."""
        self.network.draw(self._weights)
        return super().begin(generator)

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing lasts."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Nothing lasts."""


class Meta(Lasting):
    """Fast-Datafree: each batch adapts a copy of a generator, which learns to need few steps.

    FOMAML: the generator moves against the sum of the gradients that its copy met on its way. Reptile: it moves towards
    where its copy arrived; Adam, which ignores the scale of gradients, makes the authors' factor (67) immaterial.
    """

    def _outer(self) -> torch.optim.Adam:
        return adam(self.network.parameters(), self._settings, self._settings.rate * self._settings.generator_steps)

    def begin(self, generator: torch.Generator) -> Attempt:
        """Begin with a copy and inputs that are learned with it."""
        adapted = copy.deepcopy(self.network)
        latent = self.latent(generator).requires_grad_()
        self._optimiser.zero_grad()
        self._adapted = adapted
        collect = self._collect if self._settings.meta == "fomaml" else None
        return Attempt(lambda: adapted(latent), [both(adapted, latent, self._settings)], collect)

    def _collect(self) -> None:
        """Add the copy's gradients to those of the generator."""
        for outer, inner in self._pairs():
            assert inner.grad is not None
            outer.grad = inner.grad if outer.grad is None else outer.grad + inner.grad

    @torch.no_grad()
    def finish(self) -> None:
        """Move the generator itself."""
        if self._settings.meta == "reptile":
            for outer, inner in self._pairs():
                outer.grad = outer - inner
        self._optimiser.step()

    def _pairs(self) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        return zip(self.network.parameters(), self._adapted.parameters(), strict=True)
