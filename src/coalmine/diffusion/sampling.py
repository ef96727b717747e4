"""Drawing images from a denoiser: the probability-flow ODE from noise, or from a noised image, to an image."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

from coalmine.diffusion.objective import Network, Objective
from coalmine.diffusion.settings import Sampling

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``denoise(x, sigma)``: images ``(n, channel, height, width)`` and one level, a scalar tensor, for all of them."""


def conditional(
    objective: Objective, network: Network, labels: torch.Tensor, no_class: int, guidance: float, *, clip: bool
) -> Denoise:
    """Return the denoiser of images with these labels, ``(1 + w) D(x, y) - w D(x, no class)`` (Ho and Salimans 2022).

    Args:
        objective: that the network was trained with.
        network: the network.
        labels: int64 ``(n,)``.
        no_class: the label that stands for no class.
        guidance: w, from 0.
        clip: keep denoised images from -1 to 1.
    """
    nothing = torch.full_like(labels, no_class)

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        each = sigma.expand(len(x))
        denoised = objective.denoise(network, x, each, labels)
        if guidance:
            without = objective.denoise(network, x, each, nothing)
            denoised = (1 + guidance) * denoised - guidance * without
        return denoised.clamp(-1, 1) if clip else denoised

    return denoise


def solve(denoise: Denoise, x: torch.Tensor, levels: torch.Tensor, solver: str) -> torch.Tensor:
    """Follow ``dx / dsigma = (x - D(x; sigma)) / sigma`` from the first level to the last.

    Karras et al. (2022), algorithm 1 without its noise. Euler steps are those of DDIM (Song et al. 2021) at eta 0.

    Args:
        denoise: the denoiser.
        x: ``(n, channel, height, width)``, images with noise of the first level.
        levels: ``(steps + 1,)``, falling; the last may be 0.
        solver: ``heun`` or ``euler``.
    """
    levels = levels.to(x.device, x.dtype)
    for sigma, following in pairwise(levels):
        slope = (x - denoise(x, sigma)) / sigma
        there = x + (following - sigma) * slope
        if solver == "heun" and following > 0:
            slope_there = (there - denoise(there, following)) / following
            there = x + (following - sigma) * (slope + slope_there) / 2
        x = there
    return x


def start(levels: torch.Tensor, noise: torch.Tensor, images: torch.Tensor | None, strength: float) -> torch.Tensor:
    """Return where sampling starts: at noise, or at images with as much noise as ``strength`` says.

    Args:
        levels: ``(steps + 1,)``, those that will be followed, see :func:`followed`.
        noise: standard normal ``(n, channel, height, width)``.
        images: from -1 to 1, like ``noise``; None starts from noise.
        strength: 1 forgets the images altogether.
    """
    pure = levels[0].to(noise.dtype) * noise
    return pure if images is None or strength == 1 else images + pure


def followed(levels: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the last ``strength`` of the steps, to the nearest whole one: none at 0, all at 1."""
    steps = len(levels) - 1
    return levels[steps - round(strength * steps) :]


@torch.no_grad()
def sample(
    objective: Objective,
    network: Network,
    labels: torch.Tensor,
    no_class: int,
    noise: torch.Tensor,
    own: Sampling,
    *,
    images: torch.Tensor | None = None,
    strength: float = 1.0,
) -> torch.Tensor:
    """Draw one image for each label, ``(n, channel, height, width)`` in the range of pixels, -1 to 1.

    Args:
        objective: that the network was trained with.
        network: in evaluation mode.
        labels: int64 ``(n,)``.
        no_class: the label that stands for no class.
        noise: standard normal, which determines the images.
        own: solver, levels, guidance.
        images: what to start from (image-to-image, Meng et al., SDEdit, 2022); None: noise alone.
        strength: share of the levels that images go back, from 0 (they are returned as they are) to 1.
    """
    levels = followed(objective.levels(own.levels), strength)
    denoise = conditional(objective, network, labels, no_class, own.guidance, clip=own.clip)
    return solve(denoise, start(levels, noise, images, strength), levels, own.solver).clamp(-1, 1)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 ``(n, height, width, channel)`` on the CPU, from images between -1 and 1."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu()


def from_pixels(images: torch.Tensor) -> torch.Tensor:
    """Return float32 images from -1 to 1, from uint8 ones of the same layout."""
    return images.float() / 127.5 - 1
