"""Small networks for the demo: seconds of training on one CPU thread."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from coalmine.models import settings
from coalmine.models.layers import Classifier, conv3x3, normaliser


class SmallNet(Classifier):
    """Two blocks of [3x3 convolution with stride 2, norm, ReLU], one hidden layer with ReLU, head.

    On a CPU the stride is worth it: pooling costs as much time there as the convolutions do.
    """

    def __init__(self, model: settings.SmallNet, channels: int, image_size: int, classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, model.width, stride=2, bias=model.norm == "none")
        self.norm1 = normaliser(model.norm, model.width)
        self.conv2 = conv3x3(model.width, 2 * model.width, stride=2, bias=model.norm == "none")
        self.norm2 = normaliser(model.norm, 2 * model.width)
        self.hidden = nn.Linear(2 * model.width * math.ceil(image_size / 4) ** 2, model.hidden)
        self.head = nn.Linear(model.hidden, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the hidden layer's activations."""
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = x.movedim(1, -1).flatten(1)  # channels last, as they lie in memory: a copy here costs 8% of a step
        return F.relu(self.hidden(x))


class MLP(Classifier):
    """Hidden linear layers with ReLU on the flattened pixels, then the head."""

    def __init__(self, model: settings.MLP, channels: int, image_size: int, classes: int) -> None:
        super().__init__()
        sizes = (channels * image_size**2, *model.hidden)
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last hidden layer's activations."""
        x = x.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return x
