"""Wide residual networks with pre-activation (Zagoruyko & Komodakis, BMVC 2016)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from coalmine.models import settings
from coalmine.models.layers import Classifier, conv1x1, conv3x3, normaliser


class WideBlock(nn.Module):
    """``shortcut(x) + conv(relu(norm(conv(relu(norm(x))))))``.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, elsewhere it is ``x`` itself.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, model: settings.WideResNet) -> None:
        super().__init__()
        strides = (stride, 1) if model.downsample == "first" else (1, stride)
        self.norm1 = normaliser(model.norm, inputs)
        self.conv1 = conv3x3(inputs, outputs, strides[0], model.bias)
        self.norm2 = normaliser(model.norm, outputs)
        self.conv2 = conv3x3(outputs, outputs, strides[1], model.bias)
        self.projection = conv1x1(inputs, outputs, stride, model.bias) if inputs != outputs or stride != 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        active = F.relu(self.norm1(x))
        shortcut = x if self.projection is None else self.projection(active)
        residual: torch.Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return shortcut + residual


class WideResNet(Classifier):
    """A stem of 16 channels, three stages of (depth - 4) / 6 blocks, norm and ReLU, global average pooling, head."""

    def __init__(self, model: settings.WideResNet, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = conv3x3(channels, 16, bias=model.bias)
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
        return F.relu(self.norm(self.blocks(self.stem(x)))).mean((-2, -1))
