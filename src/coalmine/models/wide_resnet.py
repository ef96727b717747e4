"""Wide residual networks with pre-activation (Zagoruyko & Komodakis, BMVC 2016), also in De et al.'s form (2022)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from coalmine.models import settings
from coalmine.models.layers import Classifier, conv1x1, conv3x3, normaliser


def activate(x: torch.Tensor, norm: nn.Module, order: settings.Order) -> torch.Tensor:
    """Return ``relu(norm(x))`` or ``norm(relu(x))`` of feature maps ``(n, channels, height, width)``."""
    return F.relu(norm(x)) if order == "norm-relu" else norm(F.relu(x))


class WideBlock(nn.Module):
    """``shortcut(x) + conv(activate(conv(activate(x))))``.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, elsewhere it is ``x`` itself.
    In the order norm-relu that input is the residual's own, in relu-norm it has a norm of its own (De et al.).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, model: settings.WideResNet) -> None:
        super().__init__()
        strides = (stride, 1) if model.downsample == "first" else (1, stride)
        bias, standardise = model.bias, model.weight_standardisation
        self.order = model.order
        self.norm1 = normaliser(model.norm, inputs)
        self.conv1 = conv3x3(inputs, outputs, strides[0], bias, standardise)
        self.norm2 = normaliser(model.norm, outputs)
        self.conv2 = conv3x3(outputs, outputs, strides[1], bias, standardise)
        projects = inputs != outputs or stride != 1
        self.projection = conv1x1(inputs, outputs, stride, bias, standardise) if projects else None
        own_norm = projects and model.order == "relu-norm"
        self.projection_norm = normaliser(model.norm, inputs) if own_norm else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        active = activate(x, self.norm1, self.order)
        residual: torch.Tensor = self.conv2(activate(self.conv1(active), self.norm2, self.order))
        return self._shortcut(x, active) + residual

    def _shortcut(self, x: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        if self.projection is None:
            return x
        own = active if self.projection_norm is None else activate(x, self.projection_norm, self.order)
        projected: torch.Tensor = self.projection(own)
        return projected


class WideResNet(Classifier):
    """A stem of 16 channels, three stages of (depth - 4) / 6 blocks, an activation, global average pooling, head."""

    def __init__(self, model: settings.WideResNet, channels: int, classes: int) -> None:
        super().__init__()
        self.order = model.order
        self.stem = conv3x3(channels, 16, bias=model.bias, standardise=model.weight_standardisation)
        blocks = []
        width = 16
        for stage in range(3):
            outputs = 16 * model.widen * 2**stage
            for block in range((model.depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(WideBlock(width, outputs, stride, model))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = normaliser(model.norm, width)
        self.head = nn.Linear(width, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the spatial means of the activated last stage."""
        return activate(self.blocks(self.stem(x)), self.norm, self.order).mean((-2, -1))
