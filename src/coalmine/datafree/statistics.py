"""Batch norm layers as witnesses: the statistics of what flows into them, beside those that they remember."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn


class Moments(NamedTuple):
    """Mean and (biased) variance of each channel, (channel,)."""

    mean: torch.Tensor
    variance: torch.Tensor


def moments(x: torch.Tensor) -> Moments:
    """Return the statistics of feature maps (image, channel, height, width)."""
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return Moments(mean, variance)


def running(network: nn.Module) -> list[Moments]:
    """Return what the network's batch norm layers remember of the private data, layer by layer."""
    found = []
    for layer in norms(network):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        found.append(Moments(layer.running_mean, layer.running_var))
    return found


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the batch norm layers of a network in order."""
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


class Inputs:
    """Sees what flows into the batch norm layers of a network, when asked to."""

    def __init__(self, network: nn.Module) -> None:
        self._maps: list[torch.Tensor] | None = None
        for layer in norms(network):
            layer.register_forward_pre_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self._maps is not None:
            self._maps.append(inputs[0])

    @contextmanager
    def seen(self, *, wanted: bool) -> Iterator[list[torch.Tensor]]:
        """Yield a list that fills with the inputs (image, channel, height, width) of each layer, if they are wanted."""
        maps: list[torch.Tensor] = []
        self._maps = maps if wanted else None
        try:
            yield maps
        finally:
            self._maps = None


def instance_means(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return each image's spatial means in all layers, one after the other: (image, sum of channels)."""
    return torch.cat([each.mean((2, 3)) for each in maps], dim=1)


class History:
    """A moving average of the statistics of finished batches, so that all images together match, not each batch.

    Fast-Datafree blends a batch's statistics with those of the batches before: ``momentum * before + (1 - momentum) *
    own``. The first batch stands for itself.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.before: list[Moments] = []

    def blend(self, own: Sequence[Moments]) -> list[Moments]:
        """Return the statistics of a batch together with the batches before it."""
        if not self.before:
            return list(own)
        return [
            Moments(*(torch.lerp(now, past, self.momentum) for now, past in zip(layer, earlier, strict=True)))
            for layer, earlier in zip(own, self.before, strict=True)
        ]

    def add(self, own: Sequence[Moments]) -> None:
        """Take in a finished batch."""
        if self.momentum:
            self.before = [Moments(layer.mean.detach(), layer.variance.detach()) for layer in self.blend(own)]

    def state(self) -> dict[str, torch.Tensor]:
        """Return the average by name."""
        return {f"{i}/{name}": tensor for i, own in enumerate(self.before) for name, tensor in own._asdict().items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up what ``state`` returned."""
        layers = range(len(state) // len(Moments._fields))
        self.before = [Moments(*(state[f"{i}/{name}"] for name in Moments._fields)) for i in layers]
