"""The ConvNet of the dataset-distillation papers."""

from __future__ import annotations

import torch
from torch import nn

from coalmine.models import settings
from coalmine.models.layers import Classifier, conv3x3, normaliser


class ConvNet(Classifier):
    """Blocks of [3x3 convolution with bias, norm, ReLU, 2x2 average pooling], flattened into the head."""

    def __init__(self, model: settings.ConvNet, channels: int, image_size: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in range(model.depth):
            inputs = channels if block == 0 else model.width
            layers += [conv3x3(inputs, model.width, bias=True), normaliser(model.norm, model.width)]
            layers += [nn.ReLU(), nn.AvgPool2d(2)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(model.width * (image_size // 2**model.depth) ** 2, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last block's feature maps, flattened."""
        maps: torch.Tensor = self.layers(x)
        return maps.movedim(1, -1).flatten(1)  # channels last, as they lie in memory
