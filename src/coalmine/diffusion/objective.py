"""What a denoiser is trained to do: EDM and DDPM side by side.

Both say, in their own words, which noise levels to train on, how a network's output becomes an estimate ``D(x; sigma)``
of the image behind ``x = image + sigma noise``, how the squared error of that estimate is weighted, and which levels an
image is drawn along. All else (the loss, the sampler) is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from coalmine.diffusion import settings

Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""``network(x, time, labels)``: images ``(n, channel, height, width)``, times float ``(n,)``, labels int64 ``(n,)``."""


class Objective(Protocol):
    """What the loss and the sampler need to know; ``sigma`` is a float tensor ``(n,)`` everywhere."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Return noise levels to train on, on the generator's device."""
        ...

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return the weight of the squared error of ``D``."""
        ...

    def denoise(self, network: Network, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return ``D(x; sigma)``, images without noise."""
        ...

    def levels(self, steps: int) -> torch.Tensor:
        """Return float64 ``(steps + 1,)``: the levels of sampling, falling to 0."""
        ...


class EDM:
    """Karras et al. (2022), table 1, last column."""

    def __init__(self, own: settings.EDM) -> None:
        self._own = own

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Return levels with ``ln(sigma) ~ N(P_mean, P_std^2)``."""
        normal = torch.randn(shape, generator=generator, device=generator.device)
        return (self._own.p_mean + self._own.p_std * normal).exp()

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return ``1 / c_out^2``: the network's own target has weight 1 at every level."""
        sigma_data = self._own.sigma_data
        return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2

    def denoise(self, network: Network, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return ``c_skip x + c_out F(c_in x; c_noise)``."""
        sigma_data, s = self._own.sigma_data, _by_image(sigma)
        c_skip = sigma_data**2 / (s**2 + sigma_data**2)
        c_out = s * sigma_data / (s**2 + sigma_data**2).sqrt()
        c_in = 1 / (s**2 + sigma_data**2).sqrt()
        c_noise = sigma.log() / 4
        return c_skip * x + c_out * network(c_in * x, c_noise, labels)

    def levels(self, steps: int) -> torch.Tensor:
        """Return Karras et al.'s equation 5, with 0 at the end."""
        own = self._own
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        most, least = own.sigma_max ** (1 / own.rho), own.sigma_min ** (1 / own.rho)
        return torch.cat([(most + ramp * (least - most)) ** own.rho, ramp.new_zeros(1)])


class DDPM:
    """Ho et al. (2020), section 3: time step ``t`` stands for ``sigma_t^2 = (1 - abar_t) / abar_t``."""

    def __init__(self, own: settings.DDPM) -> None:
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        schedule = {"cosine": "squaredcos_cap_v2", "linear": "linear"}[own.schedule]
        # Ho et al.'s for their 1,000 steps; as much noise in all for any other number (Nichol and Dhariwal's code).
        share = 1000 / own.steps
        scheduler = DDPMScheduler(own.steps, 0.0001 * share, 0.02 * share, beta_schedule=schedule)
        alphas = scheduler.alphas_cumprod.double()
        self._own, self._sigmas = own, ((1 - alphas) / alphas).sqrt()

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Return the levels of time steps drawn from the mixture of uniforms, or from all alike."""
        time = draw_times(self._own, shape, generator)
        sigma: torch.Tensor = self._sigmas.to(generator.device, torch.float32)[time]
        return sigma

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return what makes the squared error of ``D`` that of the network's prediction."""
        return sigma**-2 if self._own.prediction == "epsilon" else 1 + sigma**-2

    def denoise(self, network: Network, x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the image that the predicted noise or velocity implies."""
        s = _by_image(sigma)
        x_t = x / (1 + s**2).sqrt()
        predicted = network(x_t, self.time(sigma), labels)
        if self._own.prediction == "epsilon":
            return x - s * predicted
        return (x_t - s * predicted) / (1 + s**2).sqrt()

    def time(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return the time steps, float ``(n,)``, whose levels are nearest."""
        known = self._sigmas.to(sigma.device, sigma.dtype).log()
        nearest: torch.Tensor = (sigma.log()[..., None] - known).abs().argmin(dim=-1)
        return nearest.to(sigma.dtype)

    def levels(self, steps: int) -> torch.Tensor:
        """Return the levels of evenly spaced time steps from the last to the first, with 0 at the end."""
        time = torch.linspace(self._own.steps - 1, 0, steps, dtype=torch.float64).round().long()
        levels: torch.Tensor = torch.cat([self._sigmas[time], self._sigmas.new_zeros(1)])
        return levels


def build(own: settings.EDM | settings.DDPM) -> Objective:
    """Return the objective with these settings."""
    return EDM(own) if isinstance(own, settings.EDM) else DDPM(own)


def draw_times(own: settings.DDPM, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return int64 time steps from the mixture of uniforms (Ghalebikesabi et al. 2023), or uniform over all."""
    parts = own.times or (settings.Part(weight=1.0, low=0, high=own.steps),)
    device, count = generator.device, torch.Size(shape).numel()
    weights = torch.tensor([part.weight for part in parts], device=device)
    part = torch.multinomial(weights, count, replacement=True, generator=generator).view(shape)
    low = torch.tensor([one.low for one in parts], device=device)[part]
    width = torch.tensor([one.high - one.low for one in parts], device=device)[part]
    uniform = torch.rand(shape, generator=generator, device=device)
    # A float32 just below 1 times the width may round up to the width itself.
    return low + torch.minimum((uniform * width).long(), width - 1)


def denoising_loss(
    objective: Objective,
    network: Network,
    images: torch.Tensor,
    sigma: torch.Tensor,
    noise: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Return the weighted squared error, a scalar: the mean over pixels and images.

    Args:
        objective: EDM or DDPM.
        network: the network.
        images: ``(n, channel, height, width)``, from -1 to 1.
        sigma: ``(n,)``, the level of each.
        noise: standard normal, like ``images``.
        labels: int64 ``(n,)``.
    """
    denoised = objective.denoise(network, images + _by_image(sigma) * noise, sigma, labels)
    return (objective.weight(sigma) * (denoised - images).square().mean(dim=(1, 2, 3))).mean()


def _by_image(sigma: torch.Tensor) -> torch.Tensor:
    return sigma[:, None, None, None]
