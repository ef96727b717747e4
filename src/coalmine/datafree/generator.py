"""The generator that data-free methods share, as in the public code of CMI and Fast-Datafree."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from coalmine.models.layers import conv3x3, initialise

SLOPE = 0.2
"""Of the leaky ReLU."""


class Generator(nn.Module):
    """Linear, then twice [norm, upsampling, 3x3 convolution], norm, 3x3 convolution, sigmoid.

    Its norms use the statistics of the batch at hand at all times: the images of a batch depend on each other.
    """

    def __init__(self, latent: int, width: int, channels: int, image_size: int) -> None:
        super().__init__()
        self.latent = latent
        self._shape = (2 * width, image_size // 4, image_size // 4)
        self.linear = nn.Linear(latent, 2 * width * (image_size // 4) ** 2)
        self.norm0 = nn.BatchNorm2d(2 * width, track_running_stats=False)
        self.conv1 = conv3x3(2 * width, 2 * width)
        self.norm1 = nn.BatchNorm2d(2 * width, track_running_stats=False)
        self.conv2 = conv3x3(2 * width, width)
        self.norm2 = nn.BatchNorm2d(width, track_running_stats=False)
        self.conv3 = conv3x3(width, channels, bias=True)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Map standard normal inputs (image, latent) to images (image, channel, height, width) from 0 to 1."""
        x = self.norm0(self.linear(latent).view(-1, *self._shape))
        x = F.leaky_relu(self.norm1(self.conv1(F.interpolate(x, scale_factor=2))), SLOPE)
        x = F.leaky_relu(self.norm2(self.conv2(F.interpolate(x, scale_factor=2))), SLOPE)
        return torch.sigmoid(self.conv3(x))

    def draw(self, generator: torch.Generator) -> None:
        """Draw all weights anew."""
        _draw(self, generator)

    def draw_first_layer(self, generator: torch.Generator) -> None:
        """Draw the weights of the first layer and its norm anew."""
        _draw(self.linear, generator)
        _draw(self.norm0, generator)


@torch.no_grad()
def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """Draw a module's weights anew on the CPU, where the random stream is, whatever device holds them."""
    drawn = copy.deepcopy(module).to_empty(device="cpu")
    initialise(drawn, generator)
    for own, new in zip(module.parameters(), drawn.parameters(), strict=True):
        own.copy_(new)
