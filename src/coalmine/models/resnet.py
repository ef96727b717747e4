"""Residual networks in CIFAR form (He et al., CVPR 2016)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from coalmine.models import settings
from coalmine.models.layers import Classifier, conv1x1, conv3x3, normaliser


class BasicBlock(nn.Module):
    """``relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))``; the shortcut projects where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: settings.Norm) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.norm1 = normaliser(norm, outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.norm2 = normaliser(norm, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), normaliser(norm, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, inputs, h, w)`` to ``(n, outputs, h / stride, w / stride)``."""
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + residual)


class ResNet(Classifier):
    """Stem, stages of basic blocks (each stage but the first halves the image), global average pooling, head."""

    def __init__(self, model: settings.ResNet, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = conv3x3(channels, model.width)
        self.norm = normaliser(model.norm, model.width)
        blocks = []
        width = model.width
        for stage, depth in enumerate(model.blocks):
            outputs = model.width * 2**stage
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(width, outputs, stride, model.norm))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the spatial means of the last stage."""
        maps: torch.Tensor = self.blocks(F.relu(self.norm(self.stem(x))))
        return maps.mean((-2, -1))
