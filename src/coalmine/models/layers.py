"""What the classifiers share: their interface and their normalisation layers."""

from __future__ import annotations

import math

import torch
from torch import nn

from coalmine.models.settings import Norm


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


def conv3x3(inputs: int, outputs: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the image's size, divided by ``stride``."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


def conv1x1(inputs: int, outputs: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a 1x1 convolution, the projection of a shortcut."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=bias)


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights anew from ``generator``, in the order of the module's layers.

    Convolutions and linear layers: weights and biases uniform in +-1/sqrt(fan-in), PyTorch's default and so what the
    public code of both papers trains from. Norms: scale 1, offset 0, running mean 0 and variance 1.
    """
    for layer in module.modules():
        match layer:
            case nn.Conv2d() | nn.Linear():
                bound = 1 / math.sqrt(layer.weight[0].numel())
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.uniform_(-bound, bound, generator=generator)
            case nn.BatchNorm2d():
                layer.reset_running_stats()
                layer.weight.fill_(1)
                layer.bias.zero_()
            case nn.GroupNorm():
                layer.weight.fill_(1)
                layer.bias.zero_()
