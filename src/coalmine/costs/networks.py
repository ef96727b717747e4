"""The size of a network in closed form: multiply-adds, weights, activations and layers. Imports no torch.

Multiply-adds are those of convolutions, linear layers and attention; norms and activations have next to none, but are
calls of their own, and so count as layers. Tests hold every number against PyTorch's own networks and its counter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from coalmine.costs.work import ImageGenerator, StableDiffusion
from coalmine.diffusion.settings import UNet
from coalmine.errors import CoalmineError
from coalmine.models.settings import MLP, ConvNet, ResNet, SmallNet, WideResNet


@dataclass
class Network:
    """The size of a network for images of one kind.

    Attributes:
        operations: multiply-adds of one forward pass of one image.
        weights: learned numbers.
        statistics: running ones, which are part of the file, too.
        activations: numbers that layers put out for one image, those that a backward pass needs.
        largest: numbers that one layer puts out at most.
        layers: calls of an operation in one forward pass.
        tensors: of weights.
    """

    operations: float = 0.0
    weights: int = 0
    statistics: int = 0
    activations: float = 0.0
    largest: float = 0.0
    layers: int = 0
    tensors: int = 0

    def conv(self, inputs: int, outputs: int, side: int, kernel: int = 3, *, bias: bool = False) -> None:
        """Add a convolution whose output has ``side`` pixels a side."""
        self._weigh(inputs * outputs * kernel**2, outputs if bias else 0)
        self._compute(inputs * outputs * kernel**2 * side**2, outputs * side**2)

    def linear(self, inputs: int, outputs: int, *, positions: int = 1, bias: bool = True) -> None:
        """Add a linear layer at so many positions."""
        self._weigh(inputs * outputs, outputs if bias else 0)
        self._compute(inputs * outputs * positions, outputs * positions)

    def norm(self, kind: str, channels: int, side: int) -> None:
        """Add a norm with scale and offset; none if ``kind`` says so."""
        if kind == "none":
            return
        self._weigh(channels, channels)
        self.statistics += 2 * channels if kind == "batch" else 0
        self._compute(0, channels * side**2)

    def pointwise(self, outputs: int) -> None:
        """Add an activation, a pooling or a sum with so many outputs."""
        self._compute(0, outputs)

    def product(self, operations: int, outputs: int) -> None:
        """Add a product of two inputs, as in attention."""
        self._compute(operations, outputs)

    def _weigh(self, *sizes: int) -> None:
        self.weights += sum(sizes)
        self.tensors += sum(size > 0 for size in sizes)

    def _compute(self, operations: float, outputs: int) -> None:
        self.operations += operations
        self.activations += outputs
        self.largest = max(self.largest, outputs)
        self.layers += 1


@lru_cache(maxsize=256)
def network(own: Any, channels: int, side: int, classes: int) -> Network:
    """Return the size of a network.

    Args:
        own: settings of a classifier or a U-Net, or a tuple of ``coalmine.costs.work``.
        channels: of an image.
        side: its height and width in pixels.
        classes: number of classes.
    """
    known: dict[type, Callable[..., Network]] = {
        ResNet: _resnet, WideResNet: _wide_resnet, ConvNet: _convnet, SmallNet: _small_net, MLP: _mlp,
        UNet: _unet, ImageGenerator: _image_generator, StableDiffusion: _stable_diffusion,
    }  # fmt: skip
    count = known.get(type(own))
    if count is None:
        raise CoalmineError(
            f"The arithmetic of a {type(own).__name__} is not known; add it to src/coalmine/costs/networks.py."
        )
    return count(own, channels, side, classes)


def _resnet(own: ResNet, channels: int, side: int, classes: int) -> Network:
    net, width = Network(), own.width
    net.conv(channels, width, side)
    net.norm(own.norm, width, side)
    net.pointwise(width * side**2)
    for stage, depth in enumerate(own.blocks):
        outputs = own.width * 2**stage
        for block in range(depth):
            side = math.ceil(side / 2) if stage > 0 and block == 0 else side
            net.conv(width, outputs, side)
            net.norm(own.norm, outputs, side)
            net.pointwise(outputs * side**2)
            net.conv(outputs, outputs, side)
            net.norm(own.norm, outputs, side)
            if (stage > 0 and block == 0) or width != outputs:
                net.conv(width, outputs, side, kernel=1)
                net.norm(own.norm, outputs, side)
            net.pointwise(outputs * side**2)
            net.pointwise(outputs * side**2)
            width = outputs
    net.pointwise(width)
    net.linear(width, classes)
    return net


def _wide_resnet(own: WideResNet, channels: int, side: int, classes: int) -> Network:
    net, width = Network(), 16

    def conv(inputs: int, outputs: int, at: int, kernel: int = 3) -> None:
        net.conv(inputs, outputs, at, kernel, bias=own.bias)
        if own.weight_standardisation:
            net.weights += outputs
            net.tensors += 1
            net.pointwise(0)

    def activate(features: int, at: int) -> None:
        net.norm(own.norm, features, at)
        net.pointwise(features * at**2)

    conv(channels, width, side)
    for stage in range(3):
        outputs = 16 * own.widen * 2**stage
        for block in range((own.depth - 4) // 6):
            strided = stage > 0 and block == 0
            after = math.ceil(side / 2) if strided else side
            between = after if own.downsample == "first" else side
            activate(width, side)
            conv(width, outputs, between)
            activate(outputs, between)
            conv(outputs, outputs, after)
            if width != outputs or strided:
                if own.order == "relu-norm":
                    activate(width, side)
                conv(width, outputs, after, kernel=1)
            net.pointwise(outputs * after**2)
            width, side = outputs, after
    activate(width, side)
    net.pointwise(width)
    net.linear(width, classes)
    return net


def _convnet(own: ConvNet, channels: int, side: int, classes: int) -> Network:
    net, inputs = Network(), channels
    for _ in range(own.depth):
        net.conv(inputs, own.width, side, bias=True)
        net.norm(own.norm, own.width, side)
        net.pointwise(own.width * side**2)
        side, inputs = side // 2, own.width
        net.pointwise(own.width * side**2)
    net.linear(own.width * side**2, classes)
    return net


def _small_net(own: SmallNet, channels: int, side: int, classes: int) -> Network:
    net, inputs = Network(), channels
    for outputs in (own.width, 2 * own.width):
        side = math.ceil(side / 2)
        net.conv(inputs, outputs, side, bias=own.norm == "none")
        net.norm(own.norm, outputs, side)
        net.pointwise(outputs * side**2)
        inputs = outputs
    net.linear(inputs * side**2, own.hidden)
    net.pointwise(own.hidden)
    net.linear(own.hidden, classes)
    return net


def _mlp(own: MLP, channels: int, side: int, classes: int) -> Network:
    net, inputs = Network(), channels * side**2
    for outputs in own.hidden:
        net.linear(inputs, outputs)
        net.pointwise(outputs)
        inputs = outputs
    net.linear(inputs, classes)
    return net


def _unet(own: UNet, channels: int, side: int, classes: int) -> Network:
    """Count ``diffusers.UNet2DModel`` as ``coalmine.diffusion.network`` builds it."""
    widths = [own.width * multiplier for multiplier in own.multipliers]
    net, first, told = Network(), widths[0], 4 * widths[0]

    def block(inputs: int, outputs: int, at: int) -> None:
        net.norm("group", inputs, at)
        net.pointwise(inputs * at**2)
        net.conv(inputs, outputs, at, bias=True)
        net.linear(told, outputs)
        net.pointwise(outputs * at**2)
        net.norm("group", outputs, at)
        net.pointwise(outputs * at**2)
        net.conv(outputs, outputs, at, bias=True)
        if inputs != outputs:
            net.conv(inputs, outputs, at, kernel=1, bias=True)
        net.pointwise(outputs * at**2)

    def attend(width: int, at: int) -> None:
        positions = at**2
        net.norm("group", width, at)
        for _ in range(4):  # queries, keys, values and what leaves
            net.linear(width, width, positions=positions)
        net.product(positions**2 * width, positions**2)
        net.product(positions**2 * width, positions * width)

    net.conv(channels, first, side, bias=True)
    net.linear(first, told)
    net.linear(told, told)
    net.weights += (classes + 1) * told
    net.tensors += 1
    inputs, skips = first, [first]
    for level, width in enumerate(widths):
        for _ in range(own.blocks):
            block(inputs, width, side)
            inputs = width
            if level in own.attention:
                attend(width, side)
            skips.append(width)
        if level + 1 < len(widths):
            side //= 2
            net.conv(width, width, side, bias=True)
            skips.append(width)
    block(inputs, inputs, side)
    if own.attention:
        attend(inputs, side)
    block(inputs, inputs, side)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(own.blocks + 1):
            block(inputs + skips.pop(), width, side)
            inputs = width
            if level in own.attention:
                attend(width, side)
        if level:
            side *= 2
            net.conv(width, width, side, bias=True)
    net.norm("group", first, side)
    net.pointwise(first * side**2)
    net.conv(first, channels, side, bias=True)
    return net


def _image_generator(own: ImageGenerator, channels: int, side: int, classes: int) -> Network:
    net, width, quarter = Network(), 2 * own.width, side // 4
    net.linear(own.latent, width * quarter**2)
    net.norm("group", width, quarter)
    for outputs, at in ((width, side // 2), (own.width, side)):
        net.pointwise(width * at**2)
        net.conv(width, outputs, at)
        net.norm("group", outputs, at)
        net.pointwise(outputs * at**2)
    net.conv(own.width, channels, side, bias=True)
    net.pointwise(channels * side**2)
    return net


_STABLE_DIFFUSION = {
    "unet": (401.6e9, 859_520_964, 700),
    "encoder": (558.3e9, 34_163_592, 110),
    "decoder": (1257.3e9, 49_490_179, 140),
}
"""Multiply-adds at 512x512 pixels, weights and layers of the parts of Stable Diffusion 1.5, by PyTorch's counter."""

_LORA_WEIGHTS_BY_RANK = 199_296
"""Of low-rank changes of the U-Net's attention: 797,184 at rank 4, the size of diffusers' files."""


def _stable_diffusion(own: StableDiffusion, channels: int, side: int, classes: int) -> Network:
    """Count by pixels: attention grows faster, so that at 256x256 the U-Net has 90.1e9 multiply-adds, 10% fewer."""
    operations, weights, layers = _STABLE_DIFFUSION[own.part]
    scale = (own.resolution / 512) ** 2
    # Of layers of mean width 640 at mean resolution 32x32, as a rule of thumb.
    layer = 640 * 1024 * scale
    return Network(operations * scale, weights, 0, layers * layer, 4 * layer, layers, 686)


def lora_weights(rank: int) -> int:
    """Return how many weights the low-rank changes of Stable Diffusion's attention have."""
    return _LORA_WEIGHTS_BY_RANK * rank
