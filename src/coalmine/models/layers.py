"""What the classifiers share: their interface, their layers and how weights are drawn."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from coalmine.models.settings import Initialisation, Norm

_TRUNCATED_STD = 0.8796256610342398
"""Standard deviation of a standard normal variable given that it lies within +-2."""


class Classifier(nn.Module):
    """A network that classifies images by a linear head on features.

    Subclasses define ``features(x)``, from float images ``(n, channel, height, width)`` to ``(n, dimension)``, and
    ``head``, from there to logits ``(n, class)``.
    """

    head: nn.Linear

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the head's input ``(n, dimension)`` of images ``(n, channel, height, width)``."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(n, class)`` of images ``(n, channel, height, width)``."""
        logits: torch.Tensor = self.head(self.features(x))
        return logits


def normaliser(norm: Norm, channels: int) -> nn.Module:
    """Return a normalisation layer for feature maps ``(n, channels, height, width)``."""
    match norm:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            groups = max(groups for groups in range(1, 17) if channels % groups == 0)
            return nn.GroupNorm(groups, channels)
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "none":
            return nn.Identity()


class StandardisedConv2d(nn.Conv2d):
    """A convolution with scaled weight standardisation and a learned gain a channel (``gain``, float ``(outputs,)``).

    Brock, De & Smith, "Characterizing Signal Propagation to Close the Performance Gap in Unnormalized ResNets" (ICLR
    2021), after Qiao et al., "Weight Standardization" (2019); the variance's floor 1e-4 is that of ``WSConv2D`` in
    De et al.'s jax_privacy. ``weight`` holds the raw kernels, which the optimiser moves.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0, bias: bool = True):
        super().__init__(inputs, outputs, size, stride=stride, padding=padding, bias=bias)
        self.gain = nn.Parameter(torch.ones(outputs))

    def kernel(self) -> torch.Tensor:
        """Return ``gain (w - mean) / sqrt(max(n variance, 1e-4))`` of each output channel's n raw weights w.

        Unless the floor holds, a channel's entries so have mean 0 and variance ``gain^2 / n``.
        """
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        energy = (variance * self.weight[0].numel()).clamp(min=1e-4)
        return (self.weight - mean) * (self.gain[:, None, None, None] * energy.rsqrt())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        return F.conv2d(x, self.kernel(), self.bias, self.stride, self.padding)


def conv3x3(inputs: int, outputs: int, stride: int = 1, bias: bool = False, standardise: bool = False) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the image's size, divided by ``stride``."""
    layer = StandardisedConv2d if standardise else nn.Conv2d
    return layer(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


def conv1x1(inputs: int, outputs: int, stride: int = 1, bias: bool = False, standardise: bool = False) -> nn.Conv2d:
    """Return a 1x1 convolution, the projection of a shortcut."""
    layer = StandardisedConv2d if standardise else nn.Conv2d
    return layer(inputs, outputs, 1, stride=stride, bias=bias)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator, initialisation: Initialisation = "uniform") -> None:
    """Draw all weights anew from ``generator``, in the order of the module's layers.

    Convolutions and linear layers: see ``settings.Initialisation``. Norms: scale 1, offset 0, running mean 0 and
    variance 1. Gains of weight standardisation: 1.
    """
    for layer in module.modules():
        match layer:
            case nn.Conv2d() | nn.Linear():
                _draw(layer, generator, initialisation)
            case nn.BatchNorm2d():
                layer.reset_running_stats()
                layer.weight.fill_(1)
                layer.bias.zero_()
            case nn.GroupNorm():
                layer.weight.fill_(1)
                layer.bias.zero_()


def _draw(layer: nn.Conv2d | nn.Linear, generator: torch.Generator, initialisation: Initialisation) -> None:
    scale = 1 / math.sqrt(layer.weight[0].numel())
    match initialisation:
        case "uniform":
            layer.weight.uniform_(-scale, scale, generator=generator)
        case "normal":
            layer.weight.normal_(0, scale, generator=generator)
        case "truncated-normal":
            std = scale / _TRUNCATED_STD
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    if layer.bias is not None:
        bound = scale if initialisation == "uniform" else 0
        layer.bias.uniform_(-bound, bound, generator=generator)
    if isinstance(layer, StandardisedConv2d):
        layer.gain.fill_(1)
