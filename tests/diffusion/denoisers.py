"""Tiny denoisers, and exact ones of Gaussian data in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch

from coalmine.diffusion import objective, settings
from coalmine.diffusion.network import ConditionalUNet
from coalmine.diffusion.settings import DDPM, EDM, UNet

TINY = UNet(width=4, multipliers=(1,), blocks=1)
ATTENTIVE = UNet(width=8, multipliers=(1, 2), blocks=1, attention=(1,))
SMALL_EDM = EDM(name="edm", sigma_max=10.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unet(
    own: UNet = TINY, *, channels: int = 1, size: int = 4, classes: int = 3, seed: int = 0, double: bool = False
) -> ConditionalUNet:
    network = ConditionalUNet(own, channels, size, classes, generator(seed))
    return network.double() if double else network


def flat(tensors) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in tensors])


def gaussian(mean: float, std: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The exact denoiser of images whose pixels are N(mean, std^2): E[image | image + sigma noise = x]."""

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        s = sigma.reshape(-1, 1, 1, 1)
        return (std**2 * x + s**2 * mean) / (std**2 + s**2)

    return denoise


def exact_network(own: settings.EDM | settings.DDPM, mean: float, std: float) -> objective.Network:
    """The network that makes an objective the exact denoiser of such images, from Karras et al.'s table 1."""
    denoise = gaussian(mean, std)

    def edm(scaled: torch.Tensor, c_noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        sigma = (4 * c_noise).exp().reshape(-1, 1, 1, 1)
        total = sigma**2 + own.sigma_data**2
        x = scaled * total.sqrt()
        return (denoise(x, sigma) - own.sigma_data**2 / total * x) * total.sqrt() / (sigma * own.sigma_data)

    def ddpm(x_t: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        abar = torch.tensor(abars(own), dtype=x_t.dtype)[time.long()].reshape(-1, 1, 1, 1)
        x_0 = denoise(x_t / abar.sqrt(), ((1 - abar) / abar).sqrt())
        epsilon = (x_t - abar.sqrt() * x_0) / (1 - abar).sqrt()
        return epsilon if own.prediction == "epsilon" else abar.sqrt() * epsilon - (1 - abar).sqrt() * x_0

    return edm if isinstance(own, EDM) else ddpm


@cache
def abars(own: DDPM) -> list[float]:
    """The products of 1 - beta, by a naive loop."""

    def f(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    product, found = 1.0, []
    for t in range(own.steps):
        if own.schedule == "cosine":
            beta = min(1 - f((t + 1) / own.steps) / f(t / own.steps), 0.999)
        else:
            beta = (0.0001 + (0.02 - 0.0001) * t / (own.steps - 1)) * 1000 / own.steps
        product *= 1 - beta
        found.append(product)
    return found
